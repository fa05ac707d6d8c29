//! How a VMM and a workload ended, as files have it.

use std::fmt;

use serde_json::{Value, json};
use shared::json::{JsonError, Object};
use shared::message::{ExitStatus, Fault};

/// The end of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitRecord {
    /// The exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// ms since 1970 UTC.
    pub(crate) ended_ms: u64,
}

impl ExitRecord {
    pub(crate) fn is_clean(&self) -> bool {
        self.code == Some(0)
    }

    /// As in the file and in `inspect`.
    pub(crate) fn to_value(self) -> Value {
        json!({ "code": self.code, "signal": self.signal, "ended_ms": self.ended_ms })
    }

    pub(crate) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            code: object.opt_number("code")?,
            signal: object.opt_number("signal")?,
            ended_ms: object.number("ended_ms")?,
        })
    }
}

impl fmt::Display for ExitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// The end of the workload that the image names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkloadEnd {
    /// Of its last process.
    pub(crate) status: ExitStatus,
    /// What the guest has cut or lost of it.
    pub(crate) fault: Option<Fault>,
    /// How often it was restarted; `None` if the guest did not answer in time.
    pub(crate) restarts: Option<u32>,
    /// When the host learned of it, ms since 1970 UTC.
    pub(crate) ended_ms: u64,
}

impl WorkloadEnd {
    /// As in the file and in `inspect`.
    pub(crate) fn to_value(self) -> Value {
        let (code, signal, core) = match self.status {
            ExitStatus::Code(code) => (Some(code), None, false),
            ExitStatus::Signal { number, core } => (None, Some(number), core),
        };
        json!({
            "code": code,
            "signal": signal,
            "core": core,
            "fault": self.fault.map(|fault| fault.to_value()),
            "restarts": self.restarts,
            "ended_ms": self.ended_ms,
        })
    }

    pub(crate) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            status: ExitStatus::from_object(object)?,
            fault: Fault::opt_of(object)?,
            restarts: object.opt_number("restarts")?,
            ended_ms: object.number("ended_ms")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use shared::message::FaultPart;

    use super::*;

    #[test]
    fn an_end_survives_its_file() {
        for (code, signal, text) in [(Some(0), None, "exit code 0"), (None, Some(9), "signal 9")] {
            let exit = ExitRecord {
                code,
                signal,
                ended_ms: 1,
            };
            let bytes = exit.to_value().to_string();
            let object = Object::parse(bytes.as_bytes()).unwrap();
            assert_eq!(ExitRecord::from_object(&object).unwrap(), exit);
            assert_eq!(
                (exit.to_string().as_str(), exit.is_clean()),
                (text, code == Some(0))
            );
        }
    }

    #[test]
    fn the_end_of_a_workload_survives_its_file() {
        let signal = ExitStatus::Signal {
            number: 11,
            core: true,
        };
        let fault = Fault {
            part: FaultPart::Stdout,
            offset: 9,
            errno: 5,
        };
        for (status, fault, restarts) in [
            (ExitStatus::Code(0), None, None),
            (signal, Some(fault), Some(3)),
        ] {
            let end = WorkloadEnd {
                status,
                fault,
                restarts,
                ended_ms: 1,
            };
            let bytes = end.to_value().to_string();
            let object = Object::parse(bytes.as_bytes()).unwrap();
            assert_eq!(WorkloadEnd::from_object(&object).unwrap(), end);
        }
    }
}
