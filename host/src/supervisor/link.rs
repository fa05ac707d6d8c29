//! The pipes between a supervisor and the command that started it: orders of one byte each in one
//! direction, reports of one line each in the other.

use std::fs::OpenOptions;
use std::io::{self, Write};

use nix::unistd::{dup2_stdin, dup2_stdout};
use serde_json::{Value, json};
use shared::json::{JsonError, Object};

use crate::os::process::ProcessId;
use crate::vmdir::state::ExitRecord;

/// Sent by the command. The end of the stream is an order, too: before [`Order::Keep`] it ends the
/// VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The VM is released and outlives the command. Answered by [`Report::Published`].
    Keep,
    /// The VM is released and ends with the command. Answered by [`Report::Published`].
    Attach,
    /// End the VM now, and leave its directory to the command.
    End,
}

impl Order {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Keep => b'k',
            Self::Attach => b'a',
            Self::End => b'e',
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'k' => Some(Self::Keep),
            b'a' => Some(Self::Attach),
            b'e' => Some(Self::End),
            _ => None,
        }
    }
}

/// Sent by the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// The VMM was spawned. It may have ended since.
    Spawned { process: ProcessId },
    /// The VM's state is published: the VM is in use.
    Published,
    /// There is no VMM, or the VM's state cannot be published. This is the last report.
    Failed { text: String },
    /// The VMM ended. This is the last report.
    Ended { exit: ExitRecord },
}

impl Report {
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Self::Spawned { process } => json!({ "spawned": process.to_value() }),
            Self::Published => json!({ "published": true }),
            Self::Failed { text } => json!({ "failed": text }),
            Self::Ended { exit } => json!({ "ended": exit.to_value() }),
        }
    }

    pub(crate) fn parse(line: &[u8]) -> Result<Self, JsonError> {
        let object = Object::parse(line)?;
        if let Some(spawned) = object.opt_object("spawned")? {
            return Ok(Self::Spawned {
                process: ProcessId::from_object(&spawned)?,
            });
        }
        if let Some(ended) = object.opt_object("ended")? {
            return Ok(Self::Ended {
                exit: ExitRecord::from_object(&ended)?,
            });
        }
        if object.opt_flag("published")? {
            return Ok(Self::Published);
        }
        Ok(Self::Failed {
            text: object.text("failed")?,
        })
    }
}

/// Sends a report from the supervisor, whose standard output the pipe is.
pub(super) fn report(report: &Report) {
    let mut stdout = io::stdout().lock();
    // If the command has ended, no reader is left and the report is not needed.
    let _ = writeln!(stdout, "{}", report.to_value()).and_then(|()| stdout.flush());
}

/// Closes the supervisor's ends of both pipes: the command may be waiting for that.
pub(super) fn close() -> io::Result<()> {
    let mut options = OpenOptions::new();
    let null = options.read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_and_orders_survive_the_pipe() {
        for report in [
            Report::Spawned {
                process: ProcessId {
                    pid: 3,
                    start_time: 4,
                },
            },
            Report::Published,
            Report::Failed {
                text: "no\n".to_owned(),
            },
            Report::Ended {
                exit: ExitRecord {
                    code: None,
                    signal: Some(9),
                    ended_ms: 5,
                },
            },
        ] {
            let line = report.to_value().to_string();
            assert!(!line.contains('\n'));
            assert_eq!(Report::parse(line.as_bytes()).unwrap(), report);
        }
        for order in [Order::Keep, Order::Attach, Order::End] {
            assert_eq!(Order::from_byte(order.byte()), Some(order));
        }
        assert_eq!(Order::from_byte(b'\n'), None);
    }
}
