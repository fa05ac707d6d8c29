//! Bad input: the command names it, has its exit code, and leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use tests::process::{Running, run, signal};

use crate::Case;
use crate::machine::{Machine, TIMEOUT, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("a_kernel_that_panics", a_kernel_that_panics),
    ("an_image_without_the_agent", an_image_without_the_agent),
    (
        "a_timeout_shorter_than_the_boot",
        a_timeout_shorter_than_the_boot,
    ),
    ("a_damaged_state_file", a_damaged_state_file),
    ("a_disk_that_is_full", a_disk_that_is_full),
    (
        "a_vmm_killed_while_it_restores",
        a_vmm_killed_while_it_restores,
    ),
    (
        "an_interrupted_restore_leaves_nothing",
        an_interrupted_restore_leaves_nothing,
    ),
    ("a_very_long_state_directory", a_very_long_state_directory),
];

fn a_kernel_that_panics(machine: &Machine) {
    // An empty archive (a newc trailer, padded to a block) and no root device: the kernel finds no
    // init. Firecracker itself would refuse an empty file.
    let mut archive = format!("070701{:0>88}{:08X}{:08X}", 0, "TRAILER!!!".len() + 1, 0);
    archive.push_str("TRAILER!!!");
    archive.extend(std::iter::repeat_n('\0', 512 - archive.len()));
    let empty = machine.path("empty.cpio");
    fs::write(&empty, archive).unwrap();
    let ended = machine.tool(machine.boot_image("vm", empty.to_str().unwrap()));
    ended.exits(8).complains("panic");
    machine.is_clean();
}

fn an_image_without_the_agent(machine: &Machine) {
    let silent = std::env::var("TEST_INITRD_SILENT").unwrap();
    let mut arguments = machine.boot_image("vm", &silent);
    let value = arguments.iter().position(|word| word == TIMEOUT).unwrap();
    "20s".clone_into(&mut arguments[value]);
    machine.tool(arguments).exits(124).complains("rebind");
    machine.is_clean();
}

fn a_timeout_shorter_than_the_boot(machine: &Machine) {
    let mut arguments = machine.boot_arguments("vm");
    let value = arguments.iter().position(|word| word == TIMEOUT).unwrap();
    "300ms".clone_into(&mut arguments[value]);
    let ended = machine.tool(arguments).exits(124);
    assert_eq!(ended.json()["event"], "failed", "{ended}");
    machine.is_clean();
}

fn a_damaged_state_file(machine: &Machine) {
    let good = machine.artifact();
    let bad = machine.path("bad");
    copy(&good, &bad);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(bad.join("manifest.json")).unwrap()).unwrap();
    // The VM state is the smallest of the recorded files on Firecracker, and the first on QEMU.
    let name = manifest["files"].as_array().unwrap().iter();
    let name = name.min_by_key(|file| file["len"].as_u64()).unwrap()["name"]
        .as_str()
        .unwrap();
    let length = fs::metadata(bad.join(name)).unwrap().len();
    fs::write(bad.join(name), vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    let ended = run(&mut machine.restore_command(&bad, "clone"));
    assert!([3, 8].contains(&ended.code()), "{ended}");
    machine.is_clean();
    // The original was not touched.
    machine.restore(&good, "clone");
    machine.end("clone");
}

/// Copies the files of a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn a_disk_that_is_full(machine: &Machine) {
    let small = machine.path("small");
    fs::create_dir(&small).unwrap();
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=8M", "tmpfs"])
        .arg(&small);
    assert_eq!(run(&mut mount).code(), 0, "the lab runs as root");
    machine.boot("vm");
    let args = ["snapshot", "--name", "vm", "--timeout", TIMEOUT, "--out"];
    let mut command = machine.command(args);
    let ended = run(command.arg(small.join("artifact")));
    assert!(![0, 1, 2].contains(&ended.code()), "{ended}");
    assert!(!small.join("artifact").exists(), "a half-written artifact");
    assert_eq!(
        fs::read_dir(&small).unwrap().count(),
        0,
        "something is left: {ended}"
    );
    assert_eq!(machine.exec("vm", "echo source"), "source\n", "{ended}");
    machine.end("vm");
    run(Command::new("umount").arg(&small)).exits(0);
    machine.is_clean();
}

/// Kills the VMM as soon as a file shows how far it has come.
fn a_vmm_killed_while_it_restores(machine: &Machine) {
    let artifact = machine.artifact();
    let signs: &[&str] = match machine.vmm {
        Vmm::Firecracker => &["vmm.log", "api.sock", "vsock.sock"],
        Vmm::Qemu => &["vmm.log", "api.sock"],
    };
    for sign in signs {
        let mut restore = Running::start(&mut machine.restore_command(&artifact, "clone"));
        let path = machine.state_dir().join("clone").join(sign);
        let name = match machine.vmm {
            Vmm::Firecracker => "firecracker",
            Vmm::Qemu => "qemu-system",
        };
        loop {
            let vmm = machine
                .processes()
                .into_iter()
                .find(|(_, comm)| comm.starts_with(name));
            if let (true, Some((pid, _))) = (path.exists(), vmm) {
                break signal(pid, Signal::SIGKILL);
            }
            assert!(!restore.is_over(), "it ended before {sign} was there");
        }
        let ended = restore.finish();
        assert!([5, 8].contains(&ended.code()), "killed at {sign}: {ended}");
        machine.is_clean();
    }
    machine.restore(&artifact, "clone");
    machine.end("clone");
}

fn an_interrupted_restore_leaves_nothing(machine: &Machine) {
    let artifact = machine.artifact();
    for which in [Signal::SIGINT, Signal::SIGTERM] {
        let mut restore = Running::start(&mut machine.restore_command(&artifact, "clone"));
        let path = machine.state_dir().join("clone").join("api.sock");
        while !path.exists() {
            assert!(!restore.is_over(), "it ended early");
        }
        restore.signal(which);
        let ended = restore.finish();
        assert_eq!(ended.code(), 128 + which as i32, "{ended}");
        // The supervisor cleans up after a command that ended early.
        machine.await_processes();
        machine.is_clean();
    }
}

fn a_very_long_state_directory(machine: &Machine) {
    // Longer than a socket's path may be (108 bytes, unix(7)). It must work all the same.
    let long = machine.path(&"long".repeat(40));
    fs::create_dir(&long).unwrap();
    let mut command = machine.restore_command(&machine.artifact(), "clone");
    run(command.env("HOST_TOOL_STATE_DIR", &long)).exits(0);
    let mut exec = machine.command(["exec", "--name", "clone", "--", "sh", "-c", "echo here"]);
    assert_eq!(
        run(exec.env("HOST_TOOL_STATE_DIR", &long)).exits(0).out(),
        "here\n"
    );
    let mut stop = machine.command(["stop", "clone"]);
    run(stop.env("HOST_TOOL_STATE_DIR", &long)).exits(0);
}
