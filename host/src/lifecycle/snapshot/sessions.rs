//! The guest's sessions that kept a snapshot from being taken, as text and for records.

use serde_json::{Value, json};
use shared::message::{SessionInfo, SessionState};

use crate::values::printable;

/// The sessions whose command has not ended.
pub(super) fn running(sessions: &[SessionInfo]) -> Vec<&SessionInfo> {
    let runs = |session: &&SessionInfo| match session.state {
        SessionState::Starting | SessionState::Running => true,
        SessionState::Exited => false,
    };
    sessions.iter().filter(runs).collect()
}

pub(super) fn to_value(session: &SessionInfo) -> Value {
    json!({ "session": session.session, "pid": session.pid, "command": session.command })
}

/// A heading and a line for each session, safe for a terminal; `None` without sessions.
pub(super) fn describe(sessions: &[&SessionInfo]) -> Option<String> {
    let line = |session: &&SessionInfo| {
        let command = printable(&session.command);
        format!(
            "session {} (pid {}): {command}\n",
            session.session, session.pid
        )
    };
    let lines: String = sessions.iter().map(line).collect();
    (!lines.is_empty()).then(|| format!("--- sessions that run in the guest\n{lines}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64, state: SessionState) -> SessionInfo {
        SessionInfo {
            session: number,
            id: None,
            state,
            pid: 7,
            age_ms: 0,
            generation: None,
            command: "make\u{1b}[2J test".to_owned(),
            tty: false,
            detached: false,
            attached: 1,
            restarts: 0,
            cgroup: true,
            stdout_end: 0,
            stderr_end: 0,
            exited: None,
        }
    }

    #[test]
    fn running_sessions_are_listed() {
        let sessions = [
            session(1, SessionState::Exited),
            session(2, SessionState::Running),
        ];
        let running = running(&sessions);
        let expected = "--- sessions that run in the guest\n\
                        session 2 (pid 7): make\\u{1b}[2J test\n";
        assert_eq!(describe(&running).as_deref(), Some(expected));
        assert_eq!(to_value(running[0])["session"], 2);
        assert_eq!(describe(&[]), None);
    }
}
