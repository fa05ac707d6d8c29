//! `host-tool ls` and `host-tool inspect`: lists all VMs, and shows one in full.

use std::os::fd::OwnedFd;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli::{Inspect, Ls};
use crate::error::Failure;
use crate::os::clock::unix_ms;
use crate::os::deadline::Watch;
use crate::report::output::print;
use crate::report::table::{age, columns};
use crate::vmdir::health::{Health, HealthCheck};
use crate::vmdir::state::{ExitRecord, State, WorkloadEnd};
use crate::vmdir::{Found, StateDir, VmDir, VmDirError, VmStatus};

pub(crate) fn list(command: &Ls) -> Result<(), Failure> {
    let state_dir = StateDir::existing(command.state_dir.as_deref())?;
    let rows: Vec<Row> = state_dir.vms()?.into_iter().filter_map(Row::of).collect();
    if command.json {
        let vms: Vec<Value> = rows.iter().map(Row::to_value).collect();
        return print(&json!({ "vms": vms }).to_string());
    }
    print(table(&rows).trim_end())
}

/// One line of the list.
#[derive(Debug)]
struct Row {
    name: String,
    status: String,
    state: Option<State>,
    health: Option<Health>,
    /// Whether the supervisor lives and will record the VMM's end; `None` without a VMM.
    is_supervised: Option<bool>,
}

impl Row {
    /// Lists an unreadable VM, too, and logs the reason. A directory that host-tool did not make is
    /// not a VM.
    fn of(found: Found) -> Option<Self> {
        let read = found.dir.and_then(|dir| {
            let (vm_status, state) = dir.status()?;
            Ok((dir, vm_status, state))
        });
        let name = found.name.to_string();
        match read {
            Ok((dir, vm_status, state)) => Some(Self {
                name,
                status: status(vm_status, state.as_ref()),
                health: health(&dir, vm_status),
                is_supervised: is_supervised(&dir, vm_status, state.as_ref()),
                state,
            }),
            // It was removed since the names were read.
            Err(VmDirError::NoSuchVm { .. }) => None,
            Err(error) => {
                let is_vm = !matches!(error, VmDirError::NotMarked { .. });
                log::warn!("{}", Failure::from(error));
                is_vm.then(|| Self {
                    name,
                    status: "unreadable".to_owned(),
                    state: None,
                    health: None,
                    is_supervised: None,
                })
            }
        }
    }

    fn to_value(&self) -> Value {
        let state = self.state.as_ref();
        json!({
            "name": self.name,
            "status": self.status,
            "vmm": state.map(|state| state.vmm_kind.to_string()),
            "pid": state.map(|state| state.process.pid),
            "generation": generation(state),
            "created_ms": state.map(|state| state.created_ms),
            "health": self.health.as_ref().map(|health| health.status.as_str()),
            "supervised": self.is_supervised,
        })
    }
}

/// The health of a VM that has a check. Its supervisor, which records the end of the checks, may
/// have been killed: so the VM's end counts here.
fn health(dir: &VmDir, vm_status: VmStatus) -> Option<Health> {
    let mut health = Health::read(dir).unwrap_or_else(|error| {
        log::warn!("{}", Failure::from(error));
        None
    })?;
    match vm_status {
        VmStatus::Exited | VmStatus::Dead => health.handle_end(),
        VmStatus::Starting | VmStatus::Running => {}
    }
    Some(health)
}

/// Whether the supervisor of a running VM lives. Warns about what is lost without it.
fn is_supervised(dir: &VmDir, vm_status: VmStatus, state: Option<&State>) -> Option<bool> {
    let state = state.filter(|_| vm_status == VmStatus::Running)?;
    let now = Watch::until(Instant::now());
    // A zombie does not supervise.
    let is_alive = |pidfd: &OwnedFd| now.readable(pidfd).is_err();
    let is_alive = matches!(state.supervisor.open(), Ok(Some(pidfd)) if is_alive(&pidfd));
    if !is_alive {
        let name = dir.name();
        log::warn!(
            "the supervisor of '{name}' was killed: the VM runs on without health checks, and \
             its end will not be recorded; 'host-tool stop {name}' stops it"
        );
    }
    Some(is_alive)
}

/// The VM's status as `ls` shows it.
fn status(vm_status: VmStatus, state: Option<&State>) -> String {
    let stage = state.map_or("starting", |state| state.stage.as_str());
    match vm_status {
        VmStatus::Running => stage,
        VmStatus::Starting => "starting",
        VmStatus::Exited => "exited",
        VmStatus::Dead => "dead",
    }
    .to_owned()
}

fn generation(state: Option<&State>) -> Option<String> {
    state
        .and_then(|state| state.generation)
        .map(|generation| generation.to_string())
}

fn table(rows: &[Row]) -> String {
    // Most VMs have no health check: omit a column of dashes.
    let has_health = rows.iter().any(|row| row.health.is_some());
    let head = [
        "NAME",
        "STATUS",
        "HEALTH",
        "VMM",
        "PID",
        "AGE",
        "GENERATION",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    let now = unix_ms();
    for row in rows {
        let state = row.state.as_ref();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let health = row.health.as_ref();
        lines.push([
            row.name.clone(),
            row.status.clone(),
            or_dash(health.map(|health| health.status.as_str().to_owned())),
            or_dash(state.map(|state| state.vmm_kind.to_string())),
            or_dash(state.map(|state| state.process.pid.to_string())),
            or_dash(state.map(|state| age(now.saturating_sub(state.created_ms)))),
            or_dash(generation(state)),
        ]);
    }
    if has_health {
        return columns(&lines);
    }
    let without = |[name, status, _, vmm, pid, age, generation]: [String; 7]| {
        [name, status, vmm, pid, age, generation]
    };
    columns(&lines.into_iter().map(without).collect::<Vec<_>>())
}

pub(crate) fn inspect(command: &Inspect) -> Result<(), Failure> {
    let dir = StateDir::existing(command.state_dir.as_deref())?.vm(&command.name)?;
    let (vm_status, state) = dir.status()?;
    let value = json!({
        "name": dir.name().as_str(),
        "status": status(vm_status, state.as_ref()),
        "dir": crate::os::json::os_to_value(dir.path()),
        "state": state.as_ref().map(State::to_value),
        "exit": dir.read_exit()?.map(ExitRecord::to_value),
        "workload_exit": dir.read_workload_end()?.map(WorkloadEnd::to_value),
        "supervised": is_supervised(&dir, vm_status, state.as_ref()),
        "health": health(&dir, vm_status).map(|health| health.to_value()),
        "health_check": HealthCheck::read(&dir)?.map(|check| check.to_value()),
    });
    if command.json {
        return print(&value.to_string());
    }
    print(&format!("{value:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_columns() {
        let row = |name: &str, status: &str| Row {
            name: name.to_owned(),
            status: status.to_owned(),
            state: None,
            health: None,
            is_supervised: None,
        };
        let text = table(&[row("a-long-name", "dead"), row("b", "unreadable")]);
        assert_eq!(
            text,
            "NAME         STATUS      VMM  PID  AGE  GENERATION\n\
             a-long-name  dead        -    -    -    -\n\
             b            unreadable  -    -    -    -\n"
        );
        let checked = Row {
            health: Some(Health::new()),
            ..row("c", "ready")
        };
        let text = table(&[row("a", "dead"), checked]);
        assert_eq!(
            text,
            "NAME  STATUS  HEALTH    VMM  PID  AGE  GENERATION\n\
             a     dead    -         -    -    -    -\n\
             c     ready   starting  -    -    -    -\n"
        );
    }
}
