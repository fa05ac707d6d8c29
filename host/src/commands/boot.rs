//! `host-tool boot`: a guest from a kernel and an image.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shared::message::{Cause, Identity};

use crate::cli::Boot;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::lifecycle::hooks;
use crate::lifecycle::plan::{Plan, check_cid, choose_vmm, draw_cid};
use crate::lifecycle::start::start;
use crate::os::files;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::report::reports::Reports;
use crate::values::{DriveArgument, MachineId};
use crate::vmdir::state::DRIVES_MAX;
use crate::vmm::metadata::{Metadata, require_service};
use crate::vmm::{Drive, MachineSpec, Nic, Purpose, Start, network};

/// How long a boot may take unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Most virtual processors; Firecracker's own limit.
const VCPUS_MAX: u8 = 32;

/// Runs the command.
pub fn run(command: &Boot) -> Result<(), Failure> {
    let mut record = Record::new();
    match plan(command, &mut record) {
        Ok(plan) => {
            let mut enter = |vmm: &mut dyn crate::vmm::Vmm| vmm.boot(&plan.machine, plan.deadline);
            start(&plan, Start::Boot, record, &mut enter)
        }
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}

fn plan<'a>(command: &'a Boot, record: &mut Record) -> Result<Plan<'a>, Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    record.report_to(Reports::new(
        "boot",
        command.trace.as_deref(),
        command.timeline.as_deref(),
    )?);
    check_switches(
        command.wait_ready,
        command.no_wait,
        command.hostname.as_deref(),
    )?;
    check_shape(command)?;
    let guest_cid = command.vsock_cid.map_or_else(draw_cid, check_cid)?;
    let health = command.health().check()?;
    let network = network::settings(command.net_address, command.net_mac, command.net_gateway)?;
    let nic = nic(command)?;

    record.begin(Phase::Image);
    let metadata = command.mmds.as_deref().map(Metadata::read).transpose()?;
    let kernel = readable_kernel(&command.kernel)?;
    let initrd = readable(&command.initrd)?;
    let drive = |drive: &DriveArgument| -> Result<Drive, Failure> {
        Ok(Drive {
            path: readable(&drive.path)?,
            read_only: drive.read_only,
        })
    };
    let drives = command.drive.iter().map(drive).collect::<Result<_, _>>()?;

    record.begin(Phase::Version);
    reach(Point::VersionBefore)?;
    let binary = choose_vmm(command.vmm, Purpose::Boot, command.force)?;
    let machine = MachineSpec {
        kernel,
        initrd,
        memory_mib: command.mem,
        vcpu_count: command.vcpus,
        drives,
        nic,
        append: command.append.clone(),
        guest_cid,
    };
    network::require_nic(&network, &machine)?;
    require_service(metadata.as_ref(), &machine, binary.kind)?;
    Ok(Plan {
        name: command.name.as_ref(),
        common: command.common(),
        hostname: command.hostname.as_deref(),
        // A guest that boots has the one of its image, or makes one.
        machine_id: &MachineId::Keep,
        network,
        metadata,
        no_wait: command.no_wait,
        foreground: command.foreground,
        keep_on_failure: command.keep_on_failure,
        health,
        hooks: hooks::Options::default(),
        deadline,
        binary,
        stored_drives: vec![None; machine.drives.len()],
        machine,
        cause: Cause::Boot,
        parent: None,
        artifact: None,
    })
}

/// The machine's network interface, if it is to have one.
fn nic(command: &Boot) -> Result<Option<Nic>, Failure> {
    let with_mmds = command.mmds.is_some();
    let nic = command.nic.as_ref();
    nic.map(|nic| network::nic(nic, with_mmds)).transpose()
}

/// Checks the numbers of the machine.
fn check_shape(command: &Boot) -> Result<(), Failure> {
    if !(1..=VCPUS_MAX).contains(&command.vcpus) {
        return Err(Failure::usage(format!("--vcpus takes 1 to {VCPUS_MAX}")));
    }
    if command.drive.len() > DRIVES_MAX {
        let text = format!("--drive can be given {DRIVES_MAX} times");
        return Err(Failure::usage(text));
    }
    Ok(())
}

/// The absolute path of a kernel that a VMM can start.
fn readable_kernel(path: &Path) -> Result<PathBuf, Failure> {
    let kernel = readable(path)?;
    let mut magic = [0; 4];
    let read = files::open_named(&kernel).and_then(|mut file| file.read_exact(&mut magic));
    read.or_fail(Exit::Artifact, || {
        format!("cannot read the kernel {}", kernel.display())
    })?;
    if magic != *b"\x7fELF" {
        let text = format!(
            "the kernel {} is no ELF file: an uncompressed vmlinux is needed, not a bzImage",
            kernel.display()
        );
        return Err(Failure::new(Exit::Artifact, text));
    }
    Ok(kernel)
}

/// The absolute path of a file that can be read.
fn readable(path: &Path) -> Result<PathBuf, Failure> {
    let context = || format!("cannot read {}", path.display());
    files::open_named(path).or_fail(Exit::Artifact, context)?;
    std::path::absolute(path).or_fail(Exit::Artifact, context)
}

/// Checks the options that `boot` and `restore` share.
pub fn check_switches(
    wait_ready: bool,
    no_wait: bool,
    hostname: Option<&str>,
) -> Result<(), Failure> {
    if wait_ready && no_wait {
        return Err(Failure::usage(
            "--wait-ready and --no-wait exclude each other",
        ));
    }
    match hostname {
        Some(name) if !Identity::is_hostname(name) => Err(Failure::usage(format!(
            "'{}' is no host name: at most 64 letters, digits, '-' or '.'",
            name.escape_debug()
        ))),
        _ => Ok(()),
    }
}
