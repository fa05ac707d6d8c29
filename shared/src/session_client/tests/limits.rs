//! The end of a client's time, and how long it waits for a guest that ends the command then.

use super::*;

const GRACE: Duration = Duration::from_secs(10);

/// A client whose time ends after `end`, and whose guest may take longer to end the command.
fn limited(end: Duration) -> Script {
    let mut request = exec();
    if let Request::Exec { exec, .. } = &mut request {
        exec.timeout_ms = Some(u64::try_from(end.as_millis()).unwrap());
    }
    let script = Script::until(request, Some(end));
    Script {
        client: script.client.with_end_grace(GRACE),
        ..script
    }
}

/// Waits for the client to give up, with a guest that answers PINGs for `alive_ms`; `None` answers
/// none. Returns how long that took.
#[track_caller]
fn give_up(script: &mut Script, alive_ms: Option<u64>) -> Duration {
    let begun_at = script.now;
    while script.client.poll(script.now) != Want::Finished {
        script.wait();
        let took = script.now - begun_at;
        assert!(took <= Duration::from_secs(60), "it never ends");
        let is_alive = alive_ms.is_some_and(|alive_ms| took <= Duration::from_millis(alive_ms));
        for message in script.hear() {
            if let Message::Ping(ping) = message
                && is_alive
            {
                script.say(&[Message::Pong(ping)]);
            }
        }
    }
    script.now - begun_at
}

/// The time limit is the end for a guest that does not answer. One that does gets the time to end
/// the command, as long as it answers.
#[test]
fn only_a_guest_that_answers_is_waited_for_after_the_end() {
    for (end_ms, alive_ms, took_ms) in [
        // Silent from the start.
        (1, None, 1),
        (300, None, 300),
        (5_000, None, 5_000),
        // The PING of a quiet connection is not answered.
        (15_000, None, 15_000),
        // It answers, and never ends the command.
        (300, Some(u64::MAX), 10_300),
        (5_000, Some(u64::MAX), 15_000),
        (15_000, Some(u64::MAX), 25_000),
        // It falls silent just before the end, or after it.
        (5_000, Some(4_500), 6_000),
        (5_000, Some(8_500), 10_000),
    ] {
        let mut script = limited(Duration::from_millis(end_ms));
        script.connect();
        script.say(&[hello(), started(true, 0)]);
        let took = give_up(&mut script, alive_ms);
        let case = (end_ms, alive_ms);
        assert_eq!(took, Duration::from_millis(took_ms), "{case:?}");
        script.fails(
            "the command did not end in time; the command was started; how it ended is unknown",
        );
    }
}

/// Output that nobody takes keeps the client from reading, so it cannot tell whether the guest
/// lives.
#[test]
fn output_that_is_not_taken_does_not_prolong_the_end() {
    let end = Duration::from_secs(5);
    let mut script = limited(end);
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    let piece = vec![0; 60_000];
    for number in 0..9 {
        script.say(&[stdout(number * 60_000, &piece)]);
    }
    assert!(!script.client.wants_read());
    assert_eq!(give_up(&mut script, None), end);

    let mut script = limited(end);
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    script.now += end;
    script.say(&[stdout(0, b"x"), exited(1, 0)]);
    assert_eq!(give_up(&mut script, None), SIGN_MAX);
    script.fails("the command ended (7), but its output was not taken in time");
}

/// The command's own time limit ends with the client's, however late the guest hears of it.
#[test]
fn the_time_to_reach_the_guest_is_part_of_the_limit() {
    let mut script = limited(Duration::from_secs(5));
    for left_ms in [4_500, 4_000] {
        script.connect();
        script.now += Duration::from_millis(500);
        script.say(&[hello()]);
        let [Message::Exec(exec)] = &script.asked[..] else {
            panic!("{:?}", script.asked)
        };
        assert_eq!(exec.timeout_ms, Some(left_ms));
        script.say(&[fail(FailCode::Refusing)]);
    }
}
