//! The options that `boot` and `restore` share: their checks, and the part of the plan that follows
//! from them.

use std::time::{Duration, Instant};

use shared::message::{Identity, Network};

use crate::cli::MachineArguments;
use crate::error::Failure;
use crate::lifecycle::plan::{Plan, check_cid};
use crate::report::record::Record;
use crate::report::reports::Reports;
use crate::vmdir::health::HealthCheck;
use crate::vmm::metadata::{Metadata, require_service};
use crate::vmm::network;

/// The options of a command that starts a VM, after every check that needs no file.
pub(super) struct Machine<'a> {
    arguments: MachineArguments<'a>,
    /// When the whole command must be done.
    pub(super) deadline: Instant,
    pub(super) network: Network,
    /// The vsock context id, if the user gave one.
    pub(super) cid: Option<u32>,
    health: Option<HealthCheck>,
}

impl<'a> Machine<'a> {
    /// Checks the options of `command`. Tells `record` which reports to write.
    pub(super) fn check(
        command: &str,
        arguments: MachineArguments<'a>,
        timeout_default: Duration,
        record: &mut Record,
    ) -> Result<Self, Failure> {
        let timeout = arguments.common.timeout.unwrap_or(timeout_default);
        let deadline = Instant::now() + timeout;
        let reports = Reports::new(command, arguments.trace, arguments.timeline)?;
        record.report_to(reports);
        if arguments.wait_ready && arguments.no_wait {
            let text = "--wait-ready and --no-wait cannot be used together";
            return Err(Failure::usage(text));
        }
        if let Some(name) = arguments.hostname {
            check_hostname(name)?;
        }
        Ok(Self {
            arguments,
            deadline,
            network: network::settings(
                arguments.net_address,
                arguments.net_mac,
                arguments.net_gateway,
            )?,
            cid: arguments.vsock_cid.map(check_cid).transpose()?,
            health: arguments.health.check()?,
        })
    }

    /// Reads the file of `--mmds`: the content of the guest's metadata service.
    pub(super) fn metadata(&self) -> Result<Option<Metadata>, Failure> {
        self.arguments.mmds.map(Metadata::read).transpose()
    }

    /// Adds the options to `plan`. Fails if its machine lacks a device that they need.
    pub(super) fn plan(
        self,
        plan: Plan<'a>,
        metadata: Option<Metadata>,
    ) -> Result<Plan<'a>, Failure> {
        network::require_nic(&self.network, &plan.machine)?;
        require_service(metadata.as_ref(), &plan.machine, plan.binary.kind)?;
        Ok(Plan {
            name: self.arguments.name,
            state_dir: self.arguments.common.state_dir,
            json: self.arguments.common.json,
            hostname: self.arguments.hostname,
            network: self.network,
            metadata,
            no_wait: self.arguments.no_wait,
            foreground: self.arguments.foreground,
            keep_on_failure: self.arguments.keep_on_failure,
            health: self.health,
            ..plan
        })
    }
}

pub(super) fn check_hostname(name: &str) -> Result<(), Failure> {
    if Identity::is_hostname(name) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "'{}' is not a host name: at most 64 letters, digits, '-' or '.'",
        name.escape_debug()
    )))
}
