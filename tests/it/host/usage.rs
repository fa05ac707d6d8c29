//! Goal: bad input to `host-tool` gets a clear error, its documented exit code, and leaves nothing
//! behind. Method: the built program, a private state directory, and VMMs that cannot run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::host::{Kind, manifest};
use tests::process::{Finished, run};
use tests::program;

/// An environment in which `host-tool` finds only what a test puts there.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self {
            folder: TempDir::new().unwrap(),
        };
        fs::create_dir(fixture.path("state")).unwrap();
        fs::set_permissions(fixture.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(fixture.path("bin")).unwrap();
        fixture
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

    /// `restore` fails with this exit code and text.
    #[track_caller]
    fn refuses(&self, artifact: &Path, code: i32, text: &str) {
        let restored = self.run(&["restore", artifact.to_str().unwrap()]);
        restored.exits(code).complains(text);
    }

    /// Fails when a command has left something behind.
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
fn usage_errors_exit_2_and_name_the_argument() {
    let fixture = Fixture::new();
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
        let ended = fixture.run(arguments);
        let expected = match arguments.first() {
            Some(&"probe") => 3,
            Some(&"exec") => 125,
            _ => 2,
        };
        ended.exits(expected).complains(word);
    }
    fixture.is_clean();
}

#[test]
fn help_goes_to_standard_output() {
    let fixture = Fixture::new();
    let help = fixture.run(&["--help"]).exits(0);
    for word in [
        "boot", "snapshot", "restore", "probe", "exec", "doctor", "124",
    ] {
        assert!(help.out().contains(word), "no {word} in {help}");
    }
    for command in [
        "boot", "snapshot", "restore", "probe", "exec", "ls", "stop", "rm", "doctor",
    ] {
        let help = fixture.run(&[command, "--help"]).exits(0);
        assert!(
            help.out().contains("--json") || help.out().contains("sage"),
            "{help}"
        );
    }
    let version = fixture.run(&["--version"]).exits(0);
    assert!(version.out().starts_with("host-tool "), "{version}");
}

#[test]
fn nobody_at_the_socket_is_no_answer() {
    let fixture = Fixture::new();
    let path = fixture.path("missing.sock");
    let ended = fixture.run(&["probe", "--unix", text(&path), "--timeout", "200ms"]);
    ended.exits(2).complains("missing.sock");
}

#[test]
fn an_artifact_that_is_missing_or_damaged_is_named() {
    let fixture = Fixture::new();
    fixture.fake_vmm("firecracker", "Firecracker v1.16.1");
    let missing = fixture.path("missing");
    fixture.refuses(&missing, 3, "missing");
    let artifact = fixture.path("artifact");
    fs::create_dir(&artifact).unwrap();
    fixture.refuses(&artifact, 3, "manifest.json");
    fs::write(artifact.join("manifest.json"), b"{").unwrap();
    fixture.refuses(&artifact, 3, "manifest.json");
    let newer = json!({ "format": 999 }).to_string();
    fs::write(artifact.join("manifest.json"), newer).unwrap();
    fixture.refuses(&artifact, 3, "999");
    fixture.is_clean();
}

impl Fixture {
    /// An artifact with all its files.
    fn artifact(&self, manifest: &serde_json::Value) -> PathBuf {
        let folder = self.path("artifact");
        drop(fs::remove_dir_all(&folder));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("vmstate"), b"state").unwrap();
        fs::write(folder.join("memory"), b"memory").unwrap();
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        folder
    }
}

#[test]
fn a_vmm_that_would_do_harm_is_refused_before_anything_is_started() {
    let fixture = Fixture::new();
    let cases = [
        ("Firecracker v1.16.0", 4, "1.16.0"),
        ("Firecracker v1.9.1", 4, "1.9.1"),
        ("Firecracker vNext", 4, "ersion"),
        ("something else", 4, "ersion"),
    ];
    for (version, code, word) in cases {
        fixture.fake_vmm("firecracker", version);
        let artifact = fixture.artifact(&manifest(Kind::Firecracker));
        fixture.refuses(&artifact, code, word);
        fixture.is_clean();
    }
}

#[test]
fn a_vmm_that_is_not_there_is_named_with_its_remedy() {
    let fixture = Fixture::new();
    for kind in [Kind::Firecracker, Kind::Qemu] {
        let artifact = fixture.artifact(&manifest(kind));
        let ended = fixture.run(&["restore", text(&artifact)]);
        let ended = ended.complains(kind.as_str());
        assert!([4, 5].contains(&ended.code()), "{ended}");
        fixture.is_clean();
    }
}

#[test]
fn a_vmm_that_dies_at_once_is_reported_and_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.fake_vmm("firecracker", "Firecracker v1.16.1");
    let artifact = fixture.artifact(&manifest(Kind::Firecracker));
    let ended = fixture.run(&["restore", text(&artifact), "--json"]);
    assert!([5, 8].contains(&ended.code()), "{ended}");
    assert_eq!(ended.json()["event"], "failed", "{ended}");
    fixture.is_clean();
}

#[test]
fn a_hostile_manifest_reaches_nothing_outside_its_artifact() {
    let fixture = Fixture::new();
    fixture.fake_vmm("firecracker", "Firecracker v1.16.1");
    let good = manifest(Kind::Firecracker);
    type Change = fn(&mut serde_json::Value);
    let changes: [(Change, &str); 6] = [
        (|it| it["files"][0]["name"] = "../vmstate".into(), ".."),
        (
            |it| it["files"][0]["name"] = "/etc/passwd".into(),
            "/etc/passwd",
        ),
        (|it| it["files"][0]["len"] = 6.into(), "vmstate"),
        (|it| it["files"][1]["len"] = u64::MAX.into(), "memory"),
        (|it| it["files"] = json!([]), "vmstate"),
        (|it| it["machine"]["memory_mib"] = json!(-1), "memory_mib"),
    ];
    for (change, word) in changes {
        let mut manifest = good.clone();
        change(&mut manifest);
        let artifact = fixture.artifact(&manifest);
        fixture.refuses(&artifact, 3, word);
        fixture.is_clean();
    }
    let artifact = fixture.artifact(&good);
    fs::remove_file(artifact.join("memory")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", artifact.join("memory")).unwrap();
    fixture.refuses(&artifact, 3, "memory");
    fixture.is_clean();
}

#[test]
fn names_that_are_no_names_are_refused() {
    let fixture = Fixture::new();
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "A",
        "a\n",
        "\u{1b}[2J",
        &"a".repeat(80),
    ] {
        let ended = fixture.run(&["inspect", name]).exits(2);
        ended.complains("cannot name a VM");
    }
    fixture.run(&["inspect", "-x"]).exits(2).complains("-x");
    let unknown = fixture.run(&["inspect", "unknown"]);
    unknown.exits(2).complains("unknown");
    fixture.is_clean();
}

#[test]
fn doctor_names_a_remedy_for_what_is_missing() {
    let fixture = Fixture::new();
    let ended = fixture.run(&["doctor"]);
    assert_eq!(ended.code(), 1, "no VMM is on PATH: {ended}");
    let text = ended.out() + &ended.err();
    assert!(
        text.contains("firecracker") && text.contains("qemu"),
        "{text}"
    );
    let json = fixture.run(&["doctor", "--json"]).exits(1);
    assert_eq!(json.out().lines().count(), 1, "{json}");
}
