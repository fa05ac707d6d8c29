//! One QMP session: negotiation, commands with their answers, and the events in between.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::debug;
use serde_json::Value;

use super::qmp::{Event, Message, encode_command, take_message};
use crate::os::deadline::WaitError;
use crate::vmm::VmmError;
use crate::vmm::stream::ApiStream;

/// Events kept until a caller waits for one. The oldest are dropped first; no caller waits for an
/// event that comes in such numbers.
const EVENTS_MAX: usize = 256;

/// The client's end of a QMP socket.
#[derive(Debug)]
pub(super) struct Session {
    stream: ApiStream,
    /// Received and not yet part of a message.
    received: Vec<u8>,
    events: VecDeque<Event>,
    /// The greeting was answered, so that QEMU accepts commands.
    is_ready: bool,
    last_id: u64,
    is_in_step: bool,
}

impl Session {
    pub(super) const fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self {
            stream: ApiStream::new(stream, process),
            received: Vec::new(),
            events: VecDeque::new(),
            is_ready: false,
            last_id: 0,
            is_in_step: true,
        }
    }

    /// See [`Vmm::is_in_step`](crate::vmm::Vmm::is_in_step). A late answer does no harm here: it
    /// has the number of its command.
    pub(super) const fn is_in_step(&self) -> bool {
        self.is_in_step
    }

    /// Runs a command, and passes `fd` to QEMU along with it.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<Value, VmmError> {
        let result = self
            .negotiate(deadline)
            .and_then(|()| self.exchange(command, arguments, fd, deadline));
        self.note(result)
    }

    /// Clears `is_in_step` after an error that leaves the conversation in an unknown state.
    fn note<T>(&mut self, result: Result<T, VmmError>) -> Result<T, VmmError> {
        self.is_in_step &= match &result {
            Ok(_) | Err(VmmError::Refused { .. }) => true,
            Err(VmmError::Deadline { .. }) => self.is_ready,
            Err(_) => false,
        };
        result
    }

    /// The next event, in QEMU's order. `None` if none came within `slice`. `command` names the
    /// call in errors.
    pub(super) fn next_event(
        &mut self,
        command: &str,
        slice: Option<Duration>,
        deadline: Instant,
    ) -> Result<Option<Event>, VmmError> {
        let slice_end = slice.map(|slice| Instant::now() + slice);
        loop {
            if let Some(event) = self.events.pop_front() {
                // The caller may skip this event and wait for another: a flood must not hold it.
                not_after(deadline, command)?;
                return Ok(Some(event));
            }
            let message = self.next_message(command, slice_end, deadline);
            match self.note(message)? {
                None => return Ok(None),
                Some(message) => self.keep_event(message),
            }
        }
    }

    /// Sends a command if the socket accepts it now, and does not wait for the answer.
    pub(super) fn send_without_answer(&mut self, command: &str) {
        self.last_id += 1;
        let line = encode_command(command, None, self.last_id);
        let sent = self.stream.send(&line, None, command, Instant::now());
        if let Err(err) = sent {
            debug!("{command} was not sent: {err}");
        }
    }

    fn negotiate(&mut self, deadline: Instant) -> Result<(), VmmError> {
        if self.is_ready {
            return Ok(());
        }
        const COMMAND: &str = "qmp_capabilities";
        match self.next_message(COMMAND, None, deadline)? {
            Some(Message::Greeting) => {}
            _ => {
                return Err(VmmError::answer(
                    COMMAND,
                    "the connection began without a greeting",
                ));
            }
        }
        self.exchange(COMMAND, None, None, deadline)?;
        self.is_ready = true;
        Ok(())
    }

    fn exchange(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<Value, VmmError> {
        self.last_id += 1;
        let sent_id = self.last_id;
        let line = encode_command(command, arguments, sent_id);
        debug!("{}", String::from_utf8_lossy(line.trim_ascii_end()));
        // QEMU pairs the descriptor with the command by its first byte.
        self.stream.send(&line, fd, command, deadline)?;
        loop {
            match self.next_message(command, None, deadline)? {
                Some(Message::Return { id, value }) if id == Some(sent_id) => return Ok(value),
                Some(Message::Error {
                    id,
                    class,
                    description,
                }) if id == Some(sent_id) || id.is_none() => {
                    return Err(VmmError::Refused {
                        request: command.to_owned(),
                        code: class,
                        message: description,
                        is_artifact_fault: false,
                    });
                }
                // A late answer to a command that timed out.
                Some(Message::Return { .. } | Message::Error { .. }) | None => {}
                Some(message @ (Message::Greeting | Message::Event(_))) => {
                    self.keep_event(message);
                }
            }
            not_after(deadline, command)?;
        }
    }

    fn keep_event(&mut self, message: Message) {
        let Message::Event(event) = message else {
            return;
        };
        debug!("event {} {}", event.name, event.data);
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next message. `None` if none came before `slice_end`.
    fn next_message(
        &mut self,
        command: &str,
        slice_end: Option<Instant>,
        deadline: Instant,
    ) -> Result<Option<Message>, VmmError> {
        loop {
            let message = take_message(&mut self.received);
            if let Some(message) = message.map_err(|source| VmmError::answer(command, source))? {
                return Ok(Some(message));
            }
            let slice = slice_end.map(|end| end.saturating_duration_since(Instant::now()));
            let received = &mut self.received;
            if !(self.stream).receive(received, slice, command, deadline)? {
                return Ok(None);
            }
        }
    }
}

/// Ends a wait in which messages keep coming, so that no read ever has to wait, and none is the one
/// that is waited for.
fn not_after(deadline: Instant, command: &str) -> Result<(), VmmError> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(VmmError::wait_failed(command, WaitError::Deadline))
}
