//! One command: from its start to the frame that reports its end. No I/O, no clock.
//!
//! ```text
//!           spawned            reaped              both outputs closed, or the grace is over
//! Starting ─────────▶ Running ────────▶ Reaped ───────────────────────────────▶ completion
//!     │ could not be spawned
//!     └────────────────────▶ gone
//! ```
//!
//! Output goes to the [`Sink`]: to the connection that asked, nowhere for now while that connection
//! was cut without its client's wish, or away for good when the client has left.
//!
//! Invariants:
//! - Offsets only grow, by exactly the bytes read, whatever the sink.
//! - There is one completion per session, after the last output byte.

use shared::id::ExecId;
use shared::message::{ExitStatus, Exited, ResourceUsage, Started, Stream, Window};

use super::ids::{ConnectionId, SessionId};

/// Where output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    /// To this connection.
    Connection(ConnectionId),
    /// It stays in the pipe until somebody attaches; the command waits when the pipe is full.
    Held,
    /// It is counted and dropped: the command has been told to end and must not wait for us.
    Discarded,
}

/// How a reaped process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Code or signal.
    pub status: ExitStatus,
    /// What it used.
    pub usage: ResourceUsage,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The process has been asked for.
    Starting,
    /// It runs.
    Running,
    /// It has been waited for; its output may still be open.
    Reaped { exit: Exit },
}

#[derive(Clone, Copy, Debug)]
struct Output {
    /// Bytes read so far.
    offset: u64,
    /// Whether the pipe has not reported its end.
    is_open: bool,
}

/// A command.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    exec: ExecId,
    state: State,
    /// Process id, which is also that of its process group; zero until it runs.
    pid: i32,
    outputs: [Output; 2],
    /// Where output goes.
    pub(crate) sink: Sink,
    /// Whether reading stopped for want of room, so that somebody has to say when there is room
    /// again.
    pub(crate) is_stalled: bool,
    writers_alive: bool,
    /// Whether the process group has been told to end.
    pub(crate) is_told_to_end: bool,
}

impl Session {
    /// A session whose process has been asked for.
    pub(super) fn new(id: SessionId, exec: ExecId, connection: ConnectionId) -> Self {
        Self {
            id,
            exec,
            state: State::Starting,
            pid: 0,
            outputs: [Output {
                offset: 0,
                is_open: true,
            }; 2],
            sink: Sink::Connection(connection),
            is_stalled: false,
            writers_alive: false,
            is_told_to_end: false,
        }
    }

    /// Its process runs.
    pub(super) fn handle_spawned(&mut self, pid: i32) {
        debug_assert!(matches!(self.state, State::Starting));
        self.pid = pid;
        self.state = State::Running;
    }

    /// Output was read. Returns the offset of its first byte.
    pub(super) fn handle_output(&mut self, stream: Stream, len: usize) -> u64 {
        let output = &mut self.outputs[stream.index()];
        let offset = output.offset;
        output.offset += len as u64;
        offset
    }

    /// A pipe has reported its end.
    pub(super) fn handle_output_closed(&mut self, stream: Stream) {
        self.outputs[stream.index()].is_open = false;
    }

    /// Its process was waited for.
    pub(super) fn handle_exit(&mut self, exit: Exit) {
        debug_assert!(matches!(self.state, State::Running));
        self.state = State::Reaped { exit };
    }

    /// The wait for output that somebody else holds open is over.
    pub(super) fn handle_grace_over(&mut self) {
        self.writers_alive |= self.outputs.iter().any(|output| output.is_open);
        self.outputs
            .iter_mut()
            .for_each(|output| output.is_open = false);
    }

    /// The frame that reports the end, once there is nothing left to come before it.
    pub(super) fn completion(&self) -> Option<Exited> {
        let exit = match self.state {
            State::Starting | State::Running => return None,
            State::Reaped { exit } => exit,
        };
        if self.outputs.iter().any(|output| output.is_open) {
            return None;
        }
        let [stdout, stderr] = self.outputs;
        Some(Exited {
            session: self.id.number(),
            status: exit.status,
            stdout_end: stdout.offset,
            stderr_end: stderr.offset,
            writers_alive: self.writers_alive,
            timed_out: false,
            usage: exit.usage,
        })
    }

    /// The frame that tells a connection what it will get.
    pub(super) fn started(&self, fresh: bool) -> Started {
        let [stdout, stderr] = self.outputs;
        Started {
            session: self.id.number(),
            pid: u32::try_from(self.pid).unwrap_or(0),
            fresh,
            id: Some(self.exec),
            tty: false,
            stdin: Window {
                received: 0,
                limit: 0,
                is_closed: true,
            },
            stdout_from: stdout.offset,
            stderr_from: stderr.offset,
        }
    }

    /// Whether its process has been waited for.
    pub(super) fn is_reaped(&self) -> bool {
        matches!(self.state, State::Reaped { .. })
    }

    /// Whether its process has been asked for and not been reported yet.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting)
    }

    /// The request that it answers.
    pub(super) fn exec(&self) -> ExecId {
        self.exec
    }

    /// The process group, once there is one.
    pub(super) fn group(&self) -> Option<i32> {
        (self.pid > 0).then_some(self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can happen to a session, in every order that the kernel allows.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Event {
        Exit,
        Closed(Stream),
        GraceOver,
    }

    const EXIT: Exit = Exit {
        status: ExitStatus::Code(3),
        usage: ResourceUsage {
            user_us: 1,
            system_us: 2,
            rss_max_kib: 3,
        },
    };

    fn session() -> Session {
        let connection = ConnectionId::from_number(1);
        let mut session = Session::new(
            SessionId::from_number(9),
            ExecId::from_bytes([7; 16]),
            connection,
        );
        session.handle_spawned(42);
        session
    }

    #[track_caller]
    fn check(events: &[Event], complete: bool, writers_alive: bool) {
        let mut session = session();
        for event in events {
            assert_eq!(session.completion(), None, "before {event:?} of {events:?}");
            match event {
                Event::Exit => session.handle_exit(EXIT),
                Event::Closed(stream) => session.handle_output_closed(*stream),
                Event::GraceOver => session.handle_grace_over(),
            }
        }
        let completion = session.completion();
        assert_eq!(completion.is_some(), complete, "after {events:?}");
        if let Some(exited) = completion {
            assert_eq!(
                (exited.status, exited.writers_alive),
                (EXIT.status, writers_alive)
            );
        }
    }

    #[test]
    fn completion_needs_the_exit_and_both_ends() {
        use Event::{Closed, Exit, GraceOver};
        use Stream::{Stderr, Stdout};
        for stream in [(Stdout, Stderr), (Stderr, Stdout)] {
            check(&[Exit, Closed(stream.0)], false, false);
            check(&[Closed(stream.0), Closed(stream.1)], false, false);
            check(&[Exit, Closed(stream.0), Closed(stream.1)], true, false);
            check(&[Closed(stream.0), Exit, Closed(stream.1)], true, false);
            check(&[Closed(stream.0), Closed(stream.1), Exit], true, false);
            check(&[Exit, Closed(stream.0), GraceOver], true, true);
        }
        check(&[Exit, GraceOver], true, true);
    }

    #[test]
    fn offsets_count_every_byte_of_each_stream() {
        let mut session = session();
        assert_eq!(session.handle_output(Stream::Stdout, 5), 0);
        assert_eq!(session.handle_output(Stream::Stderr, 2), 0);
        assert_eq!(session.handle_output(Stream::Stdout, 1), 5);
        let started = session.started(false);
        assert_eq!((started.stdout_from, started.stderr_from), (6, 2));
        session.handle_exit(EXIT);
        Stream::ALL
            .iter()
            .for_each(|stream| session.handle_output_closed(*stream));
        let exited = session.completion().unwrap();
        assert_eq!(
            (exited.session, exited.stdout_end, exited.stderr_end),
            (9, 6, 2)
        );
    }
}
