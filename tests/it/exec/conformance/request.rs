//! What a command is given: arguments, environment, working directory, user, and what it inherits.

use std::process::Command;

use tests::agent::Agent;
use tests::process::{Finished, run};
use tests::program;

use super::case::{Case, Fixture, Needs, case};

/// Every byte that an argument may have.
fn all_bytes() -> Vec<u8> {
    (1..=255).collect()
}

pub(super) fn arguments() -> Vec<Case> {
    vec![
        case("an argument with every byte but NUL")
            .run(&[&b"printf"[..], b"%s", &all_bytes()])
            .typed("-- printf %s BYTES")
            .prints(all_bytes()),
        case("empty arguments stay")
            .run(&["sh", "-c", "echo $#", "sh", "", ""])
            .prints("2\n"),
        case("no shell reads the arguments")
            .run(&["printf", "%s|", "a b", "$HOME", "*", "'\"", "a;b"])
            .prints("a b|$HOME|*|'\"|a;b|"),
        case("what follows -- is the command's, options of host-tool as well")
            .run(&["printf", "%s|", "--", "-t", "--timeout", "--help"])
            .prints("--|-t|--timeout|--help|"),
        case("60,000 arguments")
            .special("-- sh -c 'echo $#' sh x x …", sixty_thousand)
            .prints("60000\n"),
        case("100,000 arguments are refused, and the session ends")
            .special("-- true x x …", hundred_thousand)
            .exits(125)
            .complains(&["exceed"])
            .podman("differs: runs it"),
        case("an argument of 128 KiB less one byte")
            .special("-- sh -c 'echo ${#1}' sh xxx…", longest_argument)
            .prints("131071\n"),
        case("a variable of 128 KiB is more than Linux takes")
            .special("--env-file FILE -- true", too_long_variable)
            .exits(126)
            .complains(&["true"])
            .podman("differs: 125"),
    ]
}

pub(super) fn environment() -> Vec<Case> {
    vec![
        case("the default environment, without the caller's")
            .special("-- env, with SECRET set for host-tool", default_environment)
            .mentions(&["PATH=/", "HOME=/", "TERM="])
            .podman("same, and container=podman"),
        case("a variable")
            .with("-e A=1")
            .sh("echo \"$A\"")
            .prints("1\n"),
        case("a variable with spaces and =")
            .with("-e")
            .with_bytes(b"A=1 2=3")
            .sh("echo \"$A\"")
            .prints("1 2=3\n"),
        case("a variable that is only named has the caller's value")
            .special(
                "-e A -- sh -c 'echo $A', with A=1 for host-tool",
                named_variable,
            )
            .prints("1\n"),
        case("an empty variable is set")
            .with("-e A=")
            .sh("echo \"[$A]${A+set}\"")
            .prints("[]set\n"),
        case("the last value of a variable counts")
            .with("-e A=1 -e A=2")
            .sh("echo $A; env | grep -c ^A=")
            .prints("2\n1\n"),
        case("a variable with every character of ASCII but NUL, and others")
            .with("-e")
            .with_bytes(&[b"A=", &(1..128).collect::<Vec<u8>>()[..], "äß€".as_bytes()].concat())
            .sh("printf %s \"$A\"")
            .typed("-e A=TEXT -- sh -c 'printf %s \"$A\"'")
            .prints([&(1..128).collect::<Vec<u8>>()[..], "äß€".as_bytes()].concat()),
        case("a variable that is not UTF-8 is refused as an option")
            .with("-e")
            .with_bytes(b"A=\xff")
            .run(&["true"])
            .exits(125)
            .complains(&["A="])
            .podman("differs: what is not UTF-8 is replaced"),
        case("a variable that is not UTF-8 comes from a file")
            .special("--env-file FILE -- sh -c 'printf %s \"$A\"'", bytes_in_file)
            .prints(file_bytes())
            .podman("was not tried"),
        case("a variable without a name is refused")
            .with("-e =x")
            .run(&["true"])
            .exits(125)
            .complains(&["=x"]),
        case("variables from a file, comments and blank lines left out")
            .special("--env-file FILE -- sh -c 'echo \"$A|$B\"'", env_file)
            .prints("1|2 3\n"),
        case("-e wins over a file")
            .special(
                "-e A=2 --env-file FILE -- sh -c 'echo $A'",
                env_file_and_option,
            )
            .prints("2\n"),
        case("a missing file of variables")
            .with("--env-file /no/such/file")
            .run(&["true"])
            .exits(125)
            .complains(&["/no/such/file"]),
    ]
}

pub(super) fn inheritance() -> Vec<Case> {
    vec![
        case("the working directory is /")
            .run(&["pwd"])
            .prints("/\n"),
        case("another working directory")
            .with("-w /usr")
            .run(&["pwd"])
            .prints("/usr\n"),
        case("the umask is 022").sh("umask").prints("0022\n"),
        case("no signal is blocked or ignored")
            // All signals but 32 and 33, which belong to the C library.
            .sh(
                "grep -E 'Sig(Blk|Ign)' /proc/self/status | while read name set; do \
                 echo $name $((0x$set & ~0x180000000)); done",
            )
            .prints("SigBlk: 0\nSigIgn: 0\n"),
        case("no descriptor but 0, 1 and 2 is open")
            // The fourth descriptor is the directory that `ls` reads.
            .sh("ls /proc/self/fd | tr '\\n' ' '")
            .prints("0 1 2 3 "),
        case("a process group of its own")
            .sh("read -r pid _ _ _ group _ </proc/$$/stat; [ $pid = $group ] && echo leads")
            .prints("leads\n")
            .podman("differs: it is a member of an outer group"),
        case("the limit of descriptors is the one that the agent was started with")
            .special(
                "-- sh -c 'ulimit -n', the agent under ulimit -n 512",
                descriptor_limit,
            )
            .prints("512\n")
            .podman("the container's own"),
    ]
}

pub(super) fn users() -> Vec<Case> {
    vec![
        case("a user by name")
            .needs(Needs::Root)
            .with("-u nobody")
            .sh("id -un")
            .prints("nobody\n"),
        case("an unknown number as a user")
            .needs(Needs::Root)
            .with("-u 12345")
            .run(&["id", "-u"])
            .prints("12345\n"),
        case("an unknown number has group 0 and home /")
            .needs(Needs::Root)
            .with("-u 12345")
            .sh("id -g; id -G; echo $HOME")
            .prints("0\n0\n/\n"),
        case("a number and a group's number")
            .needs(Needs::Root)
            .with("-u 12345:54321")
            .sh("id -u; id -g; id -G")
            .prints("12345\n54321\n54321\n"),
        case("an unknown user")
            .with("-u no-such-user")
            .run(&["true"])
            .exits(126)
            .complains(&["no-such-user"])
            .podman("differs: 255"),
        case("an unknown group")
            .with("-u 0:no-such-group")
            .run(&["true"])
            .exits(126)
            .complains(&["no-such-group"])
            .podman("differs: 255"),
        case("a user's groups and home come from the image's files")
            .needs(Needs::Mounts)
            .special(
                "-u tester -- sh -c 'id -u; id -g; id -G; echo $HOME'",
                users_groups,
            )
            .prints("4321\n4322\n4322 4323 4324\n/somewhere\n"),
        case("a user with another group has that one only")
            .needs(Needs::Mounts)
            .special(
                "-u tester:second -- sh -c 'id -u; id -g; id -G'",
                user_and_group,
            )
            .prints("4321\n4324\n4324\n"),
        case("-e HOME wins over the user's home")
            .needs(Needs::Root)
            .with("-u nobody -e HOME=/mine")
            .sh("echo $HOME")
            .prints("/mine\n"),
        case("a working directory that the user may not enter")
            .needs(Needs::Root)
            .special(
                "-u nobody -w DIR -- true, a folder of root's",
                private_folder,
            )
            .exits(126)
            .complains(&["private"])
            .podman("differs: runs it"),
    ]
}

fn private_folder(fixture: &Fixture<'_>) -> Finished {
    use std::os::unix::fs::PermissionsExt;
    let folder = fixture.folder.join("private");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    run(&mut fixture.command(&["-u", "nobody", "-w", folder.to_str().unwrap()], &["true"]))
}

fn many(fixture: &Fixture<'_>, argv: &[&str], word: &str, count: usize) -> Finished {
    let none: [&str; 0] = [];
    let args = std::iter::repeat_n(word, count);
    let argv: Vec<_> = argv.iter().copied().chain(args).collect();
    run(&mut fixture.command(&none[..], &argv))
}

fn sixty_thousand(fixture: &Fixture<'_>) -> Finished {
    many(fixture, &["sh", "-c", "echo $#", "sh"], "x", 60_000)
}

fn hundred_thousand(fixture: &Fixture<'_>) -> Finished {
    many(fixture, &["true"], "x", 100_000)
}

/// Linux takes 32 pages for one string with its NUL (`MAX_ARG_STRLEN`, `execve(2)`).
fn longest_argument(fixture: &Fixture<'_>) -> Finished {
    let word = "x".repeat(128 * 1024 - 1);
    many(fixture, &["sh", "-c", "echo ${#1}", "sh"], &word, 1)
}

/// It cannot be an argument of `host-tool` itself, but it can be a line of a file.
fn too_long_variable(fixture: &Fixture<'_>) -> Finished {
    let path = fixture.folder.join("variables");
    std::fs::write(&path, format!("A={}\n", "x".repeat(128 * 1024))).unwrap();
    let options = ["--env-file", path.to_str().unwrap()];
    run(&mut fixture.command(&options, &["true"]))
}

fn default_environment(fixture: &Fixture<'_>) -> Finished {
    let none: [&str; 0] = [];
    let ended = run(fixture.command(&none, &["env"]).env("SECRET", "1"));
    assert_eq!(ended.out().lines().count(), 3, "{ended}");
    ended
}

fn named_variable(fixture: &Fixture<'_>) -> Finished {
    run(fixture
        .command(&["-e", "A"], &["sh", "-c", "echo $A"])
        .env("A", "1"))
}

/// Every byte that a line may have.
fn file_bytes() -> Vec<u8> {
    (1..=255).filter(|byte| !b"\n\r".contains(byte)).collect()
}

fn bytes_in_file(fixture: &Fixture<'_>) -> Finished {
    let path = fixture.folder.join("variables");
    std::fs::write(&path, [b"A=", &file_bytes()[..], b"\n"].concat()).unwrap();
    let options = ["--env-file", path.to_str().unwrap()];
    run(&mut fixture.command(&options, &["sh", "-c", "printf %s \"$A\""]))
}

/// Runs a script with `--env-file` and more options.
fn with_file(fixture: &Fixture<'_>, options: &[&str], script: &str) -> Finished {
    let path = fixture.folder.join("variables");
    std::fs::write(&path, "# a comment\n\nA=1\nB=2 3\n").unwrap();
    let file = ["--env-file", path.to_str().unwrap()];
    run(&mut fixture.command(&[options, &file].concat(), &["sh", "-c", script]))
}

fn env_file(fixture: &Fixture<'_>) -> Finished {
    with_file(fixture, &[], "echo \"$A|$B\"")
}

fn env_file_and_option(fixture: &Fixture<'_>) -> Finished {
    with_file(fixture, &["-e", "A=2"], "echo \"$A\"")
}

fn descriptor_limit(_: &Fixture<'_>) -> Finished {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 512; exec \"$@\"", "sh"]);
    shell.arg(program("guest-agent"));
    Agent::start_through(shell, &[]).exec(["sh", "-c", "ulimit -n"])
}

/// An agent whose user files are the test's own.
fn agent_with_users(fixture: &Fixture<'_>) -> Agent {
    let write = |name: &str, text: &str| std::fs::write(fixture.folder.join(name), text).unwrap();
    write(
        "passwd",
        "root:x:0:0::/root:/bin/sh\ntester:x:4321:4322::/somewhere:/bin/sh\n",
    );
    write(
        "group",
        "root:x:0:\nown:x:4322:\nfirst:x:4323:other,tester\nsecond:x:4324:tester\nno:x:4325:test\n",
    );
    let script = "mount --bind \"$1/passwd\" /etc/passwd && \
                  mount --bind \"$1/group\" /etc/group && shift && exec \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", script, "sh"]);
    unshare.arg(&fixture.folder).arg(program("guest-agent"));
    Agent::start_through(unshare, &[])
}

fn users_groups(fixture: &Fixture<'_>) -> Finished {
    let script = "id -u; id -g; id -G; echo $HOME";
    let agent = agent_with_users(fixture);
    agent.host_tool(["exec", "-u", "tester"], ["sh", "-c", script])
}

fn user_and_group(fixture: &Fixture<'_>) -> Finished {
    let agent = agent_with_users(fixture);
    let script = "id -u; id -g; id -G";
    agent.host_tool(["exec", "-u", "tester:second"], ["sh", "-c", script])
}
