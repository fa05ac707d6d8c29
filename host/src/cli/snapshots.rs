//! The command line of `host-tool snapshots`, which has subcommands.

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;

use super::{Common, command};
use crate::values::parse_timeout;

/// List, show and check artifacts, the directories that 'host-tool snapshot' makes.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "snapshots",
    help_triggers("-h", "--help"),
    example = "{command_name} ls\n{command_name} inspect base.snap\n{command_name} verify base.snap",
    note = "'{command_name} COMMAND --help' describes a command."
)]
pub(crate) struct Snapshots {
    /// command to run
    #[argh(subcommand)]
    pub(crate) command: SnapshotsCommand,
}

/// What to do with artifacts.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(crate) enum SnapshotsCommand {
    /// See [`SnapshotsLs`].
    Ls(SnapshotsLs),
    /// See [`SnapshotsInspect`].
    Inspect(SnapshotsInspect),
    /// See [`SnapshotsVerify`].
    Verify(SnapshotsVerify),
}

impl Snapshots {
    pub(crate) fn common(&self) -> Common<'_> {
        match &self.command {
            SnapshotsCommand::Ls(command) => command.common(),
            SnapshotsCommand::Inspect(command) => command.common(),
            SnapshotsCommand::Verify(command) => command.common(),
        }
    }
}

command! {
    /// List the artifacts in directories; a directory may be an artifact itself. Damaged artifacts
    /// are listed with the reason, and do not make the command fail.
    #[argh(
        subcommand,
        name = "ls",
        example = "{command_name}\n{command_name} /srv/snapshots --json"
    )]
    pub(crate) struct SnapshotsLs {
        /// directories to search; the current one if missing
        #[argh(positional, arg_name = "dir")]
        pub(crate) dirs: Vec<PathBuf>,
    }
}

command! {
    /// Show the manifest of an artifact: its machine, its files, and the generations that its
    /// memory had before.
    #[argh(
        subcommand,
        name = "inspect",
        example = "{command_name} base.snap\n{command_name} base.snap --json"
    )]
    pub(crate) struct SnapshotsInspect {
        /// artifact directory
        #[argh(positional, arg_name = "dir")]
        pub(crate) dir: PathBuf,
    }
}

command! {
    /// Check an artifact as 'restore' does, and every file against its SHA-256 where recorded.
    #[argh(
        subcommand,
        name = "verify",
        example = "{command_name} base.snap\n{command_name} base.snap --sha256 --timeout 10m"
    )]
    pub(crate) struct SnapshotsVerify {
        /// artifact directory
        #[argh(positional, arg_name = "dir")]
        pub(crate) dir: PathBuf,
        /// fail if no SHA-256 was recorded ('host-tool snapshot --sha256' records it)
        #[argh(switch)]
        pub(crate) sha256: bool,
    }
}
