//! One QMP session: negotiation, commands with their answers, and the events in between.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde_json::Value;

use super::qmp::{Event, Message, encode_command, take_message};
use crate::os::deadline::{WaitError, Watch};
use crate::vmm::VmmError;

/// Events kept for whoever waits for one. Nothing that is waited for comes in such numbers; the
/// oldest go first.
const EVENTS_MAX: usize = 256;

/// The client's end of a QMP socket.
#[derive(Debug)]
pub(super) struct Session {
    stream: UnixStream,
    process: Option<OwnedFd>,
    /// Received and not yet part of a message.
    received: Vec<u8>,
    events: VecDeque<Event>,
    /// The greeting was answered, so that commands are taken.
    is_ready: bool,
    last_id: u64,
    is_in_step: bool,
}

impl Session {
    pub(super) const fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self {
            stream,
            process,
            received: Vec::new(),
            events: VecDeque::new(),
            is_ready: false,
            last_id: 0,
            is_in_step: true,
        }
    }

    /// Whether what comes next can be understood. An answer that comes late is told by its number.
    pub(super) const fn is_in_step(&self) -> bool {
        self.is_in_step
    }

    /// Runs a command, with a descriptor for QEMU on the way if one is given.
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

    /// Takes note of an error behind which nothing can be understood any more.
    fn note<T>(&mut self, result: Result<T, VmmError>) -> Result<T, VmmError> {
        self.is_in_step &= match &result {
            Ok(_) | Err(VmmError::Refused { .. }) => true,
            Err(VmmError::Deadline { .. }) => self.is_ready,
            Err(_) => false,
        };
        result
    }

    /// The next event, in the order in which QEMU sent them. `None` if none came within `slice`.
    /// `command` is what the caller waits for, to be named in errors.
    pub(super) fn next_event(
        &mut self,
        command: &str,
        slice: Option<Duration>,
        deadline: Instant,
    ) -> Result<Option<Event>, VmmError> {
        let slice_end = slice.map(|slice| Instant::now() + slice);
        loop {
            if let Some(event) = self.events.pop_front() {
                // Whoever waits for one takes no other, however many there are.
                not_after(deadline, command)?;
                return Ok(Some(event));
            }
            let slice = slice_end.map(|end| end.saturating_duration_since(Instant::now()));
            let message = self.next_message(command, slice, deadline);
            match self.note(message)? {
                None => return Ok(None),
                Some(message) => self.keep_event(message),
            }
        }
    }

    /// Sends a command if the socket takes it now; what becomes of it is not looked at.
    pub(super) fn send_and_forget(&mut self, command: &str) {
        self.last_id += 1;
        let line = encode_command(command, None, self.last_id);
        if let Err(err) = self.send(&line, None, command, Instant::now()) {
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
        self.send(&line, fd, command, deadline)?;
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
                // The late answer to a command that was given up on.
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

    /// The descriptor goes with the first byte, which is how QEMU pairs it with the command.
    fn send(
        &mut self,
        mut line: &[u8],
        mut fd: Option<BorrowedFd<'_>>,
        command: &str,
        deadline: Instant,
    ) -> Result<(), VmmError> {
        let Self {
            stream, process, ..
        } = self;
        let watch = Watch::with_process(deadline, process.as_ref().map(AsFd::as_fd));
        while !line.is_empty() {
            let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let control = if fds.is_empty() { &[] } else { &rights[..] };
            let iov = [IoSlice::new(line)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(stream.as_raw_fd(), &iov, control, flags, None) {
                Ok(len) => {
                    line = &line[len..];
                    fd = None;
                }
                Err(Errno::EAGAIN) => {
                    watch
                        .writable(&*stream)
                        .map_err(|err| wait_failed(command, err))?;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => {
                    return Err(VmmError::Gone {
                        request: command.to_owned(),
                    });
                }
                Err(errno) => return Err(transfer_failed(command, errno.into())),
            }
        }
        Ok(())
    }

    /// The next message. `None` if `slice` is given and none came within it.
    fn next_message(
        &mut self,
        command: &str,
        slice: Option<Duration>,
        deadline: Instant,
    ) -> Result<Option<Message>, VmmError> {
        let Self {
            stream,
            process,
            received,
            ..
        } = self;
        let watch = Watch::with_process(deadline, process.as_ref().map(AsFd::as_fd));
        let slice_end = slice.map(|slice| Instant::now() + slice);
        let mut chunk = [0; 4096];
        loop {
            let message = take_message(received);
            if let Some(message) = message.map_err(|source| VmmError::answer(command, source))? {
                return Ok(Some(message));
            }
            match stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(VmmError::Gone {
                        request: command.to_owned(),
                    });
                }
                Ok(len) => received.extend_from_slice(&chunk[..len]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    let is_ready = match slice_end {
                        None => watch.readable(&*stream).map(|()| true),
                        Some(end) => {
                            let left = end.saturating_duration_since(Instant::now());
                            watch.readable_within(&*stream, left)
                        }
                    };
                    if !is_ready.map_err(|err| wait_failed(command, err))? {
                        return Ok(None);
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(VmmError::Gone {
                        request: command.to_owned(),
                    });
                }
                Err(source) => return Err(transfer_failed(command, source)),
            }
        }
    }
}

/// Ends a wait in which there is always something to read, and never what is waited for.
fn not_after(deadline: Instant, command: &str) -> Result<(), VmmError> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(wait_failed(command, WaitError::Deadline))
}

fn transfer_failed(command: &str, source: io::Error) -> VmmError {
    VmmError::Transfer {
        request: command.to_owned(),
        source,
    }
}

fn wait_failed(command: &str, err: WaitError) -> VmmError {
    let request = command.to_owned();
    match err {
        WaitError::Deadline => VmmError::Deadline { request },
        WaitError::ProcessExited => VmmError::Gone { request },
        WaitError::Io(source) => VmmError::Transfer { request, source },
    }
}
