//! Watches Firecracker's metadata service (MMDS) for another restore epoch. No I/O, no clock.
//!
//! ```text
//!           timer, no token                 a token
//!         ┌─────────────────▶ AskingToken ───────────┐
//! Waiting ┤                        ▲ 401, old token  ▼
//!    ▲    └─ timer, a token ───────┼────────────▶ Fetching
//!    │                             └─────────────────┤
//!    └── an epoch, any other answer, none in time ◀──┘
//! ```
//!
//! The service's second version wants a token, which belongs to the VMM process: after a restore it
//! answers 401, and the agent asks for a new one. Each question has a connection of its own, so
//! that no open connection can be left half dead by a restore.
//!
//! An epoch that differs from the last one is a wake-up and nothing more. It makes the agent rearm
//! its listener, as a transport reset does, and is counted. Generation and readiness follow from
//! REBIND and PROBE alone.
//!
//! Invariants:
//! - Without the setting there is no timer and no action, and with it none before the first REBIND:
//!   the host speaks first, and configures the network.
//! - One question is open at a time. It has a deadline, and its answer is kept up to
//!   [`ANSWER_LEN_MAX`](super::http::ANSWER_LEN_MAX).
//! - Nothing is open from QUIESCE or REBIND until REOPEN or REBOUND: the timer counts session time.

use std::time::{Duration, Instant};

use log::{debug, info};
use shared::id::Generation;

use super::http::{self, Answer};
use crate::agent::Agent;
use crate::agent::action::Action;
use crate::agent::timers::Timer;

/// Time between two questions for the epoch.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time from a transport reset or a rebind to the next question. Requests of the host come first
/// meanwhile, above all the proof of readiness.
const WAKE_DELAY: Duration = Duration::from_secs(2);

/// Time limit of one question.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a token. Firecracker's have about a hundred.
const TOKEN_LEN_MAX: usize = 512;

/// Asks for a token. Six hours are the longest life that the service gives one.
const TOKEN_REQUEST: &str = "PUT /latest/api/token HTTP/1.1\r\n\
                             Host: 169.254.169.254\r\n\
                             X-metadata-token-ttl-seconds: 21600\r\n\r\n";

/// Asks for the epoch. The token and two line ends follow.
const EPOCH_REQUEST: &str = "GET /latest/host-tool/restore_epoch HTTP/1.1\r\n\
                             Host: 169.254.169.254\r\n\
                             X-metadata-token: ";

/// The status for an unknown token.
const UNAUTHORIZED: u16 = 401;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum State {
    /// Not wanted, or before the first REBIND.
    #[default]
    Off,
    /// Nothing is open. The timer is set.
    Waiting {
        /// The timer is set to [`WAKE_DELAY`]; another wake-up does not move it.
        is_woken: bool,
    },
    AskingToken,
    Fetching {
        /// The token is new, so a further one would not help.
        is_token_new: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input<'a> {
    /// Time to ask, or the end of a question's time.
    Timer,
    /// The next question is due soon.
    Wake,
    /// The guest is about to be silent.
    Pause,
    Answer(Answer<'a>),
    /// The connection failed, or the answer is invalid.
    Failure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    /// Send this on a new connection.
    Ask(String),
    /// Close the open connection, if any, and ask again after this time.
    Wait(Duration, Outcome),
}

/// The result of asking for the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Not asked, or to be asked again.
    None,
    Failed,
    /// The same epoch as before, or the first one.
    Known,
    /// Another epoch than before.
    New(Generation),
}

#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Mmds {
    state: State,
    token: Option<String>,
    epoch: Option<Generation>,
    /// The part of the answer that has come.
    received: Vec<u8>,
}

impl Mmds {
    pub(crate) const fn is_asking(&self) -> bool {
        matches!(self.state, State::AskingToken | State::Fetching { .. })
    }

    fn handle(&mut self, input: Input<'_>) -> Next {
        let (state, next) = match (self.state, input) {
            (State::Off, _)
            | (State::Waiting { .. }, Input::Answer(_) | Input::Failure)
            | (State::Waiting { is_woken: true }, Input::Wake) => return Next::Nothing,
            (_, Input::Pause) => wait(Outcome::None),
            (State::Waiting { .. }, Input::Timer) => self.ask(false),
            (
                State::Waiting { is_woken: false } | State::AskingToken | State::Fetching { .. },
                Input::Wake,
            ) => {
                let state = State::Waiting { is_woken: true };
                (state, Next::Wait(WAKE_DELAY, Outcome::None))
            }
            (State::AskingToken | State::Fetching { .. }, Input::Timer | Input::Failure) => {
                wait(Outcome::Failed)
            }
            (State::AskingToken, Input::Answer(answer)) => match token_of(answer) {
                Some(token) => {
                    self.token = Some(token);
                    self.ask(true)
                }
                None => wait(Outcome::Failed),
            },
            (State::Fetching { is_token_new }, Input::Answer(answer)) => {
                self.check_epoch(answer, is_token_new)
            }
        };
        self.state = state;
        self.received.clear();
        next
    }

    /// Asks for the epoch, or first for a token if there is none.
    fn ask(&self, is_token_new: bool) -> (State, Next) {
        match &self.token {
            None => (State::AskingToken, Next::Ask(TOKEN_REQUEST.to_owned())),
            Some(token) => {
                let request = [EPOCH_REQUEST, token, "\r\n\r\n"];
                let state = State::Fetching { is_token_new };
                (state, Next::Ask(request.concat()))
            }
        }
    }

    fn check_epoch(&mut self, answer: Answer<'_>, is_token_new: bool) -> (State, Next) {
        if answer.status == UNAUTHORIZED {
            self.token = None;
            return match is_token_new {
                false => self.ask(false),
                true => wait(Outcome::Failed),
            };
        }
        let Some(epoch) = epoch_of(answer) else {
            return wait(Outcome::Failed);
        };
        let outcome = match self.epoch.replace(epoch) {
            Some(before) if before != epoch => Outcome::New(epoch),
            Some(_) | None => Outcome::Known,
        };
        wait(outcome)
    }
}

const fn wait(outcome: Outcome) -> (State, Next) {
    let state = State::Waiting { is_woken: false };
    (state, Next::Wait(INTERVAL, outcome))
}

/// A token is sent back in a header line, so it may not contain a line end.
fn token_of(answer: Answer<'_>) -> Option<String> {
    let is_token = answer.status == 200
        && (1..=TOKEN_LEN_MAX).contains(&answer.body.len())
        && answer.body.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(answer.body).ok()?;
    is_token.then(|| text.to_owned())
}

fn epoch_of(answer: Answer<'_>) -> Option<Generation> {
    let text = std::str::from_utf8(answer.body).ok()?;
    if answer.status != 200 {
        return None;
    }
    text.parse().ok()
}

impl Agent {
    /// The guest has a generation and a network. Starts the watch, if it is wanted.
    pub(crate) fn start_mmds(&mut self, now: Instant) {
        if self.settings.watches_mmds && self.mmds.state == State::Off {
            self.mmds.state = State::Waiting { is_woken: false };
        }
        self.wake_mmds(now);
    }

    pub(crate) fn wake_mmds(&mut self, now: Instant) {
        self.drive_mmds(Input::Wake, now);
    }

    /// Keeps everything closed while session time stands still.
    pub(crate) fn pause_mmds(&mut self, now: Instant) {
        self.drive_mmds(Input::Pause, now);
    }

    pub(crate) fn handle_mmds_timer(&mut self, now: Instant) {
        self.drive_mmds(Input::Timer, now);
    }

    /// Follows [`Action::AskMmds`].
    pub fn handle_mmds_bytes(&mut self, bytes: &[u8], now: Instant) {
        if !self.mmds.is_asking() {
            // Of a connection that is to be closed.
            return;
        }
        let mut received = std::mem::take(&mut self.mmds.received);
        // One byte more than the limit tells that there are too many.
        let room = http::ANSWER_LEN_MAX + 1 - received.len();
        received.extend_from_slice(&bytes[..bytes.len().min(room)]);
        match http::parse(&received) {
            Ok(None) => self.mmds.received = received,
            Ok(Some(answer)) => self.drive_mmds(Input::Answer(answer), now),
            Err(no_answer) => {
                debug!("metadata service: {}", no_answer.as_str());
                self.handle_mmds_failed(now);
            }
        }
    }

    /// The connection to the metadata service failed or has ended. Follows [`Action::AskMmds`].
    pub fn handle_mmds_failed(&mut self, now: Instant) {
        self.drive_mmds(Input::Failure, now);
    }

    fn drive_mmds(&mut self, input: Input<'_>, now: Instant) {
        match self.mmds.handle(input) {
            Next::Nothing => {}
            Next::Ask(request) => {
                self.actions.push_back(Action::AskMmds(request));
                self.timers.set_after(Timer::Mmds, TIMEOUT, now);
            }
            Next::Wait(delay, outcome) => {
                self.actions.push_back(Action::CloseMmds);
                self.timers.set_after(Timer::Mmds, delay, now);
                self.note_epoch(outcome);
            }
        }
    }

    fn note_epoch(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::None => {}
            Outcome::Failed => self.counters.mmds_failures += 1,
            Outcome::Known => self.counters.mmds_reads += 1,
            Outcome::New(epoch) => {
                self.counters.mmds_reads += 1;
                self.counters.mmds_epochs += 1;
                info!("restore epoch {epoch} in the metadata");
                self.wake_listener();
            }
        }
    }
}

#[cfg(test)]
mod tests;
