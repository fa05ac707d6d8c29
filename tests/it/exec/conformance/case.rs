//! One conformance case: what is run and how, what its result must be, and what `podman exec` does.

use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::pty::openpty;
use shared::id::ExecId;
use shared::message::{AttachMode, Exited, SessionInfo, SessionRef};
use tests::agent::Agent;
use tests::client::attach;
use tests::fifo::Fifo;
use tests::process::{Finished, Running, redirected, run};
use tests::program;

/// Podman behaves as `host-tool` does.
const SAME: &str = "same";

/// Podman has no such feature.
pub(super) const NONE: &str = "has no such thing";

/// The standard input of `host-tool`.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Null,
    /// Closed from the start.
    Closed,
    /// A pipe with these bytes and then the end of file.
    Pipe(Vec<u8>),
    /// A pipe with these bytes that stays open until the command has ended.
    OpenPipe(Vec<u8>),
    File(Vec<u8>),
    /// A terminal in which these bytes were typed.
    Terminal(Vec<u8>),
}

/// How a case is run.
#[derive(Debug, Clone)]
pub(super) enum How {
    /// `host-tool exec OPTIONS -- ARGV`.
    Plain,
    /// A function, where one command is not enough.
    Special(fn(&Fixture<'_>) -> Finished),
}

/// What an output must be.
#[derive(Clone)]
pub(super) enum Want {
    /// Exactly these bytes.
    Exactly(Vec<u8>),
    /// Each of these texts occurs.
    Holds(Vec<&'static str>),
}

impl fmt::Debug for Want {
    /// Shortened, since some are a megabyte.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(bytes) => {
                let start = &bytes[..bytes.len().min(200)];
                write!(f, "{} bytes: {}", bytes.len(), start.escape_ascii())
            }
            Self::Holds(texts) => write!(f, "{texts:?} somewhere"),
        }
    }
}

impl Want {
    fn is_met_by(&self, bytes: &[u8], fixture: &Fixture<'_>) -> bool {
        let text = String::from_utf8_lossy(bytes);
        match self {
            Self::Exactly(wanted) => fixture.fill(wanted) == bytes,
            Self::Holds(texts) => texts.iter().all(|it| text.contains(it)),
        }
    }
}

/// What a case needs of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// An agent that runs as root, to switch users.
    Root,
    /// Root that may mount, for user files of its own.
    Mounts,
}

/// What EXITED must say, as a text and as a condition.
type Ended = (&'static str, fn(&Exited) -> bool);

/// One case. In its arguments, `{dir}` is a folder of its own and `{odd}` the program `odd-child`.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// A unique description of the behaviour.
    pub name: &'static str,
    /// What the document shows in place of options and command.
    typed: Option<&'static str>,
    how: How,
    options: Vec<Vec<u8>>,
    argv: Vec<Vec<u8>>,
    input: Input,
    /// Named pipes in `{dir}`, released when the case is over.
    fifos: Vec<&'static str>,
    needs: Needs,
    code: i32,
    stdout: Want,
    stderr: Want,
    ended: Option<Ended>,
    /// What `podman exec` does, for the document.
    pub podman: &'static str,
}

/// A case that exits 0 and prints nothing, unless it says otherwise.
pub(super) fn case(name: &'static str) -> Case {
    Case {
        name,
        typed: None,
        how: How::Plain,
        options: Vec::new(),
        argv: Vec::new(),
        input: Input::Null,
        fifos: Vec::new(),
        needs: Needs::Nothing,
        code: 0,
        stdout: Want::Exactly(Vec::new()),
        stderr: Want::Exactly(Vec::new()),
        ended: None,
        podman: SAME,
    }
}

impl Case {
    /// Options, separated by spaces.
    pub(super) fn with(mut self, options: &str) -> Self {
        self.options
            .extend(options.split_whitespace().map(Into::into));
        self
    }

    /// One option's value with any bytes.
    pub(super) fn with_bytes(mut self, option: &[u8]) -> Self {
        self.options.push(option.to_vec());
        self
    }

    pub(super) fn run<A: AsRef<[u8]>>(mut self, argv: &[A]) -> Self {
        self.argv = argv.iter().map(|arg| arg.as_ref().to_vec()).collect();
        self
    }

    /// A shell script as the command.
    pub(super) fn sh(self, script: &str) -> Self {
        self.run(&["sh", "-c", script])
    }

    /// A function in place of a command, and what the document shows for it.
    pub(super) fn special(mut self, typed: &'static str, f: fn(&Fixture<'_>) -> Finished) -> Self {
        self.how = How::Special(f);
        self.typed = Some(typed);
        self
    }

    /// What the document shows in place of long arguments.
    pub(super) fn typed(mut self, typed: &'static str) -> Self {
        self.typed = Some(typed);
        self
    }

    pub(super) fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// A pipe with these bytes as standard input.
    pub(super) fn piped(self, bytes: &[u8]) -> Self {
        self.input(Input::Pipe(bytes.to_vec()))
    }

    /// A named pipe `{dir}/NAME`.
    pub(super) fn fifo(mut self, name: &'static str) -> Self {
        self.fifos.push(name);
        self
    }

    pub(super) fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    pub(super) fn exits(mut self, code: i32) -> Self {
        self.code = code;
        self
    }

    /// All of standard output.
    pub(super) fn prints(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stdout = Want::Exactly(bytes.as_ref().to_vec());
        self
    }

    /// Parts of standard output.
    pub(super) fn mentions(mut self, texts: &[&'static str]) -> Self {
        self.stdout = Want::Holds(texts.to_vec());
        self
    }

    /// All of standard error.
    pub(super) fn errs(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stderr = Want::Exactly(bytes.as_ref().to_vec());
        self
    }

    /// Parts of standard error.
    pub(super) fn complains(mut self, texts: &[&'static str]) -> Self {
        self.stderr = Want::Holds(texts.to_vec());
        self
    }

    /// What EXITED must say as well.
    pub(super) fn ends(mut self, text: &'static str, holds: fn(&Exited) -> bool) -> Self {
        self.ended = Some((text, holds));
        self
    }

    pub(super) fn podman(mut self, podman: &'static str) -> Self {
        self.podman = podman;
        self
    }

    /// The row of `docs/conformance.md`.
    pub(super) fn row(&self) -> String {
        let typed = self
            .typed
            .map_or_else(|| self.command_line(), str::to_owned);
        let typed = typed.replace('|', "\\|");
        let ended = self.ended.map(|(text, _)| format!(", {text}"));
        let (name, code, podman) = (self.name, self.code, self.podman);
        let ended = ended.unwrap_or_default();
        format!("| {name} | `{typed}` | {code}{ended} | {podman} |\n")
    }

    /// Options and command as a shell would take them.
    fn command_line(&self) -> String {
        let quoted = |arg: &Vec<u8>| {
            let shown = |byte: &u8| match byte {
                b' '..=b'~' => char::from(*byte).to_string(),
                _ => byte.escape_ascii().to_string(),
            };
            let text: String = arg.iter().map(shown).collect();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_/.:,={}".contains(c);
            match !text.is_empty() && text.chars().all(is_plain) {
                true => text,
                false => format!("'{}'", text.replace('\'', r"'\''")),
            }
        };
        let options = self.options.iter().map(quoted);
        let argv = self.argv.iter().map(quoted);
        let all: Vec<_> = options.chain(["--".to_owned()]).chain(argv).collect();
        all.join(" ")
    }

    /// Runs it on an agent, as the case with this number. The error says what is wrong.
    pub(super) fn check(&self, agent: &Agent, number: u8) -> Result<(), String> {
        let fixture = Fixture::new(agent, number);
        let fifos: Vec<_> = self
            .fifos
            .iter()
            .map(|name| Fifo::new(&fixture.folder, name))
            .collect();
        let ended = match self.how {
            How::Plain => self.run_plain(&fixture),
            How::Special(run) => run(&fixture),
        };
        drop(fifos);
        let mut wrong = Vec::new();
        if ended.code() != self.code {
            wrong.push(format!("exit code {}, not {}", ended.code(), self.code));
        }
        if !self.stdout.is_met_by(&ended.stdout, &fixture) {
            wrong.push(format!("standard output is not {:?}", self.stdout));
        }
        if !self.stderr.is_met_by(&ended.stderr, &fixture) {
            wrong.push(format!("standard error is not {:?}", self.stderr));
        }
        if let Some((text, holds)) = self.ended {
            let exited = fixture.exited();
            if !holds(&exited) {
                wrong.push(format!("not {text}: {exited:?}"));
            }
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(format!("{}\n{ended}", wrong.join("; "))),
        }
    }

    fn run_plain(&self, fixture: &Fixture<'_>) -> Finished {
        let mut command = fixture.command(&self.options, &self.argv);
        match &self.input {
            Input::Null => run_with(command.stdin(Stdio::null())),
            Input::Closed => run_with(&mut redirected(&command, "<&-")),
            Input::Pipe(bytes) => tests::process::run_with_input(&mut command, bytes),
            Input::OpenPipe(bytes) => {
                let mut running = Running::start(&mut command);
                let mut pipe = running.take_input();
                drop(std::io::Write::write_all(&mut pipe, bytes));
                let ended = running.finish();
                drop(pipe);
                ended
            }
            Input::File(bytes) => {
                let path = fixture.folder.join("input");
                std::fs::write(&path, bytes).unwrap();
                run_with(command.stdin(File::open(&path).unwrap()))
            }
            Input::Terminal(bytes) => {
                let pair = openpty(None, None).unwrap();
                nix::unistd::write(&pair.master, bytes).unwrap();
                let ended = run_with(command.stdin(pair.slave));
                drop(pair.master);
                ended
            }
        }
    }

    /// Why it cannot run on this machine, if it cannot.
    pub(super) fn missing(&self) -> Option<&'static str> {
        let is_root = nix::unistd::geteuid().is_root();
        match self.needs {
            Needs::Nothing => None,
            Needs::Root | Needs::Mounts if !is_root => Some("it takes an agent that is root"),
            Needs::Root => None,
            Needs::Mounts => {
                let mut unshare = Command::new("unshare");
                let ended = run(unshare.args(["--mount", "true"]));
                (ended.code() != 0).then_some("mount namespaces are not permitted")
            }
        }
    }
}

/// Runs a command with the standard input that it has.
#[track_caller]
pub(super) fn run_with(command: &mut Command) -> Finished {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start_as_it_is(command).finish()
}

/// What one case runs with.
#[derive(Debug)]
pub(super) struct Fixture<'a> {
    pub agent: &'a Agent,
    pub folder: PathBuf,
    pub id: ExecId,
}

impl<'a> Fixture<'a> {
    fn new(agent: &'a Agent, number: u8) -> Self {
        let folder = agent.folder().join(format!("case-{number}"));
        std::fs::create_dir(&folder).unwrap();
        let id = ExecId::from_bytes([number; 16]);
        Self { agent, folder, id }
    }

    /// `host-tool exec OPTIONS -- ARGV` with the case's id and a time limit.
    pub(super) fn command<A: AsRef<[u8]>>(&self, options: &[A], argv: &[A]) -> Command {
        let mut tool = Command::new(program("host-tool"));
        tool.args(["exec", "--id", &self.id.to_string(), "--unix"]);
        tool.arg(self.agent.socket());
        let is_limited = options.iter().any(|arg| arg.as_ref() == b"--timeout");
        if !is_limited {
            tool.args(["--timeout", "60s"]);
        }
        let filled = |arg: &A| {
            let bytes = self.fill(arg.as_ref());
            std::ffi::OsStr::from_bytes(&bytes).to_owned()
        };
        tool.args(options.iter().map(filled)).arg("--");
        tool.args(argv.iter().map(filled));
        tool
    }

    /// Starts a shell script with a pipe for each stream.
    pub(super) fn start(&self, options: &[&str], script: &str) -> Running {
        Running::start(&mut self.command(options, &["sh", "-c", script]))
    }

    /// Runs another command of `host-tool` on the case's session.
    pub(super) fn about<const N: usize>(&self, args: [&str; N]) -> Finished {
        let id = self.id.to_string();
        let args = args.map(|arg| if arg == "{id}" { &id } else { arg });
        self.agent.host_tool(args, [])
    }

    /// The end of the case's session, asked over a new connection.
    pub(super) fn exited(&self) -> Exited {
        let mut client = self.agent.greet();
        let session = SessionRef::Exec(self.id);
        client.attach(attach(session, AttachMode::Wait));
        client.hear_exited()
    }

    /// The case's session, as the agent lists it.
    pub(super) fn session(&self) -> SessionInfo {
        let (sessions, _) = self.agent.greet().sessions();
        let mut of_case = sessions.into_iter().filter(|it| it.id == Some(self.id));
        of_case.next().expect("a session of this id")
    }

    /// The argument with `{dir}` and `{odd}` replaced.
    fn fill(&self, arg: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(arg) else {
            return arg.to_vec();
        };
        let text = text.replace("{dir}", self.folder.to_str().unwrap());
        let odd = program("odd-child");
        text.replace("{odd}", odd.to_str().unwrap()).into_bytes()
    }
}
