//! `host-tool boot`: starts a guest from a kernel and an image.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::Boot;
use crate::commands::machine::Machine;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::lifecycle::plan::{Plan, choose_vmm, draw_cid};
use crate::lifecycle::start::start;
use crate::os::files;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::values::DriveArgument;
use crate::vmdir::state::DRIVES_MAX;
use crate::vmm::{Drive, MachineSpec, Nic, Purpose, network};

/// Time limit of a boot without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Most virtual processors: Firecracker's limit.
const VCPUS_MAX: u8 = 32;

pub(crate) fn run(command: &Boot) -> Result<(), Failure> {
    let mut record = Record::new();
    match plan(command, &mut record) {
        Ok(plan) => start(&plan, record),
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}

fn plan<'a>(command: &'a Boot, record: &mut Record) -> Result<Plan<'a>, Failure> {
    let checked = Machine::check("boot", command.machine(), TIMEOUT_DEFAULT, record)?;
    check_shape(command)?;
    let guest_cid = checked.cid.map_or_else(draw_cid, Ok)?;
    let nic = nic(command)?;

    record.begin(Phase::Image);
    let metadata = checked.metadata()?;
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
    let plan = Plan::of_machine(machine, binary, checked.deadline);
    checked.plan(plan, metadata)
}

fn nic(command: &Boot) -> Result<Option<Nic>, Failure> {
    let with_mmds = command.mmds.is_some();
    let nic = command.nic.as_ref();
    nic.map(|nic| network::nic(nic, with_mmds)).transpose()
}

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

/// Checks that `path` is an ELF kernel. Returns its absolute path.
fn readable_kernel(path: &Path) -> Result<PathBuf, Failure> {
    let kernel = readable(path)?;
    let mut magic = [0; 4];
    let read = files::open_named(&kernel).and_then(|mut file| file.read_exact(&mut magic));
    read.or_fail(Exit::Artifact, || {
        format!("cannot read the kernel {}", kernel.display())
    })?;
    if magic != *b"\x7fELF" {
        let text = format!(
            "the kernel {} is not an ELF file: give an uncompressed vmlinux, not a bzImage",
            kernel.display()
        );
        return Err(Failure::new(Exit::Artifact, text));
    }
    Ok(kernel)
}

/// Checks that a file can be read. Returns its absolute path.
fn readable(path: &Path) -> Result<PathBuf, Failure> {
    let context = || format!("cannot read {}", path.display());
    files::open_named(path).or_fail(Exit::Artifact, context)?;
    std::path::absolute(path).or_fail(Exit::Artifact, context)
}
