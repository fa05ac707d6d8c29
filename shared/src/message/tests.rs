//! Goal: every message survives the wire, and every other payload is refused with an error that
//! names the field. Method: one example of each message, and changed copies of its bytes.

use std::num::NonZeroU64;

use serde_json::{Value, json};

use super::*;
use crate::frame::Decoder;
use crate::id::{ExecId, Generation, Instance, Nonce};
use crate::limits::{COMMAND_TEXT_LEN_MAX, EXEC_BYTES_MAX, EXEC_STRINGS_MAX, TEXT_LEN_MAX};
use crate::version::SUPPORTED;

fn generation(byte: u8) -> Generation {
    Generation::from_bytes([byte; 16])
}

fn string(text: &[u8]) -> ByteString {
    ByteString::new(text).unwrap()
}

fn exec() -> Exec {
    Exec {
        id: ExecId::from_bytes([4; 16]),
        generation: Some(generation(1)),
        origin: Some(Box::new(Origin {
            instance: Instance::from_bytes([5; 16]),
            generation: Some(generation(1)),
            sessions_begun: u64::MAX,
        })),
        argv: vec![
            string(b"printf"),
            string(b"\xff\"\\\n"),
            string("ü".as_bytes()),
            string(b""),
        ],
        env: vec![string(b"A=1"), string(b"B=\x80")],
        cwd: Some(string(b"/tmp/\xfe")),
        user: Some(string(b"1000:\xff")),
        tty: Some(TtySize { rows: 24, cols: 80 }),
        stdin: true,
        detached: true,
        output: OutputPolicy::DropOldest,
        timeout_ms: Some(1),
        keep_ms: Some(u64::MAX),
        pids_max: NonZeroU64::new(1),
        memory_max: NonZeroU64::new(u64::MAX),
        stdout_from: 3,
        stderr_from: 4,
    }
}

fn rebind() -> Rebind {
    Rebind {
        generation: generation(1),
        cause: Cause::Restore,
        parent: Some(generation(2)),
        wall_clock_ns: 1_800_000_000_123_456_789,
        entropy: Some([0xab; 32]),
        identity: Identity {
            hostname: Some("clone-1".to_owned()),
            machine_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
            network: Network {
                interface: Some("eth0".to_owned()),
                address: "10.0.0.2/24".parse().ok(),
                mac: "02:00:00:00:00:02".parse().ok(),
                gateway: "10.0.0.1".parse().ok(),
            },
        },
        sessions: InheritedSessions::Keep,
        attempt: 3,
    }
}

fn guest_messages() -> Vec<Message> {
    [
        control_messages(),
        session_messages(),
        checkpoint_messages(),
    ]
    .concat()
}

fn guest_hello() -> Message {
    Message::Hello(Hello {
        protocol: SUPPORTED,
        role: Role::Guest,
        version: "0.1.0".to_owned(),
        boot_id: Some("b".to_owned()),
        generation: Some(generation(1)),
        instance: Some(Instance::from_bytes([7; 16])),
        sessions_begun: 3,
    })
}

fn control_messages() -> Vec<Message> {
    let token = Token::from_bytes([9; 16]);
    let us = 12;
    let step = |name, result| Step { name, us, result };
    vec![
        guest_hello(),
        Message::Fail(Fail {
            code: FailCode::NotFound,
            phase: Some("spawn".to_owned()),
            errno: Some(2),
            text: "cannot run \u{1b}[31m".to_owned(),
        }),
        Message::Pong(Ping { nonce: u64::MAX }),
        Message::Ok,
        Message::Progress(Progress {
            step: "clock".to_owned(),
        }),
        Message::Rebound(Rebound {
            generation: generation(1),
            steps: StepName::ALL
                .iter()
                .map(|&name| step(name, StepResult::Done))
                .collect(),
            clock_step_ns: -5,
            entropy_credited: true,
            listener_serial: 4,
            connections_dropped: 5,
            sessions_dropped: 6,
        }),
        Message::Probed(Probed {
            generation: None,
            nonce: Nonce::from_bytes([3; 16]),
            listener_serial: 1,
            accepts_since_rebind: 2,
            exec_us: Some(800),
            hooks: false,
        }),
        Message::Busy(Busy {
            token,
            sessions: vec![1, u64::MAX],
        }),
        Message::Quiesced(token),
        Message::Sever(Sever {
            reason: SeverReason::Quiesce,
        }),
        Message::Info(Info {
            agent_version: "0.1.0".to_owned(),
            generation: None,
            boot_id: "b".to_owned(),
            state: "running".to_owned(),
            kernel: "6.1.0".to_owned(),
            uptime_ms: 1,
            sessions: 2,
            connections: 3,
            fds: 4,
            rss_kib: 5,
            cgroup: true,
            limits: true,
            orphans_reaped: 6,
            counters: [("foreign_peers".to_owned(), 7)].into(),
        }),
    ]
}

const FAULT: Fault = Fault {
    part: FaultPart::Stderr,
    offset: u64::MAX,
    errno: -5,
};

fn session_info(exited: Option<Exited>) -> SessionInfo {
    SessionInfo {
        session: 3,
        id: exited.map(|_| ExecId::from_bytes([4; 16])),
        state: SessionState::Running,
        pid: 5,
        age_ms: 6,
        generation: exited.map(|_| generation(1)),
        command: "sleep 1".to_owned(),
        tty: false,
        detached: true,
        attached: 2,
        restarts: 7,
        cgroup: true,
        stdout_end: 8,
        stderr_end: 9,
        exited,
    }
}

fn session_messages() -> Vec<Message> {
    let exited = Exited {
        session: 7,
        status: ExitStatus::Code(255),
        stdout_end: u64::MAX,
        stderr_end: 0,
        writers_alive: true,
        timed_out: false,
        fault: None,
        usage: ResourceUsage {
            user_us: 1,
            system_us: 2,
            rss_max_kib: 3,
        },
    };
    let started = Started {
        session: 1,
        id: Some(ExecId::from_bytes([4; 16])),
        pid: 99,
        fresh: true,
        tty: true,
        stdout_from: 0,
        stderr_from: 1,
        stdin: Window {
            received: 1,
            limit: 2,
            is_closed: false,
        },
    };
    let killed = ExitStatus::Signal {
        number: 11,
        core: true,
    };
    vec![
        Message::Started(Started {
            id: None,
            ..started
        }),
        Message::Attached(started),
        Message::Gap(Gap {
            stream: Stream::Stderr,
            from: 1,
            to: 2,
        }),
        Message::Window(Window {
            received: 5,
            limit: 5,
            is_closed: true,
        }),
        Message::Sessions(Sessions {
            sessions: vec![session_info(None), session_info(Some(exited))],
            more: true,
        }),
        Message::Stdout(Chunk {
            offset: 1 << 40,
            bytes: vec![0, 255, 10],
        }),
        Message::Stderr(Chunk {
            offset: 0,
            bytes: Vec::new(),
        }),
        Message::Exited(exited),
        Message::Exited(Exited {
            status: killed,
            fault: Some(FAULT),
            ..exited
        }),
    ]
}

/// What a guest sends for checkpoints and hooks.
fn checkpoint_messages() -> Vec<Message> {
    let token = Token::from_bytes([9; 16]);
    vec![
        Message::Checkpoint(Checkpoint {
            tag: Some("sha256:1".to_owned()),
            left_ms: Some(5),
        }),
        Message::Verdict(CheckpointVerdict {
            verdict: Verdict::Clone,
            generation: Some(generation(1)),
        }),
        Message::Generation(generation(1)),
        Message::Hooked(Hooked {
            token,
            hooks: vec![HookResult {
                name: "10-flush".to_owned(),
                status: ExitStatus::Code(1),
                us: 7,
                timed_out: true,
                fault: Some(FAULT),
            }],
        }),
    ]
}

/// What a host sends for checkpoints and hooks.
fn checkpoint_requests() -> Vec<Message> {
    let token = Token::from_bytes([9; 16]);
    vec![
        Message::AwaitCheckpoint(AwaitCheckpoint {
            tag: Some("built".to_owned()),
        }),
        Message::Hooks(Hooks {
            token,
            stage: HookStage::Restore,
            limit_ms: 10_000,
            keep_going: true,
        }),
    ]
}

fn local_messages() -> Vec<Message> {
    vec![
        Message::Hello(Hello::of(Role::Local, "0.1.0")),
        Message::CheckpointRequest(CheckpointRequest {
            tag: Some("built".to_owned()),
            timeout_ms: Some(1),
        }),
        Message::GenerationRequest(GenerationRequest {
            from: Some(generation(1)),
        }),
    ]
}

fn host_messages() -> Vec<Message> {
    [host_requests(), checkpoint_requests()].concat()
}

fn host_requests() -> Vec<Message> {
    let token = Token::from_bytes([9; 16]);
    let shutdown = |action| {
        Message::Shutdown(Shutdown {
            action,
            grace_ms: 5000,
        })
    };
    vec![
        Message::Hello(Hello::host("0.1.0")),
        Message::Ping(Ping { nonce: 0 }),
        Message::Rebind(rebind()),
        Message::Rebind(Rebind {
            cause: Cause::Boot,
            parent: None,
            entropy: None,
            identity: Identity::default(),
            sessions: InheritedSessions::Kill,
            ..rebind()
        }),
        Message::Probe(Probe {
            generation: Some(generation(8)),
            nonce: Nonce::from_bytes([3; 16]),
            depth: Depth::Exec,
        }),
        Message::Quiesce(Quiesce {
            token,
            policy: Policy::Drain,
            limit_ms: 30_000,
        }),
        Message::Reopen(Reopen { token }),
        Message::Exec(exec()),
        Message::Exec(Exec {
            generation: None,
            origin: None,
            env: Vec::new(),
            cwd: None,
            ..exec()
        }),
        Message::Attach(Attach {
            session: SessionRef::Workload,
            generation: Some(generation(1)),
            mode: AttachMode::Own,
            stdout_from: Some(7),
            stderr_from: Some(0),
        }),
        Message::Ack(Ack {
            stream: Stream::Stdout,
            offset: u64::MAX,
        }),
        Message::Stdin(Chunk {
            offset: 9,
            bytes: vec![0, 255],
        }),
        Message::StdinEof(StdinEof { offset: 11 }),
        Message::Signal(Signal {
            session: Some(SessionRef::Number(7)),
            number: 64,
        }),
        Message::Resize(TtySize { rows: 1, cols: 2 }),
        Message::ExitAck(ExitAck { session: 7 }),
        Message::SessionsRequest(SessionsRequest { after: 3 }),
        Message::InfoRequest,
        shutdown(PowerAction::PowerOff),
        shutdown(PowerAction::Reboot),
    ]
}

fn parse(bytes: &[u8], sender: Role) -> Result<Message, String> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let frame = decoder
        .poll_frame()
        .map_err(|error| error.to_string())?
        .expect("a whole frame");
    Message::parse(frame, sender).map_err(|error| error.to_string())
}

fn parse_payload(kind: FrameKind, payload: &[u8], sender: Role) -> Result<Message, String> {
    Message::parse(Frame { kind, payload }, sender).map_err(|error| error.to_string())
}

#[test]
fn every_message_survives_the_wire() {
    for (sender, messages) in [
        (Role::Guest, guest_messages()),
        (Role::Host, host_messages()),
        (Role::Local, local_messages()),
    ] {
        for message in messages {
            assert_eq!(
                parse(&message.encode(), sender),
                Ok(message.clone()),
                "{sender}"
            );
        }
    }
    let all = guest_messages().into_iter().chain(host_messages());
    let kinds: std::collections::HashSet<_> = all.map(|message| message.kind()).collect();
    assert_eq!(
        kinds.len(),
        FrameKind::ALL.len(),
        "a kind without an example here"
    );
}

#[test]
fn frames_from_the_wrong_side_are_refused() {
    for (sender, other, messages) in [
        (Role::Guest, Role::Host, guest_messages()),
        (Role::Host, Role::Guest, host_messages()),
        (Role::Local, Role::Host, local_messages()),
        (Role::Host, Role::Local, host_messages()),
    ] {
        for message in messages {
            let kind = message.kind();
            let of_guest_and_host = matches!(kind, FrameKind::Info | FrameKind::Sessions);
            let of_guest_and_local = matches!(kind, FrameKind::Checkpoint | FrameKind::Generation);
            let is_taken = match other {
                Role::Host => of_guest_and_host,
                Role::Guest => of_guest_and_host || of_guest_and_local,
                Role::Local => of_guest_and_local,
            };
            let is_common = matches!(
                kind,
                FrameKind::Hello | FrameKind::Fail | FrameKind::Ping | FrameKind::Pong
            );
            if !(is_common || is_taken) {
                let error = parse(&message.encode(), other).unwrap_err();
                assert_eq!(
                    error,
                    format!("{kind} frame from the wrong side"),
                    "{sender}"
                );
            }
        }
    }
}

/// The payload as `serde_json` parses it; `None` for a stream frame.
fn payload_value(message: &Message) -> Option<Value> {
    let mut payload = Vec::new();
    message.write_payload(&mut payload);
    (!payload.is_empty()).then(|| serde_json::from_slice(&payload).unwrap())
}

/// Writing member by member produces the same text as `serde_json` does from a tree: no spaces, the
/// members sorted by name without duplicates, the same escapes and numbers.
#[test]
fn payloads_are_written_as_by_the_library() {
    for message in [guest_messages(), host_messages(), local_messages()].concat() {
        let Some(value) = payload_value(&message) else {
            continue;
        };
        let mut payload = Vec::new();
        message.write_payload(&mut payload);
        assert_eq!(String::from_utf8(payload).unwrap(), value.to_string());
    }
}

/// A field of another type makes any control payload invalid; unknown fields are ignored.
#[test]
fn every_field_is_checked() {
    for (sender, messages) in [
        (Role::Guest, guest_messages()),
        (Role::Host, host_messages()),
        (Role::Local, local_messages()),
    ] {
        for message in messages {
            let Some(Value::Object(fields)) = payload_value(&message) else {
                continue;
            };
            let mut newer = fields.clone();
            newer.insert("from_the_future".to_owned(), serde_json::json!({"a": [1]}));
            let payload = Value::Object(newer).to_string();
            assert_eq!(
                parse_payload(message.kind(), payload.as_bytes(), sender),
                Ok(message.clone())
            );
            for name in fields.keys() {
                let mut broken = fields.clone();
                broken.insert(name.clone(), serde_json::json!(-1.5));
                let payload = Value::Object(broken).to_string();
                let result = parse_payload(message.kind(), payload.as_bytes(), sender);
                if sender == Role::Host && message.kind() == FrameKind::Info {
                    continue;
                }
                // `core` is read only together with a signal.
                if name == "core" && fields["signal"].is_null() {
                    continue;
                }
                assert!(
                    result.is_err(),
                    "{} with a bad {name}: {result:?}",
                    message.kind()
                );
            }
        }
    }
}

#[test]
fn the_error_of_an_invalid_payload_names_the_field() {
    let cases: &[(FrameKind, &[u8], Role, &str)] = &[
        (
            FrameKind::Ping,
            b"",
            Role::Host,
            "PING payload is not a JSON object",
        ),
        (
            FrameKind::Ping,
            b"{}",
            Role::Host,
            "PING payload: field \"nonce\" must be a whole number in range",
        ),
        (
            FrameKind::Stdout,
            b"1234567",
            Role::Guest,
            "STDOUT payload is shorter than its offset",
        ),
        (
            FrameKind::Hello,
            br#"{"protocol":[2,1],"role":"host","version":""}"#,
            Role::Host,
            "HELLO payload: field \"protocol\" must be a pair of versions, lowest first",
        ),
        (
            FrameKind::Exec,
            br#"{"id":"00000000000000000000000000000000","argv":[],"env":[]}"#,
            Role::Host,
            "EXEC payload: field \"argv\" must be a list of at least one string",
        ),
        (
            FrameKind::Exec,
            br#"{"id":"00000000000000000000000000000000","argv":["a"],"env":["=1"]}"#,
            Role::Host,
            "EXEC payload: field \"env\" must be a list of NAME=value strings without NUL",
        ),
        (
            FrameKind::Gap,
            br#"{"stream":"stdout","from":1,"to":1}"#,
            Role::Guest,
            "GAP payload: field \"to\" must be more than \"from\"",
        ),
        (
            FrameKind::Window,
            br#"{"received":2,"limit":1,"closed":false}"#,
            Role::Guest,
            "WINDOW payload: field \"limit\" must be no less than \"received\"",
        ),
        (
            FrameKind::Signal,
            br#"{"signal":65}"#,
            Role::Host,
            "SIGNAL payload: field \"signal\" must be a signal's number, 1 to 64",
        ),
        (
            FrameKind::Attach,
            br#"{"session":"+7","mode":"own"}"#,
            Role::Host,
            "ATTACH payload: field \"session\" must be a session's number, its exec id, or \"workload\"",
        ),
    ];
    for (kind, payload, sender, expected) in cases {
        assert_eq!(
            parse_payload(*kind, payload, *sender).unwrap_err(),
            *expected
        );
    }
}

#[test]
fn a_restore_without_entropy_is_refused() {
    let mut value = payload_value(&Message::Rebind(rebind())).unwrap();
    value["entropy"] = Value::Null;
    let error = parse_payload(FrameKind::Rebind, value.to_string().as_bytes(), Role::Host);
    assert_eq!(
        error.unwrap_err(),
        "REBIND payload: field \"entropy\" must be given for a restore"
    );
}

#[test]
fn a_session_reference_has_three_forms() {
    let id = "1234567890abcdef1234567890abcdef";
    for (text, session) in [
        ("workload", Some(SessionRef::Workload)),
        (id, Some(SessionRef::Exec(id.parse().unwrap()))),
        ("0", Some(SessionRef::Number(0))),
        ("18446744073709551615", Some(SessionRef::Number(u64::MAX))),
        ("18446744073709551616", None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("Workload", None),
    ] {
        assert_eq!(text.parse().ok(), session, "{text}");
        if let Some(session) = session {
            assert_eq!(session.to_string(), text);
        }
    }
}

#[test]
fn harmful_names_are_not_an_identity() {
    for bad in ["", "-a", ".", "a b", "a/b", "a\n", &"a".repeat(65)] {
        assert!(!Identity::is_hostname(bad), "{bad:?}");
    }
    assert!(Identity::is_hostname(&"a".repeat(64)));
    assert!(!Identity::is_machine_id("0123456789ABCDEF0123456789abcdef"));
}

#[test]
fn exec_limits_hold_at_the_limit_and_not_past_it() {
    let with = |argv: Vec<ByteString>| Exec {
        env: Vec::new(),
        cwd: None,
        user: None,
        argv,
        ..exec()
    };
    // One string that reaches the limit together with its terminator.
    assert_eq!(
        with(vec![string(&vec![b'x'; EXEC_BYTES_MAX - 1])]).limit_exceeded(),
        None
    );
    assert_eq!(
        with(vec![string(&vec![b'x'; EXEC_BYTES_MAX])]).limit_exceeded(),
        Some(ExecLimit::Bytes {
            bytes: EXEC_BYTES_MAX + 1
        })
    );
    assert_eq!(
        with(vec![string(b"x"); EXEC_STRINGS_MAX]).limit_exceeded(),
        None
    );
    assert_eq!(
        with(vec![string(b"x"); EXEC_STRINGS_MAX + 1]).limit_exceeded(),
        Some(ExecLimit::Strings {
            count: EXEC_STRINGS_MAX + 1
        })
    );
    // Each byte that is not UTF-8 takes two digits on the wire.
    let encoded = with(vec![string(&vec![0xff; EXEC_BYTES_MAX - 1])]).limit_exceeded();
    assert!(
        matches!(encoded, Some(ExecLimit::Encoded { .. })),
        "{encoded:?}"
    );
}

#[test]
fn long_texts_are_cut_so_that_an_error_can_always_be_sent() {
    let text = "ü".repeat(TEXT_LEN_MAX);
    let sent = Message::Fail(Fail::new(FailCode::Internal, text)).encode();
    let Ok(Message::Fail(fail)) = parse(&sent, Role::Guest) else {
        panic!("no FAIL")
    };
    assert_eq!(fail.text.len(), TEXT_LEN_MAX);
    let controls = Message::Fail(Fail::new(FailCode::Internal, "\u{1}".repeat(TEXT_LEN_MAX)));
    assert!(controls.encode().len() < crate::limits::PAYLOAD_LEN_MAX);
}

/// Parses a frame of a peer that does not keep our limits.
fn unlimited(kind: FrameKind, payload: &Value) -> Message {
    let payload = payload.to_string();
    let frame = Frame {
        kind,
        payload: payload.as_bytes(),
    };
    Message::parse(frame, Role::Guest).unwrap()
}

#[test]
fn the_receiver_cuts_long_texts_too() {
    for (len, kept) in [
        (TEXT_LEN_MAX, TEXT_LEN_MAX),
        (TEXT_LEN_MAX + 1, TEXT_LEN_MAX),
    ] {
        let fail = json!({ "code": "internal", "text": "x".repeat(len) });
        match unlimited(FrameKind::Fail, &fail) {
            Message::Fail(fail) => assert_eq!(fail.text.len(), kept),
            other => panic!("{other:?}"),
        }
    }
    let sent = session_messages()
        .into_iter()
        .find_map(|message| match message {
            Message::Sessions(sessions) => sessions.sessions.first().map(SessionInfo::to_value),
            _ => None,
        });
    let mut session = sent.unwrap();
    session["command"] = "ü".repeat(COMMAND_TEXT_LEN_MAX).into();
    let page = json!({ "sessions": [session], "more": false });
    match unlimited(FrameKind::Sessions, &page) {
        Message::Sessions(page) => {
            assert_eq!(page.sessions[0].command.len(), COMMAND_TEXT_LEN_MAX);
        }
        other => panic!("{other:?}"),
    }
}

/// A frame with any byte changed is parsed or refused without a panic.
#[test]
fn damaged_frames_never_panic() {
    for (sender, messages) in [
        (Role::Guest, guest_messages()),
        (Role::Host, host_messages()),
        (Role::Local, local_messages()),
    ] {
        for message in messages {
            let bytes = message.encode();
            for index in 0..bytes.len() {
                for flip in [0x01, 0x20, 0x80] {
                    let mut damaged = bytes.clone();
                    damaged[index] ^= flip;
                    let mut decoder = Decoder::new();
                    decoder.push(&damaged);
                    if let Ok(Some(frame)) = decoder.poll_frame() {
                        drop(Message::parse(frame, sender));
                    }
                }
            }
        }
    }
}
