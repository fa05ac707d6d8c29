//! Goal: a command neither follows nor waits for an odd file in place of a VM's own file, directory
//! or socket; it ends with the file's name and a remedy. Method: a VM that has ended, with one of
//! its files replaced after the other.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::agent::Agent;
use tests::host::TestHost;

/// What stands there, and how to make it. The first path is a link's target.
type Put = fn(&Path, &Path);

const ODD: [(&str, Put); 5] = [
    // A pipe without a writer: opening it would block.
    ("pipe", |_, path| mkfifo(path, Mode::S_IRWXU).unwrap()),
    ("link", |bait, path| symlink(bait, path).unwrap()),
    ("dangling link", |bait, path| {
        symlink(bait.with_extension("none"), path).unwrap();
    }),
    ("socket", |_, path| drop(UnixListener::bind(path).unwrap())),
    ("directory", |_, path| fs::create_dir(path).unwrap()),
];

const REMEDY: &str = "not a regular file; remove it";

/// A host with a VM that has ended.
struct Fixture {
    host: TestHost,
    /// The target of links, which must not change.
    bait: PathBuf,
    _agent: Agent,
}

impl Fixture {
    fn new() -> Self {
        let agent = Agent::start();
        let host = TestHost::new(&agent);
        let artifact = host.artifact();
        let args = ["restore", "--name", "clone", "--timeout", "60s"];
        tests::process::run(host.tool(args).arg(artifact)).exits(0);
        host.run(["stop", "--force", "clone"]).exits(0);
        let bait = host.path("bait");
        fs::write(&bait, "{}").unwrap();
        Self {
            host,
            bait,
            _agent: agent,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.path("state/clone").join(name)
    }

    /// Replaces a file by each odd one in turn, calls `check`, and puts the file back.
    fn replaced(&self, name: &str, check: impl Fn(&str)) {
        let (file, kept) = (self.file(name), self.host.path("kept"));
        let was_there = fs::rename(&file, &kept).is_ok();
        for (what, put) in ODD {
            put(&self.bait, &file);
            check(what);
            if fs::remove_file(&file).is_err() {
                fs::remove_dir(&file).unwrap();
            }
        }
        if was_there {
            fs::rename(&kept, &file).unwrap();
        }
        assert_eq!(fs::read(&self.bait).unwrap(), b"{}", "it was written to");
        assert!(!self.bait.with_extension("none").exists(), "it was made");
    }

    /// Fails unless these commands name the file and its remedy, with these exit codes.
    fn is_named(&self, name: &str, commands: &[(&[&str], i32)]) {
        self.replaced(name, |what| {
            for (args, code) in commands {
                let ended = self.host.run(*args);
                let ended = ended.exits(*code).complains(REMEDY);
                ended.complains(&format!("clone/{name}: it is"));
                assert!(self.file(name).symlink_metadata().is_ok(), "no {what}");
            }
        });
    }
}

#[test]
fn odd_files_of_a_vm_are_named_and_not_touched() {
    let fixture = Fixture::new();
    let inspect: &[&str] = &["inspect", "clone"];
    let logs: &[&str] = &["logs", "--name", "clone"];
    let ls: &[&str] = &["ls"];
    fixture.is_named(
        "state.json",
        &[
            (ls, 0),
            (inspect, 1),
            (logs, 1),
            (&["stop", "clone"], 1),
            (&["rm", "clone"], 1),
            (&["probe", "--name", "clone"], 2),
            (&["exec", "--name", "clone", "--", "true"], 125),
        ],
    );
    fixture.is_named("exit.json", &[(ls, 0), (inspect, 1)]);
    fixture.is_named("workload.json", &[(inspect, 1)]);
    fixture.is_named("health.json", &[(ls, 0), (inspect, 0)]);
    fixture.is_named("output.json", &[(logs, 1)]);
    fixture.is_named("lock", &[(&["stop", "clone"], 1), (&["rm", "clone"], 1)]);
    fixture.is_named("supervisor.lock", &[(&["rm", "clone"], 1)]);
    // With all files back, the VM can be removed.
    fixture.host.run(["rm", "clone"]).exits(0);
    fixture.host.is_clean();
}

#[test]
fn odd_output_logs_are_not_read() {
    let fixture = Fixture::new();
    let record = r#"{"older_start":0,"start":0,"len":2,"line_open":false,"stdout":2,"stderr":0}"#;
    fs::write(fixture.file("output.json"), record).unwrap();
    for name in ["output.log", "output.log.1"] {
        fixture.is_named(name, &[(&["logs", "--name", "clone"], 1)]);
    }
    // Impossible lengths must print nothing and must not block.
    let record = r#"{"older_start":18446744073709551615,"start":18446744073709551615,
        "len":18446744073709551615,"line_open":false,"stdout":0,"stderr":0}"#;
    fs::write(fixture.file("output.json"), record).unwrap();
    for name in ["output.log", "output.log.1"] {
        fs::write(fixture.file(name), "x\n").unwrap();
    }
    let ended = fixture.host.run(["logs", "--name", "clone"]);
    assert!([0, 1].contains(&ended.code()), "{ended}");
    fixture.host.run(["rm", "clone"]).exits(0);
}

/// What has a VM's name is a link out of the state directory, a file, or a pipe.
#[test]
fn what_has_a_vms_name_must_be_its_directory() {
    let fixture = Fixture::new();
    let other = fixture.host.path("state/other");
    let outside = fixture.host.path("outside");
    fs::rename(fixture.host.path("state/clone"), &outside).unwrap();
    let puts: [&dyn Fn(); 3] = [
        &|| symlink(&outside, &other).unwrap(),
        &|| fs::write(&other, "").unwrap(),
        &|| mkfifo(&other, Mode::S_IRWXU).unwrap(),
    ];
    let text =
        "state/other has a VM's name, but is a link or a file and not a directory; remove it";
    for put in puts {
        put();
        for args in [
            &["inspect", "other"][..],
            &["stop", "other"],
            &["rm", "--force", "other"],
            &["logs", "--name", "other"],
        ] {
            fixture.host.run(args).exits(2).complains(text);
        }
        let listed = fixture.host.run(["ls"]).exits(0).complains(text);
        assert!(listed.out().contains("other  unreadable"), "{listed}");
        let mut restore = fixture.host.tool(["restore", "--name", "other"]);
        let restored = tests::process::run(restore.arg(fixture.host.artifact()));
        restored.exits(2).complains(text);
        fs::remove_file(&other).unwrap();
    }
    assert!(outside.join("state.json").is_file(), "it was taken away");
    fixture.host.is_clean();
}

#[test]
fn odd_sockets_and_directories_are_named() {
    let agent = Agent::start();
    let host = TestHost::new(&agent);
    let bait = host.path("bait");
    fs::write(&bait, "x").unwrap();
    let odd = host.path("odd");
    let out = host.path("snapshots/out");
    let text = odd.to_str().unwrap();
    let (kernel, initrd) = (host.path("kernel"), host.path("initrd"));
    for (what, put) in ODD {
        put(&bait, &odd);
        for option in ["--uds", "--unix"] {
            let ended = host.run(["probe", option, text, "--timeout", "200ms"]);
            ended.exits(2).complains(text);
        }
        let mut snapshot = host.tool(["snapshot", "--api-sock", text, "--uds", text, "--out"]);
        let ended = tests::process::run(snapshot.arg(&out).args(["--timeout", "200ms"]));
        assert!([5, 124].contains(&ended.code()), "{what}: {ended}");
        ended.complains(text);
        if what != "directory" {
            let ended = host.run(["restore", text]).exits(3);
            ended.complains("there is no artifact directory");
            let ended = host.run(["ls", "--state-dir", text]);
            assert_eq!(ended.code(), 2, "{what}: {ended}");
            ended.complains(text);
        }
        if what != "link" {
            let options = [("--kernel", &initrd), ("--initrd", &kernel)];
            for (option, other) in options {
                let (name, other_name) = (
                    option,
                    if option == "--kernel" {
                        "--initrd"
                    } else {
                        "--kernel"
                    },
                );
                let mut boot = host.tool(["boot", name, text, other_name]);
                let ended = tests::process::run(boot.arg(other));
                ended.exits(3).complains(text);
            }
        }
        if fs::remove_file(&odd).is_err() {
            fs::remove_dir(&odd).unwrap();
        }
        host.is_clean();
    }
    assert_eq!(fs::read(&bait).unwrap(), b"x");
}
