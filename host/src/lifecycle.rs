//! A VM from a plan to a proven guest, to a snapshot, to its end.
