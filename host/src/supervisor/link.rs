//! What a command and the supervisor that it started say to each other: orders of one byte each
//! one way, and reports of one line each the other.

use serde_json::{Value, json};
use shared::json::{JsonError, Object};

use crate::os::process::ProcessId;
use crate::vmdir::state::ExitRecord;

/// What the command asks for. The end of the stream is an order, too: before [`Order::Keep`] it
/// ends the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The VM is in use; the command is done.
    Keep,
    /// The VM is in use; it ends when the command does.
    Attach,
    /// End the VM now. The command looks at what it left.
    End,
}

impl Order {
    /// The byte that stands for it.
    #[must_use]
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Keep => b'k',
            Self::Attach => b'a',
            Self::End => b'e',
        }
    }

    /// The order that a byte stands for.
    #[must_use]
    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'k' => Some(Self::Keep),
            b'a' => Some(Self::Attach),
            b'e' => Some(Self::End),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// The VMM was spawned. It may have ended since.
    Spawned { process: ProcessId },
    /// There is no VMM. Nothing comes after this.
    Failed { text: String },
    /// The VMM ended. Nothing comes after this.
    Ended { exit: ExitRecord },
}

impl Report {
    /// The line, without its end.
    #[must_use]
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Self::Spawned { process } => json!({ "spawned": process.to_value() }),
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
        Ok(Self::Failed {
            text: object.text("failed")?,
        })
    }
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
