//! The loop: sleep, look at the clock once, hand in what happened, perform what follows.
//!
//! Only this file polls. The order within a turn is fixed: events first, then what was left unread,
//! then the accept queue, then timers. Input comes before timers because a machine that was paused
//! finds every deadline passed, and what its peers have said in the meantime counts for more. The
//! accept queue is drained on every wake-up because a connection that arrived while the machine was
//! paused gives no edge of its own.

use std::io;
use std::time::Duration;

use mio::{Events, Poll};

use crate::agent::{Agent, End};
use crate::shell::{Shell, Source};
use crate::sys::{clock, console};

/// Most events taken per turn; epoll reports the rest in the next.
const EVENTS_MAX: usize = 256;

/// Longest wait for an event. epoll counts milliseconds in 32 bits, and a session may have been
/// given months.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs until the end has been asked for. Only a failing `poll` ends it early, which is a defect of
/// our own.
pub(crate) fn run(poll: &mut Poll, shell: &mut Shell, agent: &mut Agent) -> io::Result<End> {
    let mut events = Events::with_capacity(EVENTS_MAX);
    shell.settle(agent, clock::now());
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
        let now = clock::now();
        for event in &events {
            // An unknown token was never given out; an unknown serial was closed earlier in this
            // very batch.
            if let Some(source) = Source::of_token(event.token()) {
                shell.handle_event(source, agent, now);
            }
        }
        shell.run_ready(agent, now);
        shell.drain_accept(agent, now);
        agent.handle_timeout(now);
        shell.settle(agent, now);
    }
}
