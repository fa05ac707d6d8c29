//! Calls over Firecracker's API socket: one request, then its response, on a kept connection.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::debug;
use serde_json::Value;

use super::requests::Call;
use crate::vmm::VmmError;
use crate::vmm::firecracker::http::{encode_request, parse_response};
use crate::vmm::stream::ApiStream;

/// Time between two progress reports of a long call.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// The client's end of the API socket.
#[derive(Debug)]
pub(super) struct Api {
    stream: ApiStream,
    /// Received and not yet part of a response.
    received: Vec<u8>,
    /// Each request was answered.
    is_in_step: bool,
}

impl Api {
    pub(super) const fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self {
            stream: ApiStream::new(stream, process),
            received: Vec::new(),
            is_in_step: true,
        }
    }

    /// See [`Vmm::is_in_step`](crate::vmm::Vmm::is_in_step). HTTP does not number its answers: a
    /// late answer, or the rest of one, would be taken for that to the next call.
    pub(super) const fn is_in_step(&self) -> bool {
        self.is_in_step && self.received.is_empty()
    }

    /// Sends `call`, waits for its answer, and returns the answer's body if the call succeeded.
    /// Calls `report` now and then while it waits.
    pub(super) fn call(
        &mut self,
        call: &Call,
        deadline: Instant,
        report: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, VmmError> {
        let request = call.name();
        let body = call.body.as_ref().map(Value::to_string);
        let bytes = encode_request(call.method, &call.path, body.as_deref());
        debug!("{request} {}", body.unwrap_or_default());
        self.is_in_step = false;
        match self.stream.send(&bytes, None, &request, deadline) {
            // Firecracker may have answered, and closed, before it had read everything.
            Ok(()) | Err(VmmError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
        let response = loop {
            let parsed = parse_response(&self.received);
            if let Some((response, len)) =
                parsed.map_err(|source| VmmError::answer(&request, source))?
            {
                self.received.drain(..len);
                break response;
            }
            let received = &mut self.received;
            let slice = Some(REPORT_EVERY);
            if !(self.stream).receive(received, slice, &request, deadline)? {
                report();
            }
        };
        self.is_in_step = true;
        debug!("{request} answered {}", response.status);
        match response.status {
            200..300 => Ok(response.body),
            status => Err(refused(call, status, &response.body)),
        }
    }
}

fn refused(call: &Call, status: u16, body: &[u8]) -> VmmError {
    let message = fault_message(body);
    VmmError::Refused {
        request: call.name(),
        code: status.to_string(),
        is_artifact_fault: call.is_load() && blames_artifact(&message),
        message,
    }
}

/// The `fault_message` of an error body, or the whole body if it has none.
fn fault_message(body: &[u8]) -> String {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    match value
        .as_ref()
        .and_then(|value| value.get("fault_message"))
        .and_then(Value::as_str)
    {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).into_owned(),
    }
}

/// Whether Firecracker's message for a failed load blames the snapshot's files.
///
/// The messages are those of 1.10 to 1.16. A message with an error of the host (no permission, no
/// memory, too many open files) blames the host, although it is about a file.
fn blames_artifact(message: &str) -> bool {
    const ARTIFACT: [&str; 4] = [
        "snapshot state", // "Failed to get snapshot state from file", "Invalid snapshot state"
        "guest memory from file",
        "restore guest memory",
        "backing file", // a block device's image
    ];
    const HOST: [&str; 5] = [
        "Permission denied",
        "Operation not permitted",
        "Cannot allocate memory",
        "Too many open files",
        "Input/output error",
    ];
    ARTIFACT.iter().any(|text| message.contains(text))
        && !HOST.iter().any(|text| message.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_load_blames_the_artifact_or_the_host() {
        let load = "Load snapshot error: Failed to restore from snapshot: ";
        for (message, is_artifact_fault) in [
            (
                "Failed to get snapshot state from file: Failed to open snapshot file: No such \
                 file or directory (os error 2)",
                true,
            ),
            (
                "Failed to get snapshot state from file: Failed to load snapshot state from file: \
                 CRC64 validation failed",
                true,
            ),
            (
                "Failed to load guest memory: Error creating guest memory from file: Failed to \
                 load guest memory: No such file or directory (os error 2)",
                true,
            ),
            (
                "Failed to get snapshot state from file: Failed to open snapshot file: Permission \
                 denied (os error 13)",
                false,
            ),
            (
                "Failed to build microVM from snapshot: Failed to restore devices: Error restoring \
                 MMIO devices: VsockUnixBackend: Error binding to the host-side Unix socket: \
                 Address in use (os error 98)",
                false,
            ),
            (
                "Failed to build microVM from snapshot: Could not access KVM: 2",
                false,
            ),
        ] {
            assert_eq!(
                blames_artifact(&format!("{load}{message}")),
                is_artifact_fault,
                "{message}"
            );
        }
    }

    #[test]
    fn a_body_without_a_fault_message_is_the_message() {
        assert_eq!(fault_message(br#"{"fault_message":"no"}"#), "no");
        assert_eq!(fault_message(b"what?"), "what?");
        assert_eq!(
            fault_message(br#"{"fault_message":1}"#),
            r#"{"fault_message":1}"#
        );
        assert_eq!(fault_message(b""), "");
    }
}
