//! What a session's client sends: the request, standard input, acknowledgements, signals and
//! terminal sizes.

use std::time::Instant;

use super::output::{ACK_LEN, Output};
use super::request::Request;
use super::{SessionClient, State};
use crate::message::{
    Ack, Attach, AttachMode, Exec, Hello, Message, SessionRef, Signal, Stream, TtySize,
};

/// Number of unwritten bytes beyond which no more input is turned into frames.
pub(super) const SEND_AHEAD_LEN: usize = 64 * 1024;

/// Number of unwritten bytes beyond which frames are dropped that the guest can do without: answers
/// to its PINGs, and acknowledgements, which a later one repeats. Otherwise a guest that sends
/// PINGs and does not read would make these grow without limit. One that reads never lets so much
/// wait.
pub(super) const ANSWERS_LEN_MAX: usize = 256 * 1024;

/// Most signals that wait for the guest's confirmation. More copies of them would change nothing.
const SIGNALS_MAX: usize = 16;

impl SessionClient {
    /// HELLO, for one write on the connection that is wanted, and with it the request unless that
    /// has to name the guest's instance first.
    #[must_use]
    pub fn flight(&self) -> Vec<u8> {
        let mut bytes = Message::Hello(Hello::host(&self.host_version)).encode();
        if self.knows_origin() {
            self.request_message().encode_into(&mut bytes);
        }
        bytes
    }

    pub(super) fn request_message(&self) -> Message {
        let [stdout_from, stderr_from] = [&self.outputs[0], &self.outputs[1]].map(Output::from);
        match &self.request {
            // Once it was started, an EXEC could only start it again, in a guest that lost it.
            Request::Exec { exec, .. } if self.started.is_some() => Message::Attach(Attach {
                session: SessionRef::Exec(exec.id),
                generation: None,
                // A client that does not acknowledge must not be the owner.
                mode: if exec.detached {
                    AttachMode::Observe
                } else {
                    AttachMode::Own
                },
                stdout_from,
                stderr_from,
            }),
            Request::Exec { exec, .. } => Message::Exec(Exec {
                stdout_from: stdout_from.unwrap_or(0),
                stderr_from: stderr_from.unwrap_or(0),
                origin: self.origin.map(Box::new),
                ..(**exec).clone()
            }),
            Request::Attach { attach, .. } => {
                // The number is valid in one life of the guest only, the id in all of them.
                let id = self.started.as_ref().and_then(|(started, _)| started.id);
                Message::Attach(Attach {
                    session: id.map_or(attach.session, SessionRef::Exec),
                    stdout_from,
                    stderr_from,
                    ..*attach
                })
            }
        }
    }

    /// Number of bytes of standard input that may be passed in now. 0 while there is no credit, and
    /// for good once the guest takes no more.
    #[must_use]
    pub fn input_room(&self) -> usize {
        match self.state {
            State::Leaving { .. } | State::Finished(_) => 0,
            State::Idle { .. }
            | State::Greeting { .. }
            | State::Waiting { .. }
            | State::Attached { .. } => self.input.room(),
        }
    }

    /// Standard input, at most [`input_room`](Self::input_room) bytes.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        self.input.push(bytes);
    }

    /// Standard input has ended.
    pub fn handle_input_end(&mut self) {
        self.input.end_now();
    }

    /// Sends a signal to the session's process group, now or once attached. A signal that the guest
    /// had not confirmed when a connection was cut is sent again, so it may arrive twice.
    pub fn handle_signal(&mut self, number: u8) {
        let is_waiting = self.signals.iter().skip(self.signals_sent);
        if self.signals.len() < SIGNALS_MAX && !is_waiting.into_iter().any(|&n| n == number) {
            self.signals.push_back(number);
        }
        self.send_signals();
    }

    /// The terminal's size has changed.
    pub fn handle_resize(&mut self, size: TtySize) {
        self.size = Some(size);
        if self.is_attached() {
            Message::Resize(size).encode_into(&mut self.out);
        }
    }

    /// The driver has passed on `len` bytes of output for good.
    pub fn handle_consumed(&mut self, stream: Stream, len: usize, now: Instant) {
        let could_read = self.wants_read();
        self.outputs[stream.index()].consume(u64::try_from(len).unwrap_or(u64::MAX));
        if !could_read {
            // The client did not read, so the silence was not the guest's.
            self.heard_at = now;
            self.pinged_at = None;
        }
        self.send_acks(if self.is_hurried { 1 } else { ACK_LEN });
    }

    /// Bytes to write to the open connection; often none.
    pub fn poll_output(&mut self) -> &[u8] {
        if self.unwritten_len() < SEND_AHEAD_LEN {
            self.out.drain(..self.out_written);
            self.out_written = 0;
            if self.is_attached() {
                self.input.write_frame(&mut self.out);
            }
        }
        &self.out[self.out_written..]
    }

    /// Number of bytes that wait to be written.
    pub(super) const fn unwritten_len(&self) -> usize {
        self.out.len() - self.out_written
    }

    /// `len` bytes of what [`poll_output`](Self::poll_output) gave were written.
    pub fn handle_written(&mut self, len: usize) {
        self.out_written = (self.out_written + len).min(self.out.len());
    }

    /// Acknowledges each stream of which at least `len_min` more bytes were passed on.
    pub(super) fn send_acks(&mut self, len_min: u64) {
        let has_room = self.unwritten_len() < ANSWERS_LEN_MAX;
        if !self.is_attached() || !self.request.is_owner() || !has_room {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(offset) = self.outputs[stream.index()].take_ack(len_min) {
                Message::Ack(Ack { stream, offset }).encode_into(&mut self.out);
            }
        }
    }

    pub(super) fn send_signals(&mut self) {
        if !self.is_attached() {
            return;
        }
        for &number in self.signals.iter().skip(self.signals_sent) {
            let session = None;
            Message::Signal(Signal { session, number }).encode_into(&mut self.out);
        }
        self.signals_sent = self.signals.len();
    }
}
