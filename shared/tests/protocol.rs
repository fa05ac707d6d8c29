//! Executes the examples of `docs/protocol.md`.
//!
//! Goal: the document agrees with the code. Method: each block marked `wire` has the sender and the
//! kind, the header in hexadecimal, and the payload as JSON text or hexadecimal bytes.

use std::collections::HashSet;

use shared::frame::{Decoder, FrameKind};
use shared::message::{Message, Role};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// One block of the document.
struct Example {
    sender: Role,
    kind: FrameKind,
    bytes: Vec<u8>,
}

fn examples() -> Vec<Example> {
    DOCUMENT
        .split("```wire\n")
        .skip(1)
        .map(parse_example)
        .collect()
}

fn parse_example(block: &str) -> Example {
    let lines: Vec<&str> = block.lines().take(3).collect();
    let [title, header, payload] = lines[..] else {
        panic!("a block of three lines: {block}")
    };
    let (sender, kind_name) = title.split_once(' ').expect("sender and kind");
    let named = |kind: &&FrameKind| kind.to_string() == kind_name;
    let mut bytes = from_hex(header);
    match payload.starts_with('{') {
        true => bytes.extend_from_slice(payload.as_bytes()),
        false => bytes.extend(from_hex(payload)),
    }
    Example {
        sender: sender.parse().expect("host or guest"),
        kind: *FrameKind::ALL
            .iter()
            .find(named)
            .unwrap_or_else(|| panic!("unknown kind {kind_name}")),
        bytes,
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    text.split(' ')
        .map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal bytes"))
        .collect()
}

#[test]
fn every_example_is_what_the_code_reads_and_writes() {
    for Example {
        sender,
        kind,
        bytes,
    } in examples()
    {
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        let frame = decoder
            .poll_frame()
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
        let frame = frame.unwrap_or_else(|| panic!("{kind}: the length is more than the payload"));
        assert_eq!(frame.kind, kind);
        let message = Message::parse(frame, sender).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert!(
            !decoder.is_mid_frame(),
            "{kind}: the length is less than the payload"
        );
        let written = message.encode();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&written), text(&bytes), "{kind}: encoded again");
    }
}

#[test]
fn every_kind_has_an_example_and_its_number() {
    let shown: HashSet<FrameKind> = examples().iter().map(|example| example.kind).collect();
    for kind in FrameKind::ALL {
        assert!(shown.contains(kind), "no example of {kind}");
        let rows = DOCUMENT.lines().filter(|line| line.starts_with("| "));
        let is_listed = rows
            .filter(|row| row.contains(&kind.to_string()))
            .any(|row| {
                let numbers = row
                    .trim_start_matches("| ")
                    .split(" |")
                    .next()
                    .unwrap_or_default();
                numbers
                    .split(", ")
                    .any(|number| number == kind.code().to_string())
            });
        assert!(
            is_listed,
            "{kind} is not in the table under its number {}",
            kind.code()
        );
    }
}

#[test]
fn every_failure_code_is_in_the_document() {
    for code in shared::message::FailCode::ALL {
        assert!(
            DOCUMENT.contains(&format!("| `{code}` |")),
            "no row for {code}"
        );
    }
}
