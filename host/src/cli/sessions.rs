//! The commands about sessions in a guest.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use nix::sys::signal::Signal;
use shared::id::{ExecId, Instance};
use shared::limits::{PORT_DEFAULT, SIGNAL_NUMBER_MAX};
use shared::message::{OutputPolicy, SessionRef};
use shared::session_client::ABSENCE_MAX;

use super::{Common, command, guest_command};
use crate::cli::TargetArguments;
use crate::values::{MIB, VmName, parse_memory_mib, parse_timeout};

guest_command! {
    /// Run a command in a guest, print its output, and exit with its exit code.
    #[argh(
        subcommand,
        name = "exec",
        example = "{command_name} --name clone-1 -- uname -r\n\
                   {command_name} --name clone-1 -it -- sh\n\
                   tar c . | {command_name} --name clone-1 -i -w /tmp -- tar x\n\
                   {command_name} --uds /run/vm/vsock.sock -e LANG=C -u nobody -- ls -l\n\
                   {command_name} --name clone-1 --timeout 10s -- make test\n\
                   {command_name} --name clone-1 -d -- ./server",
        note = "When --timeout passes, the guest sends the command TERM, and KILL 5s later. \
                host-tool\nwaits for that only while the guest answers.\nThe first TERM, HUP, \
                INT or QUIT goes to the command. The second one also ends host-tool.\nA guest \
                that is not there yet is not waited for: use 'probe --timeout'."
    )]
    pub(crate) struct ExecCommand {
        /// send standard input to the command
        #[argh(switch, short = 'i')]
        pub(crate) interactive: bool,
        /// give the command a terminal
        #[argh(switch, short = 't')]
        pub(crate) tty: bool,
        /// NAME=VALUE for the command's environment, or NAME to copy host-tool's own; may be
        /// repeated
        #[argh(option, short = 'e', arg_name = "pair")]
        pub(crate) env: Vec<String>,
        /// file with such lines, and comments after #; may be repeated
        #[argh(option, arg_name = "file")]
        pub(crate) env_file: Vec<PathBuf>,
        /// directory to run the command in
        #[argh(option, short = 'w', arg_name = "dir")]
        pub(crate) workdir: Option<String>,
        /// user and group of the command: NAME, UID, NAME:GROUP or UID:GID
        #[argh(option, short = 'u', arg_name = "user")]
        pub(crate) user: Option<String>,
        /// return as soon as the command runs, and print its id for attach, wait and kill
        #[argh(switch, short = 'd')]
        pub(crate) detach: bool,
        /// id of this run, 32 hexadecimal digits; exec with the same id attaches to the run
        #[argh(option)]
        pub(crate) id: Option<ExecId>,
        /// the agent that an exec with this id was sent to before, as its error message says; any
        /// other agent does not run the command
        #[argh(option)]
        pub(crate) instance: Option<Instance>,
        /// how long the command runs on after the connection is lost, unless a client attaches
        /// again; default 30s
        #[argh(
            option,
            from_str_fn(parse_timeout),
            default = "Duration::from_secs(30)",
            arg_name = "time"
        )]
        pub(crate) keep: Duration,
        /// how long to try to reconnect after the connection is lost; default 1m
        #[argh(option, from_str_fn(parse_timeout), default = "ABSENCE_MAX", arg_name = "time")]
        pub(crate) reconnect: Duration,
        /// when the output buffer is full: block (the command waits) or drop-oldest (the default
        /// with -d)
        #[argh(option, from_str_fn(parse_output), arg_name = "policy")]
        pub(crate) output: Option<OutputPolicy>,
        /// most processes that the command and its descendants may be at once
        #[argh(option, from_str_fn(parse_pids), arg_name = "number")]
        pub(crate) pids_max: Option<NonZeroU64>,
        /// most memory that they may use, such as 256M or 1G
        #[argh(option, from_str_fn(parse_memory), arg_name = "size")]
        pub(crate) memory_max: Option<NonZeroU64>,
    }
}

guest_command! {
    /// Attach to a session: print its output, send its input, and exit with its exit code.
    #[argh(
        subcommand,
        name = "attach",
        example = "{command_name} --name clone-1 3\n\
                   {command_name} --name clone-1 3 --observe --from 0\n\
                   {command_name} --name clone-1 workload"
    )]
    pub(crate) struct AttachCommand {
        /// number or id of a session, as ps lists them, or workload
        #[argh(positional, arg_name = "session", from_str_fn(parse_session))]
        pub(crate) session: SessionRef,
        /// offset of the first byte of standard output to print; the oldest one kept if missing
        #[argh(option, arg_name = "offset")]
        pub(crate) from: Option<u64>,
        /// copy the output of a session that another client may be attached to, and send no input;
        /// always so for workload
        #[argh(switch)]
        pub(crate) observe: bool,
        /// do not send standard input
        #[argh(switch)]
        pub(crate) no_stdin: bool,
        /// how long to try to reconnect after the connection is lost; default 1m
        #[argh(option, from_str_fn(parse_timeout), default = "ABSENCE_MAX", arg_name = "time")]
        pub(crate) reconnect: Duration,
    }
}

guest_command! {
    /// Wait for the end of a session, and exit with its exit code.
    #[argh(
        subcommand,
        name = "wait",
        example = "{command_name} --name clone-1 3\n\
                   {command_name} --name clone-1 3 --timeout 1m --json"
    )]
    pub(crate) struct WaitCommand {
        /// number or id of a session, as ps lists them, or workload
        #[argh(positional, arg_name = "session", from_str_fn(parse_session))]
        pub(crate) session: SessionRef,
        /// how long to try to reconnect after the connection is lost; default 1m
        #[argh(option, from_str_fn(parse_timeout), default = "ABSENCE_MAX", arg_name = "time")]
        pub(crate) reconnect: Duration,
    }
}

guest_command! {
    /// Send a signal to a session's process group; KILL ends all processes of the session.
    #[argh(
        subcommand,
        name = "kill",
        example = "{command_name} --name clone-1 3\n{command_name} --name clone-1 3 -s HUP"
    )]
    pub(crate) struct KillCommand {
        /// number or id of a session, as ps lists them, or workload
        #[argh(positional, arg_name = "session", from_str_fn(parse_session))]
        pub(crate) session: SessionRef,
        /// name or number of the signal; default TERM
        #[argh(option, short = 's', default = "15", from_str_fn(parse_signal))]
        pub(crate) signal: u8,
    }
}

guest_command! {
    /// List the sessions that run in a guest.
    #[argh(
        subcommand,
        name = "ps",
        example = "{command_name} --name clone-1\n{command_name} --name clone-1 -a --json"
    )]
    pub(crate) struct PsCommand {
        /// list ended sessions, too
        #[argh(switch, short = 'a')]
        pub(crate) all: bool,
    }
}

fn parse_output(text: &str) -> Result<OutputPolicy, String> {
    match text {
        "block" => Ok(OutputPolicy::Block),
        "drop-oldest" => Ok(OutputPolicy::DropOldest),
        _ => Err(format!("'{text}' is neither block nor drop-oldest")),
    }
}

fn parse_pids(text: &str) -> Result<NonZeroU64, String> {
    let error = |_| format!("'{}' is not a number from 1", text.escape_debug());
    text.parse().map_err(error)
}

/// In bytes.
fn parse_memory(text: &str) -> Result<NonZeroU64, String> {
    let bytes = u64::from(parse_memory_mib(text)?) * MIB;
    NonZeroU64::new(bytes).ok_or_else(|| "no memory at all is not a limit".to_owned())
}

fn parse_session(text: &str) -> Result<SessionRef, String> {
    text.parse().map_err(|_| {
        format!(
            "'{}' is not a session: give a number or an id, as ps lists them, or workload",
            text.escape_debug()
        )
    })
}

/// Parses `TERM`, `SIGTERM`, `term` or `15`.
fn parse_signal(text: &str) -> Result<u8, String> {
    let error = || {
        let text = text.escape_debug();
        format!("'{text}' is not a signal: give a name such as TERM or a number from 1 to 64")
    };
    if let Ok(number) = text.parse::<u8>() {
        let is_signal = (1..=SIGNAL_NUMBER_MAX).contains(&number);
        return is_signal.then_some(number).ok_or_else(error);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let signal: Signal = format!("SIG{name}").parse().map_err(|_| error())?;
    u8::try_from(signal as i32).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "term", "sigterm", "15"] {
            assert_eq!(parse_signal(text), Ok(15), "{text}");
        }
        assert_eq!(parse_signal("64"), Ok(64));
        for text in ["", "0", "65", "-1", "SIG", "NOPE", "TERM "] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_are_at_least_one() {
        assert_eq!(parse_pids("1"), Ok(NonZeroU64::MIN));
        assert_eq!(parse_memory("2M").unwrap().get(), 2 * 1024 * 1024);
        for text in ["0", "-1", "x", ""] {
            assert!(parse_pids(text).is_err(), "{text}");
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_session_is_a_number_an_id_or_the_workload() {
        assert_eq!(parse_session("3"), Ok(SessionRef::Number(3)));
        assert_eq!(parse_session("workload"), Ok(SessionRef::Workload));
        let id = "00112233445566778899aabbccddeeff";
        assert_eq!(parse_session(id), Ok(SessionRef::Exec(id.parse().unwrap())));
        for text in ["", "x", "-3", "00112233445566778899aabbccddeef"] {
            assert!(
                parse_session(text)
                    .unwrap_err()
                    .contains("as ps lists them")
            );
        }
    }
}
