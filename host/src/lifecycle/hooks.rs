//! Runs the hooks of an image: programs in the guest, before a snapshot and after a restore.

use std::time::Duration;

use serde_json::Value;
use shared::message::{ExitStatus, FailCode, HookResult, HookStage, Hooks};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::answer::AskError;
use crate::guest::fault::fault_text;
use crate::guest::requests::Guest;
use crate::os::clock::to_ms;
use crate::os::random;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::values::printable;

/// The time limit of one hook without `--hook-timeout`.
pub(crate) const LIMIT_DEFAULT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// The time limit of each hook.
    pub(crate) limit: Duration,
    /// Whether a failed hook is only logged. Otherwise it fails the command.
    pub(crate) ignore: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limit: LIMIT_DEFAULT,
            ignore: false,
        }
    }
}

/// Has the guest run the hooks of a stage. Fails when one of them fails, unless that is ignored.
pub(crate) fn run(
    guest: &Guest<'_>,
    stage: HookStage,
    options: Options,
    record: &mut Record,
) -> Result<(), Failure> {
    record.begin(Phase::Hooks);
    let token = random::token().or_fail(Exit::Internal, || "cannot draw a token".to_owned())?;
    let asked = guest.hooks(Hooks {
        token,
        stage,
        limit_ms: to_ms(options.limit),
        keep_going: options.ignore,
    });
    record.note_asked(Phase::Hooks, &asked);
    let hooks = match asked {
        Ok(answer) => answer.content.hooks,
        Err(error) if is_unknown(&error) => {
            log::debug!("this agent does not support hooks");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if !hooks.is_empty() {
        let values: Vec<Value> = hooks.iter().map(HookResult::to_value).collect();
        record.set("hooks", values);
    }
    check(&hooks, options)
}

/// Whether the agent is older than hooks.
fn is_unknown(error: &AskError) -> bool {
    let refusal = error.refusal();
    refusal.is_some_and(|fail| matches!(fail.code, FailCode::Protocol | FailCode::Unsupported))
}

fn check(hooks: &[HookResult], options: Options) -> Result<(), Failure> {
    for hook in hooks.iter().filter(|hook| !hook.is_success()) {
        let text = describe(hook, options.limit);
        if !options.ignore {
            let text = format!("{text}; 'host-tool logs' or the guest's console has its output");
            return Err(Failure::new(Exit::Hooks, text));
        }
        log::warn!("{text}");
    }
    Ok(())
}

fn describe(hook: &HookResult, limit: Duration) -> String {
    let name = printable(&hook.name);
    if let (Some(fault), false) = (&hook.fault, hook.timed_out) {
        return format!("the hook {name} failed: {}", fault_text(fault));
    }
    let how = match (hook.timed_out, hook.status) {
        (true, _) => format!("did not end within {limit:?}"),
        (false, ExitStatus::Code(code)) => format!("ended with exit code {code}"),
        (false, ExitStatus::Signal { number, .. }) => format!("was ended by signal {number}"),
    };
    format!("the hook {name} {how}")
}

#[cfg(test)]
mod tests {
    use shared::message::{Fault, FaultPart};

    use super::*;

    fn hook(status: ExitStatus, timed_out: bool) -> HookResult {
        HookResult {
            name: "10-\u{1b}x".to_owned(),
            status,
            us: 1,
            timed_out,
            fault: None,
        }
    }

    #[test]
    fn the_first_failure_is_named_and_can_be_ignored() {
        let good = hook(ExitStatus::Code(0), false);
        let cut = HookResult {
            fault: Some(Fault {
                part: FaultPart::Stdout,
                offset: 3,
                errno: libc::EIO,
            }),
            ..good.clone()
        };
        let killed = ExitStatus::Signal {
            number: 9,
            core: false,
        };
        for (bad, text) in [
            (hook(ExitStatus::Code(3), false), "ended with exit code 3"),
            (hook(ExitStatus::Code(0), true), "did not end within 10s"),
            (hook(killed, false), "was ended by signal 9"),
            (cut, "failed: the guest lost standard output from byte 3 on"),
        ] {
            let hooks = [good.clone(), bad];
            let failure = check(&hooks, Options::default()).unwrap_err();
            assert_eq!(failure.exit(), Exit::Hooks);
            let expected = format!("the hook 10-\\u{{1b}}x {text}");
            assert!(failure.to_string().starts_with(&expected), "{failure}");
            let ignore = Options {
                ignore: true,
                ..Options::default()
            };
            check(&hooks, ignore).unwrap();
        }
        check(&[good], Options::default()).unwrap();
    }
}
