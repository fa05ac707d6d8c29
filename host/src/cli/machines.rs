//! The commands that are about the VMs of this host as they are: listed, shown, ended, removed.

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;

use super::{Common, command};
use crate::values::{VmName, parse_timeout};

command! {
    /// List the VMs of this host.
    #[argh(subcommand, name = "ls", example = "{command_name} --json")]
    pub struct Ls {
    }
}

command! {
    /// Show everything known about a VM.
    #[argh(subcommand, name = "inspect", example = "{command_name} clone-1 --json")]
    pub struct Inspect {
        /// name of the VM
        #[argh(positional)]
        pub name: VmName,
    }
}

command! {
    /// Power a VM off. Within the time limit (default 30s) it goes by itself, then it is killed.
    #[argh(subcommand, name = "stop", example = "{command_name} clone-1 --timeout 5s")]
    pub struct Stop {
        /// name of the VM
        #[argh(positional)]
        pub name: VmName,
        /// do not ask the guest first
        #[argh(switch)]
        pub force: bool,
    }
}

command! {
    /// Remove what a VM that has ended left: its logs and its state.
    #[argh(
        subcommand,
        name = "rm",
        example = "{command_name} clone-1\n{command_name} clone-1 --force"
    )]
    pub struct Rm {
        /// name of the VM
        #[argh(positional)]
        pub name: VmName,
        /// end the VM first, without asking the guest
        #[argh(switch)]
        pub force: bool,
    }
}

command! {
    /// Check whether this machine can run microVMs, and say what is missing.
    #[argh(subcommand, name = "doctor", example = "{command_name} --json")]
    pub struct Doctor {
    }
}
