//! One file for each command: it reads its arguments, has the work done, and prints.
