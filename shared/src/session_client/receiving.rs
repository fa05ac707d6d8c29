//! How a session's client handles the guest's frames.

use std::time::Instant;

use super::error::{Fate, SessionError};
use super::request::Request;
use super::sending::ANSWERS_LEN_MAX;
use super::timing::{LEAVE_MAX, SILENCE_FIRST};
use super::{SessionClient, State};
use crate::frame::Frame;
use crate::message::{
    Chunk, ExitAck, Exited, Fail, FailCode, Gap, Hello, Message, Role, SeverReason, Started, Stream,
};

/// What the guest sent, for the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The command runs, or the client is attached, for the first time.
    Started(Started),
    /// The client is attached again after a cut.
    Resumed(Started),
    /// Output of the command.
    Output {
        /// Which of its streams.
        stream: Stream,
        /// The stream's next bytes.
        bytes: &'a [u8],
    },
    /// Output that the guest no longer has.
    Gap(Gap),
    /// The guest is about to cut this connection. The driver need not react.
    Severed(SeverReason),
    /// The session ended, and all its output has come.
    Exited(Exited),
}

/// A received frame. Output is not copied.
enum Taken {
    Chunk {
        stream: Stream,
        offset: u64,
        len: usize,
    },
    Message(Message),
}

impl SessionClient {
    /// The next event, or `None` until more bytes come.
    pub fn poll_event(&mut self, now: Instant) -> Option<Event<'_>> {
        while matches!(
            self.state,
            State::Greeting { .. } | State::Waiting { .. } | State::Attached { .. }
        ) {
            let taken = match self.decoder.poll_frame() {
                Ok(None) => return None,
                Ok(Some(frame)) => take(frame),
                Err(error) => Err(error.to_string()),
            };
            let result = match taken {
                Ok(Taken::Message(message)) => self.handle_message(message, now),
                Ok(Taken::Chunk {
                    stream,
                    offset,
                    len,
                }) => match self.handle_chunk(stream, offset, len) {
                    Ok(()) if len > 0 => {
                        let bytes = self.decoder.payload(len);
                        return Some(Event::Output { stream, bytes });
                    }
                    result => result.map(|()| None),
                },
                Err(text) => Err(text),
            };
            match result {
                Ok(None) => {}
                Ok(event) => return event,
                Err(text) => {
                    let fate = self.fate;
                    self.finish(Err(SessionError::Protocol { text, fate }));
                }
            }
        }
        None
    }

    fn handle_message(
        &mut self,
        message: Message,
        now: Instant,
    ) -> Result<Option<Event<'static>>, String> {
        match (&self.state, message) {
            // FAIL and SEVER may come before HELLO: a guest without a common version may be unable
            // to send HELLO in ours, and it cuts connections that it has not read yet like others.
            (_, Message::Fail(fail)) => self.handle_fail(fail, now),
            (_, Message::Sever(sever)) => {
                self.is_shutting_down |= sever.reason == SeverReason::Shutdown;
                return Ok(Some(Event::Severed(sever.reason)));
            }
            (State::Greeting { .. }, Message::Hello(hello)) if hello.role == Role::Guest => {
                self.handle_hello(hello, now)?;
            }
            (State::Waiting { .. }, Message::Started(started)) if self.asks_for_a_start() => {
                return self.handle_started(started, now);
            }
            (State::Waiting { .. }, Message::Attached(started)) if !self.asks_for_a_start() => {
                return self.handle_started(started, now);
            }
            (State::Waiting { .. } | State::Attached { .. }, Message::Ping(ping)) => {
                if self.unwritten_len() < ANSWERS_LEN_MAX {
                    Message::Pong(ping).encode_into(&mut self.out);
                }
                // A guest with little memory asks for acknowledgements that way.
                self.is_hurried = true;
                self.send_acks(1);
            }
            (State::Waiting { .. } | State::Attached { .. }, Message::Pong(_)) => {}
            (State::Attached { .. }, message) => return self.handle_session_frame(message),
            (_, message) => return Err(format!("unexpected {}", message.kind())),
        }
        Ok(None)
    }

    /// A frame of the session that this connection is attached to.
    fn handle_session_frame(&mut self, message: Message) -> Result<Option<Event<'static>>, String> {
        match message {
            Message::Gap(gap) if self.request.wants_output() => {
                self.outputs[gap.stream.index()].skip(gap)?;
                self.note_progress();
                Ok(Some(Event::Gap(gap)))
            }
            Message::Window(window) => {
                self.input.handle_window(&window)?;
                self.note_progress();
                Ok(None)
            }
            Message::Ok if self.signals_sent > 0 => {
                self.signals_sent -= 1;
                self.signals.pop_front();
                Ok(None)
            }
            Message::Exited(exited) => {
                let session = self.started.as_ref().map(|(started, _)| started.session);
                if session != Some(exited.session) {
                    return Err("EXITED of another session".to_owned());
                }
                if self.request.wants_output() {
                    self.outputs
                        .iter()
                        .try_for_each(|output| output.check_end(&exited))?;
                }
                self.set_state(State::Leaving {
                    exited,
                    until: None,
                    is_open: true,
                });
                Ok(Some(Event::Exited(exited)))
            }
            message => Err(format!("unexpected {}", message.kind())),
        }
    }

    fn handle_chunk(&mut self, stream: Stream, offset: u64, len: usize) -> Result<(), String> {
        if !self.is_attached() || !self.request.wants_output() {
            return Err(format!("unexpected {}", stream.frame_kind()));
        }
        let len = u64::try_from(len).map_err(|error| error.to_string())?;
        self.outputs[stream.index()].advance(offset, len)?;
        // An empty chunk is not progress: a guest that sends nothing else between its cuts counts
        // as absent.
        if len > 0 {
            self.note_progress();
        }
        Ok(())
    }

    const fn note_progress(&mut self) {
        if let State::Attached { has_progress, .. } = &mut self.state {
            *has_progress = true;
        }
    }

    fn handle_hello(&mut self, hello: Hello, now: Instant) -> Result<(), String> {
        let negotiated = hello.negotiate();
        let origin = hello.origin();
        self.hello = Some(hello);
        if let Err(error) = negotiated {
            self.finish(Err(SessionError::Version(error)));
            return Ok(());
        }
        if self.knows_origin() {
            self.set_state(State::Waiting { until: None });
            return Ok(());
        }
        let Some(mut origin) = origin else {
            return Err("HELLO without an instance".to_owned());
        };
        if self.fate != Fate::NotRun {
            // An earlier client may have sent the first copy, at any time.
            origin.sessions_begun = 0;
        }
        self.origin = Some(origin);
        self.limit_request(now);
        self.request_message().encode_into(&mut self.out);
        self.note_sent();
        let until = Some(now + self.silence);
        self.set_state(State::Waiting { until });
        Ok(())
    }

    fn handle_started(
        &mut self,
        started: Started,
        now: Instant,
    ) -> Result<Option<Event<'static>>, String> {
        let instance = self.hello.as_ref().and_then(|hello| hello.instance);
        let is_first = self.started.is_none();
        if let Some((first, first_instance)) = &self.started {
            let is_same = (first.session, first.id) == (started.session, started.id);
            if is_same && *first_instance == instance {
                self.resume(&started, false, now)?;
                return Ok(Some(Event::Resumed(started)));
            }
            self.finish(Err(SessionError::Forgotten));
            return Ok(None);
        }
        self.started = Some((started, instance));
        self.resume(&started, is_first, now)?;
        Ok(Some(Event::Started(started)))
    }

    /// Continues both directions at the guest's offsets.
    fn resume(&mut self, started: &Started, is_first: bool, now: Instant) -> Result<(), String> {
        if self.request.wants_output() {
            self.outputs[0].restart(started.stdout_from, is_first)?;
            self.outputs[1].restart(started.stderr_from, is_first)?;
        }
        self.input.restart(&started.stdin)?;
        self.fate = Fate::Started;
        self.fate_before = Fate::Started;
        self.refusal = None;
        self.silence = SILENCE_FIRST;
        self.set_state(State::Attached {
            since: now,
            has_progress: false,
        });
        if let Some(size) = self.size {
            Message::Resize(size).encode_into(&mut self.out);
        }
        self.signals_sent = 0;
        self.send_signals();
        Ok(())
    }

    fn handle_fail(&mut self, fail: Fail, now: Instant) {
        // The guest did not act on this copy of the request.
        self.fate = self.fate_before;
        if self.fate == Fate::NotRun {
            // No copy is in doubt, so the next one is the first.
            self.origin = self.request.origin();
        }
        if matches!(fail.code, FailCode::Refusing | FailCode::Limit) {
            log::debug!(
                "refused for now ({}): {}",
                fail.code,
                fail.text.escape_debug()
            );
            if self.absent_since.is_some() || self.started.is_some() {
                self.absent_since = Some(now);
            }
            self.retry(now);
            self.refusal = Some(fail);
            return;
        }
        let error = SessionError::of_refusal(fail, self.known_fate(), self.started.is_some());
        self.finish(Err(error));
    }

    /// Whether [`flight`](SessionClient::flight) is an EXEC, not an ATTACH.
    const fn asks_for_a_start(&self) -> bool {
        matches!(self.request, Request::Exec { .. }) && self.started.is_none()
    }

    /// Finishes the client once EXITED came, all output was passed on, and EXIT_ACK was written.
    pub(super) fn leave_if_done(&mut self, now: Instant) {
        let backlog = self.backlog();
        let State::Leaving {
            exited,
            until,
            is_open,
        } = &mut self.state
        else {
            return;
        };
        if backlog > 0 {
            return;
        }
        let exited = *exited;
        if until.is_none() {
            *until = Some(now + LEAVE_MAX);
            if self.request.is_owner() {
                let session = exited.session;
                Message::ExitAck(ExitAck { session }).encode_into(&mut self.out);
            }
        }
        let is_late = until.is_some_and(|until| now >= until);
        if !*is_open || is_late || self.out_written == self.out.len() {
            self.finish(Ok(exited));
        }
    }
}

fn take(frame: Frame<'_>) -> Result<Taken, String> {
    for stream in [Stream::Stdout, Stream::Stderr] {
        if frame.kind == stream.frame_kind() {
            let (offset, bytes) = Chunk::parse(frame).map_err(|error| error.to_string())?;
            let len = bytes.len();
            return Ok(Taken::Chunk {
                stream,
                offset,
                len,
            });
        }
    }
    let message = Message::parse(frame, Role::Guest);
    message
        .map(Taken::Message)
        .map_err(|error| error.to_string())
}
