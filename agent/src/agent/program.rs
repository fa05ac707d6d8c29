//! The program to start for an EXEC, a hook or the workload, as the kernel wants it: candidates,
//! arguments, environment, directory. No I/O.
//!
//! The candidates are the paths that a shell would try. The child tries them, in its own working
//! directory, so that no rename can come between a look-up and the start.

use std::num::NonZeroU64;

use shared::id::Generation;
use shared::message::{ByteString, Exec, HookStage, TtySize};

use super::settings::{Limits, WorkloadSettings};

/// Directories of PATH that are tried.
pub(crate) const PATH_ENTRIES_MAX: usize = 64;

/// The environment if the request says nothing else.
const ENV_DEFAULT: [&[u8]; 2] = [PATH_DEFAULT, b"TERM=linux"];

/// Added unless it runs as a given user, whose own folder the shell adds.
const HOME_DEFAULT: &[u8] = b"HOME=/root";

/// The usual directories, local ones first.
const PATH_DEFAULT: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// Paths to try, in order.
    pub candidates: Vec<Vec<u8>>,
    /// Arguments, the program's name first.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` pairs, each name once.
    pub env: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    /// Whether standard input is a pipe and not `/dev/null`. Ignored with a terminal.
    pub has_input: bool,
    /// Size of the terminal, if it gets one.
    pub tty: Option<TtySize>,
    /// The user it runs as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`; the agent's when missing.
    /// With one, `HOME` is set to the user's folder unless `env` has it.
    pub user: Option<Vec<u8>>,
    pub limits: Limits,
}

impl Command {
    pub fn of(exec: &Exec) -> Self {
        let owned = |string: &ByteString| string.as_bytes().to_vec();
        let argv = exec.argv.iter().map(owned).collect();
        let pairs = exec.env.iter().map(ByteString::as_bytes);
        let cwd = exec.cwd.as_ref().map(owned);
        let command = Self::new(argv, pairs, cwd, exec.user.as_ref().map(owned));
        Self {
            has_input: exec.stdin,
            tty: exec.tty,
            limits: Limits {
                pids_max: exec.pids_max.map(NonZeroU64::get),
                memory_max: exec.memory_max.map(NonZeroU64::get),
            },
            ..command
        }
    }

    pub(crate) fn of_workload(settings: &WorkloadSettings) -> Self {
        let pairs = settings.env.iter().map(Vec::as_slice);
        let (argv, cwd, user) = (&settings.argv, &settings.cwd, &settings.user);
        Self::new(argv.clone(), pairs, cwd.clone(), user.clone())
    }

    /// A hook gets its stage and the guest's generation in its environment.
    pub(crate) fn of_hook(path: Vec<u8>, stage: HookStage, generation: Option<Generation>) -> Self {
        let stage = format!("GUEST_AGENT_HOOK={stage}");
        let generation = generation.map(|it| format!("GUEST_AGENT_GENERATION={it}"));
        let pairs = [Some(stage), generation];
        let pairs = pairs.iter().flatten().map(String::as_bytes);
        Self::new(vec![path], pairs, None, None)
    }

    fn new<'a>(
        argv: Vec<Vec<u8>>,
        pairs: impl Iterator<Item = &'a [u8]>,
        cwd: Option<Vec<u8>>,
        user: Option<Vec<u8>>,
    ) -> Self {
        let env = environment(pairs.collect(), user.is_none());
        let program = argv.first().map_or(&b""[..], Vec::as_slice);
        Self {
            candidates: candidates(program, &env),
            argv,
            env,
            cwd: cwd.unwrap_or_else(|| b"/".to_vec()),
            has_input: false,
            tty: None,
            user,
            limits: Limits::default(),
        }
    }

    /// The agent itself with `--noop`: proves that a process can be spawned, executed and reaped.
    pub fn noop() -> Self {
        Self {
            candidates: vec![b"/proc/self/exe".to_vec()],
            argv: vec![b"guest-agent".to_vec(), b"--noop".to_vec()],
            env: Vec::new(),
            cwd: b"/".to_vec(),
            has_input: false,
            tty: None,
            user: None,
            limits: Limits::default(),
        }
    }
}

/// The request's pairs on top of the defaults. The last value of a name counts.
fn environment(pairs: Vec<&[u8]>, has_home: bool) -> Vec<Vec<u8>> {
    let mut env: Vec<Vec<u8>> = Vec::with_capacity(ENV_DEFAULT.len() + pairs.len() + 1);
    let mut index_by_name = std::collections::BTreeMap::new();
    let home = has_home.then_some(HOME_DEFAULT);
    for pair in ENV_DEFAULT.into_iter().chain(home).chain(pairs) {
        match index_by_name.insert(name_of(pair), env.len()) {
            None => env.push(pair.to_vec()),
            Some(index) => {
                index_by_name.insert(name_of(pair), index);
                env[index] = pair.to_vec();
            }
        }
    }
    env
}

fn name_of(pair: &[u8]) -> &[u8] {
    pair.split(|&byte| byte == b'=').next().unwrap_or(pair)
}

/// A name with a slash is a path. Any other is looked for in each directory of PATH, where an empty
/// one means the working directory.
fn candidates(program: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let path = env
        .iter()
        .find_map(|pair| pair.strip_prefix(b"PATH="))
        .unwrap_or(b"");
    path.split(|&byte| byte == b':')
        .take(PATH_ENTRIES_MAX)
        .map(|directory| {
            let directory = if directory.is_empty() {
                &b"."[..]
            } else {
                directory
            };
            [directory, b"/", program].concat()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::id::ExecId;

    fn exec(argv: &[&str], env: &[&str]) -> Exec {
        let strings = |list: &[&str]| list.iter().filter_map(|s| ByteString::new(*s)).collect();
        let id = ExecId::from_bytes([0; 16]);
        Exec {
            env: strings(env),
            ..Exec::new(id, strings(argv))
        }
    }

    #[track_caller]
    fn check_candidates(program: &str, env: &[&str], expected: &[&str]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|path| path.as_bytes().to_vec())
            .collect();
        assert_eq!(Command::of(&exec(&[program], env)).candidates, expected);
    }

    #[test]
    fn candidates_are_what_a_shell_would_try() {
        check_candidates("/bin/true", &[], &["/bin/true"]);
        check_candidates("./true", &["PATH=/bin"], &["./true"]);
        check_candidates("true", &["PATH=/a:/b"], &["/a/true", "/b/true"]);
        check_candidates("true", &["PATH=:/b"], &["./true", "/b/true"]);
        check_candidates("", &[], &[]);
        assert_eq!(Command::of(&exec(&["true"], &[])).candidates.len(), 6);
    }

    #[test]
    fn path_is_cut_at_its_limit() {
        let directories = |count| format!("PATH={}", vec!["/x"; count].join(":"));
        for (count, tried) in [
            (PATH_ENTRIES_MAX, PATH_ENTRIES_MAX),
            (PATH_ENTRIES_MAX + 1, PATH_ENTRIES_MAX),
        ] {
            let command = Command::of(&exec(&["true"], &[&directories(count)]));
            assert_eq!(command.candidates.len(), tried);
        }
    }

    #[test]
    fn later_values_replace_earlier_ones_in_place() {
        let command = Command::of(&exec(&["x"], &["A=1", "TERM=dumb", "A=2", "B="]));
        let env: Vec<_> = command
            .env
            .iter()
            .map(|pair| String::from_utf8_lossy(pair))
            .collect();
        assert_eq!(env[1..], ["TERM=dumb", "HOME=/root", "A=2", "B="]);
    }
}
