//! Goal: every command that reads a prepared artifact refuses it at once, names its fault, needs
//! little memory, and touches nothing outside of it. Method: a good artifact, changed in one place,
//! and a fake Firecracker that would load it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
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

const NOBODY: u32 = 65_534;

/// What another user could have written of an artifact: what, whether only root can test it, how,
/// and why the message says so.
type Spoil = (&'static str, bool, fn(&Path), &'static str);

const SPOILS: [Spoil; 8] = [
    ("the folder's mode", false, |dir| mode(dir, 0o777), OTHERS),
    ("the folder's group", false, |dir| mode(dir, 0o770), OTHERS),
    (
        "the state's mode",
        false,
        |dir| mode(&dir.join("vmstate"), 0o666),
        OTHERS,
    ),
    (
        "the manifest's mode",
        false,
        |dir| mode(&dir.join(MANIFEST), 0o620),
        OTHERS,
    ),
    (
        "the folder above",
        false,
        |dir| mode(dir.parent().unwrap(), 0o757),
        OTHERS,
    ),
    ("the folder's owner", true, |dir| owner(dir), ANOTHER),
    (
        "the memory's owner",
        true,
        |dir| owner(&dir.join("memory")),
        ANOTHER,
    ),
    (
        "a link",
        true,
        |dir| {
            let real = dir.with_extension("real");
            fs::rename(dir, &real).unwrap();
            symlink(real, dir).unwrap();
            lchown(dir, Some(NOBODY), None).unwrap();
        },
        "it is a link",
    ),
];

const OTHERS: &str = "others may write to it";
const ANOTHER: &str = "it belongs to another user";

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn owner(path: &Path) {
    chown(path, Some(NOBODY), None).unwrap();
}

/// An artifact in a folder of its own, with a drive outside of it.
fn with_drive(fixture: &Fixture, drive: &Path) -> std::path::PathBuf {
    let shelf = fixture.host.path("shelf");
    drop(fs::remove_dir_all(&shelf));
    fs::create_dir(&shelf).unwrap();
    mode(&shelf, 0o755);
    let dir = shelf.join("base.snap");
    fs::rename(fixture.host.artifact(), &dir).unwrap();
    edit(&dir, |it| {
        it["machine"]["drives"] = json!([{ "path": drive, "read_only": true }]);
    });
    dir
}

fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let bytes = fs::read(dir.join(MANIFEST)).unwrap();
    let mut value = serde_json::from_slice(&bytes).unwrap();
    change(&mut value);
    fs::write(dir.join(MANIFEST), value.to_string()).unwrap();
}

#[test]
fn what_another_user_could_have_written_is_restored_only_on_demand() {
    let fixture = Fixture::new();
    let secret = fixture.host.path("secret");
    fs::write(&secret, "secret").unwrap();
    let restored = |args: &[&str], dir: &Path, code: i32| {
        let ended = fixture.run(&[&["restore", "--name", "clone"], args].concat(), dir);
        let ended = ended.exits(code);
        if code == 0 {
            fixture.host.run(["rm", "--force", "clone"]).exits(0);
        }
        fixture.host.is_clean();
        ended
    };
    // Of an artifact of the caller's own, drives outside of it are taken.
    restored(&[], &with_drive(&fixture, &secret), 0);
    for (what, needs_root, spoil, text) in SPOILS {
        if needs_root && !nix::unistd::geteuid().is_root() {
            tests::skip(&format!("hostile::artifacts: {what}"), "it takes root");
            continue;
        }
        let dir = with_drive(&fixture, &secret);
        spoil(&dir);
        for args in [
            &[][..],
            &["--allow-drive", path(&secret)],
            &["--count", "2"],
        ] {
            let ended = match args {
                ["--count", _] => fixture.run(&[&["restore"], args].concat(), &dir).exits(3),
                args => restored(args, &dir, 3),
            };
            let ended = ended.complains("another user could have written the artifact");
            ended.complains(text).complains("--trust-artifact");
        }
        let trust = "--trust-artifact";
        for args in [&[trust][..], &[trust, "--allow-drive", "/etc/shadow"]] {
            let ended = restored(args, &dir, 3);
            ended.complains(&format!("--allow-drive {}", secret.display()));
        }
        let warned = restored(&[trust, "--allow-drive", path(&secret)], &dir, 0);
        warned.complains(text);
        // To look at it runs nothing.
        fixture
            .host
            .run(["snapshots", "inspect", path(&dir)])
            .exits(0);
        fixture
            .host
            .run(["snapshots", "verify", path(&dir)])
            .exits(0);
    }
    // A link of the caller's own is followed.
    let dir = with_drive(&fixture, &secret);
    let link = fixture.host.path("latest.snap");
    symlink(&dir, &link).unwrap();
    restored(&[], &link, 0);
}

#[test]
fn a_restore_compares_digests_on_demand() {
    let fixture = Fixture::new();
    let without = fixture.host.artifact();
    let verify = ["restore", "--verify", "--name", "clone"];
    let ended = fixture.run(&verify, &without).exits(3);
    ended.complains("has no SHA-256 digests");
    fixture.host.is_clean();

    fixture
        .run(&["restore", "--name", "source"], &without)
        .exits(0);
    let out = fixture.host.path("snapshots/out");
    let taken = [
        "snapshot",
        "--name",
        "source",
        "--sha256",
        "--out",
        path(&out),
    ];
    fixture.host.run(taken).exits(0);
    fixture.host.run(["rm", "--force", "source"]).exits(0);
    let ended = fixture
        .run(&[&verify[..], &["--json"]].concat(), &out)
        .exits(0);
    assert_eq!(ended.json()["sha256"], true, "{ended}");
    fixture.host.run(["rm", "--force", "clone"]).exits(0);
    fs::write(out.join("memory"), "mEmory").unwrap();
    let ended = fixture.run(&verify, &out).exits(3);
    ended.complains("memory has other bytes than recorded");
    fixture.run(&["restore", "--name", "clone"], &out).exits(0);
    fixture.host.run(["rm", "--force", "clone"]).exits(0);
    fs::remove_dir_all(&out).unwrap();
    fixture.host.is_clean();
}
