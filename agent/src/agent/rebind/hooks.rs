//! The image's hooks: programs that run before a snapshot and after a restore, one after another.
//! No I/O, no clock.
//!
//! ```text
//! HOOKS ─▶ listed ─▶ first runs ─▶ … ─▶ last has ended ─▶ HOOKED
//!                        └─ failed, and the host asked to stop then ──────▲
//! ```
//!
//! A hook is a session like any other: it has a process group, output, a time limit and a result.
//!
//! Invariants:
//! - One set of hooks runs at a time, and none from QUIESCE or REBIND until REOPEN or REBOUND.
//! - A repeated request with the same token is answered again and runs nothing.

use std::time::{Duration, Instant};

use log::{info, warn};
use shared::id::ExecId;
use shared::message::{
    ExitStatus, Exited, Fail, FailCode, Fault, HookResult, HookStage, Hooked,
    Hooks as HooksRequest, Message, OutputPolicy, Stream,
};

use super::steps::WAITING_MAX;
use crate::agent::Agent;
use crate::agent::action::Action;
use crate::agent::ids::{ConnectionId, SessionId};
use crate::agent::program::Command;
use crate::agent::sessions::session::{Session, Spec, command_text};
use crate::agent::sessions::workload::status_of_never_ran;
use crate::agent::state::Request;

/// Bytes of a hook's output that the log shows, the last ones of each stream.
const LOGGED_LEN_MAX: usize = 1024;

/// What the shell found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HookListing {
    /// The stage's hooks, in the order of their names.
    pub paths: Vec<Vec<u8>>,
    pub has_restore: bool,
}

/// The hooks that run, and the result of the last ones.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Hooks {
    run: Option<Run>,
    result: Option<Hooked>,
    /// Whether the image has hooks for after a restore, as of the last look.
    pub(crate) has_restore: bool,
}

#[derive(Clone, Debug, Hash)]
struct Run {
    request: HooksRequest,
    waiting: Vec<ConnectionId>,
    /// Those that have not run, the next one last.
    left: Vec<Vec<u8>>,
    current: Option<Current>,
    results: Vec<HookResult>,
}

#[derive(Clone, Debug, Hash)]
struct Current {
    session: SessionId,
    name: String,
    started_at: Instant,
}

impl Hooks {
    pub(crate) fn is_running(&self) -> bool {
        self.run.is_some()
    }

    /// A connection has ended. The hooks run on, and a repeated request finds their result.
    pub(crate) fn remove_waiter(&mut self, id: ConnectionId) {
        if let Some(run) = &mut self.run {
            run.waiting.retain(|other| *other != id);
        }
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.run.as_ref().is_some_and(|run| !run.waiting.is_empty())
    }

    /// The waiting connections, and the step that PROGRESS names to them.
    pub(crate) fn waiting(&self) -> Option<(Vec<ConnectionId>, String)> {
        let run = self.run.as_ref()?;
        let stage = || run.request.stage.as_str().to_owned();
        let name = run.current.as_ref().map(|current| current.name.clone());
        Some((run.waiting.clone(), name.unwrap_or_else(stage)))
    }
}

/// The session's request id: each hook's own, and as random as the token.
fn exec_id(request: &HooksRequest, index: usize) -> ExecId {
    let mut id = *request.token.as_bytes();
    id[0] ^= u8::try_from(index + 1).unwrap_or(u8::MAX);
    ExecId::from_bytes(id)
}

impl Agent {
    pub(crate) fn handle_hooks(&mut self, id: ConnectionId, request: HooksRequest, now: Instant) {
        if !self.admit(id, Request::Exec, now) {
            return;
        }
        let is_known = |known: &Hooked| known.token == request.token;
        if let Some(hooked) = self.hooks.result.clone().filter(is_known) {
            return self.send(id, &Message::Hooked(hooked), now);
        }
        match &mut self.hooks.run {
            Some(run) if run.request.token != request.token => {
                let text = "hooks are running for another request";
                return self.send_fail(id, FailCode::Refusing, text, now);
            }
            Some(run) if run.waiting.len() >= WAITING_MAX => {
                let text = "too many connections wait for these hooks";
                return self.send_fail(id, FailCode::Limit, text, now);
            }
            Some(run) => {
                run.waiting.retain(|other| *other != id);
                run.waiting.push(id);
            }
            None if self.sessions.find_exec(exec_id(&request, 0)).is_some() => {
                let text = "the hooks of this request have run, and are forgotten";
                return self.send_fail(id, FailCode::NoSession, text, now);
            }
            None => {
                self.hooks.run = Some(Run {
                    request,
                    waiting: vec![id],
                    left: Vec::new(),
                    current: None,
                    results: Vec::new(),
                });
                return self.actions.push_back(Action::ListHooks(request.stage));
            }
        }
        self.report_hook(now);
    }

    /// Answers [`Action::ListHooks`].
    pub fn handle_hooks_listed(&mut self, listing: Result<HookListing, String>, now: Instant) {
        let Some(run) = &mut self.hooks.run else {
            return;
        };
        match listing {
            Ok(listing) => {
                self.hooks.has_restore = listing.has_restore;
                run.left = listing.paths;
                match run.request.stage {
                    HookStage::Snapshot => {}
                    HookStage::Restore => run.left.reverse(),
                }
                self.advance_hooks(now);
            }
            Err(text) => {
                let waiting = std::mem::take(&mut run.waiting);
                self.hooks.run = None;
                for id in waiting {
                    self.send_fail(id, FailCode::Internal, text.clone(), now);
                }
            }
        }
    }

    /// Starts the next hook, or answers when there is none left.
    fn advance_hooks(&mut self, now: Instant) {
        let is_ending = self.ending.is_some();
        let Some(run) = &mut self.hooks.run else {
            return;
        };
        if let Some(path) = run.left.pop().filter(|_| !is_ending) {
            return self.start_hook(path, now);
        }
        if let Some(run) = self.hooks.run.take() {
            let hooked = Hooked {
                token: run.request.token,
                hooks: run.results,
            };
            for id in run.waiting {
                self.send(id, &Message::Hooked(hooked.clone()), now);
            }
            self.hooks.result = Some(hooked);
            self.end_reporting();
        }
    }

    fn start_hook(&mut self, path: Vec<u8>, now: Instant) {
        let generation = self.generation;
        let Some(run) = &mut self.hooks.run else {
            return;
        };
        let session = self.serials.next_session();
        let spec = Spec {
            exec: Some(exec_id(&run.request, run.results.len())),
            command: command_text([path.as_slice()].into_iter()),
            generation,
            tty: None,
            has_input: false,
            output: OutputPolicy::DropOldest,
            is_detached: true,
            keep: Duration::ZERO,
            timeout: Some(Duration::from_millis(run.request.limit_ms)),
        };
        let file_name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        run.current = Some(Current {
            session,
            name: String::from_utf8_lossy(file_name).into_owned(),
            started_at: now,
        });
        let command = Command::of_hook(path, run.request.stage, generation);
        self.sessions.insert(Session::new(session, spec, now));
        self.spawn_session(session, command);
        self.report_hook(now);
    }

    pub(crate) fn report_hook(&mut self, now: Instant) {
        let Some((waiting, name)) = self.hooks.waiting() else {
            return;
        };
        for id in waiting {
            self.send_progress(id, &name, now);
        }
        if self.hooks.is_awaited() {
            self.keep_reporting(now);
        }
    }

    /// A session has ended, possibly the current hook's.
    pub(crate) fn handle_hook_ended(&mut self, session: SessionId, exited: Exited, now: Instant) {
        let text = self.hook_output(session);
        let (timed_out, fault) = (exited.timed_out, exited.fault);
        self.note_hook(session, exited.status, timed_out, fault, &text, now);
    }

    /// A session's program could not be started, possibly the current hook's.
    pub(crate) fn handle_hook_never_ran(&mut self, session: SessionId, fail: &Fail, now: Instant) {
        let text = format!(": {}", fail.text);
        self.note_hook(session, status_of_never_ran(fail), false, None, &text, now);
    }

    fn note_hook(
        &mut self,
        session: SessionId,
        status: ExitStatus,
        timed_out: bool,
        fault: Option<Fault>,
        text: &str,
        now: Instant,
    ) {
        let Some(run) = &mut self.hooks.run else {
            return;
        };
        let Some(current) = run.current.take_if(|current| current.session == session) else {
            return;
        };
        let took = now.saturating_duration_since(current.started_at);
        let result = HookResult {
            name: current.name,
            status,
            us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            timed_out,
            fault,
        };
        let (name, code) = (&result.name, result.status.shell_code());
        if result.is_success() {
            info!("hook {name} is done{text}");
        } else {
            warn!("hook {name} failed with status {code}{text}");
            if !run.request.keep_going {
                run.left.clear();
            }
        }
        run.results.push(result);
        self.advance_hooks(now);
    }

    /// The end of a hook's output, safe for a console.
    fn hook_output(&self, session: SessionId) -> String {
        let mut text = String::new();
        let Some(session) = self.sessions.get(session) else {
            return text;
        };
        for &stream in Stream::ALL {
            let ring = session.ring(stream);
            let from = ring.end() - ring.len().min(LOGGED_LEN_MAX) as u64;
            let [head, tail] = ring.bytes_from(from, LOGGED_LEN_MAX);
            let bytes = [head, tail].concat();
            let shown = String::from_utf8_lossy(&bytes);
            if !shown.trim().is_empty() {
                text.push_str(&format!("; {stream}: {}", shown.trim().escape_debug()));
            }
        }
        text
    }

    /// A rebind begins: no host waits for these hooks any more.
    pub(crate) fn abandon_hooks(&mut self, now: Instant) {
        if let Some(current) = self.hooks.run.take().and_then(|run| run.current) {
            self.terminate_session(current.session, now);
        }
        self.end_reporting();
    }
}
