//! Goal: no command reads, writes or removes what host-tool did not make or what another user could
//! have put in its way; the command names the path and ends with its documented exit code. Method:
//! a table of what is planted where a VM's directory or a part of its path is expected, and a table
//! of commands that meet it. The tree is compared before and after.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::agent::Agent;
use tests::host::{MARK, TestHost, mark};
use tests::process::{Finished, run};
use tests::skip;

use super::floods::through_shell;

const NOBODY: u32 = 65_534;

/// A host, and what lies outside of its state directory.
struct Fixture {
    host: TestHost,
    _agent: Agent,
}

/// A command, its arguments after the state directory, and its exit code for wrong usage.
type Case = (&'static str, Vec<String>, i32);

impl Fixture {
    fn new() -> Self {
        let agent = Agent::start();
        let host = TestHost::new(&agent);
        fs::set_permissions(host.path(""), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(host.path("outside")).unwrap();
        fs::write(host.path("outside/file"), "precious").unwrap();
        fs::write(host.path("bait"), "precious").unwrap();
        Self {
            host,
            _agent: agent,
        }
    }

    /// Every command that takes a VM's name, and `ls`.
    fn cases(&self) -> Vec<Case> {
        let path = |name: &str| self.host.path(name).display().to_string();
        let artifact = self.host.artifact().display().to_string();
        let (kernel, initrd, out) = (path("kernel"), path("initrd"), path("snapshots/out"));
        let case = |name, line: String, code| -> Case {
            (name, line.split(' ').map(str::to_owned).collect(), code)
        };
        vec![
            case(
                "boot",
                format!("boot --name web --kernel {kernel} --initrd {initrd}"),
                2,
            ),
            case("restore", format!("restore --name web {artifact}"), 2),
            case("stop", "stop web".to_owned(), 2),
            case("stop --force", "stop --force web".to_owned(), 2),
            case("rm", "rm web".to_owned(), 2),
            case("rm --force", "rm --force web".to_owned(), 2),
            case("inspect", "inspect web".to_owned(), 2),
            case("snapshot", format!("snapshot --name web --out {out}"), 2),
            case("logs", "logs --name web".to_owned(), 2),
            case("probe", "probe --name web".to_owned(), 3),
            case("exec", "exec --name web -- true".to_owned(), 125),
        ]
    }

    fn run(&self, args: &[String], state_dir: Option<&Path>) -> Finished {
        let mut tool = self.host.tool(args);
        if let Some(path) = state_dir {
            tool.env("HOST_TOOL_STATE_DIR", path);
        }
        run(&mut tool)
    }

    /// Runs a command with a fault in one of its system calls; `None` if strace cannot do that. Its
    /// supervisor is another process, which is not traced.
    fn injected(&self, args: &[String], call: &str, fault: &str) -> Option<Finished> {
        let strace = Path::new("/usr/bin/strace");
        let traced = |tool: &Command| {
            let mut traced = Command::new(strace);
            traced.args([
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={call}"),
                "-e",
            ]);
            traced.arg(format!("inject={call}:{fault}"));
            traced
                .arg(tool.get_program())
                .args(tool.get_args())
                .env_clear();
            let variables = tool.get_envs();
            traced.envs(variables.filter_map(|(key, value)| Some((key, value?))));
            run(&mut traced)
        };
        let works = strace.exists() && traced(&Command::new("/bin/true")).code() == 0;
        works.then(|| traced(&self.host.tool(args)))
    }

    /// Removes what was planted.
    fn clear(&self) {
        let planted = self.host.path("state/web");
        if fs::remove_file(&planted).is_err() {
            fs::remove_dir_all(&planted).unwrap();
        }
    }
}

/// All that can be told of everything below a path, links not followed.
fn tree(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut rest = vec![top.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = match meta.is_file() {
            true => fs::read(&path).unwrap(),
            false => Vec::new(),
        };
        let facts = [
            meta.ino(),
            u64::from(meta.mode()),
            u64::from(meta.uid()),
            meta.nlink(),
        ];
        let changed = (
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        found.insert(path.clone(), format!("{facts:?} {changed:?} {content:?}"));
        if meta.is_dir() {
            rest.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    found
}

fn folder(path: &Path, files: &[(&str, &str)]) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
    for (name, text) in files {
        fs::write(path.join(name), text).unwrap();
    }
}

/// What has a VM's name, and how to make it.
type Plant = (&'static str, fn(&Fixture, &Path));

const PLANTS: [Plant; 14] = [
    ("a folder with files", |_, path| folder(path, &[("a", "x")])),
    ("an empty folder", |_, path| folder(path, &[])),
    ("a folder with a file named lock", |_, path| {
        folder(path, &[("lock", ""), ("thesis", "x")]);
    }),
    (
        "a folder with the files of an interrupted start",
        |_, path| {
            folder(
                path,
                &[("lock", ""), ("launch.json", "{}"), ("supervisor.lock", "")],
            );
        },
    ),
    ("a folder with another mark", |_, path| {
        folder(path, &[("lock", ""), (MARK.0, "host-tool")]);
    }),
    ("a folder with a link to a mark", |fixture, path| {
        folder(path, &[("lock", "")]);
        mark(&fixture.host.path("outside"));
        symlink(fixture.host.path("outside").join(MARK.0), path.join(MARK.0)).unwrap();
    }),
    ("a folder with a pipe for a mark", |_, path| {
        folder(path, &[("lock", "")]);
        mkfifo(&path.join(MARK.0), Mode::S_IRWXU).unwrap();
    }),
    ("a file", |_, path| fs::write(path, "x").unwrap()),
    ("a hard link", |fixture, path| {
        fs::hard_link(fixture.host.path("bait"), path).unwrap();
    }),
    ("a link to a folder", |fixture, path| {
        symlink(fixture.host.path("outside"), path).unwrap();
    }),
    ("a link to a marked folder", |fixture, path| {
        mark(&fixture.host.path("outside"));
        symlink(fixture.host.path("outside"), path).unwrap();
    }),
    ("a link to nothing", |_, path| {
        symlink("nowhere", path).unwrap()
    }),
    ("a pipe", |_, path| mkfifo(path, Mode::S_IRWXU).unwrap()),
    ("a socket", |_, path| {
        drop(UnixListener::bind(path).unwrap())
    }),
];

#[test]
fn what_host_tool_did_not_make_is_left_alone_by_every_command() {
    let fixture = Fixture::new();
    let cases = fixture.cases();
    let planted = fixture.host.path("state/web");
    for (what, plant) in PLANTS {
        plant(&fixture, &planted);
        let trees = || ["state", "outside", "bait"].map(|name| tree(&fixture.host.path(name)));
        for (name, args, code) in &cases {
            let before = trees();
            let ended = fixture.run(args, None);
            assert_eq!(ended.code(), *code, "{name}, {what}: {ended}");
            let ended = ended.complains("state/web");
            // A new VM's directory comes and goes beside it, so the time of the parent changes.
            let mut after = trees();
            if matches!(*name, "boot" | "restore") {
                let state = fixture.host.path("state");
                after[0].insert(state.clone(), before[0][&state].clone());
            }
            assert!(before == after, "{name}, {what}: {ended}");
        }
        // `ls` lists the others, and names this one on standard error.
        let listed = fixture.run(&["ls".to_owned()], None).exits(0);
        listed.complains("state/web");
        fixture.clear();
    }
    fixture.host.is_clean();
}

/// The name of a directory that is being made or removed is not a licence to remove it.
#[test]
fn leftovers_are_removed_by_their_mark_alone() {
    let fixture = Fixture::new();
    let at = |name: &str| fixture.host.path("state").join(name);
    // No process has this number.
    folder(&at(".trash-4194305-web"), &[("lock", ""), ("thesis", "x")]);
    folder(&at(".new-4194305-web"), &[("lock", "")]);
    folder(&at(".trash-4194305-Thesis"), &[("lock", "")]);
    mark(&at(".trash-4194305-Thesis"));
    folder(
        &at(".new-4194305-marked"),
        &[("lock", ""), ("state.json.tmp", "{")],
    );
    mark(&at(".new-4194305-marked"));
    let [_, restore, ..] = &fixture.cases()[..] else {
        panic!("a case")
    };
    fixture.run(&restore.1, None).exits(0);
    fixture.host.run(["rm", "--force", "web"]).exits(0);
    let mut left = fixture.host.names("state");
    left.sort();
    let kept = [
        ".new-4194305-web",
        ".trash-4194305-Thesis",
        ".trash-4194305-web",
    ];
    assert_eq!(left, kept);
    for name in kept {
        fs::remove_dir_all(at(name)).unwrap();
    }
    fixture.host.is_clean();
}

/// A VM's directory with a file that is not a VM's stays whole, and goes once the file is away.
#[test]
fn a_vm_directory_with_a_users_file_is_not_removed() {
    let fixture = Fixture::new();
    let [_, restore, ..] = &fixture.cases()[..] else {
        panic!("a case")
    };
    fixture.run(&restore.1, None).exits(0);
    fixture.host.run(["stop", "--force", "web"]).exits(0);
    let notes = fixture.host.path("state/web/notes");
    let puts: [&dyn Fn(); 3] = [
        &|| fs::write(&notes, "x").unwrap(),
        &|| folder(&notes, &[("a", "x")]),
        &|| symlink(fixture.host.path("outside"), &notes).unwrap(),
    ];
    for put in puts {
        put();
        for args in [&["rm", "web"][..], &["rm", "--force", "web"]] {
            let ended = fixture.host.run(args).exits(2);
            ended.complains("host-tool did not make 'notes' in it");
            assert!(notes.symlink_metadata().is_ok());
            fixture.host.run(["inspect", "web"]).exits(0);
        }
        if fs::remove_file(&notes).is_err() {
            fs::remove_dir_all(&notes).unwrap();
        }
    }
    fixture.host.run(["rm", "web"]).exits(0);
    fixture.host.is_clean();
    assert_eq!(
        fs::read(fixture.host.path("outside/file")).unwrap(),
        b"precious"
    );
}

/// What is wrong with the directory `way` on the path `way/state`, what the message says, and which
/// path it names.
type Way = (&'static str, bool, fn(&Path), &'static str);

const WAYS: [Way; 6] = [
    (
        "mode 0775",
        false,
        |way| set_mode(way, 0o775),
        "others may write to it",
    ),
    (
        "mode 0757",
        false,
        |way| set_mode(way, 0o757),
        "others may write to it",
    ),
    (
        "another owner",
        true,
        |way| chown(way, Some(NOBODY), None).unwrap(),
        "it belongs to another user",
    ),
    (
        "another owner, sticky",
        true,
        |way| {
            chown(way, Some(NOBODY), None).unwrap();
            set_mode(way, 0o1777);
        },
        "it belongs to another user",
    ),
    (
        "a link of another owner",
        true,
        |way| {
            let real = way.with_extension("real");
            fs::rename(way, &real).unwrap();
            symlink(&real, way).unwrap();
            std::os::unix::fs::lchown(way, Some(NOBODY), None).unwrap();
        },
        "it is a link",
    ),
    (
        "a file",
        false,
        |way| {
            fs::rename(way, way.with_extension("real")).unwrap();
            fs::write(way, "x").unwrap();
        },
        "it is not a directory",
    ),
];

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn every_component_of_the_state_directory_is_judged() {
    let fixture = Fixture::new();
    let is_root = nix::unistd::geteuid().is_root();
    let (way, real) = (fixture.host.path("way"), fixture.host.path("way.real"));
    let state = way.join("state");
    for (what, needs_root, spoil, text) in WAYS {
        if needs_root && !is_root {
            skip(&format!("hostile::planted: {what}"), "it takes root");
            continue;
        }
        // A VM that a command would find, if it took the path.
        folder(&way, &[]);
        set_mode(&way, 0o755);
        folder(&state, &[]);
        folder(&state.join("web"), &[("lock", "")]);
        mark(&state.join("web"));
        spoil(&way);
        let tree = || tree(&fixture.host.path(""));
        let cases = fixture.cases();
        let ls: Case = ("ls", vec!["ls".to_owned()], 2);
        let before = tree();
        for (name, args, code) in cases.iter().chain([&ls]) {
            let ended = fixture.run(args, Some(&state));
            assert_eq!(ended.code(), *code, "{name}, {what}: {ended}");
            let path = format!("{}, on the way to {},", way.display(), state.display());
            let ended = ended
                .complains(text)
                .complains(&path)
                .complains("--state-dir");
            assert!(
                only_log_differs(&before, &tree()),
                "{name}, {what}: {ended}"
            );
        }
        for path in [&way, &real] {
            if fs::remove_file(path).is_err() && path.exists() {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }
    // A sticky directory of root or the caller, such as /tmp, is fine.
    folder(&way, &[]);
    set_mode(&way, 0o1777);
    fixture.run(&["doctor".to_owned()], Some(&state));
    fixture.run(&["ls".to_owned()], Some(&state)).exits(0);
}

/// The fake VMM's log, which its `--version` writes, and the folder with it.
fn only_log_differs(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> bool {
    let is_log = |path: &Path| path.file_name() == Some(OsStr::new("log"));
    let kept = |tree: &BTreeMap<PathBuf, String>| {
        let tree = tree.iter().skip(1).filter(|(path, _)| !is_log(path));
        tree.map(|(path, facts)| (path.clone(), facts.clone()))
            .collect::<Vec<_>>()
    };
    kept(before) == kept(after)
}

/// A user's runtime directory, in the environment of a root shell that this user has prepared.
#[test]
fn a_runtime_directory_of_another_user_leads_nowhere() {
    if !nix::unistd::geteuid().is_root() {
        let name = "hostile::planted::a_runtime_directory_of_another_user_leads_nowhere";
        return skip(name, "it takes root");
    }
    let fixture = Fixture::new();
    let (runtime, srv) = (fixture.host.path("user"), fixture.host.path("srv"));
    folder(&srv, &[]);
    folder(&srv.join("web"), &[("lock", ""), ("state.json", "{}")]);
    mark(&srv.join("web"));
    folder(&runtime, &[]);
    symlink(&srv, runtime.join("host-tool")).unwrap();
    for path in [&runtime, &runtime.join("host-tool")] {
        std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let before = tree(&srv);
    for (name, args, code) in fixture.cases() {
        let mut tool = fixture.host.tool(&args);
        tool.env_remove("HOST_TOOL_STATE_DIR");
        tool.env("XDG_RUNTIME_DIR", &runtime);
        let ended = run(&mut tool);
        assert_eq!(ended.code(), code, "{name}: {ended}");
        ended.complains("it belongs to another user");
        assert!(before == tree(&srv), "{name}");
    }
}

/// A command that cannot open or lock what it has just made takes it away again.
#[test]
fn a_start_that_fails_at_any_open_file_leaves_nothing() {
    let fixture = Fixture::new();
    let [_, restore, ..] = &fixture.cases()[..] else {
        panic!("a case")
    };
    let mut has_failed = 0;
    for limit in 4..64 {
        let tool = fixture.host.tool(&restore.1);
        let mut tool = through_shell(&tool, &format!("ulimit -n {limit}"));
        let ended = run(&mut tool);
        assert!(ended.code() < 125, "{limit}: {ended}");
        if ended.code() == 0 {
            fixture.host.run(["rm", "--force", "web"]).exits(0);
            fixture.host.is_clean();
            break;
        }
        has_failed += 1;
        fixture.host.is_clean();
    }
    assert!(has_failed > 3, "only {has_failed} limits were too low");
}

/// flock(2) fails on some network file systems, and a new directory must not stay then. An unlock
/// that fails must not end the program.
#[test]
fn a_lock_that_cannot_be_taken_or_released_is_no_panic_and_leaves_nothing() {
    let name = "hostile::planted::a_lock_that_cannot_be_taken_or_released";
    let fixture = Fixture::new();
    let version = ["--version".to_owned()];
    if fixture.injected(&version, "flock", "error=EIO").is_none() {
        return skip(name, "it takes strace");
    }
    let [_, restore, ..] = &fixture.cases()[..] else {
        panic!("a case")
    };
    let out = fixture.host.path("snapshots/out").display().to_string();
    let snapshot = ["snapshot", "--name", "web", "--out", &out].map(str::to_owned);
    let injected = |args: &[String], fault: &str| {
        let ended = fixture.injected(args, "flock", fault);
        ended.expect("strace has traced before")
    };
    for errno in ["EIO", "ENOLCK", "EINTR"] {
        for when in 1..=8 {
            let fault = format!("error={errno}:when={when}");
            let ended = injected(&restore.1, &fault);
            assert!([0, 1].contains(&ended.code()), "restore, {fault}: {ended}");
            match ended.code() {
                0 => {
                    let taken = injected(&snapshot, &fault);
                    assert!(
                        [0, 1, 3].contains(&taken.code()),
                        "snapshot, {fault}: {taken}"
                    );
                    let is_there = fixture.host.names("snapshots");
                    let expected: &[&str] = if taken.code() == 0 { &["out"] } else { &[] };
                    assert_eq!(is_there, expected, "{fault}: {taken}");
                    drop(fs::remove_dir_all(&out));
                    fixture.host.run(["rm", "--force", "web"]).exits(0);
                }
                _ => drop(ended.complains("cannot lock")),
            }
            fixture.host.is_clean();
        }
    }
}

#[test]
fn clones_are_restored_without_a_thread_for_each() {
    let fixture = Fixture::new();
    let artifact = fixture.host.artifact().display().to_string();
    let line = format!("restore {artifact} --name web --count 3 --parallel 2 --no-wait");
    let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let mut has_warned = false;
    // The first calls start the VMM to ask for its version.
    for when in 1..=8 {
        let fault = format!("error=EAGAIN:when={when}");
        let Some(ended) = fixture.injected(&args, "clone3", &fault) else {
            return skip("hostile::planted::clones_are_restored", "it takes strace");
        };
        assert!(!ended.err().contains("panicked"), "{when}: {ended}");
        if ended.err().contains("cannot start another thread") {
            has_warned = true;
            assert_eq!(ended.code(), 0, "{when}: {ended}");
        }
        for name in fixture.host.names("state") {
            fixture.host.run(["rm", "--force", &name]).exits(0);
        }
        fixture.host.is_clean();
    }
    assert!(has_warned, "no thread was refused");
}
