//! INFO: what the agent reports about itself, with its counters. No I/O, no clock.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Instant;

use shared::message::{Info, Message};

use super::Agent;
use super::action::{Action, Figures};
use super::ids::ConnectionId;
use super::state::Request;

/// Defines the counters once: the name of each field is also its name in INFO.
macro_rules! counters {
    ($($name:ident)*) => {
        /// What has happened since the start.
        #[derive(Clone, Copy, Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: u64,)*
        }

        impl Counters {
            fn by_name(self) -> BTreeMap<String, u64> {
                [$((stringify!($name), self.$name),)*]
                    .map(|(name, value)| (name.to_owned(), value))
                    .into()
            }
        }
    };
}

counters! {
    accepts accepts_shed peers_refused resets rearms mistakes
    execs attaches superseded gaps timeouts abandoned restarts left_behind
    probes rebinds quiesces mmds_reads mmds_epochs mmds_failures
}

/// Counters decide nothing: two agents that differ only in them are in the same state.
impl Hash for Counters {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Agent {
    pub(super) fn handle_info(&mut self, id: ConnectionId, now: Instant) {
        if self.admit(id, Request::Inspect, now) {
            self.actions.push_back(Action::CollectFigures(id));
        }
    }

    /// At its start an agent has ended this many processes or commands of a predecessor.
    pub fn note_predecessor(&mut self, count: u64) {
        self.counters.left_behind += count;
    }

    /// Answers [`Action::CollectFigures`].
    pub fn handle_figures(&mut self, id: ConnectionId, figures: Figures, now: Instant) {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let uptime = now.saturating_duration_since(self.started_at);
        let mut counters = self.counters.by_name();
        counters.insert("listener_serial".to_owned(), self.listener.serial());
        let info = Info {
            agent_version: self.settings.version.clone(),
            generation: self.generation,
            boot_id: self.settings.boot_id.clone(),
            state: self.state.name().to_owned(),
            kernel: self.settings.kernel.clone(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            sessions: count(self.sessions.running_count()),
            connections: count(self.host_count()),
            fds: figures.fds,
            rss_kib: figures.rss_kib,
            cgroup: self.settings.confinement.has_cgroups,
            limits: self.settings.confinement.has_limits,
            orphans_reaped: self.children.orphans_reaped(),
            counters,
        };
        self.send(id, &Message::Info(info), now);
    }
}
