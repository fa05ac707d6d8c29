//! The commands that start, snapshot, list, show, stop and remove the VMs of this host.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use argh::FromArgs;
use shared::message::{InterfaceAddress, MacAddress, Policy};

use super::{Common, command};
use crate::lifecycle::hooks::LIMIT_DEFAULT;
use crate::values::network::{NicArgument, parse_address, parse_gateway, parse_mac};
use crate::values::{
    CheckpointTag, DriveArgument, MachineId, VmName, parse_count, parse_memory_mib, parse_timeout,
};
use crate::vmdir::health::HealthOptions;
use crate::vmm::VmmKind;

/// Defines a command that checks the VMM's version and can record a trace.
macro_rules! traced_command {
    ($(#[$attribute:meta])* pub(crate) struct $name:ident { $($fields:tt)* }) => {
        command! {
            $(#[$attribute])*
            pub(crate) struct $name {
                $($fields)*
                /// continue although the VMM version may not work
                #[argh(switch)]
                pub(crate) force: bool,
                /// write a timeline as Chrome trace JSON, for Perfetto; also when the command fails
                #[argh(option, arg_name = "file")]
                pub(crate) trace: Option<PathBuf>,
                /// draw a timeline as an SVG picture; also when the command fails
                #[argh(option, arg_name = "file")]
                pub(crate) timeline: Option<PathBuf>,
            }
        }
    };
}

/// Defines a command that starts a VM.
macro_rules! machine_command {
    ($(#[$attribute:meta])* pub(crate) struct $name:ident { $($fields:tt)* }) => {
        traced_command! {
            $(#[$attribute])*
            pub(crate) struct $name {
                $($fields)*
                /// name of the VM; generated if missing
                #[argh(option)]
                pub(crate) name: Option<VmName>,
                /// host name of the guest; the VM's name if missing
                #[argh(option)]
                pub(crate) hostname: Option<String>,
                /// the only address of the guest's network interface: 10.0.0.2/24, fd00::2/64
                #[argh(option, from_str_fn(parse_address), arg_name = "address")]
                pub(crate) net_address: Option<InterfaceAddress>,
                /// MAC address of the guest's network interface
                #[argh(option, from_str_fn(parse_mac), arg_name = "mac")]
                pub(crate) net_mac: Option<MacAddress>,
                /// gateway of the guest's default route
                #[argh(option, from_str_fn(parse_gateway), arg_name = "address")]
                pub(crate) net_gateway: Option<IpAddr>,
                /// JSON file that the guest reads from Firecracker's metadata service; a restore
                /// epoch is added
                #[argh(option, arg_name = "file")]
                pub(crate) mmds: Option<PathBuf>,
                /// the guest's vsock context id, 3 or more; a free one if missing
                #[argh(option, arg_name = "cid")]
                pub(crate) vsock_cid: Option<u32>,
                /// return when the guest is proven ready (the default)
                #[argh(switch)]
                pub(crate) wait_ready: bool,
                /// return as soon as the VMM runs the guest
                #[argh(switch)]
                pub(crate) no_wait: bool,
                /// stay attached until the VM ends; a signal stops it
                #[argh(switch)]
                pub(crate) foreground: bool,
                /// run this command, split at spaces, in the guest at intervals: exit code 0 means
                /// healthy, and 'host-tool ls' shows it
                #[argh(option, arg_name = "command")]
                pub(crate) health_cmd: Option<String>,
                /// pause between two health checks; default 10s
                #[argh(option, from_str_fn(parse_timeout), arg_name = "time")]
                pub(crate) health_interval: Option<Duration>,
                /// time limit for one health check; default 5s
                #[argh(option, from_str_fn(parse_timeout), arg_name = "time")]
                pub(crate) health_timeout: Option<Duration>,
                /// failures in a row that make the VM unhealthy; default 3
                #[argh(option, arg_name = "count")]
                pub(crate) health_retries: Option<u32>,
                /// keep the VM when the command fails, for debugging
                #[argh(switch)]
                pub(crate) keep_on_failure: bool,
            }
        }

        impl $name {
            pub(crate) fn machine(&self) -> MachineArguments<'_> {
                MachineArguments {
                    common: self.common(),
                    name: self.name.as_ref(),
                    hostname: self.hostname.as_deref(),
                    net_address: self.net_address,
                    net_mac: self.net_mac,
                    net_gateway: self.net_gateway,
                    mmds: self.mmds.as_deref(),
                    vsock_cid: self.vsock_cid,
                    wait_ready: self.wait_ready,
                    no_wait: self.no_wait,
                    foreground: self.foreground,
                    keep_on_failure: self.keep_on_failure,
                    health: HealthOptions {
                        command: self.health_cmd.as_deref(),
                        interval: self.health_interval,
                        timeout: self.health_timeout,
                        retries: self.health_retries,
                    },
                    trace: self.trace.as_deref(),
                    timeline: self.timeline.as_deref(),
                }
            }
        }
    };
}

/// The options of a command that starts a VM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineArguments<'a> {
    pub(crate) common: Common<'a>,
    pub(crate) name: Option<&'a VmName>,
    pub(crate) hostname: Option<&'a str>,
    pub(crate) net_address: Option<InterfaceAddress>,
    pub(crate) net_mac: Option<MacAddress>,
    pub(crate) net_gateway: Option<IpAddr>,
    pub(crate) mmds: Option<&'a Path>,
    pub(crate) vsock_cid: Option<u32>,
    pub(crate) wait_ready: bool,
    pub(crate) no_wait: bool,
    pub(crate) foreground: bool,
    pub(crate) keep_on_failure: bool,
    pub(crate) health: HealthOptions<'a>,
    pub(crate) trace: Option<&'a Path>,
    pub(crate) timeline: Option<&'a Path>,
}

machine_command! {
    /// Boot a guest whose image contains guest-agent, and return when it is proven ready.
    #[argh(
        subcommand,
        name = "boot",
        example = "{command_name} --name base --kernel vmlinux --initrd image.cpio\n\
                   {command_name} --kernel vmlinux --initrd image.cpio --vmm qemu --mem 1G --json"
    )]
    pub(crate) struct Boot {
        /// uncompressed ELF kernel
        #[argh(option, arg_name = "file")]
        pub(crate) kernel: PathBuf,
        /// initramfs with guest-agent as /init
        #[argh(option, arg_name = "file")]
        pub(crate) initrd: PathBuf,
        /// firecracker or qemu; the first one found if missing
        #[argh(option)]
        pub(crate) vmm: Option<VmmKind>,
        /// guest memory: 256M, 1G; default 256M
        #[argh(option, from_str_fn(parse_memory_mib), default = "256", arg_name = "size")]
        pub(crate) mem: u32,
        /// number of virtual processors; default 1
        #[argh(option, default = "1", arg_name = "count")]
        pub(crate) vcpus: u8,
        /// disk image, FILE or FILE:ro; may be repeated
        #[argh(option, arg_name = "file")]
        pub(crate) drive: Vec<DriveArgument>,
        /// network interface on an existing tap device, TAP or TAP,mac=MAC
        #[argh(option, arg_name = "tap")]
        pub(crate) nic: Option<NicArgument>,
        /// additional kernel parameters
        #[argh(option, default = "String::new()", arg_name = "text")]
        pub(crate) append: String,
    }
}

traced_command! {
    /// Snapshot a VM, resume it, and prove that it works.
    #[argh(
        subcommand,
        name = "snapshot",
        example = "{command_name} --name base --out base.snap\n\
                   {command_name} --name base --out base.snap --stop --sha256\n\
                   {command_name} --api-sock /run/vm/api.sock --uds /run/vm/vsock.sock --out vm.snap",
        note = "The command may be killed at any point: the same command repairs what it left."
    )]
    pub(crate) struct Snapshot {
        /// name of the VM
        #[argh(option)]
        pub(crate) name: Option<VmName>,
        /// API socket of a Firecracker that another program started; needs --uds
        #[argh(option, arg_name = "path")]
        pub(crate) api_sock: Option<PathBuf>,
        /// hybrid vsock socket of that Firecracker
        #[argh(option, arg_name = "path")]
        pub(crate) uds: Option<PathBuf>,
        /// artifact directory to create
        #[argh(option, arg_name = "dir")]
        pub(crate) out: PathBuf,
        /// stop the VM instead of resuming it
        #[argh(switch)]
        pub(crate) stop: bool,
        /// wait until a program in the guest is at a checkpoint ('guest-agent checkpoint'):
        /// --at-checkpoint for any, --at-checkpoint=TAG for one with that tag
        #[argh(option, from_str_fn(CheckpointTag::parse), arg_name = "tag")]
        pub(crate) at_checkpoint: Option<CheckpointTag>,
        /// how long each hook of the image may take; default 10s
        #[argh(option, from_str_fn(parse_timeout), default = "LIMIT_DEFAULT", arg_name = "time")]
        pub(crate) hook_timeout: Duration,
        /// continue when a hook of the image fails
        #[argh(switch)]
        pub(crate) ignore_hooks: bool,
        /// what happens to running commands: keep (the default), drain or refuse
        #[argh(option, default = "Policy::Keep", from_str_fn(parse_policy))]
        pub(crate) policy: Policy,
        /// record the SHA-256 of every file, for 'host-tool snapshots verify'
        #[argh(switch)]
        pub(crate) sha256: bool,
    }
}

machine_command! {
    /// Restore a VM from an artifact directory, and return when it is proven ready.
    #[argh(
        subcommand,
        name = "restore",
        example = "{command_name} base.snap --name clone-1\n\
                   {command_name} base.snap --wait-ready --timeout 10s --json\n\
                   {command_name} base.snap --name job --count 8 --parallel 2\n\
                   {command_name} base.snap --api-sock api.sock --uds vsock.sock"
    )]
    pub(crate) struct Restore {
        /// artifact directory
        #[argh(positional, arg_name = "dir")]
        pub(crate) artifact: PathBuf,
        /// restore this many clones, 1 to 128, as NAME-1, NAME-2 … An interrupt removes all of
        /// them until the last one is ready or has failed; after that, the ready ones stay
        #[argh(option, from_str_fn(parse_count))]
        pub(crate) count: Option<usize>,
        /// how many clones may start at a time; default: one for each processor
        #[argh(option, from_str_fn(parse_count), arg_name = "number")]
        pub(crate) parallel: Option<usize>,
        /// the guest's machine id: keep, or 32 hexadecimal digits; random if missing
        #[argh(option, arg_name = "id")]
        pub(crate) machine_id: Option<MachineId>,
        /// tap device of the guest's network interface; that of the snapshot if missing
        #[argh(option, arg_name = "tap")]
        pub(crate) nic: Option<NicArgument>,
        /// API (or QMP) socket of a VMM that another program started and did not configure: the
        /// artifact is loaded into it, and the other program still owns it
        #[argh(option, arg_name = "path")]
        pub(crate) api_sock: Option<PathBuf>,
        /// with --api-sock: where that Firecracker will have its vsock socket
        #[argh(option, arg_name = "path")]
        pub(crate) uds: Option<PathBuf>,
        /// with --api-sock: the vsock context id that QEMU was given
        #[argh(option)]
        pub(crate) cid: Option<u32>,
        /// how long each hook of the image may take; default 10s
        #[argh(option, from_str_fn(parse_timeout), default = "LIMIT_DEFAULT", arg_name = "time")]
        pub(crate) hook_timeout: Duration,
        /// continue when a hook of the image fails
        #[argh(switch)]
        pub(crate) ignore_hooks: bool,
        /// compare the SHA-256 of every file first; the artifact must have them
        #[argh(switch)]
        pub(crate) verify: bool,
        /// restore an artifact that another user owns or could have written to. Its VM state is
        /// code that runs with your rights
        #[argh(switch)]
        pub(crate) trust_artifact: bool,
        /// with --trust-artifact: let the guest read this file, which the artifact names as a
        /// drive outside of it; may be repeated
        #[argh(option, arg_name = "path")]
        pub(crate) allow_drive: Vec<PathBuf>,
    }
}

command! {
    /// List the VMs of this host.
    #[argh(subcommand, name = "ls", example = "{command_name} --json")]
    pub(crate) struct Ls {
    }
}

command! {
    /// Show everything known about a VM.
    #[argh(subcommand, name = "inspect", example = "{command_name} clone-1 --json")]
    pub(crate) struct Inspect {
        /// name of the VM
        #[argh(positional)]
        pub(crate) name: VmName,
    }
}

command! {
    /// Power a VM off. If the guest has not done so by the time limit (default 30s), kill the VMM.
    #[argh(subcommand, name = "stop", example = "{command_name} clone-1 --timeout 5s")]
    pub(crate) struct Stop {
        /// name of the VM
        #[argh(positional)]
        pub(crate) name: VmName,
        /// kill the VMM without asking the guest
        #[argh(switch)]
        pub(crate) force: bool,
    }
}

command! {
    /// Remove the logs and the state of a VM that has ended.
    #[argh(
        subcommand,
        name = "rm",
        example = "{command_name} clone-1\n{command_name} clone-1 --force"
    )]
    pub(crate) struct Rm {
        /// name of the VM
        #[argh(positional)]
        pub(crate) name: VmName,
        /// kill the VMM first if it runs, without asking the guest
        #[argh(switch)]
        pub(crate) force: bool,
    }
}

command! {
    /// Check whether this machine can run microVMs, and report what is missing.
    #[argh(subcommand, name = "doctor", example = "{command_name} --json")]
    pub(crate) struct Doctor {
    }
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not keep, drain or refuse"))
}
