//! `guest-agent checkpoint` and `guest-agent generation`: the guest's own client of the agent, over
//! its local socket.
//!
//! Both ends of the socket are in the guest, so a wait survives the snapshot that it waits for, in
//! the source and in each clone.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use shared::frame::Decoder;
use shared::id::Generation;
use shared::message::{
    CheckpointRequest, GenerationRequest, Hello, Message, Role, Verdict, is_tag,
};

/// The socket on which the agent listens for programs of its machine.
pub(crate) const SOCKET_PATH_DEFAULT: &str = "/run/guest-agent/agent.sock";

/// Name of the file with the guest's generation, in the socket's folder.
pub(crate) const GENERATION_FILE: &str = "generation";

/// The environment variable with another path of the socket, for the agent and for its client.
const SOCKET_VARIABLE: &str = "GUEST_AGENT_LOCAL";

/// Exit status when the agent did not answer, or refused.
const EXIT_FAILED: u8 = 1;

/// Exit status of a wait that timed out.
const EXIT_TIMED_OUT: u8 = 124;

/// Exit status for invalid arguments.
const EXIT_USAGE: u8 = 2;

const HELP: &str = "\
Usage: guest-agent checkpoint [--tag TAG] [--timeout TIME] [--local PATH]
       guest-agent generation [--wait [--from ID] [--timeout TIME]] [--local PATH]

checkpoint waits for a snapshot of this machine. After one it prints 'source', or
in a clone 'clone' and the clone's generation. It prints 'cold' if the wait timed
out without a snapshot. The exit status is 0 for each, and 1 if the agent does not
answer.

generation prints the id of the machine's generation, which changes with each
snapshot and differs in each clone. The exit status is 1 if there is none yet or
the agent does not answer, and 124 if a wait timed out.

  --tag TAG       tag of this point of the work, such as a digest, for
                  host-tool snapshot --at-checkpoint=TAG
  --wait          wait for the next generation, and print its id
  --from ID       with --wait: return at once if the generation is another one
  --timeout TIME  how long to wait: 500ms, 30s, 2m or 1h; default for ever
  --local PATH    the agent's socket; default GUEST_AGENT_LOCAL, or else
                  /run/guest-agent/agent.sock";

/// The options of both commands. One parser for both keeps the program small.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    tag: Option<String>,
    wait: bool,
    from: Option<Generation>,
    timeout: Option<Duration>,
    local: Option<String>,
}

impl Options {
    fn parse(command: &str, arguments: &[&str]) -> Result<Self, String> {
        let is_generation = command == "generation";
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(&option) = arguments.next() {
            let missing = || format!("{option} needs a value");
            let mut value = || arguments.next().ok_or_else(missing);
            match option {
                "--wait" if is_generation => options.wait = true,
                "--from" if is_generation => {
                    let from = value()?.parse();
                    options.from =
                        Some(from.map_err(|_| "a generation has 32 hexadecimal digits")?);
                }
                "--tag" if !is_generation => options.tag = Some(parse_tag(value()?)?),
                "--timeout" => options.timeout = Some(parse_time(value()?)?),
                "--local" => options.local = Some((*value()?).to_owned()),
                _ => return Err(format!("{command} takes no {option:?}; see --help")),
            }
        }
        Ok(options)
    }

    fn socket_path(&self) -> String {
        let given = self.local.clone();
        given
            .or_else(|| std::env::var(SOCKET_VARIABLE).ok())
            .unwrap_or_else(|| SOCKET_PATH_DEFAULT.to_owned())
    }
}

/// Why a command failed.
#[derive(Debug)]
enum AskError {
    Io(io::Error),
    /// The agent refused or broke the protocol, with this text for the user.
    Answer(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(err) => write!(f, "cannot reach the agent: {err}"),
            Self::Answer(text) => f.write_str(text),
        }
    }
}

impl From<io::Error> for AskError {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

/// Whether the arguments are one of the client's commands.
pub(crate) fn is_command(arguments: &[&str]) -> bool {
    matches!(arguments, ["checkpoint" | "generation", ..])
}

/// Runs a command of the client.
pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    let Some((command, options)) = arguments.split_first() else {
        return ExitCode::from(EXIT_USAGE);
    };
    if options.contains(&"--help") {
        // A caller that closed standard output does not want the text, here and below.
        let _ = writeln!(io::stdout(), "{HELP}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(command, options) {
        Ok(options) => options,
        Err(problem) => {
            let _ = writeln!(io::stderr(), "guest-agent: {problem}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let result = match *command {
        "checkpoint" => wait_at_checkpoint(&options),
        _ if options.wait => wait_for_generation(&options),
        _ => read_generation(&options),
    };
    match result {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "guest-agent: {error}");
            match error {
                AskError::Io(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    ExitCode::from(EXIT_TIMED_OUT)
                }
                AskError::Io(_) | AskError::Answer(_) => ExitCode::from(EXIT_FAILED),
            }
        }
    }
}

fn wait_at_checkpoint(options: &Options) -> Result<String, AskError> {
    let in_ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let request = Message::CheckpointRequest(CheckpointRequest {
        tag: options.tag.clone(),
        timeout_ms: options.timeout.map(in_ms),
    });
    // The agent counts the time, because it knows when the guest is stopped for a snapshot.
    match ask(options, &request, None)? {
        Message::Verdict(verdict) => Ok(match (verdict.verdict, verdict.generation) {
            (Verdict::Clone, Some(generation)) => format!("{} {generation}", Verdict::Clone),
            (verdict, _) => verdict.to_string(),
        }),
        other => Err(unexpected(&other)),
    }
}

fn wait_for_generation(options: &Options) -> Result<String, AskError> {
    let from = options.from;
    let request = Message::GenerationRequest(GenerationRequest { from });
    match ask(options, &request, options.timeout)? {
        Message::Generation(generation) => Ok(generation.to_string()),
        other => Err(unexpected(&other)),
    }
}

fn read_generation(options: &Options) -> Result<String, AskError> {
    let path = options.socket_path();
    let folder = Path::new(&path).parent().unwrap_or_else(|| Path::new("/"));
    match std::fs::read_to_string(folder.join(GENERATION_FILE)) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(AskError::Answer(
            "no host has given this machine a generation yet".to_owned(),
        )),
        Err(err) => Err(err.into()),
    }
}

/// Sends a request and waits for its answer.
fn ask(
    options: &Options,
    request: &Message,
    timeout: Option<Duration>,
) -> Result<Message, AskError> {
    let mut stream = UnixStream::connect(options.socket_path())?;
    // Only one answer is read, so the limit of one read is the limit of the wait.
    stream.set_read_timeout(timeout)?;
    let hello = Hello::of(Role::Local, env!("CARGO_PKG_VERSION"));
    let mut bytes = Message::Hello(hello).encode();
    request.encode_into(&mut bytes);
    stream.write_all(&bytes)?;
    let mut decoder = Decoder::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(frame) = decoder.poll_frame().map_err(|err| broken(&err))? {
            match Message::from_guest_to_local(frame).map_err(|err| broken(&err))? {
                Message::Hello(_) => {}
                Message::Fail(fail) => return Err(AskError::Answer(fail.text)),
                Message::Sever(_) => {
                    return Err(AskError::Answer("the agent is about to end".to_owned()));
                }
                answer => return Ok(answer),
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(AskError::Answer("the agent has ended".to_owned())),
            Ok(len) => decoder.push(&buffer[..len]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err.into()),
        }
    }
}

fn broken(err: &dyn fmt::Display) -> AskError {
    AskError::Answer(format!("the agent broke the protocol: {err}"))
}

fn unexpected(message: &Message) -> AskError {
    broken(&format_args!("unexpected {}", message.kind()))
}

fn parse_tag(text: &str) -> Result<String, String> {
    if is_tag(text) {
        Ok(text.to_owned())
    } else {
        Err("a tag is 1 to 256 printable ASCII characters without spaces".to_owned())
    }
}

/// Parses a time as host-tool does.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let time = digits
        .parse()
        .ok()
        .map(|number: u64| number.saturating_mul(millis));
    match time {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        Some(_) | None => Err("not a time such as 500ms, 30s or 2m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_its_options() {
        let parse = Options::parse;
        let options = parse("checkpoint", &["--tag", "a", "--timeout", "2s"]).unwrap();
        assert_eq!(options.tag.as_deref(), Some("a"));
        assert_eq!(options.timeout, Some(Duration::from_secs(2)));
        let id = "01".repeat(16);
        let options = parse("generation", &["--wait", "--from", &id, "--local", "/s"]).unwrap();
        assert_eq!(options.from, Some(Generation::from_bytes([1; 16])));
        assert!(options.wait && options.socket_path() == "/s");
        for (command, arguments) in [
            ("checkpoint", &["--wait"][..]),
            ("checkpoint", &["--tag", "a b"]),
            ("checkpoint", &["--tag"]),
            ("generation", &["--tag", "a"]),
            ("generation", &["--from", "1"]),
            ("generation", &["now"]),
        ] {
            assert!(
                parse(command, arguments).is_err(),
                "{command} {arguments:?}"
            );
        }
    }

    #[test]
    fn times_have_a_unit() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "5",
            "0s",
            "-1s",
            "1.5s",
            "s",
            "5d",
            "99999999999999999999s",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
