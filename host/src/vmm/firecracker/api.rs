//! Calls over Firecracker's API socket: one request, then its response, on a kept connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::debug;
use serde_json::Value;

use super::requests::Call;
use crate::os::deadline::{WaitError, Watch};
use crate::vmm::VmmError;
use crate::vmm::firecracker::http::{Response, encode_request, parse_response};

/// How often a long call reports in while its answer is awaited.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// The client's end of the API socket.
#[derive(Debug)]
pub(super) struct Api {
    stream: UnixStream,
    process: Option<OwnedFd>,
    /// Received and not yet part of a response.
    received: Vec<u8>,
    /// Each request was answered, and nothing more was.
    is_in_step: bool,
}

impl Api {
    pub(super) const fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self {
            stream,
            process,
            received: Vec::new(),
            is_in_step: true,
        }
    }

    /// Whether what comes next is the answer to the next call. An answer that came late, or was not
    /// understood to its end, would be taken for it.
    pub(super) const fn is_in_step(&self) -> bool {
        self.is_in_step && self.received.is_empty()
    }

    /// Sends `call` and waits for its answer, whose body is returned if it says yes. `report` is
    /// called now and then meanwhile.
    pub(super) fn call(
        &mut self,
        call: &Call,
        deadline: Instant,
        report: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, VmmError> {
        let body = call.body.as_ref().map(Value::to_string);
        let bytes = encode_request(call.method, call.path, body.as_deref());
        debug!("{} {}", call.name(), body.unwrap_or_default());
        self.is_in_step = false;
        self.send(&bytes, call, deadline)?;
        let response = self.receive(call, deadline, report)?;
        self.is_in_step = true;
        debug!("{} answered {}", call.name(), response.status);
        match response.status {
            200..300 => Ok(response.body),
            status => Err(refused(call, status, &response.body)),
        }
    }

    fn send(&mut self, mut bytes: &[u8], call: &Call, deadline: Instant) -> Result<(), VmmError> {
        let Self {
            stream, process, ..
        } = self;
        let watch = Watch::with_process(deadline, process.as_ref().map(AsFd::as_fd));
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    watch
                        .writable(&*stream)
                        .map_err(|err| wait_failed(call, err))?;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                // The server may have answered (and closed) before it had read all of it.
                Err(err) if is_hangup(&err) => return Ok(()),
                Err(source) => {
                    return Err(VmmError::Transfer {
                        request: call.name(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        call: &Call,
        deadline: Instant,
        report: &mut dyn FnMut(),
    ) -> Result<Response, VmmError> {
        let Self {
            stream,
            process,
            received,
            ..
        } = self;
        let watch = Watch::with_process(deadline, process.as_ref().map(AsFd::as_fd));
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(VmmError::Gone {
                        request: call.name(),
                    });
                }
                Ok(len) => received.extend_from_slice(&chunk[..len]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    let is_ready = watch.readable_within(&*stream, REPORT_EVERY);
                    if !is_ready.map_err(|err| wait_failed(call, err))? {
                        report();
                    }
                    continue;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) if is_hangup(&err) => {
                    return Err(VmmError::Gone {
                        request: call.name(),
                    });
                }
                Err(source) => {
                    return Err(VmmError::Transfer {
                        request: call.name(),
                        source,
                    });
                }
            }
            match parse_response(received) {
                Ok(None) => {}
                Ok(Some((response, len))) => {
                    received.drain(..len);
                    return Ok(response);
                }
                Err(source) => return Err(VmmError::answer(&call.name(), source)),
            }
        }
    }
}

fn is_hangup(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn wait_failed(call: &Call, err: WaitError) -> VmmError {
    let request = call.name();
    match err {
        WaitError::Deadline => VmmError::Deadline { request },
        WaitError::ProcessExited => VmmError::Gone { request },
        WaitError::Io(source) => VmmError::Transfer { request, source },
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

/// The `fault_message` of an error body, or the body itself where it is something else.
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

/// Says whether Firecracker's words for a failed load are about the snapshot's files.
///
/// The words are those of 1.10 to 1.16. An error of the host in reading a file (no permission, no
/// memory, too many open files) is about the host although a file is named.
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
    ARTIFACT.iter().any(|words| message.contains(words))
        && !HOST.iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blame_for_a_failed_load() {
        let load = "Load snapshot error: Failed to restore from snapshot: ";
        for (words, is_artifact_fault) in [
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
                blames_artifact(&format!("{load}{words}")),
                is_artifact_fault,
                "{words}"
            );
        }
    }

    #[test]
    fn a_body_without_a_fault_message_speaks_for_itself() {
        assert_eq!(fault_message(br#"{"fault_message":"no"}"#), "no");
        assert_eq!(fault_message(b"what?"), "what?");
        assert_eq!(
            fault_message(br#"{"fault_message":1}"#),
            r#"{"fault_message":1}"#
        );
        assert_eq!(fault_message(b""), "");
    }
}
