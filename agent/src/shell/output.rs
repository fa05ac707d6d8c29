//! Starting programs, and bytes out of their pipes and terminals.

use std::io;
use std::time::Instant;

use log::warn;
use mio::Interest;

use super::program::{failure_of, program_of};
use super::{READS_PER_TURN_MAX, Shell, Source};
use crate::agent::{Agent, Command, Purpose, SessionId, Stream};
use crate::sys::spawn::Started;
use crate::sys::stdio::StdioEnd;

/// The reading ends of a command's outputs that have not ended.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// Whether standard output is a terminal.
    is_terminal: bool,
}

#[derive(Debug)]
struct Output {
    end: StdioEnd,
    /// Whether reading stopped before `WouldBlock`, so that no edge will say that there is more.
    is_unread: bool,
}

impl Outputs {
    fn slot(&mut self, stream: Stream) -> &mut Option<Output> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl Shell {
    /// Starts a program and reports its process id.
    pub(crate) fn spawn(
        &mut self,
        purpose: Purpose,
        command: &Command,
        agent: &mut Agent,
        now: Instant,
    ) {
        let result = program_of(command).and_then(|program| {
            self.spawner
                .spawn(&program)
                .map_err(|error| failure_of(&error, command))
        });
        match (result, purpose) {
            (Ok(started), Purpose::Session(id)) => {
                agent.handle_spawned(purpose, Ok(started.pid), now);
                self.follow(id, started, command, agent, now);
            }
            (Ok(started), Purpose::Probe(_)) => agent.handle_spawned(purpose, Ok(started.pid), now),
            (Err(failure), Purpose::Session(_) | Purpose::Probe(_)) => {
                agent.handle_spawned(purpose, Err(failure), now);
            }
        }
    }

    /// Puts a program's standard descriptors into the poll set. One that there is none of, or that
    /// cannot be polled, has ended: the program then writes into a closed pipe, and its end is
    /// reported.
    fn follow(
        &mut self,
        id: SessionId,
        started: Started,
        command: &Command,
        agent: &mut Agent,
        now: Instant,
    ) {
        let stdio = started.stdio;
        let outputs = Outputs {
            is_terminal: command.tty.is_some(),
            ..Outputs::default()
        };
        self.outputs.insert(id, outputs);
        for (stream, end) in [
            (Stream::Stdout, Some(stdio.stdout)),
            (Stream::Stderr, stdio.stderr),
        ] {
            if !end.is_some_and(|end| self.insert_output(id, stream, end)) {
                // Not settled here: what the core asks for next needs all three in their place.
                agent.handle_output_closed(id, stream, now);
            }
        }
        // A terminal has a writing end also when nothing is to be written to it.
        let stdin = stdio.stdin.filter(|_| command.has_input);
        if let Some(end) = stdin
            && !self.insert_input(id, end)
        {
            agent.handle_input_closed(id, now);
        }
    }

    fn insert_output(&mut self, id: SessionId, stream: Stream, mut end: StdioEnd) -> bool {
        let Some(outputs) = self.outputs.get_mut(&id) else {
            return false;
        };
        let token = Source::Output(id, stream).token();
        if let Err(err) = self.registry.register(&mut end, token, Interest::READABLE) {
            warn!("{id}: cannot poll its output: {err}");
            return false;
        }
        let is_unread = false;
        *outputs.slot(stream) = Some(Output { end, is_unread });
        true
    }

    /// The end of a session's terminal that lives as long as the terminal does.
    pub(super) fn terminal(&self, id: SessionId) -> Option<&StdioEnd> {
        let outputs = self.outputs.get(&id)?;
        let output = outputs.stdout.as_ref().filter(|_| outputs.is_terminal)?;
        Some(&output.end)
    }

    /// Reads until there is no more, or the core takes no more, or it is others' turn.
    pub(crate) fn drain_output(
        &mut self,
        id: SessionId,
        stream: Stream,
        agent: &mut Agent,
        now: Instant,
    ) {
        for _ in 0..READS_PER_TURN_MAX {
            let Some(outputs) = self.outputs.get_mut(&id) else {
                return;
            };
            let Some(output) = outputs.slot(stream) else {
                return;
            };
            output.is_unread = true;
            let room = agent.output_room(id).min(self.scratch.len());
            if room == 0 {
                return;
            }
            match output.end.read(&mut self.scratch[..room]) {
                Ok(0) => return self.end_output(id, stream, agent, now),
                Ok(len) => agent.handle_output(id, stream, &self.scratch[..len]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    output.is_unread = false;
                    return;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => {
                    warn!("{id}: cannot read its output: {err}");
                    return self.end_output(id, stream, agent, now);
                }
            }
            self.settle(agent, now);
        }
        self.push_ready(Source::Output(id, stream));
    }

    /// Reads on where reading stopped for want of room.
    pub(crate) fn resume_output(&mut self, id: SessionId) {
        for &stream in Stream::ALL {
            let output = self
                .outputs
                .get_mut(&id)
                .and_then(|outputs| outputs.slot(stream).as_ref());
            if output.is_some_and(|output| output.is_unread) {
                self.push_ready(Source::Output(id, stream));
            }
        }
    }

    /// Closes the outputs of a session that waits for them no more.
    pub(crate) fn close_outputs(&mut self, id: SessionId, agent: &mut Agent, now: Instant) {
        for &stream in Stream::ALL {
            self.close_output(id, stream, agent, now);
        }
    }

    fn end_output(&mut self, id: SessionId, stream: Stream, agent: &mut Agent, now: Instant) {
        self.close_output(id, stream, agent, now);
        agent.handle_output_closed(id, stream, now);
        self.settle(agent, now);
    }

    /// Deregisters, then closes. With a terminal's output its input ends too: it would be kept open
    /// for that, with nobody to read what its programs write.
    fn close_output(&mut self, id: SessionId, stream: Stream, agent: &mut Agent, now: Instant) {
        let Some(outputs) = self.outputs.get_mut(&id) else {
            return;
        };
        if let Some(mut output) = outputs.slot(stream).take() {
            // Closing a pipe removes it too; closing a terminal does not while its input is open.
            let _ = self.registry.deregister(&mut output.end);
        }
        if outputs.stdout.is_none() && outputs.stderr.is_none() {
            let is_terminal = outputs.is_terminal;
            self.outputs.remove(&id);
            if is_terminal && self.inputs.contains_key(&id) {
                self.end_input(id, agent, now);
            }
        }
    }
}
