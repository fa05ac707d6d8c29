//! The command line: all commands and options, without their implementation.

mod machines;
mod observe;
pub(crate) mod parse;
mod sessions;
pub(crate) mod snapshots;

use std::path::{Path, PathBuf};
use std::time::Duration;

use argh::{FromArgs, SubCommand};

pub(crate) use self::machines::{
    Boot, Doctor, Inspect, Ls, MachineArguments, Restore, Rm, Snapshot, Stop,
};
pub(crate) use self::observe::{BenchCommand, LogsCommand, ProbeCommand, StressCommand};
pub(crate) use self::sessions::{AttachCommand, ExecCommand, KillCommand, PsCommand, WaitCommand};
use self::snapshots::Snapshots;
use crate::exit::Table;
use crate::values::VmName;

/// The options that every command has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common<'a> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    /// How often `--verbose` was given.
    pub(crate) verbose: u8,
    pub(crate) state_dir: Option<&'a Path>,
}

/// Defines a command with the options that every command has.
macro_rules! command {
    ($(#[$attribute:meta])* pub(crate) struct $name:ident { $($fields:tt)* }) => {
        #[derive(FromArgs, Debug)]
        #[argh(help_triggers("-h", "--help"))]
        $(#[$attribute])*
        pub(crate) struct $name {
            $($fields)*
            /// time limit for the whole command: 500ms, 30s, 2m
            #[argh(option, from_str_fn(parse_timeout), arg_name = "time")]
            pub(crate) timeout: Option<Duration>,
            /// print one JSON object on standard output
            #[argh(switch)]
            pub(crate) json: bool,
            /// print only errors on standard error
            #[argh(switch, short = 'q')]
            pub(crate) quiet: bool,
            /// print more on standard error; may be repeated up to three times
            #[argh(switch, short = 'v')]
            pub(crate) verbose: u8,
            /// directory that holds the VMs; default: the variable HOST_TOOL_STATE_DIR
            #[argh(option, arg_name = "dir")]
            pub(crate) state_dir: Option<PathBuf>,
        }

        impl $name {
            pub(crate) fn common(&self) -> Common<'_> {
                Common {
                    timeout: self.timeout,
                    json: self.json,
                    quiet: self.quiet,
                    verbose: self.verbose,
                    state_dir: self.state_dir.as_deref(),
                }
            }
        }
    };
}

use command;

/// The options that select a guest. Exactly one of the first four must be given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TargetArguments<'a> {
    pub(crate) name: Option<&'a VmName>,
    pub(crate) uds: Option<&'a PathBuf>,
    pub(crate) cid: Option<u32>,
    pub(crate) unix: Option<&'a PathBuf>,
    pub(crate) port: u32,
    /// Time limit for the whole command.
    pub(crate) timeout: Option<Duration>,
}

/// Defines a command about one guest, which one of four options selects.
macro_rules! guest_command {
    ($(#[$attribute:meta])* pub(crate) struct $name:ident { $($fields:tt)* }) => {
        command! {
            $(#[$attribute])*
            pub(crate) struct $name {
                $($fields)*
                /// a VM of this host
                #[argh(option)]
                pub(crate) name: Option<VmName>,
                /// hybrid vsock socket of a VM that another program runs
                #[argh(option, arg_name = "path")]
                pub(crate) uds: Option<PathBuf>,
                /// vsock context id of a VM that another program runs
                #[argh(option)]
                pub(crate) cid: Option<u32>,
                /// plain Unix socket of an agent
                #[argh(option, arg_name = "path")]
                pub(crate) unix: Option<PathBuf>,
                /// the agent's vsock port; default 5252
                #[argh(option, default = "PORT_DEFAULT")]
                pub(crate) port: u32,
            }
        }

        impl<'a> From<&'a $name> for TargetArguments<'a> {
            fn from(command: &'a $name) -> Self {
                Self {
                    name: command.name.as_ref(),
                    uds: command.uds.as_ref(),
                    cid: command.cid,
                    unix: command.unix.as_ref(),
                    port: command.port,
                    timeout: command.timeout,
                }
            }
        }
    };
}
use guest_command;

/// Boot, snapshot and restore microVMs, prove that they are ready, and run commands in them.
#[derive(FromArgs, Debug)]
#[argh(
    help_triggers("-h", "--help"),
    note = "'{command_name} COMMAND --help' describes a command, with examples and exit codes.\n\
            '{command_name} --version' prints the version and the protocol it speaks."
)]
pub(crate) struct HostTool {
    /// command to run
    #[argh(subcommand)]
    pub(crate) command: Command,
}

/// Defines [`Command`] from the table of all commands: their arguments and tables of exit codes.
macro_rules! commands {
    ($($name:ident($arguments:ty), $table:ident;)*) => {
        /// What to do.
        #[derive(FromArgs, Debug)]
        #[argh(subcommand)]
        pub(crate) enum Command {
            $(
                /// With its arguments.
                $name($arguments),
            )*
        }

        /// The name of each command, with its table of exit codes.
        pub(crate) const COMMANDS: &[(&str, Table)] =
            &[$((<$arguments as SubCommand>::COMMAND.name, Table::$table),)*];

        impl Command {
            pub(crate) fn common(&self) -> Common<'_> {
                match self { $(Self::$name(command) => command.common(),)* }
            }

            /// The table of exit codes that this command uses.
            pub(crate) const fn table(&self) -> Table {
                match self { $(Self::$name(_) => Table::$table,)* }
            }
        }
    };
}

commands! {
    Boot(Boot), General;
    Snapshot(Snapshot), General;
    Snapshots(Snapshots), General;
    Restore(Restore), General;
    Probe(ProbeCommand), Probe;
    Exec(ExecCommand), Exec;
    Attach(AttachCommand), Exec;
    Wait(WaitCommand), Exec;
    Kill(KillCommand), General;
    Ps(PsCommand), General;
    Logs(LogsCommand), General;
    Stress(StressCommand), General;
    Bench(BenchCommand), General;
    Ls(Ls), General;
    Inspect(Inspect), General;
    Stop(Stop), General;
    Rm(Rm), General;
    Doctor(Doctor), General;
}
