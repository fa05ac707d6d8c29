//! The commands that observe or measure a guest: `probe`, `logs`, `stress` and `bench`.

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use shared::limits::PORT_DEFAULT;
use shared::message::Depth;

use super::{Common, command, guest_command};
use crate::cli::TargetArguments;
use crate::values::{VmName, parse_memory_mib, parse_timeout};

guest_command! {
    /// Ask whether a guest is ready, and wait for it up to the time limit (default 5s).
    #[argh(
        subcommand,
        name = "probe",
        example = "{command_name} --name clone-1\n\
                   {command_name} --uds /run/vm/vsock.sock --timeout 1s\n\
                   {command_name} --cid 42 --depth listener --json\n\
                   {command_name} --name clone-1 --watch --timeout 2m",
        note = "With --timeout or --watch it also waits for a guest at whose address nothing \
                listens yet.\nWithout either, that is reported at once."
    )]
    pub(crate) struct ProbeCommand {
        /// what the guest has to prove: exec (the default) or listener
        #[argh(option, default = "Depth::Exec", from_str_fn(parse_depth))]
        pub(crate) depth: Depth,
        /// report each change on standard error until the guest is ready; the default time limit is
        /// then 60s
        #[argh(switch)]
        pub(crate) watch: bool,
    }
}

guest_command! {
    /// Print the output of the workload that the guest's image names.
    #[argh(
        subcommand,
        name = "logs",
        example = "{command_name} --name clone-1\n\
                   {command_name} --name clone-1 --follow --tail 10\n\
                   {command_name} --uds /run/vm/vsock.sock --follow",
        note = "For a VM of this host it prints the VM's output.log.1 and output.log, also after \
                the VM's end.\nFor other guests it prints what the guest still has. A line \
                '[host-tool: …]' stands for bytes that are lost.\nWith --follow it ends, with 0, \
                when the workload or its VM has ended."
    )]
    pub(crate) struct LogsCommand {
        /// continue to print until the workload or its VM ends
        #[argh(switch, short = 'f')]
        pub(crate) follow: bool,
        /// print at most this many of the last lines; 0 prints no earlier output
        #[argh(option, arg_name = "lines")]
        pub(crate) tail: Option<u64>,
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
        note = "The command follows '--'; the default is 'true', found by the guest's PATH.\n\
                Latencies are those of the runs that succeeded, from connecting to the exit \
                code.\nThe exit code is 0 only if every run exited with 0; it is 6 if they failed \
                in different ways."
    )]
    pub(crate) struct StressCommand {
        /// how many run at once; default 10
        #[argh(option, default = "10", arg_name = "count")]
        pub(crate) parallel: u32,
        /// how many run in all; default 10
        #[argh(option, default = "10", arg_name = "count")]
        pub(crate) total: u32,
    }
}

guest_command! {
    /// Measure a guest: a command's round trips, its streams, and restores by phase.
    #[argh(
        subcommand,
        name = "bench",
        example = "{command_name} --name clone-1\n\
                   {command_name} --name clone-1 --artifact base.snap --json\n\
                   {command_name} --artifact base.snap --restores 50\n\
                   {command_name} --uds /run/vm/vsock.sock --size 0 -- /bin/busybox true",
        note = "Round trips are those of the command after '--', or of 'true': one at a time, 10 \
                and 100 at once.\nThe streams need 'head' and 'wc' in the guest. Clones are \
                restored one at a time, proven ready, and removed.\nTimes are in milliseconds; \
                the first run of a command and the first clone are not counted.\nA part that \
                fails is reported, and the others run. The exit code is 0 only if all parts \
                succeeded; it is 6 if parts failed in different ways."
    )]
    pub(crate) struct BenchCommand {
        /// artifact directory to restore clones from
        #[argh(option, arg_name = "dir")]
        pub(crate) artifact: Option<PathBuf>,
        /// number of clones to measure; default 20
        #[argh(option, default = "20", arg_name = "count")]
        pub(crate) restores: u32,
        /// runs of the command, for each number at once; default 200
        #[argh(option, default = "200", arg_name = "count")]
        pub(crate) runs: u32,
        /// size of each stream, sent five times: 64M, 1G; default 64M; 0 for no streams
        #[argh(option, from_str_fn(parse_stream_size), default = "64", arg_name = "size")]
        pub(crate) size: u32,
    }
}

fn parse_stream_size(text: &str) -> Result<u32, String> {
    if text == "0" {
        return Ok(0);
    }
    parse_memory_mib(text).map_err(|_| {
        let text = text.escape_debug();
        format!("'{text}' is neither 0 nor a size such as 64M or 1G")
    })
}

fn parse_depth(text: &str) -> Result<Depth, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not listener or exec"))
}
