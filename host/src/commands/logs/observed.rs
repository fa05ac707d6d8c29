//! The workload's output in a VM of another program: what the guest still has, read as an observer
//! among others.

use std::time::{Duration, Instant};

use shared::message::{AttachMode, Exited};
use shared::session_client::SessionError;

use super::{CATCH_UP_TIMEOUT, NO_WORKLOAD, check_end, refusal, write_out};
use crate::cli::LogsCommand;
use crate::commands::target::Target;
use crate::error::Failure;
use crate::exit::Exit;
use crate::guest::fault::fault_text;
use crate::os::deadline::NO_LIMIT;
use crate::supervisor::follow::{End, Follower, Sink};
use crate::supervisor::workload::{Lengths, lengths};
use crate::vmdir::output_log::journal::{Journal, Step};
use crate::vmdir::output_log::record::Record;

/// Most bytes that are held back for `--tail` until the last lines are known. A guest keeps half of
/// that in its rings.
const HELD_LEN_MAX: usize = 1024 * 1024;

pub(super) fn run(command: &LogsCommand) -> Result<(), Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let guest = target.guest(target.deadline(CATCH_UP_TIMEOUT));
    let wanted = lengths(&guest).map_err(refusal)?;
    let wanted = wanted.ok_or_else(|| Failure::new(Exit::Guest, NO_WORKLOAD))?;
    let mut sink = Printer {
        journal: Journal::new(Record::empty(None), u64::MAX),
        held: command.tail.map(|tail| Held {
            bytes: Vec::new(),
            tail,
            until: wanted,
        }),
        deadline: target.end,
    };
    let wanted = (!command.follow).then_some(wanted);
    let end = loop {
        let before = *sink.journal.committed();
        let limit = if command.follow { NO_LIMIT } else { LULL_MAX };
        let until = sink.deadline.unwrap_or_else(|| Instant::now() + limit);
        let mut follower = Follower {
            endpoint: &target.endpoint,
            watch: target.watch(until),
            mode: AttachMode::Observe,
            sink: &mut sink,
            wanted,
        };
        let end = follower.run()?;
        let is_late = matches!(
            end,
            End::Failed(SessionError::Deadline(_) | SessionError::Unanswered)
        );
        let has_more = is_late && *sink.journal.committed() != before;
        if !has_more || sink.deadline.is_some() {
            break end;
        }
    };
    sink.release()?;
    check_end(end)
}

/// How long a guest may take to send the next bytes. A guest can announce more output than it has,
/// and keep the connection alive forever.
const LULL_MAX: Duration = CATCH_UP_TIMEOUT;

/// Prints to standard output.
#[derive(Debug)]
struct Printer {
    journal: Journal,
    /// With `--tail`, until the last lines of the existing output are known.
    held: Option<Held>,
    deadline: Option<Instant>,
}

/// Output of which only the last lines are printed.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    tail: u64,
    /// The guest's output when the command began.
    until: Lengths,
}

impl Printer {
    /// Prints the last lines of what was held back.
    fn release(&mut self) -> Result<(), Failure> {
        match self.held.take() {
            Some(held) => write_out(last_lines(&held.bytes, held.tail), self.deadline),
            None => Ok(()),
        }
    }
}

impl Sink for Printer {
    fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    fn commit(&mut self) -> Result<(), Failure> {
        for step in self.journal.poll_commit() {
            match (step, &mut self.held) {
                (Step::Append(bytes), Some(held)) => {
                    held.bytes.extend_from_slice(&bytes);
                    let surplus = held.bytes.len().saturating_sub(HELD_LEN_MAX);
                    held.bytes.drain(..surplus);
                }
                (Step::Append(bytes), None) => write_out(&bytes, self.deadline)?,
                (Step::Rotate | Step::Record(_), _) => {}
            }
        }
        self.journal.handle_committed();
        match &self.held {
            Some(held) if held.until.are_in(self.journal.committed()) => self.release(),
            Some(_) | None => Ok(()),
        }
    }

    fn handle_end(&mut self, exited: &Exited) -> Result<(), Failure> {
        if let Some(fault) = &exited.fault {
            log::warn!("the workload: {}", fault_text(fault));
        }
        log::info!("the workload ended: {}", exited.status.shell_code());
        Ok(())
    }

    /// The program that runs the VM decides about its turns.
    fn await_turn(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// The last `count` lines. An unterminated last line counts.
fn last_lines(bytes: &[u8], count: u64) -> &[u8] {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count == 0 {
        return &[];
    }
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let ends = body.iter().enumerate().rev();
    let mut ends = ends.filter(|(_, byte)| **byte == b'\n');
    ends.nth(count - 1)
        .map_or(bytes, |(index, _)| &bytes[index + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_the_end() {
        for (text, count, expected) in [
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\n", u64::MAX, "a\n"),
            ("\n\n", 1, "\n"),
            ("", 1, ""),
        ] {
            let found = last_lines(text.as_bytes(), count);
            assert_eq!(String::from_utf8_lossy(found), expected, "{text:?} {count}");
        }
    }
}
