//! Named points at which tests make this program fail, die or stall, to see what it leaves behind.
//! They do nothing in builds without debug assertions.
//!
//! ```text
//! HOST_TOOL_FAILPOINTS=load.after=fail,probe.sent=delay:200
//!                      │          └ fail, kill, or delay:MS
//!                      └ PHASE.MOMENT
//! ```
//!
//! `fail` is an error of that phase, `kill` is SIGKILL to this process, and `delay` waits. A point
//! fires once in a process, so that the handling of the failure is not disturbed. It writes a line
//! to standard error, so that a test notices if its point was not reached.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, raise};
use shared::exchange::Request;

use crate::error::Failure;
use crate::exit::Exit;
use crate::os::deadline::Watch;

/// The environment variable that arms points.
const VARIABLE: &str = "HOST_TOOL_FAILPOINTS";

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $exit:ident;)*) => {
        /// A point. Its name begins with the phase that its failure is reported in.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Point { $($(#[$doc])* $name,)* }

        impl Point {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name in the environment variable.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What a real failure at this point would mean.
            pub(crate) const fn exit(self) -> Exit {
                match self { $(Self::$name => Exit::$exit,)* }
            }
        }
    };
}

points! {
    /// `restore` opens its artifact, `snapshot` creates one.
    ArtifactBefore = "artifact.before", Artifact;
    /// The VMM's version is not known yet.
    VersionBefore = "version.before", Version;
    /// There is no VM directory yet.
    SpawnBefore = "spawn.before", Start;
    /// The VM directory exists, and neither supervisor nor VMM runs.
    SpawnCreated = "spawn.created", Start;
    /// Supervisor and VMM run, and `state.json` is not written.
    SpawnSpawned = "spawn.spawned", Start;
    /// `state.json` is written.
    SpawnWritten = "spawn.written", Start;
    /// The API socket answers.
    SpawnConnected = "spawn.connected", Start;
    /// The VMM was not told the machine yet.
    StartBefore = "start.before", Start;
    /// The machine runs.
    StartAfter = "start.after", Start;
    /// The snapshot is not loaded yet.
    LoadBefore = "load.before", Start;
    /// The clone runs and has no generation of its own.
    LoadAfter = "load.after", Start;
    /// The VM's lock is not held yet.
    LockBefore = "lock.before", Internal;
    /// The VM's lock is held.
    LockAfter = "lock.after", Internal;
    /// What an interrupted snapshot left is about to be repaired.
    ConvergeBefore = "converge.before", Start;
    /// No QUIESCE was written.
    QuiesceBefore = "quiesce.before", Guest;
    /// QUIESCE was written, its answer not read.
    QuiesceSent = "quiesce.sent", Internal;
    /// The guest is quiesced, and its vCPUs run.
    PauseBefore = "pause.before", Start;
    /// The vCPUs are paused.
    PauseAfter = "pause.after", Start;
    /// Memory and state are in the draft.
    SaveAfter = "save.after", Start;
    /// The disks are in the draft.
    DisksAfter = "disks.after", Artifact;
    /// The vCPUs are paused, and the draft is complete except for its manifest.
    ResumeBefore = "resume.before", Start;
    /// The vCPUs run again.
    ResumeAfter = "resume.after", Start;
    /// No REBIND was written.
    RebindBefore = "rebind.before", Guest;
    /// A REBIND was written, its answer not read.
    RebindSent = "rebind.sent", Internal;
    /// REBOUND was read.
    RebindAfter = "rebind.after", Guest;
    /// The guest has its generation, and no PROBE was written.
    ProbeBefore = "probe.before", Guest;
    /// A PROBE was written, its answer not read.
    ProbeSent = "probe.sent", Internal;
    /// PROBED was read.
    ProbeAfter = "probe.after", Guest;
    /// The VM is ready, and `state.json` does not say so yet.
    PublishState = "publish.state", Internal;
    /// The next state says that the VM is ready, and the supervisor has not published it.
    PublishRelease = "publish.release", Internal;
    /// The draft has no manifest.
    PublishBefore = "publish.before", Artifact;
    /// The draft is complete and not renamed.
    PublishRename = "publish.rename", Artifact;
    /// The artifact is published, and its source, which is to be stopped, still runs.
    StopBefore = "stop.before", Internal;
    /// The supervisor has entered the VM directory and holds no lock. This point and those below
    /// are in the supervisor.
    SupervisorStarted = "supervisor.started", Start;
    /// It holds its lock, and there is no VMM.
    SupervisorLocked = "supervisor.locked", Start;
    /// The VMM runs, and only the supervisor knows.
    SupervisorSpawned = "supervisor.spawned", Start;
    /// The command knows which process the VMM is.
    SupervisorReported = "supervisor.reported", Start;
    /// The command has released the VM, and the supervisor's threads are not started.
    SupervisorKept = "supervisor.kept", Internal;
    /// The thread that logs the workload's output has not connected to the guest.
    SupervisorOutput = "supervisor.scribe", Internal;
    /// The thread of the health check has not probed the guest.
    SupervisorHealth = "supervisor.health", Internal;
    /// The VMM was reaped, and its exit is not recorded.
    SupervisorReaped = "supervisor.reaped", Internal;
    /// The exit of the VMM is recorded.
    SupervisorRecorded = "supervisor.recorded", Internal;
    /// The VM's command has died, and the VMM was killed; the directory still exists.
    SupervisorRemove = "supervisor.remove", Internal;
}

/// What a point does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Fail,
    Kill,
    Delay(Duration),
}

/// A point that does something.
#[derive(Debug)]
struct Armed {
    point: Point,
    action: Action,
    has_fired: AtomicBool,
}

/// What the environment variable says, read once.
static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

/// The failure that a point injects.
#[derive(Debug)]
pub(crate) struct Injected {
    point: Point,
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected at failpoint {}", self.point.as_str())
    }
}

impl std::error::Error for Injected {}

impl From<Injected> for Failure {
    fn from(error: Injected) -> Self {
        Self::new(error.point.exit(), error)
    }
}

impl From<Injected> for io::Error {
    fn from(error: Injected) -> Self {
        Self::other(error)
    }
}

/// Reads the environment variable.
///
/// # Errors
///
/// If it is not a list of points: a test would pass without its fault.
pub(crate) fn arm() -> Result<(), Failure> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let text = std::env::var(VARIABLE).unwrap_or_default();
    let armed = parse(&text).map_err(|error| Failure::usage(format!("{VARIABLE}: {error}")))?;
    // Set once, at the start.
    let _ = ARMED.set(armed);
    Ok(())
}

/// Does what the point is armed with, if anything.
///
/// # Errors
///
/// If it is armed to fail.
pub(crate) fn reach(point: Point) -> Result<(), Injected> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let armed = ARMED.get().into_iter().flatten();
    for armed in armed.filter(|armed| armed.point == point) {
        if !armed.has_fired.swap(true, Ordering::Relaxed) {
            fire(point, armed.action)?;
        }
    }
    Ok(())
}

/// The point that is reached once this request was written, if there is one.
pub(crate) const fn sent(request: &Request) -> Option<Point> {
    match request {
        Request::Quiesce(_) => Some(Point::QuiesceSent),
        Request::Rebind(_) => Some(Point::RebindSent),
        Request::Probe { .. } => Some(Point::ProbeSent),
        Request::Reopen(_)
        | Request::Info
        | Request::Sessions(_)
        | Request::Signal(_)
        | Request::Shutdown(_)
        | Request::AwaitCheckpoint(_)
        | Request::Hooks(_) => None,
    }
}

fn fire(point: Point, action: Action) -> Result<(), Injected> {
    // A closed standard error cannot be reported.
    let _ = writeln!(io::stderr(), "failpoint {} fired", point.as_str());
    match action {
        Action::Fail => Err(Injected { point }),
        Action::Kill => {
            // SIGKILL cannot be blocked: the process ends here.
            let _ = raise(Signal::SIGKILL);
            Ok(())
        }
        Action::Delay(time) => {
            if let Ok(never) = EventFd::new() {
                // It never becomes readable: the deadline ends the wait.
                let _ = Watch::until(Instant::now() + time).readable(&never);
            }
            Ok(())
        }
    }
}

fn parse(text: &str) -> Result<Vec<Armed>, String> {
    let items = text.split(',').filter(|item| !item.is_empty());
    items.map(parse_one).collect()
}

fn parse_one(item: &str) -> Result<Armed, String> {
    let (name, action) = item.split_once('=').unwrap_or((item, ""));
    let point = Point::ALL.iter().find(|point| point.as_str() == name);
    let point = point.ok_or_else(|| {
        let names: Vec<&str> = Point::ALL.iter().map(|point| point.as_str()).collect();
        format!("unknown point '{name}'; the points are {}", names.join(" "))
    })?;
    let action = match (action, action.strip_prefix("delay:").map(str::parse)) {
        ("fail", _) => Action::Fail,
        ("kill", _) => Action::Kill,
        (_, Some(Ok(ms))) => Action::Delay(Duration::from_millis(ms)),
        _ => return Err(format!("'{action}' is not fail, kill or delay:MS")),
    };
    Ok(Armed {
        point: *point,
        action,
        has_fired: AtomicBool::new(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Table;

    #[test]
    fn a_list_is_read_or_refused() {
        let armed = parse("load.after=fail,probe.sent=delay:20,publish.rename=kill").unwrap();
        let expected = [
            (Point::LoadAfter, Action::Fail),
            (Point::ProbeSent, Action::Delay(Duration::from_millis(20))),
            (Point::PublishRename, Action::Kill),
        ];
        let armed: Vec<_> = armed.iter().map(|one| (one.point, one.action)).collect();
        assert_eq!(armed, expected);
        assert!(parse("").unwrap().is_empty());
        for bad in ["load", "load.after", "load.after=", "load.after=delay:x"] {
            parse(bad).unwrap_err();
        }
        let error = parse("no=fail").unwrap_err();
        assert!(error.contains("publish.rename"), "{error}");
    }

    #[test]
    fn a_point_that_is_not_armed_does_nothing() {
        for &point in Point::ALL {
            reach(point).unwrap();
        }
    }

    #[test]
    fn an_injected_failure_names_its_point_and_means_what_a_real_one_would() {
        let injected = fire(Point::LoadAfter, Action::Fail).unwrap_err();
        let failure = Failure::from(injected);
        assert_eq!(failure.to_string(), "injected at failpoint load.after");
        assert_eq!(Table::General.code(failure.exit()), 5);
        fire(Point::LoadAfter, Action::Delay(Duration::from_millis(1))).unwrap();
    }
}
