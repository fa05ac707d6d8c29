//! What a command did, for people and for scripts: its record, its time line, lists and progress.
