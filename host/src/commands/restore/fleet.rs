//! `host-tool restore --count`: clones of one artifact, several at a time, under one time limit.
//!
//! ```text
//! plan ─▶ check names ─▶ start clones, a bounded number at a time ─▶ release ─▶ report
//! ```
//!
//! Invariants:
//! - All names are free when the first clone starts. Each name is taken only when its clone starts,
//!   so an interrupted command leaves no names behind.
//! - Until every clone is ready or has failed, all of them end with this command, however it ends.
//!   So no clone outlives a command that did not report it.
//! - From then on signals are held back. Clones that are ready stay, even if others have failed.
//! - A clone that fails cleans up after itself, and the others continue.
//!
//! Clones start in threads of this process: they only wait for files, VMMs and guests.

use std::iter;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::plan::plan;
use crate::cli::Restore;
use crate::commands::machine::check_hostname;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::lifecycle::foreground::Signals;
use crate::lifecycle::plan::{Plan, draw_cid};
use crate::lifecycle::starting::StartingVm;
use crate::os::random;
use crate::report::output::print;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::supervisor::link::Order;
use crate::values::{MachineId, VmName};
use crate::vmdir::{StateDir, VmDirError};
use crate::vmm::VmmKind;

pub(super) fn run(command: &Restore) -> Result<(), Failure> {
    let mut record = Record::new();
    let clones = match start_all(command, &mut record) {
        Ok(clones) => clones,
        Err(failure) => return Err(record.fail(failure, command.json)),
    };
    report(command, record, clones)
}

/// A clone that is ready, or its failure.
#[derive(Debug)]
struct CloneResult {
    name: VmName,
    record: Record,
    vm: Result<StartingVm, Failure>,
}

fn start_all(command: &Restore, record: &mut Record) -> Result<Vec<CloneResult>, Failure> {
    let count = check(command)?;
    let identities = identities(command.name.as_ref(), command.hostname.as_deref(), count)?;
    let plan = plan(command, record)?;
    if count > 1 && plan.machine.nic.is_some() {
        let text = "the snapshot has a network interface, and each clone needs its own tap device \
                    and address; restore the clones one by one, with --nic";
        return Err(Failure::usage(text));
    }

    record.begin(Phase::Spawn);
    let state_dir = StateDir::open(command.state_dir.as_deref())?;
    let mut plans = Vec::new();
    for identity in &identities {
        identity.check(&state_dir)?;
        plans.push(identity.plan(&plan)?);
    }
    record.end();

    let parallel = command.parallel.unwrap_or_else(processor_count).min(count);
    log::info!("{count} clones, {parallel} at a time");
    let work = identities.iter().zip(&plans).enumerate();
    let clones = in_parallel(parallel, work, |(identity, plan)| start(identity, plan))?;

    record.begin(Phase::Publish);
    // A signal between two releases would leave clones that the command never reported.
    let _signals = Signals::take()?;
    Ok(clones.into_iter().map(CloneResult::release).collect())
}

/// Refuses options that apply to one VM only. Returns the number of clones.
fn check(command: &Restore) -> Result<usize, Failure> {
    let Some(count) = command.count else {
        return Err(Failure::usage("--parallel needs --count"));
    };
    let refused = [
        (command.foreground, "--foreground"),
        (command.vsock_cid.is_some(), "--vsock-cid"),
        (
            matches!(command.machine_id, Some(MachineId::Given(_))),
            "--machine-id HEX",
        ),
        (command.nic.is_some(), "--nic"),
        (command.net_address.is_some(), "--net-address"),
        (command.net_mac.is_some(), "--net-mac"),
        (command.net_gateway.is_some(), "--net-gateway"),
    ];
    for (is_given, option) in refused {
        if is_given {
            let text = format!("{option} is for one VM, and cannot be used with --count");
            return Err(Failure::usage(text));
        }
    }
    Ok(count)
}

fn processor_count() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What distinguishes a clone from the others.
#[derive(Debug, PartialEq, Eq)]
struct CloneIdentity {
    name: VmName,
    hostname: Option<String>,
}

/// `NAME-1`, `NAME-2` and so on, from the given name or a random one.
fn identities(
    name: Option<&VmName>,
    hostname: Option<&str>,
    count: usize,
) -> Result<Vec<CloneIdentity>, Failure> {
    let base = match name {
        Some(name) => name.clone(),
        None => {
            let drawn = random::bytes();
            VmName::generated(drawn.or_fail(Exit::Internal, || "cannot draw a name".to_owned())?)
        }
    };
    let identity = |number: usize| -> Result<CloneIdentity, Failure> {
        let hostname = hostname.map(|hostname| format!("{hostname}-{number}"));
        hostname.as_deref().map_or(Ok(()), check_hostname)?;
        let name = format!("{base}-{number}").parse();
        let name = name.map_err(|text: String| Failure::usage(text))?;
        Ok(CloneIdentity { name, hostname })
    };
    (1..=count).map(identity).collect()
}

impl CloneIdentity {
    /// Fails if the name is in use.
    fn check(&self, state_dir: &StateDir) -> Result<(), Failure> {
        let name = self.name.clone();
        state_dir.free(&name)?;
        match state_dir.vm(&name) {
            Ok(_) => Err(VmDirError::NameInUse { name }.into()),
            Err(VmDirError::NoSuchVm { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The plan of this clone: the common one, with its names and, on QEMU, a context id.
    fn plan<'a>(&'a self, common: &Plan<'a>) -> Result<Plan<'a>, Failure> {
        let mut plan = common.clone();
        plan.name = Some(&self.name);
        plan.hostname = self.hostname.as_deref();
        // Guests of QEMU share the host's vsock addresses. Each Firecracker has its own.
        if plan.binary.kind == VmmKind::Qemu {
            plan.machine.guest_cid = draw_cid()?;
        }
        Ok(plan)
    }
}

fn start(identity: &CloneIdentity, plan: &Plan<'_>) -> CloneResult {
    let mut record = Record::new();
    record.set("name", identity.name.as_str());
    record.begin(Phase::Spawn);
    let vm = if Instant::now() < plan.deadline {
        StartingVm::create(plan).and_then(|vm| vm.start(plan, &mut record))
    } else {
        let text = "the time limit passed before this clone was started";
        Err(Failure::new(Exit::Deadline, text))
    };
    if vm.is_ok() {
        record.end();
    }
    let name = identity.name.clone();
    CloneResult { name, record, vm }
}

impl CloneResult {
    /// Lets a ready clone outlive this command.
    fn release(mut self) -> Self {
        let record = &mut self.record;
        self.vm = self.vm.and_then(|mut vm| match vm.release(Order::Keep) {
            Ok(()) => Ok(vm),
            Err(failure) => {
                record.begin(Phase::Publish);
                Err(vm.abort(failure, false))
            }
        });
        self
    }
}

/// Runs `act` on each numbered item, in `parallel` threads. Returns the results by number.
fn in_parallel<W: Send, T: Send>(
    parallel: usize,
    work: impl Iterator<Item = (usize, W)> + Send,
    act: impl Fn(W) -> T + Sync,
) -> Result<Vec<T>, Failure> {
    let queue = Mutex::new(work);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_through = || {
        let mut ends = Vec::new();
        while let Some((number, item)) = next() {
            ends.push((number, act(item)));
        }
        ends
    };
    let joined: Result<Vec<_>, _> = thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..parallel {
            match thread::Builder::new().spawn_scoped(scope, work_through) {
                Ok(worker) => workers.push(worker),
                // Those that there are do all the work, or this thread if there is none.
                Err(error) => {
                    log::warn!("cannot start another thread: {error}");
                    break;
                }
            }
        }
        let own = if workers.is_empty() {
            work_through()
        } else {
            Vec::new()
        };
        let ends = workers.into_iter().map(thread::ScopedJoinHandle::join);
        iter::once(Ok(own)).chain(ends).collect()
    });
    let ends =
        joined.map_err(|_| Failure::new(Exit::Internal, "a thread of host-tool panicked"))?;
    let mut ends: Vec<_> = ends.into_iter().flatten().collect();
    ends.sort_by_key(|(number, _)| *number);
    Ok(ends.into_iter().map(|(_, end)| end).collect())
}

/// Prints the result of each clone. Fails with the first clone's failure.
fn report(command: &Restore, mut record: Record, clones: Vec<CloneResult>) -> Result<(), Failure> {
    record.end();
    let event = if command.no_wait { "started" } else { "ready" };
    let count = clones.len();
    let mut failures = Vec::new();
    let (mut lines, mut values, mut tracks) = (Vec::new(), Vec::new(), Vec::new());
    let mut vms = Vec::new();
    for mut clone in clones {
        let phase = clone.record.current();
        match clone.vm {
            Ok(vm) => {
                vms.push(vm);
                lines.push(clone.record.to_line(event));
                values.push(clone.record.success_value(event));
            }
            Err(failure) => {
                values.push(clone.record.note_failure(&failure));
                failures.push((clone.name, phase, failure));
            }
        }
        tracks.push(clone.record.track(record.begun_at()));
    }
    let ready_count = count - failures.len();
    record.set("count", count);
    record.set(event, ready_count);
    record.set("clones", values);
    let is_whole = failures.is_empty();
    let summary = if is_whole { event } else { "failed" };
    let took_ms = record.begun_at().elapsed().as_millis();
    lines.push(format!(
        "{summary}  {ready_count} of {count} clones are {event}  {took_ms} ms"
    ));
    let (value, failure) = if is_whole {
        (record.success_value(event), None)
    } else {
        fail(&mut record, failures, count)
    };
    record.write_reports(tracks);
    let text = if command.json {
        value.to_string()
    } else {
        lines.join("\n")
    };
    match (print(&text), failure) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(failure)) => Err(failure),
        (Err(unprinted), failure) => {
            let unprinted = take_back(command, vms, unprinted);
            let Some(failure) = failure else {
                record.blame(Some(Phase::Publish));
                return Err(record.failure(unprinted).0);
            };
            log::error!("{unprinted}");
            Err(failure)
        }
    }
}

/// Takes all ready clones away again: the user was not told of them.
fn take_back(command: &Restore, vms: Vec<StartingVm>, failure: Failure) -> Failure {
    let parallel = command.parallel.unwrap_or_else(processor_count);
    let keep = command.keep_on_failure;
    let act = |vm: StartingVm| {
        let silent = Failure::new(Exit::OutputClosed, "its record was not printed");
        let taken = vm.take_back(silent, keep);
        log::debug!("{taken}");
    };
    match in_parallel(parallel, vms.into_iter().enumerate(), act) {
        Ok(_) if keep => failure,
        Ok(_) => failure.context("the clones were taken away again".to_owned()),
        Err(panicked) => panicked,
    }
}

/// Logs every failure but the first, which becomes the failure of the whole command.
fn fail(
    record: &mut Record,
    failures: Vec<(VmName, Option<Phase>, Failure)>,
    count: usize,
) -> (Value, Option<Failure>) {
    let failed_count = failures.len();
    let mut failures = failures.into_iter();
    let Some((name, phase, first)) = failures.next() else {
        return (Value::Null, None);
    };
    for (name, phase, failure) in failures {
        let phase = phase.map_or("publish", Phase::as_str);
        log::error!("{name}: {phase} failed: {failure}");
    }
    let text = format!("{failed_count} of {count} clones failed, the first of them is {name}");
    record.blame(phase);
    let (failure, value) = record.failure(first.context(text));
    (value, Some(failure))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn names_are_numbered_from_one() {
        let name: VmName = "job".parse().unwrap();
        let identities = identities(Some(&name), Some("host"), 2).unwrap();
        let seen: Vec<_> = identities
            .iter()
            .map(|identity| (identity.name.as_str(), identity.hostname.as_deref()))
            .collect();
        assert_eq!(seen, [("job-1", Some("host-1")), ("job-2", Some("host-2"))]);
    }

    #[test]
    fn generated_names_share_their_prefix() {
        let identities = identities(None, None, 2).unwrap();
        let (one, two) = (identities[0].name.as_str(), identities[1].name.as_str());
        assert!(one.starts_with("vm-") && one.ends_with("-1"), "{one}");
        assert_eq!(one.strip_suffix("-1"), two.strip_suffix("-2"));
    }

    #[test]
    fn a_number_that_makes_a_name_too_long_is_refused() {
        let long: VmName = "a".repeat(61).parse().unwrap();
        assert!(identities(Some(&long), None, 9).is_ok());
        let failure = identities(Some(&long), None, 10).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        let failure = identities(None, Some(&"h".repeat(63)), 1).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
    }

    #[test]
    fn parallel_work_is_bounded_and_its_results_are_in_order() {
        let (active, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ends = in_parallel(3, (0..50).zip(100..), |item: i32| {
            let now = active.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            thread::yield_now();
            active.fetch_sub(1, Ordering::SeqCst);
            item
        });
        assert!(ends.unwrap().into_iter().eq(100..150));
        assert!(most.into_inner() <= 3);
    }

    #[test]
    fn work_that_panics_is_a_failure() {
        let failed = in_parallel(2, [(0, 1), (1, 2)].into_iter(), |item: i32| {
            assert_ne!(item, 2, "meant to fail");
        });
        assert_eq!(failed.unwrap_err().exit(), Exit::Internal);
    }
}
