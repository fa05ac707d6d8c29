//! The ways in which a VMM answers wrongly.

use tests::host::{Rule, Then};

/// A wrong answer, and how a command must end.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) make: fn(Rule) -> Rule,
    /// The command's exit code.
    pub(super) code: i32,
    /// A part of the message.
    pub(super) text: &'static str,
}

const fn fault(name: &'static str, make: fn(Rule) -> Rule, code: i32, text: &'static str) -> Fault {
    Fault {
        name,
        make,
        code,
        text,
    }
}

/// Either VMM.
pub(super) const COMMON_FAULTS: [Fault; 5] = [
    fault(
        "no answer",
        |rule| rule.send("").then(Then::Hang),
        124,
        "before the deadline",
    ),
    fault(
        "an answer that comes too late",
        late,
        124,
        "before the deadline",
    ),
    fault(
        "a closed connection",
        |rule| rule.send("").then(Then::Close),
        8,
        "hung up",
    ),
    fault(
        "the end of the process",
        |rule| rule.send("").then(Then::Exit),
        8,
        "ended",
    ),
    fault("the proper answer in single bytes", bytewise, 0, ""),
];

/// Firecracker.
pub(super) const FAULTS: [Fault; 16] = [
    fault(
        "400 with a fault_message",
        |rule| {
            rule.send(response(
                400,
                r#"{"fault_message":"cannot \u001b[31mdo that"}"#,
            ))
        },
        5,
        r"(400): cannot \u{1b}[31mdo that",
    ),
    fault(
        "400, and the end of the process",
        |rule| {
            rule.send(response(400, r#"{"fault_message":"too dirty"}"#))
                .then(Then::Exit)
        },
        5,
        "(400): too dirty",
    ),
    fault(
        "413",
        |rule| rule.send(response(413, r#"{"fault_message":"too large"}"#)),
        5,
        "(413): too large",
    ),
    fault(
        "500 without a body",
        |rule| rule.send(response(500, "")),
        5,
        "(500)",
    ),
    fault(
        "503 of something else",
        |rule| rule.send(response(503, "<html>busy</html>")),
        5,
        "(503): <html>busy",
    ),
    fault(
        "interim answers without end",
        |rule| {
            rule.send("HTTP/1.1 100 Continue\r\n\r\n")
                .then(Then::Repeat)
        },
        5,
        "head exceeds",
    ),
    fault(
        "half a head",
        |rule| rule.send("HTTP/1.1 204 \r\nServ").then(Then::Hang),
        124,
        "before the deadline",
    ),
    fault(
        "a body that is shorter than it says",
        |rule| {
            rule.send("HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{}")
                .then(Then::Hang)
        },
        124,
        "before the deadline",
    ),
    fault(
        "half a body, and the end of the connection",
        |rule| {
            rule.send("HTTP/1.1 400 \r\nContent-Length: 9\r\n\r\n{}")
                .then(Then::Close)
        },
        8,
        "hung up",
    ),
    fault(
        "garbage",
        |rule| rule.send([0xff; 300]).then(Then::Hang),
        5,
        "malformed HTTP",
    ),
    fault(
        "an endless status line",
        |rule| rule.send("HTTP/1.1 200 OK").then(Then::Repeat),
        5,
        "head exceeds",
    ),
    fault(
        "a header without end",
        |rule| {
            rule.send(format!("HTTP/1.1 200 \r\nA: {}", "b".repeat(100_000)))
                .then(Then::Hang)
        },
        5,
        "head exceeds",
    ),
    fault(
        "a body that will be far too long",
        |rule| {
            rule.send("HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n")
                .then(Then::Hang)
        },
        5,
        "exceeds 1048576",
    ),
    fault(
        "a length that is not a number",
        |rule| {
            rule.send("HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n")
                .then(Then::Hang)
        },
        5,
        "content-length",
    ),
    fault(
        "two lengths",
        |rule| {
            let head = "HTTP/1.1 200 \r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}";
            rule.send(head).then(Then::Hang)
        },
        5,
        "content-length",
    ),
    fault(
        "a body in chunks",
        |rule| {
            let head = "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
            rule.send(head).then(Then::Hang)
        },
        5,
        "transfer encoding",
    ),
];

fn response(status: u16, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 {status} \r\nContent-Length: {len}\r\n\r\n{body}")
}

fn bytewise(rule: Rule) -> Rule {
    Rule {
        is_bytewise: true,
        ..rule
    }
}

fn late(rule: Rule) -> Rule {
    Rule {
        is_late: true,
        ..rule
    }
}

/// QEMU.
pub(super) const QMP_FAULTS: [Fault; 8] = [
    fault(
        "an error",
        |rule| {
            let error = r#"{"error":{"class":"GenericError","desc":"cannot \u001b[31mdo that"}}"#;
            rule.send(format!("{error}\n"))
        },
        5,
        r"(GenericError): cannot \u{1b}[31mdo that",
    ),
    fault(
        "half a line",
        |rule| rule.send(r#"{"return": {"#).then(Then::Hang),
        124,
        "before the deadline",
    ),
    fault(
        "answers to other commands",
        |rule| {
            rule.send("{\"return\": {}, \"id\": 77777}\n")
                .then(Then::Hang)
        },
        124,
        "before the deadline",
    ),
    fault(
        "events without end",
        |rule| {
            rule.send("{\"event\": \"RTC_CHANGE\"}\n".repeat(200))
                .then(Then::Repeat)
        },
        124,
        "before the deadline",
    ),
    fault(
        "garbage",
        |rule| rule.send("hello\n").then(Then::Hang),
        5,
        "not JSON",
    ),
    fault(
        "an object that QMP does not have",
        |rule| rule.send("{}\n"),
        5,
        "not a greeting, return",
    ),
    fault(
        "an object too deep to be read",
        |rule| {
            rule.send(format!("{}\n", "[".repeat(200_000)))
                .then(Then::Hang)
        },
        5,
        "not JSON",
    ),
    fault(
        "a line without end",
        |rule| rule.send("xxxxxxxx").then(Then::Repeat),
        5,
        "exceeds",
    ),
];
