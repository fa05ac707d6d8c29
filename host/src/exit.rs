//! Exit codes: one table, stable, tested, and printed by `--help`.
//!
//! Scripts branch on these numbers. The code that fails gives the failure a meaning ([`Exit`]), and
//! only the outermost layer turns the meaning into a number. Three tables do that: `exec` passes
//! the guest's own codes through and must not use them itself, `probe` answers a question, and
//! every other command names the phase that failed.

use std::fmt::Write as _;

/// What the outcome of a command means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything was done and proven.
    Success,
    /// A defect of this program, or a fault of this machine, without a code of its own.
    Internal,
    /// The command line is wrong, or asks for something impossible.
    Usage,
    /// The snapshot or the image is missing, damaged, or made for something newer.
    Artifact,
    /// The VMM's version is unknown, or is known to be unable to do this.
    Version,
    /// The VMM could not be started, or refused to load or run the machine.
    Start,
    Guest,
    /// A hook in the guest failed.
    Hooks,
    /// The VMM process ended unexpectedly.
    VmmEnded,
    Deadline,
    /// The reader of standard output closed it.
    OutputClosed,
    /// A command in the guest was found but cannot be run.
    NotRunnable,
    /// A command in the guest was not found.
    NotFound,
}

/// Which numbers a command uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// Every command but the two below.
    General,
    /// `probe`: as `pg_isready`.
    Probe,
    /// `exec`: as shells and container tools.
    Exec,
}

impl Table {
    pub(crate) const fn code(self, exit: Exit) -> u8 {
        match self {
            Self::General => general_code(exit),
            Self::Probe => probe_code(exit),
            Self::Exec => exec_code(exit),
        }
    }

    /// The table that ends the command's `--help`.
    pub(crate) fn help(self) -> String {
        let mut text = String::from("\nExit codes:\n");
        for (code, meaning) in self.rows() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {code:<8}{meaning}");
        }
        text
    }

    const fn rows(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::General => &GENERAL_ROWS,
            Self::Probe => &PROBE_ROWS,
            Self::Exec => &EXEC_ROWS,
        }
    }
}

const fn general_code(exit: Exit) -> u8 {
    match exit {
        Exit::Success => 0,
        Exit::Internal => 1,
        Exit::Usage => 2,
        Exit::Artifact => 3,
        Exit::Version => 4,
        Exit::Start => 5,
        Exit::Guest | Exit::NotRunnable | Exit::NotFound => 6,
        Exit::Hooks => 7,
        Exit::VmmEnded => 8,
        Exit::Deadline => 124,
        Exit::OutputClosed => 141,
    }
}

const fn probe_code(exit: Exit) -> u8 {
    match exit {
        Exit::Success => 0,
        Exit::Guest | Exit::Hooks | Exit::NotRunnable | Exit::NotFound => 1,
        Exit::Usage => 3,
        Exit::OutputClosed => 141,
        Exit::Internal
        | Exit::Artifact
        | Exit::Version
        | Exit::Start
        | Exit::VmmEnded
        | Exit::Deadline => 2,
    }
}

const fn exec_code(exit: Exit) -> u8 {
    match exit {
        Exit::Success => 0,
        Exit::Deadline => 124,
        Exit::NotRunnable => 126,
        Exit::NotFound => 127,
        Exit::OutputClosed => 141,
        Exit::Internal
        | Exit::Usage
        | Exit::Artifact
        | Exit::Version
        | Exit::Start
        | Exit::Guest
        | Exit::Hooks
        | Exit::VmmEnded => 125,
    }
}

const GENERAL_ROWS: [(&str, &str); 11] = [
    ("0", "done, and proven"),
    ("1", "a defect of host-tool, or a fault of this machine"),
    ("2", "wrong usage, or a name that is in use or unknown"),
    ("3", "artifact: a file is missing, damaged or too new"),
    (
        "4",
        "version: the VMM's version is unknown or cannot do this",
    ),
    (
        "5",
        "spawn or load: the VMM did not start or refused the machine",
    ),
    ("6", "rebind or probe: the guest refused"),
    ("7", "hooks: a hook in the guest failed"),
    ("8", "the VMM process ended"),
    ("124", "the --timeout passed"),
    ("141", "standard output was closed"),
];

const PROBE_ROWS: [(&str, &str); 5] = [
    ("0", "ready"),
    ("1", "refusing: the guest answers, but is not ready"),
    ("2", "no answer"),
    ("3", "bad arguments"),
    ("141", "standard output was closed"),
];

const EXEC_ROWS: [(&str, &str); 7] = [
    ("N", "the command's own exit code"),
    (
        "124",
        "the --timeout passed, at which the guest ends the command",
    ),
    (
        "125",
        "host-tool or the connection failed; the message says whether it ran",
    ),
    ("126", "the command was found but cannot be run"),
    ("127", "the command was not found"),
    ("128+N", "the command was ended by signal N"),
    (
        "141",
        "standard output was closed, and the command was ended",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Exit; 13] = [
        Exit::Success,
        Exit::Internal,
        Exit::Usage,
        Exit::Artifact,
        Exit::Version,
        Exit::Start,
        Exit::Guest,
        Exit::Hooks,
        Exit::VmmEnded,
        Exit::Deadline,
        Exit::OutputClosed,
        Exit::NotRunnable,
        Exit::NotFound,
    ];

    /// These numbers are a promise: a change here breaks scripts.
    #[test]
    fn the_numbers_are_stable() {
        let codes = |table: Table| ALL.map(|exit| table.code(exit));
        assert_eq!(
            codes(Table::General),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 124, 141, 6, 6]
        );
        assert_eq!(
            codes(Table::Probe),
            [0, 2, 3, 2, 2, 2, 1, 1, 2, 2, 141, 1, 1]
        );
        assert_eq!(
            codes(Table::Exec),
            [
                0, 125, 125, 125, 125, 125, 125, 125, 125, 124, 141, 126, 127
            ]
        );
    }

    #[test]
    fn help_lists_every_number_that_can_occur() {
        for table in [Table::General, Table::Probe, Table::Exec] {
            let listed = |code: u8| table.rows().iter().any(|row| row.0 == code.to_string());
            for exit in ALL {
                let code = table.code(exit);
                assert!(
                    listed(code) || (table == Table::Exec && code == 0),
                    "{table:?} {code}"
                );
            }
        }
        assert!(Table::Exec.help().starts_with("\nExit codes:\n  N "));
    }
}
