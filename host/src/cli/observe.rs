//! The commands that look at a guest at work: `logs` and `stress`.

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use shared::limits::PORT_DEFAULT;

use super::{Common, command, guest_command};
use crate::target::TargetArguments;
use crate::values::{VmName, parse_timeout};

guest_command! {
    /// Print the output of the workload that the guest's image names.
    #[argh(
        subcommand,
        name = "logs",
        example = "{command_name} --name clone-1\n\
                   {command_name} --name clone-1 --follow --tail 10\n\
                   {command_name} --uds /run/vm/vsock.sock --follow",
        note = "Of a VM of this host it prints what is in the VM's output.log and output.log.1, \
                also after its end.\nOf other guests it prints what the guest still has. Bytes \
                that are gone are a line '[host-tool: …]'.\nWith --follow it ends, with 0, when \
                the workload has ended, or its VM has."
    )]
    pub struct LogsCommand {
        /// go on until the workload or its VM ends
        #[argh(switch, short = 'f')]
        pub follow: bool,
        /// no more than this many lines of what is there; 0 is none
        #[argh(option, arg_name = "lines")]
        pub tail: Option<u64>,
    }
}

guest_command! {
    /// Run a command many times in parallel, and report how long it takes and what fails.
    #[argh(
        subcommand,
        name = "stress",
        example = "{command_name} --name clone-1\n\
                   {command_name} --name clone-1 --parallel 50 --total 1000 --json\n\
                   {command_name} --uds /run/vm/vsock.sock -- /bin/echo hello",
        note = "The command stands behind '--'; 'true', by the PATH of the guest, if missing.\n\
                Latencies are those of the runs that succeeded, from connecting to the exit \
                code.\nThe exit code is 0 only if every run exited with 0; it is 6 if they failed \
                in different ways."
    )]
    pub struct StressCommand {
        /// how many run at once; default 10
        #[argh(option, default = "10", arg_name = "count")]
        pub parallel: u32,
        /// how many run in all; default 10
        #[argh(option, default = "10", arg_name = "count")]
        pub total: u32,
    }
}
