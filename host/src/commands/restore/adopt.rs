//! `host-tool restore --api-sock`: loads an artifact into a VMM that another program has started.
//!
//! That program stays the VMM's parent and owner. The host makes no VM directory, starts no
//! supervisor, and leaves the VMM alone when a step fails. The proof is that of every restore: the
//! guest has a generation of its own, and has run a command.
//!
//! The VMM must be unconfigured. The snapshot's relative paths are relative to the VMM's working
//! directory: it makes its vsock socket there, and opens drives there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde_json::json;
use shared::limits::PORT_DEFAULT;
use shared::message::{Cause, HookStage, Identity};

use super::plan::{self, machine_id};
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
    let is_ready = result.is_ok();
    let ended = record.conclude(result, "ready", command.json);
    ended.map_err(|failure| match is_ready {
        // The VMM is another program's, so it is not ended.
        true => failure
            .context("the guest is ready, but the record is lost".to_owned())
            .in_phase(Phase::Publish.as_str()),
        false => failure,
    })
}

fn adopt(command: &Restore, record: &mut Record) -> Result<(), Failure> {
    let socket = check(command)?;
    let checked = plan::check(command, record)?;
    let deadline = checked.deadline;
    let artifact = plan::artifact(command, deadline, record)?;
    let manifest = artifact.manifest();
    let address = address(command, manifest.vmm_kind)?;

    record.begin(Phase::Spawn);
    let (mut vmm, process) = connect_to_running(manifest.vmm_kind, socket, deadline)?;
    record.begin(Phase::Version);
    check_running(command, manifest, &mut *vmm, deadline, record)?;

    let mut machine = manifest.machine.clone();
    // Whether the tap device exists is left to the VMM, which may run in another network namespace.
    let tap = network::move_nic(&mut machine, command.nic.as_ref())?;
    network::check_move(tap.as_deref(), vmm.kind(), &vmm.version(deadline)?)?;
    network::require_nic(&checked.network, &machine)?;
    let metadata = checked.metadata()?;
    require_service(metadata.as_ref(), &machine, vmm.kind())?;
    let drawn = machine_id(command).choose();
    let identity = Identity {
        // There is no VM name to use as the default.
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
        is_awaited: true,
    };
    let proof = prove(&guest, &rebind, record)?;
    if proof.has_hooks {
        let stage = HookStage::Restore;
        hooks::run(&guest, stage, plan::hooks(command), record)?;
    }
    Ok(())
}

/// Refuses options that do not apply to another program's VMM. Returns its API socket.
fn check(command: &Restore) -> Result<&Path, Failure> {
    let Some(socket) = &command.api_sock else {
        let text =
            "--uds and --cid are the guest's address in the VMM of --api-sock: give --api-sock too";
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
                "{option} is for VMs that host-tool starts, and --api-sock is the socket of a VMM \
                 that another program started"
            );
            return Err(Failure::usage(text));
        }
    }
    if command.no_wait {
        let text = "--no-wait needs a VM directory, from which a later probe reads the guest's \
                    generation; with --api-sock there is none";
        return Err(Failure::usage(text));
    }
    Ok(socket)
}

/// The address at which this kind of VMM makes the guest reachable.
fn address(command: &Restore, kind: VmmKind) -> Result<GuestAddress, Failure> {
    match (kind, &command.uds, command.cid) {
        (VmmKind::Firecracker, Some(path), None) => Ok(GuestAddress::HybridVsock {
            uds_path: path.clone(),
        }),
        (VmmKind::Qemu, _, _) if command.nic.is_some() => Err(Failure::usage(
            "this is a snapshot of QEMU, which gets its tap device on its command line: leave out \
             --nic",
        )),
        (VmmKind::Qemu, None, Some(cid)) => Ok(GuestAddress::Vsock {
            cid: check_cid(cid)?,
        }),
        (VmmKind::Firecracker, _, _) => Err(Failure::usage(
            "this is a snapshot of Firecracker: give --uds with the path of its vsock socket, \
             vsock.sock in Firecracker's working directory",
        )),
        (VmmKind::Qemu, _, _) => Err(Failure::usage(
            "this is a snapshot of QEMU: give --cid with the vsock context id of the running QEMU",
        )),
    }
}

/// Waits until the VMM serves its API, and connects. Also returns its pidfd, if it can be opened.
fn connect_to_running(
    kind: VmmKind,
    socket: &Path,
    deadline: Instant,
) -> Result<(Box<dyn Vmm>, Option<OwnedFd>), Failure> {
    // QMP serves one client at a time: `connect` below would wait for the end of this connection.
    drop(await_and_connect(kind, socket, None, deadline)?);
    let process = owner(socket, deadline).unwrap_or_else(|error| {
        log::info!(
            "cannot watch the process that serves {}: {error}",
            socket.display()
        );
        None
    });
    let for_calls = process.as_ref().map(copy_pidfd).transpose()?;
    Ok((connect(kind, socket, for_calls, deadline)?, process))
}

/// The pidfd of the process that listens on a Unix socket: its death ends our waits. `None` if the
/// process is in another pid namespace and has no number in ours.
fn owner(socket: &Path, deadline: Instant) -> io::Result<Option<OwnedFd>> {
    let stream = uds::connect_unix(socket, deadline)?;
    match getsockopt(&stream, PeerCredentials)?.pid() {
        pid if pid > 0 => ProcessId::of(pid)?.open(),
        _ => Ok(None),
    }
}

/// Checks the VMM's version against the fault table, and that no machine was configured in it.
fn check_running(
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

    fn command(arguments: &[&str]) -> Restore {
        let arguments = ["restore", "base.snap"].iter().chain(arguments);
        match parse(arguments.map(Into::into).collect()).unwrap().command {
            Command::Restore(command) => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_for_managed_vms_are_refused() {
        for option in ["--name=a", "--count=2", "--foreground", "--no-wait"] {
            let arguments: Vec<_> = option.split('=').chain(["--api-sock", "s"]).collect();
            let failure = check(&command(&arguments)).unwrap_err();
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
    fn the_listening_process_is_watched() {
        let temp = TempDir::new("adopt");
        let path = temp.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        assert!(owner(&path, deadline).unwrap().is_some());
    }
}
