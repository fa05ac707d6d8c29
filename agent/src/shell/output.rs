//! Bytes out of commands, from their pipes and terminals.

use std::io::{self, IoSliceMut};

use log::{debug, warn};
use mio::Interest;
use shared::message::TtySize;

use super::failpoint::Call;
use super::input::Input;
use super::{READS_PER_TURN_MAX, Shell, Source, Turn, errno_of};
use crate::agent::{SessionId, Stream};
use crate::sys::stdio::{PIPE_LEN, StdioEnd};

/// The agent's ends of a command's standard descriptors, as far as they are open.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) input: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// Whether all of them are one terminal.
    is_terminal: bool,
    /// The master of a terminal that no program has open any more. It stays open until the session
    /// has ended: closing it hangs up the command (SIGHUP), which closes its descriptors just
    /// before it exits.
    kept_terminal: Option<StdioEnd>,
}

#[derive(Debug)]
struct Output {
    end: StdioEnd,
    /// Whether it is in the poll set. It gets there once it was read empty.
    is_registered: bool,
    /// Whether reading stopped before `WouldBlock`, so that no edge will tell that there is more.
    is_unread: bool,
    /// Whether its pipe was full once and has been widened.
    is_wide: bool,
}

impl Stdio {
    pub(super) fn new(
        input: Option<Input>,
        stdout: StdioEnd,
        stderr: Option<StdioEnd>,
        is_terminal: bool,
    ) -> Self {
        let output = |end| Output {
            end,
            is_registered: false,
            is_unread: true,
            is_wide: false,
        };
        Self {
            input,
            stdout: Some(output(stdout)),
            stderr: stderr.map(output),
            is_terminal,
            kept_terminal: None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.input.is_none()
            && self.stdout.is_none()
            && self.stderr.is_none()
            && self.kept_terminal.is_none()
    }

    fn slot(&mut self, stream: Stream) -> &mut Option<Output> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl Shell {
    /// The output was read empty: waits for an edge. Bytes that came since the read give an edge to
    /// a new registration.
    fn wait_for_output(&mut self, id: SessionId, stream: Stream, turn: &mut Turn<'_>) {
        let source = Source::Output(id, stream);
        self.unpush_ready(source);
        turn.agent.handle_output_empty(id, stream, turn.now);
        let output = self
            .stdio
            .get_mut(&id)
            .and_then(|stdio| stdio.slot(stream).as_mut());
        let Some(output) = output else {
            return;
        };
        output.is_unread = false;
        if output.is_registered {
            return;
        }
        let end = &mut output.end;
        let registered = self.failpoints.check(Call::PollOutput).and_then(|()| {
            self.registry
                .register(end, source.token(), Interest::READABLE)
        });
        match registered {
            Ok(()) => output.is_registered = true,
            Err(err) => self.fail_output(id, stream, &err, turn),
        }
    }

    /// Sets the size by the master, which lives as long as the terminal does.
    pub(super) fn resize_terminal(&self, id: SessionId, size: TtySize) {
        let stdio = self.stdio.get(&id).filter(|stdio| stdio.is_terminal);
        let Some(output) = stdio.and_then(|stdio| stdio.stdout.as_ref()) else {
            return;
        };
        if let Err(err) = output.end.resize(size) {
            debug!("{id}: cannot resize its terminal: {err}");
        }
    }

    /// Reads until there is no more, or the core takes no more, or other sources have their turn.
    pub(crate) fn drain_output(&mut self, id: SessionId, stream: Stream, turn: &mut Turn<'_>) {
        for _ in 0..READS_PER_TURN_MAX {
            let Some(stdio) = self.stdio.get_mut(&id) else {
                return;
            };
            let Some(output) = stdio.slot(stream) else {
                return;
            };
            output.is_unread = true;
            let room = turn.agent.output_room(id, stream);
            if room == 0 {
                return;
            }
            // Reads straight into the ring. Overflow goes through the scratch buffer.
            let [front, back] = turn.agent.output_spare(id, stream);
            let spare_len = front.len() + back.len();
            let scratch_len = room.saturating_sub(spare_len).min(self.scratch.len());
            let mut slices = [front, back, &mut self.scratch[..scratch_len]].map(IoSliceMut::new);
            let failpoint = self.failpoints.check(Call::Output);
            let result = failpoint.and_then(|()| output.end.read(&mut slices));
            let len = *result.as_ref().unwrap_or(&0);
            let overflow = &self.scratch[..len.saturating_sub(spare_len)];
            turn.agent
                .handle_output_read(id, stream, len.min(spare_len), overflow, turn.now);
            if len >= PIPE_LEN && !output.is_wide {
                output.is_wide = true;
                output.end.widen();
            }
            match result {
                Ok(0) => return self.end_output(id, stream, turn),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    return self.wait_for_output(id, stream, turn);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return self.fail_output(id, stream, &err, turn),
            }
            self.drain_actions(turn);
        }
        self.push_ready(Source::Output(id, stream));
    }

    /// Continues where reading stopped for lack of room.
    pub(crate) fn resume_output(&mut self, id: SessionId) {
        for &stream in Stream::ALL {
            let output = self
                .stdio
                .get_mut(&id)
                .and_then(|stdio| stdio.slot(stream).as_ref());
            if output.is_some_and(|output| output.is_unread) {
                self.push_ready(Source::Output(id, stream));
            }
        }
    }

    /// Bytes that can be read from a command's outputs now.
    pub(super) fn count_output(&mut self, id: SessionId) -> [usize; 2] {
        let mut lens = [0; 2];
        if let Some(stdio) = self.stdio.get_mut(&id) {
            for &stream in Stream::ALL {
                let output = stdio.slot(stream).as_ref();
                lens[stream.index()] = output.map_or(0, |output| output.end.available_len());
            }
        }
        lens
    }

    /// Closes the outputs of a session that does not wait for them any more.
    pub(crate) fn close_outputs(&mut self, id: SessionId, turn: &mut Turn<'_>) {
        for &stream in Stream::ALL {
            self.close_output(id, stream, turn);
        }
        if let Some(stdio) = self.stdio.get_mut(&id) {
            stdio.kept_terminal = None;
            self.forget_closed(id);
        }
    }

    fn end_output(&mut self, id: SessionId, stream: Stream, turn: &mut Turn<'_>) {
        self.close_output(id, stream, turn);
        turn.agent.handle_output_closed(id, stream, turn.now);
    }

    /// It can be read no more, although the command may write to it, and then writes into a closed
    /// pipe.
    fn fail_output(&mut self, id: SessionId, stream: Stream, err: &io::Error, turn: &mut Turn<'_>) {
        warn!("{id}: cannot read its {stream}: {err}");
        self.close_output(id, stream, turn);
        turn.agent
            .handle_output_failed(id, stream, errno_of(err), turn.now);
    }

    /// Deregisters, then closes, except for a terminal. When a terminal's output has ended its
    /// input is closed too: it would keep the terminal open, and its programs would write to an
    /// agent that does not read.
    fn close_output(&mut self, id: SessionId, stream: Stream, turn: &mut Turn<'_>) {
        let Some(stdio) = self.stdio.get_mut(&id) else {
            return;
        };
        if let Some(mut output) = stdio.slot(stream).take() {
            // Closing a pipe removes it too; closing a terminal does not while its input is open.
            if output.is_registered {
                let _ = self.registry.deregister(&mut output.end);
            }
            stdio.kept_terminal = Some(output.end).filter(|_| stdio.is_terminal);
        }
        if stdio.is_terminal && stdio.input.is_some() {
            self.end_input(id, turn);
        }
        self.forget_closed(id);
    }

    /// Forgets a session's descriptors once none is open.
    pub(super) fn forget_closed(&mut self, id: SessionId) {
        if self.stdio.get(&id).is_some_and(Stdio::is_closed) {
            self.stdio.remove(&id);
        }
    }
}
