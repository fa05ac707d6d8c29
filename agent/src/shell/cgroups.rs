//! The sessions' cgroups: each session runs in one of its own, so that none of its processes can
//! outlive an end that it was told.
//!
//! ```text
//! enter ─▶ the session runs ─▶ its command was reaped ─┬ empty ─────────▶ removed
//!                                                      └ processes left ▶ tried again later
//! ```
//!
//! The agent adopts orphans, so it reaps the last process of each cgroup, too. This is when those
//! that were left are tried again, a few at a time.
//!
//! Invariant: the folder of the sessions is locked as long as the agent lives. An agent that gets
//! the lock is the only one that listens on this address, so what it finds there was left by a
//! predecessor.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::{debug, warn};

use super::Shell;
use crate::agent::{Limits, SessionId};
use crate::cgroups::limits::{Share, Shares, divide, memory_of};
use crate::cgroups::{AGENT_NAME, SESSIONS_PREFIX, locate, name_of_path, name_of_port};
use crate::sys::cgroup::Cgroup;
use crate::sys::socket::Address;

/// How long the agent waits at its start for the lock, and at its end for killed processes.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Cgroups that are tried again when a process was reaped.
const RETRIES: usize = 4;

/// Cgroups with processes whose session has ended. Of more the oldest is left to the agent's end.
const LEFT_MAX: usize = 4096;

/// What divides a cgroup's resources among those below it.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The agent's share of the processors, beside 100 of all sessions: as by its priority.
const AGENT_CPU_WEIGHT: &str = "1000";

/// Folders of this age that hold no process are removed, also those of other addresses. A younger
/// one may belong to an agent that is about to lock it.
const STALE_AGE: Duration = Duration::from_secs(60);

impl Shell {
    pub(super) fn kill_session(&self, id: SessionId) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.kill(id);
        }
    }

    /// A child was reaped, and the core has acted on it.
    pub(super) fn note_reaped(&mut self, pid: i32) {
        if let Some(cgroups) = &mut self.cgroups {
            cgroups.handle_reaped(pid);
        }
        if let Some(record) = &mut self.record {
            record.handle_reaped(pid);
        }
    }

    /// The agent ends, so it leaves nothing to a successor.
    pub(super) fn end_keepers(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.end();
        }
        if let Some(record) = &self.record {
            record.end();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Cgroups {
    /// The cgroup that the agent was started in.
    base: Cgroup,
    /// Name of the sessions' folder in it.
    name: String,
    /// Locked.
    sessions: Cgroup,
    /// What sessions may use, if they can have limits.
    shares: Option<Shares>,
    /// What follows a session's number in the name of its cgroup.
    suffix: String,
    /// Sessions by the process id of their command, until it was reaped.
    by_leader: BTreeMap<i32, SessionId>,
    /// Sessions whose command was reaped, and whose cgroup had processes then.
    left: VecDeque<SessionId>,
}

impl Cgroups {
    /// Makes the folder of the sessions, and kills what a predecessor has left there. Returns how
    /// many processes these were. `None`, with a reason in the log, if this machine does not let
    /// the agent do so.
    pub(crate) fn open(address: &Address, is_init: bool) -> Option<(Self, u64)> {
        match open(address, is_init) {
            Ok(found) => found,
            // The agent was not given the right, as it is with most users.
            Err(err) if is_forbidden(&err) => {
                debug!("sessions get no cgroups: {err}");
                None
            }
            Err(err) => {
                warn!("sessions get no cgroups: {err}");
                None
            }
        }
    }

    /// Whether sessions can have limits.
    pub(crate) fn has_limits(&self) -> bool {
        self.shares.is_some()
    }

    /// The cgroup for a session's next process.
    pub(super) fn enter(&self, id: SessionId, limits: Limits) -> io::Result<Cgroup> {
        let cgroup = self.sessions.make_child(&self.name_of(id))?;
        if let Some(shares) = &self.shares {
            let share = Share {
                pids: limits.pids_max.or(shares.one.pids),
                memory: limits.memory_max.or(shares.one.memory),
            };
            set(&cgroup, share)?;
        }
        Ok(cgroup)
    }

    /// A session's command was started, or could not be.
    pub(super) fn handle_spawned(&mut self, id: SessionId, pid: Option<i32>) {
        match pid {
            Some(pid) => {
                self.by_leader.insert(pid, id);
            }
            None => self.remove(id),
        }
    }

    /// Kills what is left of a session.
    pub(super) fn kill(&self, id: SessionId) {
        let cgroup = self.sessions.open_child(&self.name_of(id));
        match cgroup.and_then(|cgroup| cgroup.kill()) {
            Ok(()) => {}
            // It was empty.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => warn!("cannot kill the processes of {id}: {err}"),
        }
    }

    /// A process was reaped, so a cgroup may have become empty.
    pub(super) fn handle_reaped(&mut self, pid: i32) {
        if let Some(id) = self.by_leader.remove(&pid) {
            return self.remove(id);
        }
        for _ in 0..RETRIES.min(self.left.len()) {
            if let Some(id) = self.left.pop_front() {
                self.remove(id);
            }
        }
    }

    /// Removes a session's cgroup, or notes that processes are left in it.
    fn remove(&mut self, id: SessionId) {
        match self.sessions.remove_child(&self.name_of(id)) {
            Ok(true) => {}
            Ok(false) => {
                if self.left.len() >= LEFT_MAX {
                    self.left.pop_front();
                }
                self.left.push_back(id);
            }
            Err(err) => warn!("cannot remove the cgroup of {id}: {err}"),
        }
    }

    fn name_of(&self, id: SessionId) -> String {
        format!("{}{}", id.number(), self.suffix)
    }

    /// Kills what a predecessor has left. Returns how many processes these were.
    fn end_left(&mut self) -> io::Result<u64> {
        let folder = &self.sessions;
        let children = folder.children()?;
        if children.is_empty() {
            return Ok(0);
        }
        let count = folder.processes()?.len() as u64;
        if count > 0 {
            folder.kill()?;
            folder.is_empty_within(WAIT_MAX)?;
            warn!("killed {count} processes that an earlier agent has left");
        }
        let mut is_clean = true;
        for name in children {
            is_clean &= folder.remove_child(&name)?;
        }
        if !is_clean {
            // A killed process may wait for a device. Its cgroup must not be taken for another's.
            warn!("killed processes of an earlier agent are still there");
            self.suffix = format!(".{}", std::process::id());
        }
        Ok(count)
    }

    /// Moves the agent out of the way, and divides what the guest has between it and the sessions.
    /// `None` if the machine has no controllers for them, or others use the agent's cgroup.
    fn divide(&self, is_init: bool) -> io::Result<Option<Shares>> {
        let agent = self.move_agent(is_init)?;
        let sessions = &self.sessions;
        for cgroup in [&self.base, sessions] {
            for controller in CONTROLLERS {
                // Those that are missing are found missing below.
                if let Err(err) = cgroup.write("cgroup.subtree_control", &format!("+{controller}"))
                {
                    debug!("no cgroups for {controller}: {err}");
                }
            }
        }
        let enabled = sessions.read("cgroup.subtree_control")?;
        let has = |controller| enabled.split_whitespace().any(|it| it == controller);
        if !has("memory") || !has("pids") {
            return Ok(None);
        }
        let shares = divide(total(is_init));
        set(sessions, shares.all)?;
        if let (Some(agent), Some(len)) = (&agent, shares.agent_memory) {
            agent.write("memory.min", &len.to_string())?;
        }
        if let (Some(agent), true) = (&agent, has("cpu")) {
            agent.write("cpu.weight", AGENT_CPU_WEIGHT)?;
        }
        Ok(Some(shares))
    }

    /// A cgroup with processes cannot divide its memory among those below it. So the agent moves to
    /// one of its own, if no other process is beside it. Process 1 moves in any case: the root may
    /// have processes.
    fn move_agent(&self, is_init: bool) -> io::Result<Option<Cgroup>> {
        let own = std::process::id().to_string();
        let beside = self.base.read("cgroup.procs")?;
        let is_alone = beside.lines().all(|pid| pid == own);
        if !is_init && !is_alone {
            return Ok(None);
        }
        let agent = self.base.make_child(AGENT_NAME)?;
        agent.write("cgroup.procs", "0")?;
        Ok(Some(agent))
    }

    /// Kills all processes of all sessions, and removes the folder.
    pub(super) fn end(&self) {
        let folder = &self.sessions;
        let result = folder
            .kill()
            .and_then(|()| folder.is_empty_within(WAIT_MAX))
            .and_then(|_| self.base.remove_child(&self.name));
        match result {
            Ok(true) => {}
            Ok(false) => warn!("processes of sessions are left"),
            Err(err) => warn!("cannot end the sessions' processes: {err}"),
        }
    }
}

/// What the guest has. For process 1 that is what kernel and image have left.
fn total(is_init: bool) -> Share {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let number = |path: &str| read(path).trim().parse::<u64>().ok();
    let name = if is_init { "MemAvailable" } else { "MemTotal" };
    let pids = [
        number("/proc/sys/kernel/pid_max"),
        number("/proc/sys/kernel/threads-max"),
    ];
    Share {
        pids: pids.into_iter().flatten().min(),
        memory: memory_of(&read("/proc/meminfo"), name),
    }
}

/// Limits a cgroup.
fn set(cgroup: &Cgroup, share: Share) -> io::Result<()> {
    if let Some(count) = share.pids {
        cgroup.write("pids.max", &count.to_string())?;
    }
    if let Some(len) = share.memory {
        cgroup.write("memory.max", &len.to_string())?;
    }
    Ok(())
}

fn is_forbidden(err: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::ReadOnlyFilesystem,
    ];
    kinds.contains(&err.kind())
}

fn open(address: &Address, is_init: bool) -> io::Result<Option<(Cgroups, u64)>> {
    let read = |path: &str| std::fs::read_to_string(path);
    let mounts = read("/proc/self/mountinfo")?;
    let Some(path) = locate(&mounts, &read("/proc/self/cgroup")?) else {
        debug!("cgroup v2 is not mounted");
        return Ok(None);
    };
    // An agent that was started from the cgroup of another one.
    let path = match path.file_name() {
        Some(name) if name == AGENT_NAME => path.parent().unwrap_or(&path),
        Some(_) | None => &path,
    };
    let base = Cgroup::open(path)?;
    let name = match address {
        Address::Vsock { port } => name_of_port(*port),
        Address::Unix { path, .. } => name_of_path(absolute(path)?.as_os_str().as_bytes()),
    };
    remove_stale(&base, &name);
    let sessions = base.lock_child(&name, WAIT_MAX)?;
    let mut cgroups = Cgroups {
        base,
        name,
        sessions,
        shares: None,
        suffix: String::new(),
        by_leader: BTreeMap::new(),
        left: VecDeque::new(),
    };
    let count = cgroups.end_left()?;
    match cgroups.divide(is_init) {
        Ok(shares) => cgroups.shares = shares,
        Err(err) => warn!("sessions get no limits: {err}"),
    }
    Ok(Some((cgroups, count)))
}

/// The path without links in its folder.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let folder = folder.canonicalize()?;
    Ok(match path.file_name() {
        Some(name) => folder.join(name),
        None => folder,
    })
}

/// Removes what killed agents on other addresses have left and no process is in. Failures are those
/// of a folder that another agent removes or uses.
fn remove_stale(base: &Cgroup, own: &str) {
    for name in base.children().unwrap_or_default() {
        if name == own || !name.starts_with(SESSIONS_PREFIX) {
            continue;
        }
        if let Err(err) = remove_if_stale(base, &name) {
            debug!("cannot remove the cgroup {name}: {err}");
        }
    }
}

fn remove_if_stale(base: &Cgroup, name: &str) -> io::Result<()> {
    let folder = base.open_child(name)?;
    let is_old = folder
        .changed_at()?
        .elapsed()
        .is_ok_and(|age| age >= STALE_AGE);
    if is_old && !folder.is_populated()? {
        let _lock = base.lock_child(name, Duration::ZERO)?;
        base.remove_child(name)?;
    }
    Ok(())
}
