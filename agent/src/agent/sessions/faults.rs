//! What the kernel has cut or lost of a session: bytes of a stream, or the process. No I/O, no
//! clock.
//!
//! A pipe or terminal whose other end is gone is an end like any other. Every other error of a
//! session's descriptors cuts its input or output, and EXITED says which and where. The command is
//! told to end: it must not take a part of its input for all of it, nor run on unseen.
//!
//! Invariants:
//! - The first fault is the one that is told.
//! - The writing end of an input that was cut stays open until the command has ended: closing it
//!   would tell the command that the input is whole.

use std::time::Instant;

use log::warn;
use shared::message::{ExitStatus, Fault, FaultPart, ResourceUsage, Stream};

use super::session::Exit;
use crate::agent::Agent;
use crate::agent::ids::SessionId;

/// ECHILD.
const ERRNO_NO_CHILD: i32 = 10;

/// The status of a process that was lost. EXITED has a fault then, and the status means nothing.
const CODE_UNKNOWN: u8 = u8::MAX;

impl Agent {
    /// The session's standard input cannot be written to or polled, although the command may read
    /// it. The shell keeps it open until [`Action::CloseInput`](super::super::Action::CloseInput).
    pub fn handle_input_failed(&mut self, id: SessionId, errno: i32, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if let Some(offset) = session.input.cut(&mut self.buffers) {
            let part = FaultPart::Stdin;
            self.note_fault(
                id,
                Fault {
                    part,
                    offset,
                    errno,
                },
                now,
            );
            self.advance_input(id, now);
        }
    }

    /// An output cannot be read or polled, although the command may write to it. The shell has
    /// closed it.
    pub fn handle_output_failed(
        &mut self,
        id: SessionId,
        stream: Stream,
        errno: i32,
        now: Instant,
    ) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let part = match stream {
            Stream::Stdout => FaultPart::Stdout,
            Stream::Stderr => FaultPart::Stderr,
        };
        let fault = Fault {
            part,
            offset: session.ring(stream).end(),
            errno,
        };
        self.note_fault(id, fault, now);
        self.handle_output_closed(id, stream, now);
    }

    /// The kernel no longer knows the session's process. How it ended is unknown.
    pub(crate) fn handle_session_lost(&mut self, id: SessionId, now: Instant) {
        let exit = Exit {
            status: ExitStatus::Code(CODE_UNKNOWN),
            usage: ResourceUsage::default(),
        };
        if let Some(session) = self.sessions.get_mut(id) {
            session.fault.get_or_insert(Fault {
                part: FaultPart::Process,
                offset: 0,
                errno: ERRNO_NO_CHILD,
            });
            // Its group is not signalled: the number may be another's.
            session.handle_exit(exit);
            self.handle_session_reaped(id, now);
        }
    }

    fn note_fault(&mut self, id: SessionId, fault: Fault, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        warn!("{id}: {fault} (errno {})", fault.errno);
        session.fault.get_or_insert(fault);
        let is_running = session.group().is_some();
        if is_running && !session.is_terminating {
            self.terminate_session(id, now);
        }
    }
}
