//! Faults for tests: a step of a rebind fails, or an answer is lost. A build without debug
//! assertions has none.
//!
//! The setting `failpoints` (`GUEST_AGENT_FAILPOINTS`, `agent.failpoints=`) is a list with commas:
//!
//! | Entry | What happens, once |
//! |---|---|
//! | `connections`, `listener`, `clock`, `entropy`, `identity` | this step of a rebind fails |
//! | `cut:FRAME` | the connection is closed where it would have carried this frame |
//! | `mute:FRAME` | this frame and all after it on its connection are not sent |
//!
//! FRAME is `rebound`, `probed` or `quiesced`. An entry with `@N` after it happens the Nth time,
//! not the first. A snapshot carries the entries that have not happened yet.

use log::warn;
use shared::frame::{Decoder, FrameKind};

use crate::agent::{StepAction, StepFailure};

/// The faults that have not happened yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failpoints {
    faults: Vec<Pending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    fault: Fault,
    times_left: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Step(&'static str),
    Answer(FrameKind, Loss),
}

/// How an answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Its connection is closed.
    Cut,
    /// It is not sent.
    Mute,
}

const STEPS: [&str; 5] = ["connections", "listener", "clock", "entropy", "identity"];

const FRAMES: [(&str, FrameKind); 3] = [
    ("rebound", FrameKind::Rebound),
    ("probed", FrameKind::Probed),
    ("quiesced", FrameKind::Quiesced),
];

impl Failpoints {
    /// Parses the setting. `None` if it is invalid, and always in a release build.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if !cfg!(debug_assertions) {
            return None;
        }
        let faults = text.split(',').map(parse_one).collect::<Option<_>>()?;
        Some(Self { faults })
    }

    /// The failure of this step, if it is to fail.
    pub(super) fn take_step(&mut self, action: &StepAction) -> Option<StepFailure> {
        if !cfg!(debug_assertions) {
            return None;
        }
        let name = match action {
            StepAction::CloseConnections(_) => "connections",
            StepAction::RearmListener => "listener",
            StepAction::SetClock { .. } => "clock",
            StepAction::Reseed { .. } => "entropy",
            StepAction::SetIdentity(_) => "identity",
        };
        self.take(Fault::Step(name)).then(|| StepFailure {
            errno: None,
            text: format!("injected at failpoint {name}"),
        })
    }

    /// How one of the answers that are about to be sent is lost, if one is.
    pub(super) fn take_answer(&mut self, pieces: &[&[u8]]) -> Option<Loss> {
        if !cfg!(debug_assertions) || self.faults.is_empty() {
            return None;
        }
        let mut decoder = Decoder::new();
        pieces.iter().for_each(|piece| decoder.push(piece));
        while let Ok(Some(frame)) = decoder.poll_frame() {
            for loss in [Loss::Cut, Loss::Mute] {
                if self.take(Fault::Answer(frame.kind, loss)) {
                    return Some(loss);
                }
            }
        }
        None
    }

    fn take(&mut self, fault: Fault) -> bool {
        let mut has_fired = false;
        self.faults.retain_mut(|pending| {
            pending.times_left -= u32::from(pending.fault == fault);
            has_fired |= pending.times_left == 0;
            pending.times_left > 0
        });
        if has_fired {
            warn!("failpoint fired: {fault:?}");
        }
        has_fired
    }
}

fn parse_one(entry: &str) -> Option<Pending> {
    let (entry, times) = entry.split_once('@').unwrap_or((entry, "1"));
    let times_left = times.parse().ok().filter(|times| *times > 0)?;
    let fault = parse_fault(entry)?;
    Some(Pending { fault, times_left })
}

fn parse_fault(entry: &str) -> Option<Fault> {
    if let Some(step) = STEPS.into_iter().find(|step| *step == entry) {
        return Some(Fault::Step(step));
    }
    let (loss, name) = entry.split_once(':')?;
    let loss = match loss {
        "cut" => Loss::Cut,
        "mute" => Loss::Mute,
        _ => return None,
    };
    let (_, kind) = FRAMES.into_iter().find(|(frame, _)| *frame == name)?;
    Some(Fault::Answer(kind, loss))
}

#[cfg(test)]
mod tests {
    use shared::message::{Message, Ping};

    use super::*;

    #[test]
    fn each_fault_happens_once() {
        let mut points = Failpoints::parse("listener,cut:rebound,mute:probed").unwrap();
        assert_eq!(points.faults.len(), 3);
        let failure = points.take_step(&StepAction::RearmListener).unwrap();
        assert_eq!(failure.text, "injected at failpoint listener");
        assert!(points.take_step(&StepAction::RearmListener).is_none());
        let mut bytes = Message::Ping(Ping { nonce: 1 }).encode();
        assert_eq!(points.take_answer(&[&bytes]), None);
        shared::frame::encode_with(&mut bytes, FrameKind::Probed, |_| {});
        // An answer is found after other frames, and before its last byte.
        assert_eq!(points.take_answer(&[&bytes]), Some(Loss::Mute));
        assert_eq!(points.take_answer(&[&bytes]), None);
    }

    #[test]
    fn a_fault_can_come_later() {
        let mut points = Failpoints::parse("clock@2,listener").unwrap();
        let mut clock = || {
            points
                .take_step(&StepAction::SetClock { wall_ns: 0 })
                .is_some()
        };
        assert_eq!([clock(), clock(), clock()], [false, true, false]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "reboot",
            "clock@0",
            "clock@",
            "cut:",
            "cut:hello",
            "drop:probed",
            "clock,",
        ] {
            assert_eq!(Failpoints::parse(text), None, "{text}");
        }
    }
}
