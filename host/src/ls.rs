//! `host-tool ls` and `host-tool inspect`: what VMs there are, and what is known about one.

use serde_json::{Value, json};

use crate::cli::{Inspect, Ls};
use crate::error::Failure;
use crate::output::print;
use crate::supervisor::unix_ms;
use crate::table::{age, columns};
use crate::vmdir::state::{ExitRecord, State, WorkloadEnd};
use crate::vmdir::{Life, StateDir, VmDir};

/// Lists the VMs.
pub fn list(command: &Ls) -> Result<(), Failure> {
    let state_dir = StateDir::open(command.state_dir.as_deref())?;
    let rows: Vec<Row> = state_dir.vms()?.iter().map(Row::of).collect();
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
}

impl Row {
    /// A VM that cannot be looked at is listed all the same: with why.
    fn of(dir: &VmDir) -> Self {
        let name = dir.name().to_string();
        match dir.life() {
            Ok((life, state)) => Self {
                name,
                status: status(life, state.as_ref()),
                state,
            },
            Err(error) => {
                log::warn!("{}", Failure::from(error));
                Self {
                    name,
                    status: "unreadable".to_owned(),
                    state: None,
                }
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
        })
    }
}

/// One word for how a VM is.
fn status(life: Life, state: Option<&State>) -> String {
    let stage = state.map_or("starting", |state| state.stage.as_str());
    match life {
        Life::Running => stage,
        Life::Starting => "starting",
        Life::Exited => "exited",
        Life::Dead => "dead",
    }
    .to_owned()
}

fn generation(state: Option<&State>) -> Option<String> {
    state
        .and_then(|state| state.generation)
        .map(|generation| generation.to_string())
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![["NAME", "STATUS", "VMM", "PID", "AGE", "GENERATION"].map(str::to_owned)];
    let now = unix_ms();
    for row in rows {
        let state = row.state.as_ref();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        lines.push([
            row.name.clone(),
            row.status.clone(),
            or_dash(state.map(|state| state.vmm_kind.to_string())),
            or_dash(state.map(|state| state.process.pid.to_string())),
            or_dash(state.map(|state| age(now.saturating_sub(state.created_ms)))),
            or_dash(generation(state)),
        ]);
    }
    columns(&lines)
}

/// Shows one VM.
pub fn inspect(command: &Inspect) -> Result<(), Failure> {
    let dir = StateDir::open(command.state_dir.as_deref())?.vm(&command.name)?;
    let (life, state) = dir.life()?;
    let value = json!({
        "name": dir.name().as_str(),
        "status": status(life, state.as_ref()),
        "dir": crate::json::os_to_value(dir.path()),
        "state": state.as_ref().map(State::to_value),
        "exit": dir.read_exit()?.map(ExitRecord::to_value),
        "workload_exit": dir.read_workload_end()?.map(WorkloadEnd::to_value),
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
        };
        let text = table(&[row("a-long-name", "dead"), row("b", "unreadable")]);
        assert_eq!(
            text,
            "NAME         STATUS      VMM  PID  AGE  GENERATION\n\
             a-long-name  dead        -    -    -    -\n\
             b            unreadable  -    -    -    -\n"
        );
    }
}
