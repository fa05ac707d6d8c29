//! Goal: bad input to `host-tool` gets a clear error, its documented exit code, and nothing left
//! behind. Method: the built program, a private state directory, and no VMM that could run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::process::{Finished, run};
use tests::program;

/// A place where `host-tool` finds nothing but what a test puts there.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            folder: TempDir::new().unwrap(),
        };
        fs::create_dir(place.path("state")).unwrap();
        fs::set_permissions(place.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(place.path("bin")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program named `name` that prints `version`, and fails at anything else.
    fn fake_vmm(&self, name: &str, version: &str) -> &Self {
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in --version|-version) echo '{version}' ;; *) exit 1 ;; esac\n"
        );
        let path = self.path("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let mut tool = Command::new(program("host-tool"));
        tool.args(arguments)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOST_TOOL_STATE_DIR", self.path("state"))
            .env("HOST_TOOL_SKIP_KVM_CHECK", "1");
        run(&mut tool)
    }

    /// Nothing of a failed command may stay.
    #[track_caller]
    fn is_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.path("state"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn usage_errors_exit_2_and_name_the_word() {
    let place = Place::new();
    let cases: [(&[&str], &str); 8] = [
        (&[], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&["resotre", "x"], "restore"),
        (&["restore"], "dir"),
        (&["probe"], "--name"),
        (&["probe", "--unix", "/x", "--cid", "3"], "--cid"),
        (&["exec", "--unix", "/x"], "--"),
        (&["stop", "../x"], "../x"),
    ];
    for (arguments, word) in cases {
        let ended = place.run(arguments);
        let expected = if arguments.first() == Some(&"probe") {
            3
        } else {
            2
        };
        let expected = if arguments.first() == Some(&"exec") {
            125
        } else {
            expected
        };
        drop(ended.exits(expected).complains(word));
    }
    place.is_clean();
}

#[test]
fn help_goes_to_standard_output() {
    let place = Place::new();
    let help = place.run(&["--help"]).exits(0);
    for word in [
        "boot", "snapshot", "restore", "probe", "exec", "doctor", "124",
    ] {
        assert!(help.out().contains(word), "no {word} in {help}");
    }
    for command in [
        "boot", "snapshot", "restore", "probe", "exec", "ls", "stop", "rm", "doctor",
    ] {
        let help = place.run(&[command, "--help"]).exits(0);
        assert!(
            help.out().contains("--json") || help.out().contains("sage"),
            "{help}"
        );
    }
    assert!(
        place
            .run(&["--version"])
            .exits(0)
            .out()
            .starts_with("host-tool ")
    );
}

#[test]
fn nobody_at_the_socket_is_no_answer() {
    let place = Place::new();
    let path = place.path("nobody");
    let ended = place.run(&["probe", "--unix", text(&path), "--timeout", "200ms"]);
    drop(ended.exits(2).complains("nobody"));
}

#[test]
fn an_artifact_that_is_missing_or_damaged_is_named() {
    let place = Place::new();
    place.fake_vmm("firecracker", "Firecracker v1.16.1");
    let missing = place.path("missing");
    drop(
        place
            .run(&["restore", text(&missing)])
            .exits(3)
            .complains("missing"),
    );
    let artifact = place.path("artifact");
    fs::create_dir(&artifact).unwrap();
    drop(
        place
            .run(&["restore", text(&artifact)])
            .exits(3)
            .complains("manifest.json"),
    );
    fs::write(artifact.join("manifest.json"), b"{").unwrap();
    drop(
        place
            .run(&["restore", text(&artifact)])
            .exits(3)
            .complains("manifest.json"),
    );
    let newer = json!({ "format": 999 }).to_string();
    fs::write(artifact.join("manifest.json"), newer).unwrap();
    drop(
        place
            .run(&["restore", text(&artifact)])
            .exits(3)
            .complains("999"),
    );
    place.is_clean();
}
