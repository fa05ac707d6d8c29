//! The agent without its system: it makes every decision, does no I/O and reads no clock.
//!
//! ```text
//!            handle_* (what happened, and when)
//! event loop ───────────────────────────────▶ Agent ─▶ connections, sessions, listener,
//!   and      ◀─────────────────────────────── (this)   rebind, quiesce, children, timers
//!  shell      poll_action, poll_timeout,
//!             interest, pending
//! ```
//!
//! Contract, for the shell and for every test that stands in for it:
//! - After each input, [`Agent::poll_action`] is drained until `None`, and each action is performed
//!   before the next is polled. Inputs that answer an action are handed in while draining.
//! - `now` never goes back. Calling [`Agent::handle_timeout`] early or twice does nothing.
//! - The same inputs give the same outputs: no hashing order, no randomness, no globals.
//!
//! All conversations are methods of [`Agent`], one file for each: a transport reset or a rebind
//! changes connections, sessions and timers at once, and one owner of all state needs no messages
//! between them. The struct of a file holds that conversation's own state and can be tested alone.
//! Types are layered: `sessions` below `transport` below `rebind`.
//!
//! Invariants:
//! - The root state changes in one function, `Agent::set_state`, along [`state::transition`].
//! - Every request is answered, or its connection is closed.
//! - Memory stays within the limits named here, in `outbox`, and for each session in its rings,
//!   whatever a peer or a child sends. Reaching a limit means a refusal or back-pressure for that
//!   peer or child alone.
//! - All of it that others decide comes out of one budget (`sessions/buffers.rs`), beside 12 KiB
//!   for each connection. A failed allocation is a used-up budget. Only what is small, or reserved
//!   at the start, is allocated without asking.
//!
//! Not here: descriptors, process ids beyond their number, the wording of system errors.

mod action;
mod ending;
mod ids;
mod info;
mod invariants;
mod program;
mod rebind;
mod sessions;
mod settings;
pub mod state;
mod timers;
mod transport;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use log::{debug, warn};
use shared::id::{Generation, Token};
use shared::message::{Fail, FailCode};

pub use action::{
    Action, End, EndSignal, Ended, Figures, Purpose, Signal, SpawnFailure, SpawnStage, StepAction,
    StepFailure, StepOutcome,
};
pub use ids::{ConnectionId, SessionId};
pub use program::Command;
pub use rebind::hooks::HookListing;
pub use rebind::http;
pub use sessions::input::INPUT_LEN_MAX;
pub use sessions::ring::RING_LEN_MAX;
pub use sessions::session::Exit;
pub use sessions::table::ENDED_OUTPUT_LEN_MAX;
pub use settings::{
    Confinement, Limits, RESULTS_MAX, Restart, Settings, WorkloadEnd, WorkloadSettings,
};
pub use shared::message::Stream;
pub use transport::connection::Interest;
pub use transport::output::{Headers, Pieces};

use ending::Ending;
use ids::Serials;
use info::Counters;
use rebind::Rebinds;
use rebind::checkpoints::Checkpoints;
use rebind::hooks::Hooks;
use rebind::mmds::Mmds;
use rebind::quiesce::Quiescing;
use sessions::buffers::BufferPool;
use sessions::children::Children;
use sessions::table::Table;
use sessions::workload::Workload;
use state::{Input, State};
use timers::{Timer, Timers};
use transport::connection::Connection;
use transport::listener::Listener;

/// Connections of hosts that are served at once. One more gets FAIL(limit) and is closed.
pub const CONNECTIONS_MAX: usize = 1024;

/// Connections of programs in the guest that are served at once, beside [`CONNECTIONS_MAX`].
pub const LOCAL_CONNECTIONS_MAX: usize = 64;

/// Connections beyond either limit that still get FAIL(limit); further ones are closed without it.
pub const REFUSALS_MAX: usize = 32;

/// Commands that run at once.
pub const SESSIONS_MAX: usize = 1024;

/// Time for a connection to send its HELLO.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a refused or severed connection to read its last frames.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause before accepting or registering the listener is tried again after a failure.
pub const LISTENER_BACKOFF: Duration = Duration::from_millis(100);

/// Longest drain before a snapshot, and longest grace before the end, that a host may ask for.
pub const LIMIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The whole state of the core.
#[derive(Clone, Debug, Hash)]
pub struct Agent {
    settings: Settings,
    state: State,
    /// None before the first REBIND, and while a rebind is under way.
    generation: Option<Generation>,
    serials: Serials,
    listener: Listener,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Connections of programs in the guest.
    local_count: usize,
    checkpoints: Checkpoints,
    hooks: Hooks,
    sessions: Table,
    workload: Option<Workload>,
    mmds: Mmds,
    buffers: BufferPool,
    children: Children,
    rebinds: Rebinds,
    quiescing: Option<Quiescing>,
    /// The token of the last quiescence that REOPEN ended: a repeated REOPEN is answered OK.
    token_reopened: Option<Token>,
    ending: Option<Ending>,
    timers: Timers,
    actions: VecDeque<Action>,
    counters: Counters,
    started_at: Instant,
}

/// Why a session lost a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DetachReason {
    /// The client closed it.
    ClientLeft,
    /// The agent or a transport reset cut it, which says nothing about the client.
    Cut,
    /// It got everything there was.
    Done,
}

impl Agent {
    pub fn new(settings: Settings, now: Instant) -> Self {
        let buffers = BufferPool::new(settings.memory_len);
        let mut agent = Self {
            settings,
            state: State::Running,
            generation: None,
            serials: Serials::default(),
            listener: Listener::new(),
            connections: BTreeMap::new(),
            local_count: 0,
            checkpoints: Checkpoints::default(),
            hooks: Hooks::default(),
            sessions: Table::default(),
            workload: None,
            mmds: Mmds::default(),
            buffers,
            children: Children::default(),
            rebinds: Rebinds::default(),
            quiescing: None,
            token_reopened: None,
            ending: None,
            timers: Timers::default(),
            actions: VecDeque::new(),
            counters: Counters::default(),
            started_at: now,
        };
        agent.hooks.has_restore = agent.settings.has_restore_hooks;
        agent.rearm_listener();
        agent.start_workload(now);
        agent
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        if self.buffers.poll_relief() {
            self.resume_short_outputs();
        }
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] is due. `None`: nothing waits for time to pass.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next_timeout()
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// Whether the console must stay quiet: while it drains before QUIESCED, then until REBOUND,
    /// and until the probe that usually follows. Each character costs an exit to the VMM on the way
    /// to being ready.
    pub fn is_silent(&self) -> bool {
        match self.state {
            State::Quiesced | State::Rebinding(_) => true,
            State::Quiescing => self
                .quiescing
                .as_ref()
                .is_some_and(Quiescing::is_draining_console),
            State::Rebound(_) => self.timers.is_set(Timer::LogHold),
            State::Running | State::Failed(_) | State::Ending => false,
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.expire(now) {
            match timer {
                Timer::Hello(id) => {
                    let text = format!("no HELLO within {} s", HELLO_TIMEOUT.as_secs());
                    self.refuse(id, &Fail::new(FailCode::Protocol, text), now);
                }
                Timer::Linger(id) => self.close(id, DetachReason::Cut, now),
                Timer::Grace(id) => self.end_grace(id, now),
                Timer::Abandon(id) => self.abandon_session(id, now),
                Timer::Timeout(id) => self.time_out_session(id, now),
                Timer::Kill(id) => self.kill_session(id, now),
                Timer::Check => self.check_sources(now),
                Timer::Workload => self.handle_workload_timer(now),
                Timer::Mmds => self.handle_mmds_timer(now),
                Timer::Listener => self.rearm_listener(),
                Timer::BusyReport => self.report_busy(now),
                Timer::Drain => self.abort_draining(now),
                Timer::ConsolePoll => self.actions.push_back(Action::LookAtConsole),
                Timer::ConsoleLimit => self.abort_console_wait(now),
                Timer::HostSilence => self.note_host_silence(now),
                // The event loop releases the held log lines at the end of this turn.
                Timer::LogHold => self.announce_generation(now),
                Timer::Checkpoint(id) => self.expire_checkpoint(id, now),
                Timer::ProgressReport => self.report_progress(now),
                Timer::Shutdown => self.end_sessions(now),
                Timer::FinalFlush => self.end_final_flush(now),
            }
        }
    }

    /// The only place that changes the root state.
    fn set_state(&mut self, input: Input) {
        match state::transition(self.state, input) {
            Ok(next) => {
                debug!("state {} -> {}", self.state.name(), next.name());
                self.state = next;
            }
            // A bug, and harmless: requests are checked before they get here.
            Err(refused) => {
                debug_assert!(false, "{refused:?}");
                warn!("state {} refuses {:?}", refused.state.name(), refused.input);
            }
        }
    }
}

#[cfg(test)]
mod tests;
