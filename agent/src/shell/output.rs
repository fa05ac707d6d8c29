//! Starting programs, and bytes out of their pipes.

use std::io::{self, Read};
use std::time::Instant;

use log::warn;
use mio::unix::pipe::Receiver;
use mio::{Interest, Registry};

use super::{READS_PER_TURN_MAX, Shell, Source};
use crate::agent::{Agent, Command, Purpose, SessionId, SpawnFailure, SpawnStage, Stream};
use crate::sys::spawn::{Program, SpawnError, Stage, Started, c_string};

/// The reading ends of a command's outputs that have not ended.
#[derive(Debug)]
pub(super) struct Pipes {
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    receiver: Receiver,
    /// Whether reading stopped before `WouldBlock`, so that no edge will say that there is more.
    is_unread: bool,
}

impl Pipes {
    fn slot(&mut self, stream: Stream) -> &mut Option<Pipe> {
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
                let pid = started.pid;
                match register(&self.registry, id, started) {
                    Ok(pipes) => {
                        self.outputs.insert(id, pipes);
                        agent.handle_spawned(purpose, Ok(pid), now);
                    }
                    Err(err) => {
                        // Its output cannot be followed: it writes into closed pipes and its end is
                        // reported.
                        warn!("{id}: cannot poll its output: {err}");
                        agent.handle_spawned(purpose, Ok(pid), now);
                        for &stream in Stream::ALL {
                            agent.handle_output_closed(id, stream, now);
                        }
                    }
                }
            }
            (Ok(started), Purpose::Probe(_)) => agent.handle_spawned(purpose, Ok(started.pid), now),
            (Err(failure), Purpose::Session(_) | Purpose::Probe(_)) => {
                agent.handle_spawned(purpose, Err(failure), now);
            }
        }
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
            let Some(pipes) = self.outputs.get_mut(&id) else {
                return;
            };
            let Some(pipe) = pipes.slot(stream) else {
                return;
            };
            pipe.is_unread = true;
            let room = agent.output_room(id).min(self.scratch.len());
            if room == 0 {
                return;
            }
            match pipe.receiver.read(&mut self.scratch[..room]) {
                Ok(0) => return self.end_output(id, stream, agent, now),
                Ok(len) => agent.handle_output(id, stream, &self.scratch[..len]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    pipe.is_unread = false;
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
            let pipe = self
                .outputs
                .get_mut(&id)
                .and_then(|pipes| pipes.slot(stream).as_ref());
            if pipe.is_some_and(|pipe| pipe.is_unread) {
                self.push_ready(Source::Output(id, stream));
            }
        }
    }

    /// Closes the pipes of a session that waits for them no more.
    pub(crate) fn close_output(&mut self, id: SessionId) {
        for &stream in Stream::ALL {
            self.close_pipe(id, stream);
        }
    }

    fn end_output(&mut self, id: SessionId, stream: Stream, agent: &mut Agent, now: Instant) {
        self.close_pipe(id, stream);
        agent.handle_output_closed(id, stream, now);
        self.settle(agent, now);
    }

    /// Deregisters, then closes.
    fn close_pipe(&mut self, id: SessionId, stream: Stream) {
        let Some(pipes) = self.outputs.get_mut(&id) else {
            return;
        };
        if let Some(mut pipe) = pipes.slot(stream).take() {
            // Closing removes it too; the order only keeps a stale event from being reported.
            let _ = self.registry.deregister(&mut pipe.receiver);
        }
        if pipes.stdout.is_none() && pipes.stderr.is_none() {
            self.outputs.remove(&id);
        }
    }
}

fn register(registry: &Registry, id: SessionId, started: Started) -> io::Result<Pipes> {
    let pipe = |mut receiver: Receiver, stream| -> io::Result<Option<Pipe>> {
        let token = Source::Output(id, stream).token();
        registry.register(&mut receiver, token, Interest::READABLE)?;
        Ok(Some(Pipe {
            receiver,
            is_unread: false,
        }))
    };
    Ok(Pipes {
        stdout: pipe(started.stdout, Stream::Stdout)?,
        stderr: pipe(started.stderr, Stream::Stderr)?,
    })
}

/// The command as the kernel wants it. Zero bytes were refused when the request was read.
fn program_of(command: &Command) -> Result<Program, SpawnFailure> {
    let strings = |list: &[Vec<u8>]| -> io::Result<Vec<_>> {
        list.iter().map(|bytes| c_string(bytes)).collect()
    };
    let program = || -> io::Result<Program> {
        Ok(Program {
            candidates: strings(&command.candidates)?,
            argv: strings(&command.argv)?,
            env: strings(&command.env)?,
            cwd: c_string(&command.cwd)?,
        })
    };
    program().map_err(|source| {
        let error = SpawnError {
            stage: Stage::SetUp,
            source,
            stillborn: None,
        };
        failure_of(&error, command)
    })
}

/// The failure with the name of what it failed on, as it was asked for.
fn failure_of(error: &SpawnError, command: &Command) -> SpawnFailure {
    let program = command.argv.first().map_or(&b""[..], Vec::as_slice);
    let (stage, object) = match error.stage {
        Stage::Clone => (SpawnStage::Clone, program),
        Stage::SetUp => (SpawnStage::SetUp, program),
        Stage::Chdir => (SpawnStage::Chdir, command.cwd.as_slice()),
        Stage::Exec => (SpawnStage::Exec, program),
    };
    SpawnFailure {
        stage,
        errno: error.source.raw_os_error().unwrap_or(0),
        text: format!("{}: {}", String::from_utf8_lossy(object), error.source),
        stillborn: error.stillborn,
    }
}
