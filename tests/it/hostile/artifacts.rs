//! Goal: every command that reads a prepared artifact refuses it at once, names its fault, needs
//! little memory, and touches nothing outside of it. Method: a good artifact, changed in one place,
//! and a fake Firecracker that would load it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::host::TestHost;
use tests::process::{Finished, run};

use super::floods::limited;

const MANIFEST: &str = "manifest.json";

/// A host with a good artifact.
struct Fixture {
    host: TestHost,
    _agent: Agent,
}

impl Fixture {
    fn new() -> Self {
        let agent = Agent::start();
        Self {
            host: TestHost::new(&agent),
            _agent: agent,
        }
    }

    /// Runs `host-tool ARGS… ARTIFACT` with a limited memory.
    fn run(&self, args: &[&str], dir: &Path) -> Finished {
        let mut tool = self.host.tool(args);
        tool.arg(dir).args(["--timeout", "60s"]);
        run(&mut limited(&tool))
    }

    /// Fails unless each command refuses the artifact after this change.
    #[track_caller]
    fn is_refused(&self, change: impl FnOnce(&Path), text: &str) {
        let dir = self.host.artifact();
        change(&dir);
        let commands: [&[&str]; 3] = [
            &["restore", "--name", "clone"],
            &["snapshots", "inspect"],
            &["snapshots", "verify"],
        ];
        for args in commands {
            // `inspect` takes no time limit and reads only the manifest.
            let ended = match args {
                ["snapshots", "inspect"] => self.host.run([args, &[path(&dir)]].concat()),
                args => self.run(args, &dir),
            };
            ended.exits(3).complains(text);
            self.host.is_clean();
        }
        let listed = self.host.run(["snapshots", "ls", path(&dir)]).exits(0);
        assert!(listed.out().contains("damaged"), "{listed}");
        assert!(listed.out().contains(text), "{text} is not in {listed}");
    }

    /// The same for a change of the manifest.
    #[track_caller]
    fn is_refused_with(&self, change: impl FnOnce(&mut Value), text: &str) {
        let edit = |dir: &Path| {
            let bytes = fs::read(dir.join(MANIFEST)).unwrap();
            let mut value = serde_json::from_slice(&bytes).unwrap();
            change(&mut value);
            fs::write(dir.join(MANIFEST), value.to_string()).unwrap();
        };
        self.is_refused(edit, text);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn names_and_sizes_that_lie_are_refused() {
    let fixture = Fixture::new();
    let long = "a".repeat(5000);
    for (name, shown) in [
        ("../vmstate", "'../vmstate': names must be plain and unique"),
        (
            "/etc/passwd",
            "'/etc/passwd': names must be plain and unique",
        ),
        ("a/b", "'a/b': names must be plain and unique"),
        ("..", "'..': names must be plain and unique"),
        ("", "'': names must be plain and unique"),
        ("a\u{0}b", "'a\\0b': names must be plain and unique"),
        ("\u{9b}2J", "\\u{9b}2J': names must be plain and unique"),
        (&long, "aaa': names must be plain and unique"),
    ] {
        fixture.is_refused_with(|it| it["files"][0]["name"] = name.into(), shown);
    }
    let lie = "instead of 18446744073709551615";
    fixture.is_refused_with(|it| it["files"][1]["len"] = u64::MAX.into(), lie);
    // A sparse file of 4 TiB.
    let sparse = |dir: &Path| {
        File::create(dir.join("memory"))
            .unwrap()
            .set_len(1 << 42)
            .unwrap()
    };
    fixture.is_refused(sparse, "memory has 4398046511104 bytes instead of 6");
}

#[test]
fn manifests_beyond_reason_are_refused() {
    let fixture = Fixture::new();
    let write = |text: String| move |dir: &Path| fs::write(dir.join(MANIFEST), text).unwrap();
    let huge = |dir: &Path| {
        File::create(dir.join(MANIFEST))
            .unwrap()
            .set_len(1 << 30)
            .unwrap()
    };
    fixture.is_refused(huge, "too long for a manifest");
    fixture.is_refused(write("[".repeat(1_000_000)), "not a JSON object");
    fixture.is_refused(
        write(format!("{{\"a\":{}", "{\"a\":".repeat(100_000))),
        "recursion limit",
    );
    fixture.is_refused(write("\u{0}".repeat(1000)), "not a JSON object");
    // Of a field that occurs twice, every reader takes the last one.
    fixture.is_refused(
        |dir| {
            let text = fs::read_to_string(dir.join(MANIFEST)).unwrap();
            let twice = text.replacen('{', "{\"format\":1,", 1);
            let twice = twice.trim_end().strip_suffix('}').unwrap().to_owned() + ",\"format\":999}";
            fs::write(dir.join(MANIFEST), twice).unwrap();
        },
        "format 999",
    );
    fixture.is_refused_with(|it| it["vmm"]["kind"] = "xen".into(), "firecracker or qemu");
    fixture.is_refused_with(|it| it["agent"]["protocol_min"] = 9.into(), "protocol");
    fixture.is_refused_with(|it| it["machine"]["drives"] = json!([{}]), "path");
    let drive = json!([{ "path": "/dev/zero", "read_only": true }]);
    fixture.is_refused_with(|it| it["machine"]["drives"] = drive, "not a regular file");
}

#[test]
fn what_is_no_plain_file_is_not_touched() {
    let fixture = Fixture::new();
    type Put = fn(&Path);
    let mut puts: Vec<Put> = vec![
        // A pipe without a writer: opening it to read would block.
        |path| mkfifo(path, Mode::S_IRWXU).unwrap(),
        |path| symlink("/dev/zero", path).unwrap(),
        |path| symlink("nowhere", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| drop(UnixListener::bind(path).unwrap()),
    ];
    if nix::unistd::geteuid().is_root() {
        puts.push(|path| mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap());
    } else {
        tests::skip("hostile::artifacts: a device", "it takes root");
    }
    for name in [MANIFEST, "vmstate", "memory"] {
        for put in &puts {
            let replace = |dir: &Path| {
                fs::remove_file(dir.join(name)).unwrap();
                put(&dir.join(name));
            };
            fixture.is_refused(replace, &format!("{name} is not a regular file"));
        }
    }
}

/// A file of 4 TiB with its recorded length and a digest takes longer to read than there is time.
#[test]
fn a_file_that_takes_for_ever_to_read_meets_the_deadline() {
    let fixture = Fixture::new();
    let dir = fixture.host.artifact();
    File::create(dir.join("memory"))
        .unwrap()
        .set_len(1 << 42)
        .unwrap();
    let bytes = fs::read(dir.join(MANIFEST)).unwrap();
    let mut value: Value = serde_json::from_slice(&bytes).unwrap();
    value["files"][1]["len"] = json!(1_u64 << 42);
    value["files"][1]["sha256"] = "0".repeat(64).into();
    fs::write(dir.join(MANIFEST), value.to_string()).unwrap();
    let ended = fixture
        .host
        .run(["snapshots", "verify", path(&dir), "--timeout", "100ms"]);
    ended.exits(124).complains("memory");
}
