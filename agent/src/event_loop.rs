//! The loop: sleep, read the clock once, hand in what happened, perform what follows.
//!
//! Only this file polls. The order within a turn is fixed: events first, then sources that were
//! left unread, then the accept queue, then timers. The core's actions are drained after each event
//! and at the end of the turn; a source that is read in a loop drains them after each read.
//!
//! Input comes before timers because a machine that was paused finds every deadline passed, and
//! what its peers said in the meantime takes precedence. The accept queue is drained on every
//! wake-up because a connection that arrived while the machine was paused gives no edge.

use std::io;
use std::time::Duration;

use mio::{Events, Poll};

use crate::agent::{Agent, End};
use crate::shell::{Shell, Source, Turn};
use crate::sys::{clock, console};

/// Events taken per turn; epoll reports the rest in the next one.
const EVENTS_MAX: usize = 256;

/// Longest wait: epoll counts milliseconds in 32 bits, and a session's time limit may be months.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs until the core asks for the end. An error would be a bug: only `poll` itself can fail.
pub(crate) fn run(poll: &mut Poll, shell: &mut Shell, agent: &mut Agent) -> io::Result<End> {
    let mut events = Events::with_capacity(EVENTS_MAX);
    shell.drain_actions(&mut Turn::begin(agent));
    loop {
        if let Some(end) = shell.end() {
            return Ok(end);
        }
        if !agent.is_silent() {
            console::release();
        }
        let timeout = if shell.has_ready() {
            Some(Duration::ZERO)
        } else {
            agent
                .poll_timeout()
                .map(|at| at.saturating_duration_since(clock::now()).min(SLEEP_MAX))
        };
        match poll.poll(&mut events, timeout) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        let mut turn = Turn::begin(agent);
        for event in &events {
            // An unknown token was never given out; an unknown serial was closed earlier in this
            // batch.
            if let Some(source) = Source::of_token(event.token()) {
                shell.handle_event(source, &mut turn);
            }
        }
        shell.run_ready(&mut turn);
        shell.drain_accept(&mut turn);
        turn.agent.handle_timeout(turn.now);
        shell.drain_actions(&mut turn);
    }
}
