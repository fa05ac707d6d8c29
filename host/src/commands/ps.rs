//! `host-tool ps`: lists the sessions of a guest; `--json` adds the agent's own information.

use std::time::Duration;

use serde_json::{Value, json};
use shared::message::{SessionInfo, SessionState};

use crate::cli::PsCommand;
use crate::commands::target::Target;
use crate::error::Failure;
use crate::exit::{Exit, Table};
use crate::guest::requests::Guest;
use crate::report::output::print;
use crate::report::table::{age, columns};
use crate::values::printable;

/// Time limit without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Most sessions that a guest may list. An agent runs at most 1024 and keeps 256 results.
const SESSIONS_MAX: usize = 16_384;

pub(crate) fn run(command: &PsCommand) -> Result<(), Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let guest = target.guest(target.deadline(TIMEOUT_DEFAULT));
    let mut sessions = all(&guest)?;
    if !command.all {
        sessions.retain(|session| session.state != SessionState::Exited);
    }
    if command.json {
        let sessions: Vec<Value> = sessions.iter().map(SessionInfo::to_value).collect();
        let guest = guest.info()?.to_value();
        return print(&json!({ "guest": guest, "sessions": sessions }).to_string());
    }
    print(table(&sessions).trim_end())
}

/// Fetches all sessions, page by page.
fn all(guest: &Guest<'_>) -> Result<Vec<SessionInfo>, Failure> {
    let mut sessions: Vec<SessionInfo> = Vec::new();
    loop {
        let page = guest.sessions(sessions.last().map_or(0, |session| session.session))?;
        let is_last = !page.more || page.sessions.is_empty();
        sessions.extend(page.sessions);
        if sessions.len() > SESSIONS_MAX {
            let text =
                format!("the guest lists more than {SESSIONS_MAX} sessions; its agent is broken");
            return Err(Failure::new(Exit::Guest, text));
        }
        if is_last {
            return Ok(sessions);
        }
    }
}

/// One line for each session. The guest's texts are untrusted, so they are escaped.
fn table(sessions: &[SessionInfo]) -> String {
    let heading = [
        "SESSION",
        "ID",
        "STATE",
        "AGE",
        "GENERATION",
        "OUT",
        "ERR",
        "COMMAND",
    ];
    let mut lines = vec![heading.map(str::to_owned)];
    for session in sessions {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        lines.push([
            session.session.to_string(),
            or_dash(session.id.map(|id| id.to_string())),
            state(session),
            age(session.age_ms),
            or_dash(session.generation.map(|generation| generation.to_string())),
            session.stdout_end.to_string(),
            session.stderr_end.to_string(),
            printable(&session.command),
        ]);
    }
    columns(&lines)
}

/// The session's state, with its exit code if it has ended: the one that `wait` gives.
fn state(session: &SessionInfo) -> String {
    match &session.exited {
        Some(exited) if session.state == SessionState::Exited => {
            let code = match exited.fault {
                Some(_) => Table::Exec.code(Exit::Guest),
                None => exited.status.shell_code(),
            };
            format!("exited({code})")
        }
        Some(_) | None => session.state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use shared::message::{ExitStatus, Exited, Fault, FaultPart, ResourceUsage};

    use super::*;

    fn session(number: u64) -> SessionInfo {
        SessionInfo {
            session: number,
            id: None,
            state: SessionState::Running,
            pid: 2,
            age_ms: 61_000,
            generation: None,
            command: "echo \x1b[31m'x'".to_owned(),
            tty: false,
            detached: false,
            attached: 1,
            restarts: 0,
            cgroup: true,
            stdout_end: 10,
            stderr_end: 0,
            exited: None,
        }
    }

    #[test]
    fn the_table_is_aligned_and_harmless() {
        let mut ended = SessionInfo {
            state: SessionState::Exited,
            exited: Some(Exited {
                session: 12,
                status: ExitStatus::Code(3),
                stdout_end: 10,
                stderr_end: 0,
                writers_alive: false,
                timed_out: false,
                fault: None,
                usage: ResourceUsage::default(),
            }),
            ..session(12)
        };
        assert_eq!(
            table(&[session(1), ended.clone()]),
            "SESSION  ID  STATE      AGE  GENERATION  OUT  ERR  COMMAND\n\
             1        -   running    1m   -           10   0    echo \\u{1b}[31m'x'\n\
             12       -   exited(3)  1m   -           10   0    echo \\u{1b}[31m'x'\n"
        );
        if let Some(exited) = &mut ended.exited {
            exited.fault = Some(Fault {
                part: FaultPart::Stdin,
                offset: 0,
                errno: 5,
            });
        }
        assert_eq!(state(&ended), "exited(125)", "what was cut has no code");
    }
}
