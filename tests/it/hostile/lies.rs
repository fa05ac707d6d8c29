//! Goal: absurd messages of a guest break nothing, and impossible ones are named. Method: payloads
//! that no agent would write, as bytes, in answer to real commands.

use std::io::Write;
use std::sync::mpsc::channel;

use serde_json::{Value, json};
use shared::frame::FrameKind;
use shared::message::{Chunk, Message};
use tests::process::{Finished, Running};

use super::floods::is_harmless;
use super::guest::{Ear, Guest, raw, say, started, stdout};

/// A text that would steer a terminal: an escape sequence, one in a single character, a line end, a
/// direction mark, and far too many bytes.
fn hostile_text() -> String {
    format!(
        "\u{1b}]0;owned\u{7}\u{9b}2J\r\n\u{202e}\u{7f}{}",
        "x".repeat(20_000)
    )
}

/// A session that starts properly and continues with these frames.
fn exec(frames: Vec<Vec<u8>>, args: &[&str]) -> Finished {
    let guest = Guest::asked(move |stream, _| {
        say(stream, &[started(), stdout(0, b"abc")]);
        let _ = stream.write_all(&frames.concat());
    });
    let args = [&["exec"], args, &["--timeout", "60s", "--", "true"]].concat();
    let ended = guest.tool(&args);
    is_harmless(&ended);
    ended
}

fn end(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = json!({
        "session": 1, "code": 7, "stdout_end": 3, "stderr_end": 0, "writers_alive": false,
        "timed_out": false, "rusage": { "user_us": 0, "system_us": 0, "rss_max_kib": 0 },
    });
    change(&mut value);
    raw(FrameKind::Exited, &value)
}

#[test]
fn an_end_that_cannot_be_is_no_end() {
    type Change = fn(&mut Value);
    let rows: [(Change, &str); 10] = [
        (
            |it| it["code"] = 256.into(),
            "\"code\" must be a whole number in range",
        ),
        (
            |it| it["code"] = json!(-1),
            "\"code\" must be a whole number in range",
        ),
        (
            |it| it["code"] = json!(1e300),
            "\"code\" must be a whole number in range",
        ),
        (
            |it| it["code"] = Value::Null,
            "\"code\" must be given, or else \"signal\"",
        ),
        (
            |it| it["signal"] = 9.into(),
            "\"code\" must be given, or else \"signal\"",
        ),
        (
            |it| it["stdout_end"] = 4.into(),
            "EXITED ends stdout at 4 where 3 was expected",
        ),
        (
            |it| it["stdout_end"] = u64::MAX.into(),
            "where 3 was expected",
        ),
        (|it| it["session"] = 2.into(), "EXITED of another session"),
        (
            |it| it["rusage"] = json!([]),
            "\"rusage\" must be an object",
        ),
        (
            |it| it["timed_out"] = "no".into(),
            "\"timed_out\" must be true or false",
        ),
    ];
    for (change, text) in rows {
        let ended = exec(vec![end(change)], &[]).exits(125).complains(text);
        assert_eq!(ended.stdout, b"abc");
    }
    for number in [0, 65, 255] {
        let signal = |it: &mut Value| {
            it["code"] = Value::Null;
            it["signal"] = number.into();
            it["core"] = false.into();
        };
        let ended = exec(vec![end(signal)], &[]).exits(125);
        ended.complains("\"signal\" must be a signal's number, 1 to 64");
    }
    let usage = |it: &mut Value| {
        let most = u64::MAX;
        it["rusage"] = json!({ "user_us": most, "system_us": most, "rss_max_kib": most });
    };
    exec(vec![end(usage)], &["-v"]).exits(7);
}

#[test]
fn nothing_behind_the_end_counts() {
    let other = end(|it| it["code"] = 9.into());
    let refused = raw(
        FrameKind::Fail,
        &json!({ "code": "internal", "text": "no" }),
    );
    for behind in [
        other,
        refused,
        stdout(3, b"more").encode(),
        vec![0xff; 100_000],
    ] {
        let ended = exec(vec![end(|_| {}), behind], &[]).exits(7);
        assert_eq!(ended.stdout, b"abc");
    }
}

#[test]
fn offsets_and_credit_that_cannot_be_are_named() {
    let most = u64::MAX;
    let gap = |from: u64, to: u64| {
        let value = json!({ "stream": "stdout", "from": from, "to": to });
        raw(FrameKind::Gap, &value)
    };
    let window = |received: u64, limit: u64| {
        let value = json!({ "received": received, "limit": limit, "closed": false });
        raw(FrameKind::Window, &value)
    };
    let chunk = |offset: u64| {
        let mut bytes = Vec::new();
        Chunk::encode(FrameKind::Stdout, offset, b"x", &mut bytes);
        bytes
    };
    let rows = [
        (vec![gap(2, 9)], "GAP of stdout at 2, not 3"),
        (vec![gap(4, 9)], "GAP of stdout at 4, not 3"),
        (vec![gap(3, 3)], "\"to\" must be more than \"from\""),
        (vec![gap(most, 3)], "\"to\" must be more than \"from\""),
        (
            vec![gap(3, most), chunk(most)],
            "where 18446744073709551615 was expected",
        ),
        (
            vec![chunk(most)],
            "STDOUT at offset 18446744073709551615 where 3 was expected",
        ),
        (
            vec![window(2, 1)],
            "\"limit\" must be no less than \"received\"",
        ),
    ];
    for (frames, text) in rows {
        let ended = exec(frames, &[]).exits(125).complains(text);
        assert_eq!(ended.stdout, b"abc");
    }
}

/// Credit for standard input from a guest that claims to have bytes which were never sent.
#[test]
fn input_is_not_believed_to_be_where_it_was_not_sent() {
    let open = |received: u64, limit: u64| match started() {
        Message::Started(mut started) => {
            started.stdin.is_closed = false;
            (started.stdin.received, started.stdin.limit) = (received, limit);
            Message::Started(started)
        }
        other => panic!("{other:?}"),
    };
    for (first, received, limit) in [(0, 1, 5), (5, 4, 9), (0, u64::MAX, u64::MAX)] {
        let guest = Guest::asked(move |stream, _| {
            let value = json!({ "received": received, "limit": limit, "closed": false });
            say(stream, &[open(first, first)]);
            let _ = stream.write_all(&raw(FrameKind::Window, &value));
        });
        let running = Running::start(&mut guest.command(&["exec", "-i", "--", "cat"]));
        let ended = running.finish_with_open_input().exits(125);
        let text = format!("standard input received up to {received}, where {first} to {first}");
        ended.complains(&text);
    }
    // Credit that shrinks is ignored, and unlimited credit does not make the client buffer
    // everything.
    let guest = Guest::asked(move |stream, _| {
        say(stream, &[open(u64::MAX - 3, u64::MAX)]);
        let mut ear = Ear::default();
        let Some(Message::Stdin(chunk)) = ear.hear(stream) else {
            return;
        };
        let ends_at = (chunk.offset, chunk.bytes.len());
        let code = u8::from(ends_at != (u64::MAX - 3, 3));
        let _ = stream.write_all(&end(|it| {
            it["code"] = code.into();
            it["stdout_end"] = 0.into();
        }));
    });
    let mut running = Running::start(&mut guest.command(&["exec", "-i", "--", "cat"]));
    running.say(b"abcdef");
    running.finish_with_open_input().exits(0);
}

#[test]
fn texts_of_a_guest_are_short_and_steer_no_terminal() {
    let fail = json!({ "code": "internal", "text": hostile_text(), "phase": hostile_text() });
    let fail = raw(FrameKind::Fail, &fail);
    let commands: [&[&str]; 8] = [
        &["probe"],
        &["ps"],
        &["kill", "1"],
        &["exec", "--", "true"],
        &["attach", "--no-stdin", "1"],
        &["wait", "1"],
        &["logs"],
        &["stress", "--total", "1"],
    ];
    for args in commands {
        let fail = fail.clone();
        let guest = Guest::asked(move |stream, _| drop(stream.write_all(&fail)));
        let ended = guest.tool(args).complains("\\u{1b}]0;owned");
        assert!(![0, 101, 134].contains(&ended.code()), "{args:?}: {ended}");
        is_harmless(&ended);
    }
    // Not UTF-8 at all.
    let payload = b"{\"code\":\"internal\",\"text\":\"\xff\x9b2J\"}";
    let bytes = tests::client::frame(FrameKind::Fail, payload);
    let guest = Guest::asked(move |stream, _| drop(stream.write_all(&bytes)));
    guest.tool(&["ps"]).exits(6).complains("not a JSON object");
}

fn session(number: u64, command: &str) -> Value {
    json!({
        "session": number, "id": null, "state": "running", "pid": u32::MAX, "age_ms": u64::MAX,
        "generation": null, "command": command, "tty": false, "detached": false,
        "attached": u32::MAX, "restarts": u32::MAX, "stdout_end": u64::MAX,
        "stderr_end": u64::MAX, "exited": null,
    })
}

fn info() -> Value {
    json!({
        "agent_version": hostile_text(), "generation": null, "boot_id": "\u{9b}2J",
        "state": "\u{9b}2J", "kernel": "\u{9b}2J", "uptime_ms": u64::MAX,
        "sessions": u32::MAX, "connections": u32::MAX, "fds": u32::MAX, "rss_kib": u64::MAX,
        "orphans_reaped": u64::MAX, "counters": { hostile_text(): u64::MAX },
    })
}

#[test]
fn a_list_shows_hostile_commands_in_a_few_characters() {
    let page = json!({ "sessions": [session(u64::MAX, &hostile_text())], "more": true });
    let page = raw(FrameKind::Sessions, &page);
    for args in [&["ps"][..], &["ps", "--json"]] {
        let page = page.clone();
        let guest = Guest::asked(move |stream, request| match request {
            Message::SessionsRequest(request) if request.after == 0 => {
                drop(stream.write_all(&page));
            }
            Message::InfoRequest => drop(stream.write_all(&raw(FrameKind::Info, &info()))),
            // No number follows the highest one.
            _ => drop(stream.write_all(&raw(
                FrameKind::Sessions,
                &json!({ "sessions": [], "more": true }),
            ))),
        });
        let ended = guest.tool(args).exits(0);
        let is_plain = |c: char| c == '\n' || !c.is_control();
        assert!(ended.out().chars().all(is_plain), "{ended}");
        // The table is short. JSON has the agent's texts and counters, which are only limited.
        let len_max = if args.len() == 1 { 2048 } else { 64 * 1024 };
        assert!(ended.stdout.len() < len_max, "{} bytes", ended.stdout.len());
        assert!(ended.out().contains("18446744073709551615"), "{ended}");
    }
}

/// The workload has printed less than its end says, and the guest answers every PING.
#[test]
fn output_that_never_comes_is_not_waited_for_without_end() {
    let guest = Guest::asked(|stream, request| {
        let mut ear = Ear::default();
        match request {
            Message::SessionsRequest(_) => {
                let page = json!({ "sessions": [session(1, "workload")], "more": false });
                let _ = stream.write_all(&raw(FrameKind::Sessions, &page));
            }
            Message::Attach(attach) => {
                let Message::Started(mut attached) = started() else {
                    return;
                };
                attached.stdout_from = attach.stdout_from.unwrap_or(0);
                say(stream, &[Message::Attached(attached)]);
                if attached.stdout_from == 0 {
                    say(stream, &[stdout(0, b"all\n")]);
                }
                while let Some(message) = ear.hear(stream) {
                    if let Message::Ping(ping) = message {
                        say(stream, &[Message::Pong(ping)]);
                    }
                }
            }
            _ => {}
        }
    });
    for args in [&["logs"][..], &["logs", "--timeout", "300ms"]] {
        let ended = guest.tool(args).exits(124);
        assert_eq!(ended.out(), "all\n", "{ended}");
        is_harmless(&ended);
    }
}

/// Session numbers that grow with every page, and pages that are as long as a frame can be.
#[test]
fn a_list_of_sessions_has_an_end() {
    /// After how many pages to measure the memory.
    const ANSWERS: u64 = 300;
    let (reached, is_reached) = channel();
    let (release, released) = channel::<()>();
    let guest = Guest::asked(move |stream, request| {
        let Message::SessionsRequest(request) = request else {
            return;
        };
        let (count, command) = match request.after {
            0..900 => (3, "x".repeat(20_000)),
            _ => (200, String::new()),
        };
        if request.after == ANSWERS * 3 {
            let _ = reached.send(());
            let _ = released.recv();
        }
        let numbers = request.after + 1..=request.after + count;
        let sessions: Vec<_> = numbers.map(|number| session(number, &command)).collect();
        let page = json!({ "sessions": sessions, "more": true });
        let _ = stream.write_all(&raw(FrameKind::Sessions, &page));
    });
    let running = Running::start(&mut guest.command(&["ps", "--timeout", "60s"]));
    is_reached.recv_timeout(tests::DEADLINE).unwrap();
    let resident = running.status("VmHWM");
    assert!(resident < 20 * 1024, "{resident} KiB for {ANSWERS} answers");
    release.send(()).unwrap();
    let ended = running.finish().exits(6);
    ended.complains("the guest lists more than 16384 sessions");
}
