//! `host-tool restore --api-sock`: an artifact loaded into a VMM that another program has started.
//!
//! That program is the VMM's parent and stays it: there is no VM directory and no supervisor, and
//! whatever fails, the VMM is left to its owner. What is proven is the same: the guest has a name
//! of its own, and a command has run in it.
//!
//! Nothing may have been configured in that VMM. The relative paths that the snapshot recorded are
//! relative to *its* working directory: its vsock socket appears there, and drives are looked for
//! there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde_json::json;
use shared::limits::PORT_DEFAULT;
use shared::message::{Cause, HookStage, Identity};

use super::plan::{self, machine_id, open_artifact};
use crate::artifact::Manifest;
use crate::cli::Restore;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::address::{Endpoint, GuestAddress};
use crate::guest::requests::{Guest, RebindPlan};
use crate::lifecycle::handshake::prove;
use crate::lifecycle::hooks;
use crate::lifecycle::plan::{check_cid, check_format, check_gate};
use crate::os::deadline::Watch;
use crate::os::process::{ProcessId, copy_pidfd};
use crate::os::uds;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::vmm::metadata::require_service;
use crate::vmm::{
    Purpose, RunState, StateFiles, Vmm, VmmKind, await_and_connect, connect, gate, network,
};

pub(super) fn run(command: &Restore) -> Result<(), Failure> {
    let mut record = Record::new();
    let result = adopt(command, &mut record);
    record.conclude(result, "ready", command.json)
}

fn adopt(command: &Restore, record: &mut Record) -> Result<(), Failure> {
    let socket = check(command)?;
    let checked = plan::check(command, record)?;
    let deadline = checked.deadline;
    let artifact = open_artifact(&command.artifact, record)?;
    let manifest = artifact.manifest();
    let address = address(command, manifest.vmm_kind)?;

    record.begin(Phase::Spawn);
    let (mut vmm, process) = connect_to_running(manifest.vmm_kind, socket, deadline)?;
    record.begin(Phase::Version);
    judge_running(command, manifest, &mut *vmm, deadline, record)?;

    let mut machine = manifest.machine.clone();
    // Its tap device is looked for where the VMM runs, which may be another network namespace.
    let tap = network::move_nic(&mut machine, command.nic.as_ref())?;
    network::check_move(tap.as_deref(), vmm.kind(), &vmm.version(deadline)?)?;
    network::require_nic(&checked.network, &machine)?;
    let metadata = checked.metadata()?;
    require_service(metadata.as_ref(), &machine, vmm.kind())?;
    let drawn = machine_id(command).choose();
    let identity = Identity {
        // The VM has no name here that could serve as one.
        hostname: command.hostname.clone(),
        machine_id: drawn.or_fail(Exit::Internal, || "cannot draw an id".to_owned())?,
        network: checked.network,
    };
    record.set_identity(&identity);
    let rebind = RebindPlan::new(Cause::Restore, Some(manifest.generation), identity)?;

    record.begin(Phase::Load);
    if let Some(metadata) = metadata {
        vmm.put_metadata(&metadata.with_epoch(rebind.generation), deadline)?;
    }
    let files = StateFiles {
        tap,
        ..artifact.state_files()
    };
    vmm.load(&files, deadline)?;
    drop(vmm);
    let guest = Guest {
        endpoint: Endpoint {
            address,
            port: PORT_DEFAULT,
        },
        watch: Watch::with_process(deadline, process.as_ref().map(AsFd::as_fd)),
    };
    let proof = prove(&guest, &rebind, record)?;
    if proof.has_hooks {
        let stage = HookStage::Restore;
        hooks::run(&guest, stage, plan::hooks(command), record)?;
    }
    Ok(())
}

/// Checks what goes with a VMM of somebody else's. Gives its API socket.
fn check(command: &Restore) -> Result<&Path, Failure> {
    let Some(socket) = &command.api_sock else {
        let text = "--uds and --cid name the guest of a VMM that --api-sock names";
        return Err(Failure::usage(text));
    };
    let refused = [
        (command.name.is_some(), "--name"),
        (command.count.is_some(), "--count"),
        (command.parallel.is_some(), "--parallel"),
        (command.vsock_cid.is_some(), "--vsock-cid"),
        (command.foreground, "--foreground"),
        (command.keep_on_failure, "--keep-on-failure"),
        (command.health_cmd.is_some(), "--health-cmd"),
    ];
    for (is_given, option) in refused {
        if is_given {
            let text = format!(
                "{option} is about VMs that host-tool starts; the VMM behind --api-sock is its \
                 owner's"
            );
            return Err(Failure::usage(text));
        }
    }
    if command.no_wait {
        let text = "--no-wait leaves the guest without a name, and with --api-sock there is no VM \
                    directory in which a later probe would find the one it is to get";
        return Err(Failure::usage(text));
    }
    Ok(socket)
}

/// How the guest will be reached, which depends on the VMM.
fn address(command: &Restore, kind: VmmKind) -> Result<GuestAddress, Failure> {
    match (kind, &command.uds, command.cid) {
        (VmmKind::Firecracker, Some(path), None) => Ok(GuestAddress::HybridVsock {
            uds_path: path.clone(),
        }),
        (VmmKind::Qemu, _, _) if command.nic.is_some() => Err(Failure::usage(
            "this is a snapshot of QEMU, which is told of its tap device when it is started: leave \
             --nic out",
        )),
        (VmmKind::Qemu, None, Some(cid)) => Ok(GuestAddress::Vsock {
            cid: check_cid(cid)?,
        }),
        (VmmKind::Firecracker, _, _) => Err(Failure::usage(
            "this is a snapshot of Firecracker: give --uds with the vsock socket that it will \
             have, which is vsock.sock in its working directory",
        )),
        (VmmKind::Qemu, _, _) => Err(Failure::usage(
            "this is a snapshot of QEMU: give --cid with the vsock context id that the running \
             QEMU was given",
        )),
    }
}

/// Connects to the VMM as soon as it serves its API, and finds out which process it is.
fn connect_to_running(
    kind: VmmKind,
    socket: &Path,
    deadline: Instant,
) -> Result<(Box<dyn Vmm>, Option<OwnedFd>), Failure> {
    drop(await_and_connect(kind, socket, None, deadline)?);
    let process = owner(socket, deadline).unwrap_or_else(|error| {
        log::info!(
            "cannot watch the process behind {}: {error}",
            socket.display()
        );
        None
    });
    let for_calls = process.as_ref().map(copy_pidfd).transpose()?;
    Ok((connect(kind, socket, for_calls, deadline)?, process))
}

/// The pidfd of the process that listens on a Unix socket, so that its death ends our waits. One in
/// another process namespace has no number here.
fn owner(socket: &Path, deadline: Instant) -> io::Result<Option<OwnedFd>> {
    let stream = uds::connect_unix(socket, deadline)?;
    match getsockopt(&stream, PeerCredentials)?.pid() {
        pid if pid > 0 => ProcessId::of(pid)?.open(),
        _ => Ok(None),
    }
}

/// Asks the fault table about the version that runs, and whether the process is still fresh.
fn judge_running(
    command: &Restore,
    manifest: &Manifest,
    vmm: &mut dyn Vmm,
    deadline: Instant,
    record: &mut Record,
) -> Result<(), Failure> {
    let version = vmm.version(deadline)?;
    let kind = vmm.kind();
    record.set(
        "vmm",
        json!({ "kind": kind.to_string(), "version": version.to_string() }),
    );
    let verdict = gate(kind, &version, Purpose::Restore, command.force);
    check_gate(kind, &version, verdict)?;
    check_format(manifest, kind, &version)?;
    match vmm.run_state(deadline)? {
        RunState::NotStarted => Ok(()),
        RunState::Running | RunState::Paused | RunState::Ended => Err(Failure::new(
            Exit::Start,
            "this VMM has a machine already; a snapshot is loaded into a fresh process",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;
    use crate::cli::Command;
    use crate::cli::parse::parse;
    use crate::testing::TempDir;

    fn command(words: &[&str]) -> Restore {
        let words = ["restore", "base.snap"].iter().chain(words);
        match parse(words.map(Into::into).collect()).unwrap().command {
            Command::Restore(command) => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_about_vms_of_ours_are_refused() {
        for option in ["--name=a", "--count=2", "--foreground", "--no-wait"] {
            let words: Vec<_> = option.split('=').chain(["--api-sock", "s"]).collect();
            let failure = check(&command(&words)).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage, "{option}");
        }
        let failure = check(&command(&["--uds", "v"])).unwrap_err();
        assert!(failure.to_string().contains("--api-sock"), "{failure}");
        check(&command(&["--api-sock", "s", "--uds", "v"])).unwrap();
    }

    #[test]
    fn each_vmm_has_its_own_kind_of_address() {
        let uds = command(&["--api-sock", "s", "--uds", "v"]);
        let cid = command(&["--api-sock", "s", "--cid", "7"]);
        address(&uds, VmmKind::Firecracker).unwrap();
        address(&cid, VmmKind::Qemu).unwrap();
        let text = |command, kind| address(command, kind).unwrap_err().to_string();
        assert!(text(&cid, VmmKind::Firecracker).contains("--uds"));
        assert!(text(&uds, VmmKind::Qemu).contains("--cid"));
    }

    #[test]
    fn whoever_listens_is_watched() {
        let temp = TempDir::new("adopt");
        let path = temp.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        assert!(owner(&path, deadline).unwrap().is_some());
    }
}
