//! Bytes into commands.
//!
//! A writing end stays registered while it is open. While bytes wait for it, room is an event.
//! While none do, only errors and hang-ups are, which epoll reports in any case. So the agent
//! learns at once that a command has closed its standard input, and does not wake up when one
//! reads.
//!
//! An end that fails in another way than by a closed other end is cut: nothing more is written, and
//! it stays open until the command has ended, which would take its closing for the end of a whole
//! input.

use std::io;

use log::warn;
use mio::Interest;

use super::failpoint::Call;
use super::{Shell, Source, Turn, errno_of};
use crate::agent::SessionId;
use crate::sys::stdio::StdioEnd;

/// An event that neither a pipe nor a terminal's master ever reports.
const HANG_UP_ONLY: Interest = Interest::PRIORITY;

#[derive(Debug)]
pub(super) struct Input {
    end: StdioEnd,
    /// Whether it is registered for room, not only for hang-ups.
    is_awaited: bool,
    /// Whether its pipe was full once and has been widened.
    is_wide: bool,
    /// Whether it has failed, and is out of the poll set.
    is_cut: bool,
}

impl Input {
    pub(super) fn new(end: StdioEnd) -> Self {
        Self {
            end,
            is_awaited: false,
            is_wide: false,
            is_cut: false,
        }
    }
}

impl Shell {
    /// Puts a new program's writing end into the poll set.
    pub(super) fn register_input(&mut self, id: SessionId, turn: &mut Turn<'_>) {
        let input = self.stdio.get_mut(&id).and_then(|it| it.input.as_mut());
        let Some(input) = input else {
            return;
        };
        let token = Source::Input(id).token();
        let registered = self
            .failpoints
            .check(Call::PollInput)
            .and_then(|()| self.registry.register(&mut input.end, token, HANG_UP_ONLY));
        if let Err(err) = registered {
            self.cut_input(id, &err, turn);
        }
    }

    /// The writing end has room again, or the command has closed the other end.
    pub(super) fn drain_input(&mut self, id: SessionId, turn: &mut Turn<'_>) {
        self.flush_input(id, turn);
        if self.input(id).is_some_and(|input| input.end.is_hung_up()) {
            self.end_input(id, turn);
        }
    }

    /// Writes until nothing is pending, or the command takes no more.
    pub(super) fn flush_input(&mut self, id: SessionId, turn: &mut Turn<'_>) {
        while let Some(input) = self.stdio.get_mut(&id).and_then(|it| it.input.as_mut()) {
            let pending = turn.agent.input_pending(id);
            if pending.is_empty() || input.is_cut {
                break;
            }
            let failpoint = self.failpoints.check(Call::Input);
            match failpoint.and_then(|()| input.end.write(pending)) {
                Ok(0) => return self.cut_input(id, &io::ErrorKind::WriteZero.into(), turn),
                Ok(len) => turn.agent.handle_input_written(id, len, turn.now),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock && !input.is_wide => {
                    // Now the write is tried once more.
                    input.is_wide = true;
                    input.end.widen();
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if input.end.is_gone(&err) => return self.end_input(id, turn),
                Err(err) => return self.cut_input(id, &err, turn),
            }
        }
        self.sync_input(id, turn);
    }

    /// Makes the registration agree with whether bytes wait. A new registration reports room that
    /// is already there.
    fn sync_input(&mut self, id: SessionId, turn: &mut Turn<'_>) {
        let is_wanted = !turn.agent.input_pending(id).is_empty();
        let Some(input) = self.stdio.get_mut(&id).and_then(|it| it.input.as_mut()) else {
            return;
        };
        if input.is_awaited == is_wanted || input.is_cut {
            return;
        }
        let interest = if is_wanted {
            HANG_UP_ONLY | Interest::WRITABLE
        } else {
            HANG_UP_ONLY
        };
        input.is_awaited = is_wanted;
        let token = Source::Input(id).token();
        let registered = self
            .failpoints
            .check(Call::PollInput)
            .and_then(|()| self.registry.reregister(&mut input.end, token, interest));
        if let Err(err) = registered {
            self.cut_input(id, &err, turn);
        }
    }

    /// It can be written to no more, although the command may read it.
    fn cut_input(&mut self, id: SessionId, err: &io::Error, turn: &mut Turn<'_>) {
        warn!("{id}: cannot write its input: {err}");
        if let Some(input) = self.stdio.get_mut(&id).and_then(|it| it.input.as_mut()) {
            input.is_cut = true;
            // It is not registered if that has failed.
            let _ = self.registry.deregister(&mut input.end);
        }
        turn.agent.handle_input_failed(id, errno_of(err), turn.now);
    }

    /// To a command without a terminal this is the end of its input.
    pub(super) fn close_input(&mut self, id: SessionId) {
        let stdio = self.stdio.get_mut(&id);
        if let Some(mut input) = stdio.and_then(|stdio| stdio.input.take()) {
            // The terminal's other end stays open, and epoll would keep this one for it.
            let _ = self.registry.deregister(&mut input.end);
            self.forget_closed(id);
        }
    }

    pub(super) fn end_input(&mut self, id: SessionId, turn: &mut Turn<'_>) {
        self.close_input(id);
        turn.agent.handle_input_closed(id, turn.now);
    }

    fn input(&self, id: SessionId) -> Option<&Input> {
        self.stdio.get(&id)?.input.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::time::Duration;

    use mio::{Events, Poll, Token};
    use shared::message::TtySize;

    use crate::sys::process::FileLimit;
    use crate::sys::spawn::{Program, Spawner, Started};
    use crate::sys::stdio::Wiring;

    const DEADLINE: Duration = Duration::from_secs(30);
    const SIZE: TtySize = TtySize { rows: 24, cols: 80 };
    const STDIN: Token = Token(0);
    const STDOUT: Token = Token(1);

    fn spawn(wiring: Wiring, script: &str) -> Started {
        let limit = FileLimit {
            soft: 256,
            hard: 256,
        };
        let strings = |list: &[&str]| list.iter().map(|s| CString::new(*s).unwrap()).collect();
        let program = Program {
            candidates: strings(&["/bin/sh"]),
            argv: strings(&["sh", "-c", script]),
            env: Vec::new(),
            cwd: CString::new("/").unwrap(),
            wiring,
            user: None,
            cgroup: None,
            slot: None,
        };
        Spawner::new(limit, false).unwrap().spawn(&program).unwrap()
    }

    /// Polls until there is an event for `token`. Returns the tokens of the events before it.
    fn await_event(poll: &mut Poll, token: Token) -> Vec<Token> {
        let mut events = Events::with_capacity(8);
        let mut before = Vec::new();
        loop {
            poll.poll(&mut events, Some(DEADLINE)).unwrap();
            assert!(!events.is_empty(), "no event for {token:?}");
            for event in &events {
                if event.token() == token {
                    return before;
                }
                before.push(event.token());
            }
        }
    }

    fn fill(end: &StdioEnd) {
        loop {
            match end.write(&[b'x'; 4096]) {
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) => panic!("{err}"),
            }
        }
    }

    #[test]
    fn an_end_that_nothing_waits_for_tells_hang_ups_only() {
        for wiring in [Wiring::InputAndOutput, Wiring::Terminal(SIZE)] {
            let script = "read line; echo \"$line\"; read line";
            let started = spawn(wiring, script);
            let (mut stdin, mut stdout) = (started.stdio.stdin.unwrap(), started.stdio.stdout);
            let mut poll = Poll::new().unwrap();
            let registry = poll.registry();
            registry.register(&mut stdin, STDIN, HANG_UP_ONLY).unwrap();
            let interest = Interest::READABLE;
            registry.register(&mut stdout, STDOUT, interest).unwrap();
            assert!(!stdin.is_hung_up());
            // Reading makes room, which is not an event; the reader's end is one.
            stdin.write(b"first\n").unwrap();
            assert!(!await_event(&mut poll, STDOUT).contains(&STDIN));
            assert!(!stdin.is_hung_up());
            stdin.write(b"second\n").unwrap();
            await_event(&mut poll, STDIN);
            assert!(stdin.is_hung_up());
        }
    }

    #[test]
    fn an_end_that_bytes_wait_for_tells_that_there_is_room() {
        let started = spawn(
            Wiring::InputAndOutput,
            "head -c 65536 >/dev/null; read line",
        );
        let mut stdin = started.stdio.stdin.unwrap();
        let mut poll = Poll::new().unwrap();
        let registry = poll.registry();
        registry.register(&mut stdin, STDIN, HANG_UP_ONLY).unwrap();
        fill(&stdin);
        let interest = HANG_UP_ONLY | Interest::WRITABLE;
        registry.reregister(&mut stdin, STDIN, interest).unwrap();
        await_event(&mut poll, STDIN);
        assert!(!stdin.is_hung_up());
    }
}
