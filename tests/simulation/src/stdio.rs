//! The shell's part that starts programs and moves the bytes of their pipes.

use std::time::Duration;

use agent::agent::{Command, Purpose, SessionId, SpawnFailure, SpawnStage, Stream};
use shared::message::FaultPart;

use crate::commands::Commands;
use crate::guest::{Guest, Stdio};
use crate::kernel::{Process, Source};
use crate::pattern::{self, INPUT};
use crate::tally::Mark;

const EIO: i32 = 5;

/// Most reads of one output per turn: few, so that outputs reach it.
const READS_PER_TURN_MAX: usize = 3;

/// How long other processes may write to the outputs of a command that was reaped.
const GRACE: Duration = Duration::from_millis(250);

/// The number of the EXEC that a command comes from, which is its second argument, and the
/// generation that it asked for, which is its third.
fn parse_argv(command: &Command) -> Option<(u8, Option<u8>)> {
    let number = |index: usize| {
        let text = command.argv.get(index)?;
        std::str::from_utf8(text).ok()?.parse().ok()
    };
    Some((number(1)?, number(2)))
}

impl Guest {
    pub(crate) fn spawn(&mut self, purpose: Purpose, command: &Command) {
        let now = self.now;
        let parsed = parse_argv(command).filter(|_| matches!(purpose, Purpose::Session(_)));
        if let Some((number, Some(wanted))) = parsed {
            let ours = self.agent.generation().map(|it| it.as_bytes()[0]);
            // A REBIND may follow in the same bytes, but its first step has not been performed.
            let is_right = ours.is_none_or(|ours| ours == wanted);
            assert!(is_right, "EXEC {number} runs under another generation");
        }
        if let Some(failure) = self.spawn_failure() {
            if let Purpose::Session(id) = purpose {
                self.commands.note_never_ran(id, &failure);
            }
            return self.agent.handle_spawned(purpose, Err(failure), now);
        }
        let mut pipes = [None; 3];
        if let Purpose::Session(id) = purpose {
            let is_terminal = command.tty.is_some();
            let exec = parsed.map(|(number, _)| number);
            self.commands.note_start(id, exec, is_terminal);
            let capacity = 1 << (6 + self.kernel.random.below(11));
            let wanted = [true, !is_terminal, command.has_input];
            let sources = [
                Source::Output(id, 0),
                Source::Output(id, 1),
                Source::Input(id),
            ];
            for index in 0..3 {
                if wanted[index] {
                    pipes[index] = Some(self.kernel.pipe(sources[index], capacity));
                }
            }
        }
        let obeys = !self.kernel.random.one_in(3);
        let pid = self.kernel.start(Process {
            purpose: Some(purpose),
            group: 0,
            pipes,
            status: None,
            obeys,
        });
        // A terminal stays open until its session has ended, and a restart must not find an earlier
        // one.
        if let Purpose::Session(id) = purpose {
            let is_terminal = command.tty.is_some();
            let stdio = Stdio {
                pipes,
                is_terminal,
                ..Stdio::default()
            };
            let earlier = self.stdio.insert(id, stdio);
            assert!(earlier.is_none(), "{id} has descriptors already");
        }
        self.agent.handle_spawned(purpose, Ok(pid), now);
        if let Purpose::Session(id) = purpose
            && !self.agent.input_pending(id).is_empty()
            && self.has_stream_failed()
        {
            self.cut_input(id);
        }
    }

    /// Whether a call on a stream fails.
    fn has_stream_failed(&mut self) -> bool {
        let has_failed = self.kernel.faults.streams && self.kernel.random.one_in(8);
        if has_failed {
            self.kernel.tally.count(Mark::StreamFailed);
        }
        has_failed
    }

    fn spawn_failure(&mut self) -> Option<SpawnFailure> {
        let faults = &self.kernel.faults;
        let (stage, errno) = match (faults.descriptors, faults.memory, faults.exec) {
            (true, ..) => (SpawnStage::Clone, 24),
            (_, true, _) => (SpawnStage::Clone, 12),
            (.., true) => {
                let stages = [
                    (SpawnStage::Clone, 11),
                    (SpawnStage::User, 2),
                    (SpawnStage::Chdir, 2),
                    (SpawnStage::Exec, 2),
                    (SpawnStage::Exec, 13),
                    (SpawnStage::Exec, 12),
                ];
                self.kernel.random.pick(&stages).expect("some")
            }
            (false, false, false) => return None,
        };
        self.kernel.tally.count(Mark::SpawnFailed);
        // A child that could not execute its program existed for a moment.
        let is_stillborn = stage != SpawnStage::Clone && self.kernel.random.one_in(2);
        let stillborn = is_stillborn.then(|| {
            self.kernel.tally.count(Mark::Stillborn);
            let pid = self.kernel.start(Process {
                purpose: None,
                group: 0,
                pipes: [None; 3],
                status: None,
                obeys: true,
            });
            self.kernel
                .exit(pid, shared::message::ExitStatus::Code(127));
            pid
        });
        Some(SpawnFailure {
            stage,
            errno,
            text: "out of luck".to_owned(),
            stillborn,
        })
    }

    /// Reads until nothing is left, the core has no room, or it is the turn of others.
    pub(crate) fn drain_output(&mut self, id: SessionId, stream: Stream) {
        let index = stream.index();
        for _ in 0..READS_PER_TURN_MAX {
            let Some(number) = self.stdio.get(&id).and_then(|it| it.pipes[index]) else {
                return;
            };
            self.set_unread(id, index, true);
            let room = self.agent.output_room(id, stream).min(pattern::LEN_MAX);
            if room == 0 {
                return;
            }
            if self.has_stream_failed() {
                self.agent.output_spare(id, stream);
                self.agent.handle_output_read(id, stream, 0, &[], self.now);
                let parts = [FaultPart::Stdout, FaultPart::Stderr];
                self.commands.note_fault(id, parts[index]);
                self.close_output(id, stream);
                self.agent.handle_output_failed(id, stream, EIO, self.now);
                return self.drain_actions();
            }
            let pipe = &mut self.kernel.pipes[number];
            if pipe.len == 0 {
                // The core is told about an empty read, too.
                self.agent.output_spare(id, stream);
                self.agent.handle_output_read(id, stream, 0, &[], self.now);
            }
            if pipe.len == 0 && pipe.holders == 0 {
                self.close_output(id, stream);
                self.agent.handle_output_closed(id, stream, self.now);
                return self.drain_actions();
            }
            if pipe.len == 0 {
                self.set_unread(id, index, false);
                self.agent.handle_output_empty(id, stream, self.now);
                return self.drain_actions();
            }
            let len = self.kernel.random.part(pipe.len.min(room));
            pipe.len -= len;
            let record = self.commands.records.get_mut(&id).expect("it runs");
            let offset = record.read[index];
            record.read[index] += len as u64;
            if let Some((at, ends)) = record.left
                && self.turned_at >= at + GRACE
            {
                // One more byte tells other writers from the end.
                let is_limited = record.read[index] <= ends[index] + 1;
                assert!(is_limited, "{id} is read on after its grace");
            }
            let key = Commands::key(self.commands.life(), id);
            let bytes = pattern::at(key, index, offset, len);
            self.output(id, stream, bytes);
            self.drain_actions();
        }
        self.push_ready(Source::Output(id, index));
    }

    /// Puts what was read into the core's memory, and the rest through a buffer of its own.
    fn output(&mut self, id: SessionId, stream: Stream, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in self.agent.output_spare(id, stream) {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice[..now.len()].copy_from_slice(now);
            rest = later;
        }
        let spare_len = bytes.len() - rest.len();
        self.agent
            .handle_output_read(id, stream, spare_len, rest, self.now);
    }

    fn set_unread(&mut self, id: SessionId, index: usize, is_unread: bool) {
        if let Some(stdio) = self.stdio.get_mut(&id) {
            stdio.is_unread[index] = is_unread;
        }
    }

    /// Continues reading where it had stopped for lack of room.
    pub(crate) fn resume_output(&mut self, id: SessionId) {
        for index in 0..2 {
            let is_unread = self
                .stdio
                .get(&id)
                .is_some_and(|it| it.pipes[index].is_some() && it.is_unread[index]);
            if is_unread {
                self.push_ready(Source::Output(id, index));
            }
        }
    }

    pub(crate) fn close_output(&mut self, id: SessionId, stream: Stream) {
        let Some(stdio) = self.stdio.get_mut(&id) else {
            return;
        };
        if let Some(pipe) = stdio.pipes[stream.index()].take() {
            self.kernel.close_pipe(pipe);
            stdio.is_held_open |= stdio.is_terminal;
        }
        if stdio.is_terminal && stdio.pipes[INPUT].is_some() {
            self.end_input(id);
        }
        self.forget_closed(id);
    }

    pub(crate) fn drain_input(&mut self, id: SessionId) {
        self.flush_input(id);
        let input = self.stdio.get(&id).and_then(|it| it.pipes[INPUT]);
        if input.is_some_and(|pipe| self.kernel.pipes[pipe].holders == 0) {
            self.end_input(id);
            self.drain_actions();
        }
    }

    /// Writes until nothing is left, or the pipe is full.
    pub(crate) fn flush_input(&mut self, id: SessionId) {
        while let Some(number) = self.stdio.get(&id).and_then(|it| it.pipes[INPUT]) {
            if self.is_input_cut(id) || self.agent.input_pending(id).is_empty() {
                break;
            }
            if self.kernel.pipes[number].holders == 0 {
                return self.end_input(id);
            }
            if self.has_stream_failed() {
                return self.cut_input(id);
            }
            let pending = self.agent.input_pending(id);
            let pipe = &mut self.kernel.pipes[number];
            let room = (pipe.capacity - pipe.len).min(pending.len());
            if room == 0 {
                break;
            }
            let len = self.kernel.random.part(room);
            pipe.len += len;
            let record = self.commands.records.get_mut(&id).expect("it runs");
            let expected = pattern::at(Commands::INPUT_KEY, INPUT, record.written, len);
            // The end of a terminal's input is a character.
            let is_right =
                |(got, wanted): (&u8, &u8)| got == wanted || (record.is_terminal && *got == 4);
            assert!(
                pending[..len].iter().zip(expected).all(is_right),
                "input of {id} at {}",
                record.written
            );
            record.written += len as u64;
            self.kernel.tally.count(Mark::InputRead);
            self.agent.handle_input_written(id, len, self.now);
        }
        if self.is_input_cut(id) {
            return;
        }
        if let Some(number) = self.stdio.get(&id).and_then(|it| it.pipes[INPUT]) {
            let is_wanted = !self.agent.input_pending(id).is_empty();
            let pipe = &mut self.kernel.pipes[number];
            if is_wanted && !pipe.is_awaited && pipe.len < pipe.capacity {
                self.kernel.events.insert(Source::Input(id));
            }
            pipe.is_awaited = is_wanted;
        }
    }

    pub(crate) fn close_input(&mut self, id: SessionId) {
        let input = self
            .stdio
            .get_mut(&id)
            .and_then(|it| it.pipes[INPUT].take());
        if let Some(pipe) = input {
            self.kernel.close_pipe(pipe);
            self.forget_closed(id);
        }
    }

    fn is_input_cut(&self, id: SessionId) -> bool {
        self.stdio.get(&id).is_some_and(|it| it.is_input_cut)
    }

    /// Nothing more can be written.
    fn cut_input(&mut self, id: SessionId) {
        self.commands.note_fault(id, FaultPart::Stdin);
        if let Some(stdio) = self.stdio.get_mut(&id) {
            stdio.is_input_cut = true;
        }
        self.agent.handle_input_failed(id, EIO, self.now);
    }

    fn end_input(&mut self, id: SessionId) {
        self.close_input(id);
        self.agent.handle_input_closed(id, self.now);
    }

    pub(crate) fn forget_closed(&mut self, id: SessionId) {
        let is_closed = |it: &Stdio| it.pipes.iter().all(Option::is_none) && !it.is_held_open;
        if self.stdio.get(&id).is_some_and(is_closed) {
            self.stdio.remove(&id);
        }
    }
}
