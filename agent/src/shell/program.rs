//! A command's start: from the core's command to a program ready for the kernel, and from the
//! kernel's error to the core's failure.
//!
//! The user is looked up here, before any child exists, in the image's own files. They are small
//! and local, and read each time because programs of the guest may change them.

use std::io;
use std::path::Path;

use super::input::Input;
use super::output::Stdio;
use super::{Shell, Source, Turn};
use crate::accounts::{self, Account, AccountError};
use crate::agent::{Command, Purpose, SessionId, SpawnFailure, SpawnStage, Stream};
use crate::sys::file::read_small;
use crate::sys::spawn::{Program, SpawnError, Stage, Started, User, c_string};
use crate::sys::stdio::Wiring;

const PASSWD_PATH: &str = "/etc/passwd";
const GROUP_PATH: &str = "/etc/group";

/// Bytes of each of these files: tens of thousands of users.
const ACCOUNTS_LEN_MAX: usize = 1024 * 1024;

impl Shell {
    pub(super) fn spawn(&mut self, purpose: Purpose, command: &Command, turn: &mut Turn<'_>) {
        let result = self.start(purpose, command);
        let child = match &result {
            Ok(started) => Some(started.pid),
            Err(failure) => failure.stillborn,
        };
        if let (Some(cgroups), Purpose::Session(id)) = (&mut self.cgroups, purpose) {
            cgroups.handle_spawned(id, child);
        }
        if let (Some(record), Some(pid), Purpose::Session(_)) = (&mut self.record, child, purpose) {
            record.handle_spawned(pid);
        }
        match (result, purpose) {
            (Ok(started), Purpose::Session(id)) => {
                turn.agent
                    .handle_spawned(purpose, Ok(started.pid), turn.now);
                self.has_spawned = true;
                self.follow(id, started, command, turn);
            }
            (Ok(started), Purpose::Probe(_)) => {
                turn.agent
                    .handle_spawned(purpose, Ok(started.pid), turn.now)
            }
            (Err(failure), Purpose::Session(_) | Purpose::Probe(_)) => {
                turn.agent.handle_spawned(purpose, Err(failure), turn.now);
            }
        }
    }

    fn start(&mut self, purpose: Purpose, command: &Command) -> Result<Started, SpawnFailure> {
        let mut program = program_of(command)?;
        if let (Some(cgroups), Purpose::Session(id)) = (&self.cgroups, purpose) {
            let cgroup = cgroups.enter(id, command.limits);
            program.cgroup = Some(cgroup.map_err(|err| cgroup_failure(&err))?);
        }
        if let (Some(record), Purpose::Session(_)) = (&self.record, purpose) {
            program.slot = record.next_slot();
        }
        let started = self.spawner.spawn(&program);
        started.map_err(|error| failure_of(&error, command))
    }

    /// Takes ownership of the child's pipe ends. A missing end (stderr of a terminal) counts as
    /// closed.
    ///
    /// The outputs are read in the next turn, before they are registered: a short command has often
    /// written and closed them by then, and they never have to be.
    fn follow(&mut self, id: SessionId, started: Started, command: &Command, turn: &mut Turn<'_>) {
        let ends = started.stdio;
        self.push_ready(Source::Output(id, Stream::Stdout));
        match ends.stderr {
            Some(_) => self.push_ready(Source::Output(id, Stream::Stderr)),
            None => turn
                .agent
                .handle_output_closed(id, Stream::Stderr, turn.now),
        }
        // A terminal always has a writing end.
        let stdin = ends.stdin.filter(|_| command.has_input);
        let input = stdin.map(Input::new);
        let is_terminal = command.tty.is_some();
        let stdio = Stdio::new(input, ends.stdout, ends.stderr, is_terminal);
        self.stdio.insert(id, stdio);
        self.register_input(id, turn);
    }
}

/// A session without its cgroup is not started: it could not be ended for sure.
fn cgroup_failure(err: &io::Error) -> SpawnFailure {
    SpawnFailure {
        stage: SpawnStage::SetUp,
        errno: err.raw_os_error().unwrap_or(libc::EINVAL),
        text: format!("in a cgroup of its own: {err}"),
        stillborn: None,
    }
}

/// The command as the kernel wants it.
fn program_of(command: &Command) -> Result<Program, SpawnFailure> {
    let account = match &command.user {
        Some(user) => Some(account_of(user)?),
        None => None,
    };
    let has_home = || command.env.iter().any(|pair| pair.starts_with(b"HOME="));
    let home = account
        .as_ref()
        .filter(|_| !has_home())
        .map(|account| [b"HOME=", account.home.as_slice()].concat());
    let strings = |list: &[Vec<u8>]| -> io::Result<Vec<_>> {
        list.iter().map(|bytes| c_string(bytes)).collect()
    };
    let program = || -> io::Result<Program> {
        let mut env = strings(&command.env)?;
        env.extend(home.as_deref().map(c_string).transpose()?);
        Ok(Program {
            candidates: strings(&command.candidates)?,
            argv: strings(&command.argv)?,
            env,
            cwd: c_string(&command.cwd)?,
            wiring: match (command.tty, command.has_input) {
                (Some(size), _) => Wiring::Terminal(size),
                (None, true) => Wiring::InputAndOutput,
                (None, false) => Wiring::Output,
            },
            user: account.map(|account| User {
                uid: account.uid,
                gid: account.gid,
                groups: account.groups,
            }),
            cgroup: None,
            slot: None,
        })
    };
    // The request's parser refuses zero bytes.
    program().map_err(|source| {
        let error = SpawnError {
            stage: Stage::SetUp,
            source,
            stillborn: None,
        };
        failure_of(&error, command)
    })
}

/// The failure with its object, as the request gives it.
fn failure_of(error: &SpawnError, command: &Command) -> SpawnFailure {
    let program = command.argv.first().map_or(&b""[..], Vec::as_slice);
    let user = command.user.as_deref().unwrap_or_default();
    let errno = error.source.raw_os_error().unwrap_or(0);
    let (stage, errno, object) = match error.stage {
        Stage::Clone => (SpawnStage::Clone, errno, program),
        Stage::Terminal | Stage::SetUp => (SpawnStage::SetUp, errno, program),
        Stage::User => (SpawnStage::User, errno, user),
        Stage::Chdir => (SpawnStage::Chdir, errno, command.cwd.as_slice()),
        Stage::Exec => (SpawnStage::Exec, errno, program),
        // The kernel reports ENOENT for the interpreter, but the program is there and cannot be
        // run.
        Stage::Interpreter => (SpawnStage::Exec, libc::ENOEXEC, program),
    };
    let object = String::from_utf8_lossy(object);
    SpawnFailure {
        stage,
        errno,
        text: format!("{object}: {}", reason(error)),
        stillborn: error.stillborn,
    }
}

/// The error for people, in better words than the kernel's where those mislead.
fn reason(error: &SpawnError) -> String {
    match (error.stage, error.source.raw_os_error()) {
        (Stage::Interpreter, _) => "its interpreter or dynamic loader does not exist".to_owned(),
        (Stage::Exec, Some(libc::ENOEXEC)) => {
            "it is neither a binary for this machine nor a script with a #! line".to_owned()
        }
        (Stage::Exec, Some(libc::E2BIG)) => {
            "arguments or environment are too long for the kernel".to_owned()
        }
        (Stage::Exec, Some(libc::ETXTBSY)) => "it is open for writing".to_owned(),
        (Stage::Terminal, _) => format!("no terminal, which needs /dev/pts: {}", error.source),
        (Stage::Clone | Stage::SetUp | Stage::User | Stage::Chdir | Stage::Exec, _) => {
            error.source.to_string()
        }
    }
}

fn account_of(user: &[u8]) -> Result<Account, SpawnFailure> {
    let failure = |errno, text: &dyn std::fmt::Display| SpawnFailure {
        stage: SpawnStage::User,
        errno,
        text: format!("{}: {text}", String::from_utf8_lossy(user)),
        stillborn: None,
    };
    let read = |path: &str| match read_small(Path::new(path), ACCOUNTS_LEN_MAX) {
        // An image may be without these files; numbers need no entry.
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(err) => {
            let errno = match err.kind() {
                io::ErrorKind::OutOfMemory => libc::ENOMEM,
                _ => err.raw_os_error().unwrap_or(libc::EINVAL),
            };
            Err(failure(errno, &format!("cannot read {path}: {err}")))
        }
        Ok(text) => Ok(text),
    };
    accounts::resolve(user, &read(PASSWD_PATH)?, &read(GROUP_PATH)?).map_err(|err| {
        let errno = match err {
            AccountError::UserUnknown | AccountError::GroupUnknown => libc::ENOENT,
            AccountError::NoUserGiven | AccountError::OutOfRange => libc::EINVAL,
        };
        failure(errno, &err)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::message::TtySize;

    fn command() -> Command {
        let bytes = |text: &str| text.as_bytes().to_vec();
        Command {
            candidates: vec![bytes("/bin/x")],
            argv: vec![bytes("x")],
            env: vec![bytes("A=1")],
            cwd: bytes("/cwd"),
            has_input: false,
            tty: None,
            user: None,
            limits: crate::agent::Limits::default(),
        }
    }

    fn env_of(command: &Command) -> Vec<String> {
        let env = program_of(command).unwrap().env;
        env.iter()
            .map(|pair| pair.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn home_is_the_users_unless_it_is_given() {
        let mut command = command();
        assert_eq!(env_of(&command), ["A=1"]);
        command.user = Some(b"4000000:4000001".to_vec());
        assert_eq!(env_of(&command), ["A=1", "HOME=/"]);
        let user = program_of(&command).unwrap().user.unwrap();
        assert_eq!((user.uid, user.gid), (4_000_000, 4_000_001));
        command.env.push(b"HOME=/given".to_vec());
        assert_eq!(env_of(&command), ["A=1", "HOME=/given"]);
    }

    #[test]
    fn wiring_follows_from_terminal_and_input() {
        let size = TtySize { rows: 1, cols: 2 };
        for (tty, has_input, expected) in [
            (None, false, Wiring::Output),
            (None, true, Wiring::InputAndOutput),
            (Some(size), false, Wiring::Terminal(size)),
            (Some(size), true, Wiring::Terminal(size)),
        ] {
            let command = Command {
                tty,
                has_input,
                ..command()
            };
            assert_eq!(program_of(&command).unwrap().wiring, expected);
        }
    }

    #[test]
    fn unknown_users_are_failures_with_their_name() {
        for (user, errno, text) in [
            ("nosuchuser", libc::ENOENT, "no such user in /etc/passwd"),
            ("0:nosuchgroup", libc::ENOENT, "no such group in /etc/group"),
            (":0", libc::EINVAL, "no user before the group"),
        ] {
            let command = Command {
                user: Some(user.as_bytes().to_vec()),
                ..command()
            };
            let failure = program_of(&command).unwrap_err();
            let expected = SpawnFailure {
                stage: SpawnStage::User,
                errno,
                text: format!("{user}: {text}"),
                stillborn: None,
            };
            assert_eq!(failure, expected);
        }
    }

    #[test]
    fn failures_name_stage_object_and_reason() {
        let command = Command {
            user: Some(b"ann".to_vec()),
            ..command()
        };
        let cases = [
            (Stage::Clone, libc::EAGAIN, SpawnStage::Clone, "x: Resource"),
            (
                Stage::Terminal,
                libc::ENOSPC,
                SpawnStage::SetUp,
                "x: no terminal",
            ),
            (Stage::User, libc::EPERM, SpawnStage::User, "ann: Operation"),
            (
                Stage::Chdir,
                libc::ENOENT,
                SpawnStage::Chdir,
                "/cwd: No such",
            ),
            (Stage::Exec, libc::ENOENT, SpawnStage::Exec, "x: No such"),
            (Stage::Exec, libc::E2BIG, SpawnStage::Exec, "x: arguments"),
            (
                Stage::Exec,
                libc::ETXTBSY,
                SpawnStage::Exec,
                "x: it is open",
            ),
            (
                Stage::Exec,
                libc::ENOEXEC,
                SpawnStage::Exec,
                "x: it is neither",
            ),
        ];
        for (stage, errno, expected, text) in cases {
            let error = SpawnError {
                stage,
                source: io::Error::from_raw_os_error(errno),
                stillborn: Some(7),
            };
            let failure = failure_of(&error, &command);
            assert_eq!((failure.stage, failure.errno), (expected, errno));
            assert!(failure.text.starts_with(text), "{}", failure.text);
            assert_eq!(failure.stillborn, Some(7));
        }
    }

    #[test]
    fn missing_interpreter_is_not_a_missing_program() {
        let error = SpawnError {
            stage: Stage::Interpreter,
            source: io::Error::from_raw_os_error(libc::ENOENT),
            stillborn: Some(7),
        };
        let failure = failure_of(&error, &command());
        assert_eq!(
            (failure.stage, failure.errno),
            (SpawnStage::Exec, libc::ENOEXEC)
        );
        assert!(failure.text.contains("interpreter"), "{}", failure.text);
    }
}
