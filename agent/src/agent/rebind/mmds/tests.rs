//! The watch as a table, and with the rest of the agent.

use super::*;

const FIRST: Generation = Generation::from_bytes([0xa1; 16]);
const SECOND: Generation = Generation::from_bytes([0xb2; 16]);

fn answer(status: u16, body: &str) -> Input<'_> {
    let body = body.as_bytes();
    Input::Answer(Answer { status, body })
}

fn watch(state: State, token: Option<&str>) -> Mmds {
    Mmds {
        state,
        token: token.map(str::to_owned),
        epoch: Some(FIRST),
        received: b"rest of another".to_vec(),
    }
}

fn epoch_request(token: &str) -> Next {
    Next::Ask(format!(
        "GET /latest/host-tool/restore_epoch HTTP/1.1\r\nHost: 169.254.169.254\r\n\
         X-metadata-token: {token}\r\n\r\n"
    ))
}

fn token_request() -> Next {
    Next::Ask(TOKEN_REQUEST.to_owned())
}

const WAITING: State = State::Waiting { is_woken: false };
const WOKEN: State = State::Waiting { is_woken: true };
const OLD: State = State::Fetching {
    is_token_new: false,
};
const NEW: State = State::Fetching { is_token_new: true };

/// A state, the token, the input, and the state and action that follow.
type Row<'a> = (State, Option<&'static str>, Input<'a>, State, Next);

#[track_caller]
fn check(rows: &[Row<'_>]) {
    for (state, token, input, after, next) in rows {
        let mut mmds = watch(*state, *token);
        assert_eq!(mmds.handle(*input), *next, "{state:?} {input:?}");
        assert_eq!(mmds.state, *after, "{state:?} {input:?}");
        let is_kept = *next == Next::Nothing;
        assert_eq!(!mmds.received.is_empty(), is_kept, "{state:?} {input:?}");
    }
}

const fn soon() -> Next {
    Next::Wait(WAKE_DELAY, Outcome::None)
}

const fn later() -> Next {
    Next::Wait(INTERVAL, Outcome::None)
}

const fn failed() -> Next {
    Next::Wait(INTERVAL, Outcome::Failed)
}

#[test]
fn while_nothing_is_open() {
    let t = Some("t");
    check(&[
        (
            WAITING,
            None,
            Input::Timer,
            State::AskingToken,
            token_request(),
        ),
        (WAITING, t, Input::Timer, OLD, epoch_request("t")),
        (WAITING, None, Input::Wake, WOKEN, soon()),
        (WAITING, None, Input::Pause, WAITING, later()),
        (WAITING, None, answer(200, "t"), WAITING, Next::Nothing),
        (WAITING, None, Input::Failure, WAITING, Next::Nothing),
        (WOKEN, t, Input::Timer, OLD, epoch_request("t")),
        (WOKEN, None, Input::Wake, WOKEN, Next::Nothing),
        (WOKEN, None, Input::Pause, WAITING, later()),
        (State::Off, None, Input::Timer, State::Off, Next::Nothing),
        (State::Off, None, Input::Wake, State::Off, Next::Nothing),
        (State::Off, None, Input::Pause, State::Off, Next::Nothing),
        (State::Off, None, Input::Failure, State::Off, Next::Nothing),
        (
            State::Off,
            None,
            answer(200, "t"),
            State::Off,
            Next::Nothing,
        ),
    ]);
}

#[test]
fn while_a_token_is_asked_for() {
    let state = State::AskingToken;
    let long = "x".repeat(TOKEN_LEN_MAX + 1);
    check(&[
        (state, None, answer(200, "t"), NEW, epoch_request("t")),
        (state, None, answer(401, "t"), WAITING, failed()),
        (state, None, answer(404, ""), WAITING, failed()),
        (state, None, answer(200, ""), WAITING, failed()),
        (state, None, answer(200, "a\r\nb: c"), WAITING, failed()),
        (state, None, answer(200, "a b"), WAITING, failed()),
        (state, None, answer(200, &long), WAITING, failed()),
        (state, None, Input::Timer, WAITING, failed()),
        (state, None, Input::Failure, WAITING, failed()),
        (state, None, Input::Wake, WOKEN, soon()),
        (state, None, Input::Pause, WAITING, later()),
    ]);
}

#[test]
fn while_the_epoch_is_asked_for() {
    let (first, second) = (FIRST.to_string(), SECOND.to_string());
    let known = || Next::Wait(INTERVAL, Outcome::Known);
    let new = || Next::Wait(INTERVAL, Outcome::New(SECOND));
    let t = Some("t");
    check(&[
        (OLD, t, answer(200, &first), WAITING, known()),
        (NEW, t, answer(200, &second), WAITING, new()),
        (
            OLD,
            t,
            answer(401, "no"),
            State::AskingToken,
            token_request(),
        ),
        (NEW, t, answer(401, "no"), WAITING, failed()),
        (OLD, t, answer(200, "other"), WAITING, failed()),
        (OLD, t, answer(404, &second), WAITING, failed()),
        (OLD, t, Input::Timer, WAITING, failed()),
        (OLD, t, Input::Failure, WAITING, failed()),
        (OLD, t, Input::Wake, WOKEN, soon()),
        (NEW, t, Input::Pause, WAITING, later()),
    ]);
}

#[test]
fn a_refused_token_is_forgotten_and_the_first_epoch_is_not_news() {
    let mut mmds = watch(NEW, Some("t"));
    let _ = mmds.handle(answer(401, ""));
    assert_eq!(mmds.token, None);
    mmds.epoch = None;
    mmds.state = NEW;
    let next = mmds.handle(answer(200, &FIRST.to_string()));
    assert_eq!(next, Next::Wait(INTERVAL, Outcome::Known));
    assert_eq!(mmds.epoch, Some(FIRST));
}
