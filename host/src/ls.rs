//! `host-tool ls` and `host-tool inspect`: what VMs there are, and what is known about one.

use serde_json::{Value, json};

use crate::cli::{Inspect, Ls};
use crate::error::Failure;
use crate::output::print;
use crate::supervisor::unix_ms;
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
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A duration in its largest unit.
fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..86_400 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
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
    fn ages_have_one_unit() {
        let ages = [
            0,
            59_999,
            60_000,
            3_599_999,
            3_600_000,
            86_400_000,
            864_000_000,
        ]
        .map(age);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "1d", "10d"]);
    }

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
