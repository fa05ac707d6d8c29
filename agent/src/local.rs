//! `guest-agent checkpoint` and `guest-agent generation`: what programs in the guest ask the agent,
//! by its local socket.
//!
//! The socket is the guest's own, so that a wait lives through the snapshot that it waits for, in
//! the source and in each clone.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use shared::frame::Decoder;
use shared::id::Generation;
use shared::message::{
    CheckpointRequest, GenerationRequest, Hello, Message, Role, Verdict, is_tag,
};

/// Where the agent listens for programs of its machine.
pub(crate) const SOCKET_PATH_DEFAULT: &str = "/run/guest-agent/agent.sock";

/// The environment variable that says otherwise, to the agent and to its commands.
const SOCKET_VARIABLE: &str = "GUEST_AGENT_LOCAL";

/// Exit status when the agent could not be asked.
const EXIT_FAILED: u8 = 1;

/// Exit status of a wait that ended without what it was for.
const EXIT_TIMED_OUT: u8 = 124;

/// Waits for a snapshot of this machine. Prints 'source' when one was taken, in a clone of it
/// 'clone' and the clone's generation, and 'cold' when nobody took one in time. The exit status of
/// each is 0; it is 1 when the agent cannot be asked.
#[derive(Debug, FromArgs)]
struct Checkpoint {
    /// name of this point of the work, such as a digest, for host-tool snapshot --at-checkpoint=TAG
    #[argh(option, from_str_fn(parse_tag))]
    tag: Option<String>,
    /// how long to wait: 500ms, 30s, 2m or 1h; for ever if missing
    #[argh(option, from_str_fn(parse_time))]
    timeout: Option<Duration>,
    /// socket of the agent (default: /run/guest-agent/agent.sock)
    #[argh(option)]
    local: Option<String>,
}

/// Prints the name of this life of the machine, which is another one after each snapshot and in
/// each clone. Fails with exit status 1 when there is none yet or the agent cannot be asked.
#[derive(Debug, FromArgs)]
struct GenerationCommand {
    /// wait for the next one, and print that
    #[argh(switch)]
    wait: bool,
    /// with --wait: return at once unless the name is still this one
    #[argh(option)]
    from: Option<Generation>,
    /// with --wait: exit with status 124 after this time
    #[argh(option, from_str_fn(parse_time))]
    timeout: Option<Duration>,
    /// socket of the agent (default: /run/guest-agent/agent.sock)
    #[argh(option)]
    local: Option<String>,
}

/// Why there is no answer.
#[derive(Debug)]
enum AskError {
    Io(io::Error),
    /// The agent said no, or something that means nothing here.
    Answer(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(err) => write!(f, "cannot ask the agent: {err}"),
            Self::Answer(text) => f.write_str(text),
        }
    }
}

impl From<io::Error> for AskError {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

/// Whether these arguments are one of the commands.
pub(crate) fn is_command(arguments: &[&str]) -> bool {
    matches!(arguments, ["checkpoint" | "generation", ..])
}

/// Runs the command that the arguments begin with.
pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    let result = match arguments {
        ["checkpoint", rest @ ..] => {
            Checkpoint::from_args(&["guest-agent checkpoint"], rest).map(|it| it.run())
        }
        rest => GenerationCommand::from_args(
            &["guest-agent generation"],
            rest.get(1..).unwrap_or_default(),
        )
        .map(|it| it.run()),
    };
    match result {
        Err(early) => crate::leave_early(&early),
        Ok(Ok(text)) => {
            // A closed standard output is the caller's wish not to know.
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
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

impl Checkpoint {
    fn run(self) -> Result<String, AskError> {
        let timeout_ms = self
            .timeout
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let request = Message::CheckpointRequest(CheckpointRequest {
            tag: self.tag,
            timeout_ms,
        });
        // The agent counts the time: it knows when it stands still.
        match ask(self.local, &request, None)? {
            Message::Verdict(verdict) => Ok(match (verdict.verdict, verdict.generation) {
                (Verdict::Clone, Some(generation)) => format!("{} {generation}", Verdict::Clone),
                (verdict, _) => verdict.to_string(),
            }),
            other => Err(unexpected(&other)),
        }
    }
}

impl GenerationCommand {
    fn run(self) -> Result<String, AskError> {
        if !self.wait {
            let path = socket_path(self.local);
            let folder = std::path::Path::new(&path).parent();
            let file = folder
                .unwrap_or(std::path::Path::new("/"))
                .join("generation");
            return match std::fs::read_to_string(file) {
                Ok(text) => Ok(text.trim_end().to_owned()),
                Err(err) if err.kind() == io::ErrorKind::NotFound => Err(AskError::Answer(
                    "no host has given this machine a name yet".to_owned(),
                )),
                Err(err) => Err(err.into()),
            };
        }
        let request = Message::GenerationRequest(GenerationRequest { from: self.from });
        match ask(self.local, &request, self.timeout)? {
            Message::Generation(generation) => Ok(generation.to_string()),
            other => Err(unexpected(&other)),
        }
    }
}

fn socket_path(given: Option<String>) -> String {
    given
        .or_else(|| std::env::var(SOCKET_VARIABLE).ok())
        .unwrap_or_else(|| SOCKET_PATH_DEFAULT.to_owned())
}

/// Sends a request and waits for what answers it.
fn ask(
    path: Option<String>,
    request: &Message,
    timeout: Option<Duration>,
) -> Result<Message, AskError> {
    let mut stream = UnixStream::connect(socket_path(path))?;
    // One answer is all that is read, and so the limit on one read is the limit on all.
    stream.set_read_timeout(timeout)?;
    let hello = Hello::of(Role::Local, env!("CARGO_PKG_VERSION"));
    let mut bytes = Message::Hello(hello).encode();
    request.encode_into(&mut bytes);
    stream.write_all(&bytes)?;
    let mut decoder = Decoder::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(frame) = decoder.poll_frame().map_err(|err| broken(&err))? {
            match Message::parse(frame, Role::Guest).map_err(|err| broken(&err))? {
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

/// Reads a time as host-tool takes it.
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
    fn times_are_read_with_their_unit() {
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
