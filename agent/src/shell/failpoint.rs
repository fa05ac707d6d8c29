//! Faults for tests: a step of a rebind or a system call fails, or an answer is lost. A build
//! without debug assertions has none.
//!
//! The setting `failpoints` (`GUEST_AGENT_FAILPOINTS`, `agent.failpoints=`) is a list with commas:
//!
//! | Entry | What happens, once |
//! |---|---|
//! | `connections`, `listener`, `clock`, `entropy`, `identity` | this step of a rebind fails |
//! | `CALL:ERRNO` | this call fails with this error, and does nothing |
//! | `cut:FRAME` | the connection is closed where it would have carried this frame |
//! | `mute:FRAME` | this frame and all after it on its connection are not sent |
//!
//! FRAME is `rebound`, `probed` or `quiesced`. CALL is `signals` (reading the signal descriptor),
//! `wait` (for children), `input` (writing to a command), `output` (reading from one), `poll_input`
//! or `poll_output` (registering them). ERRNO is `eagain`, `echild`, `eio` or `enomem`. An entry
//! with `@N` after it happens the Nth time, not the first. A snapshot carries the entries that have
//! not happened yet.

use std::io;

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
    /// Its error number follows.
    Call(Call, i32),
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

/// A system call of the shell that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Signals,
    Wait,
    Input,
    Output,
    PollInput,
    PollOutput,
}

const CALLS: [(&str, Call); 6] = [
    ("signals", Call::Signals),
    ("wait", Call::Wait),
    ("input", Call::Input),
    ("output", Call::Output),
    ("poll_input", Call::PollInput),
    ("poll_output", Call::PollOutput),
];

const ERRNOS: [(&str, i32); 4] = [
    ("eagain", libc::EAGAIN),
    ("echild", libc::ECHILD),
    ("eio", libc::EIO),
    ("enomem", libc::ENOMEM),
];

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
        let is_it = |fault| fault == Fault::Step(name);
        self.take(is_it).map(|_| StepFailure {
            errno: None,
            text: format!("injected at failpoint {name}"),
        })
    }

    /// Fails if this call is to fail now.
    pub(super) fn check(&mut self, call: Call) -> io::Result<()> {
        if !cfg!(debug_assertions) || self.faults.is_empty() {
            return Ok(());
        }
        match self.take(|fault| matches!(fault, Fault::Call(it, _) if it == call)) {
            Some(Fault::Call(_, errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Step(_) | Fault::Answer(..)) | None => Ok(()),
        }
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
                let is_it = |fault| fault == Fault::Answer(frame.kind, loss);
                if self.take(is_it).is_some() {
                    return Some(loss);
                }
            }
        }
        None
    }

    /// One of these faults could happen now. Returns the one that does.
    fn take(&mut self, is_it: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut fired = None;
        self.faults.retain_mut(|pending| {
            pending.times_left -= u32::from(is_it(pending.fault));
            if pending.times_left == 0 {
                fired = Some(pending.fault);
            }
            pending.times_left > 0
        });
        if let Some(fault) = fired {
            warn!("failpoint fired: {fault:?}");
        }
        fired
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
    if let Some((_, call)) = CALLS.into_iter().find(|(call, _)| *call == loss) {
        let (_, errno) = ERRNOS.into_iter().find(|(errno, _)| *errno == name)?;
        return Some(Fault::Call(call, errno));
    }
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
    fn a_call_fails_with_its_error_when_its_turn_comes() {
        let mut points = Failpoints::parse("wait:eio,signals:eagain@2,wait:echild@3").unwrap();
        let mut errno = |call| points.check(call).err().and_then(|err| err.raw_os_error());
        assert_eq!(errno(Call::Input), None);
        let waits = [(); 4].map(|()| errno(Call::Wait));
        assert_eq!(waits, [Some(libc::EIO), None, Some(libc::ECHILD), None]);
        let reads = [(); 3].map(|()| errno(Call::Signals));
        assert_eq!(reads, [None, Some(libc::EAGAIN), None]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "signals",
            "signals:",
            "signals:eperm",
            "listener:eio",
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
