//! Goal: file permissions alone keep other users of the host out, whatever the umask, and a
//! directory of another user is not used. Method: a VM and an artifact that root made under umask
//! 000, and processes of the user `nobody`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tests::agent::Agent;
use tests::host::TestHost;
use tests::process::{Finished, run};
use tests::{program, skip};

use super::floods::through_shell;

const NOBODY: u32 = 65_534;

/// A running VM and an artifact, in folders that other users may enter.
struct Fixture {
    host: TestHost,
    _agent: Agent,
}

impl Fixture {
    /// `None`, reported as skipped, without the right to start processes of another user.
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip(&format!("hostile::users::{test}"), "it takes root");
            return None;
        }
        let agent = Agent::start();
        let host = TestHost::new(&agent);
        for folder in ["", "snapshots"] {
            let public = Permissions::from_mode(0o755);
            fs::set_permissions(host.path(folder), public).unwrap();
        }
        let artifact = host.artifact();
        let open = |args: &[&str]| {
            let mut tool = through_shell(&host.tool(args), "umask 000");
            run(&mut tool).exits(0);
        };
        let artifact = artifact.to_str().unwrap();
        open(&["restore", artifact, "--name", "clone", "--timeout", "60s"]);
        let out = host.path("snapshots/out");
        let snapshot = ["snapshot", "--name", "clone", "--timeout", "60s", "--out"];
        open(&[&snapshot[..], &[out.to_str().unwrap()]].concat());
        Some(Self {
            host,
            _agent: agent,
        })
    }

    fn end(&self) {
        self.host.run(["rm", "--force", "clone"]).exits(0);
        fs::remove_dir_all(self.host.path("snapshots/out")).unwrap();
        self.host.is_clean();
    }
}

/// Fails unless the path and everything below it is private to its owner. Gives the number of files
/// and folders.
fn is_private(path: &Path) -> usize {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_symlink() {
        return 0;
    }
    let mode = metadata.permissions().mode() & 0o7777;
    assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    if !metadata.is_dir() {
        return 1;
    }
    let entries = fs::read_dir(path).unwrap();
    1 + entries
        .map(|entry| is_private(&entry.unwrap().path()))
        .sum::<usize>()
}

#[test]
fn everything_is_private_under_any_umask() {
    let Some(fixture) = Fixture::new("everything_is_private_under_any_umask") else {
        return;
    };
    let found = is_private(&fixture.host.path("state/clone"));
    assert!(found > 6, "{found} files of a VM that runs");
    let found = is_private(&fixture.host.path("snapshots/out"));
    assert_eq!(found, 4, "an artifact and its files");
    fixture.end();
}

#[test]
fn another_user_can_neither_read_nor_connect() {
    let Some(fixture) = Fixture::new("another_user_can_neither_read_nor_connect") else {
        return;
    };
    // Other users may have no access to the folder of the built program.
    let tool = fixture.host.path("host-tool");
    fs::copy(program("host-tool"), &tool).unwrap();
    let path = |name: &str| fixture.host.path(name).to_str().unwrap().to_owned();
    let as_nobody = |program: &str, args: &[&str]| -> Finished {
        run(Command::new(program).args(args).uid(NOBODY).gid(NOBODY))
    };
    let tool = tool.to_str().unwrap();
    for file in [
        "state/clone/state.json",
        "state/clone/lock",
        "snapshots/out/memory",
    ] {
        let ended = as_nobody("cat", &[&path(file)]);
        ended.exits(1).complains("Permission denied");
    }
    let uds = path("state/clone/vsock.sock");
    let probed = as_nobody(tool, &["probe", "--uds", &uds, "--timeout", "2s"]);
    probed.exits(2).complains("Permission denied");
    let ran = as_nobody(tool, &["exec", "--uds", &uds, "--", "true"]);
    ran.exits(125).complains("Permission denied");
    let state = path("state");
    for args in [
        &["ls"][..],
        &["inspect", "clone"],
        &["rm", "--force", "clone"],
    ] {
        let args = [args, &["--state-dir", &state]].concat();
        as_nobody(tool, &args)
            .exits(2)
            .complains("it belongs to another user");
    }
    let shown = as_nobody(tool, &["snapshots", "inspect", &path("snapshots/out")]);
    shown.exits(3).complains("Permission denied");
    // The other user's commands have changed nothing.
    fixture.host.run(["probe", "--name", "clone"]).exits(0);
    fixture.end();
}

#[test]
fn directories_that_others_own_or_write_to_are_not_used() {
    let Some(fixture) = Fixture::new("directories_that_others_own_or_write_to_are_not_used") else {
        return;
    };
    for (name, is_of_vm) in [("state", false), ("state/clone", true)] {
        let dir = fixture.host.path(name);
        let check = |text: &str| {
            let inspected = fixture.host.run(["inspect", "clone"]).exits(2);
            inspected
                .complains(text)
                .complains("run 'chmod 700' on it as its owner");
            let ran = fixture.host.run(["exec", "--name", "clone", "--", "true"]);
            ran.exits(125).complains(text);
            let listed = fixture.host.run(["ls"]).complains(text);
            assert_eq!(listed.code(), if is_of_vm { 0 } else { 2 }, "{listed}");
        };
        chown(&dir, Some(NOBODY), None).unwrap();
        check("it belongs to another user");
        chown(&dir, Some(0), None).unwrap();
        for mode in [0o770, 0o707, 0o777] {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            check("others may write to it");
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    }
    fixture.host.run(["inspect", "clone"]).exits(0);
    fixture.end();
}
