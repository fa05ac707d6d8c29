//! Goal: when a guest lies, floods, stalls or sends nonsense, `host-tool` fails with its documented
//! exit code within the deadline, and nothing worse happens. The same holds for a prepared
//! artifact, an odd file in place of a VM's own, and another user of the host. Method: a scripted
//! guest on a Unix socket, and the built program.

mod artifacts;
mod files;
mod floods;
mod guest;
mod handshake;
mod lies;
mod local;
mod planted;
mod silence;
mod users;

use std::io::{Read, Write};

use shared::frame::FrameKind;
use shared::message::{Fail, FailCode, Message, Progress};
use shared::version::{SUPPORTED, VersionRange};

use tests::client::header;

use guest::{Guest, after_hello, hello, probed, started, stdout};

const PROBE: &[&str] = &["probe", "--timeout", "2s"];
const EXEC: &[&str] = &["exec", "--timeout", "2s", "--", "true"];

#[test]
fn an_agent_of_another_age_is_named() {
    let guest = Guest::saying(hello(VersionRange { min: 7, max: 9 }));
    for args in [PROBE, EXEC] {
        let ended = guest.tool(args).complains("7 to 9").complains("speaks 1");
        assert_ne!(ended.code(), 0);
    }
}

#[test]
fn a_guest_that_never_answers_meets_the_deadline() {
    let guest = Guest::saying(Vec::new());
    guest.tool(PROBE).exits(2);
    guest.tool(EXEC).exits(124);
}

#[test]
fn a_guest_that_always_closes_meets_the_deadline() {
    let guest = Guest::new(|_| {});
    guest.tool(PROBE).exits(2);
    assert!([124, 125].contains(&guest.tool(EXEC).code()));
}

#[test]
fn progress_without_end_is_no_answer() {
    let guest = Guest::new(|stream| {
        let step = "any day now".to_owned();
        let progress = Message::Progress(Progress { step }).encode();
        let _ = stream.write_all(&hello(SUPPORTED));
        while stream.write_all(&progress).is_ok() {}
    });
    guest.tool(PROBE).exits(2);
}

#[test]
fn nonsense_is_refused() {
    let flights = [
        vec![0xff; 4096],
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        header(FrameKind::Hello, u32::MAX),
        [hello(SUPPORTED), header(FrameKind::Info, u32::MAX)].concat(),
        after_hello(&[Message::Probed(probed())]),
        after_hello(&[Message::Ok]),
    ];
    for bytes in flights {
        let ended = Guest::saying(bytes.clone()).tool(PROBE);
        assert!([1, 2].contains(&ended.code()), "{bytes:x?}: {ended}");
        let ended = Guest::saying(bytes.clone()).tool(EXEC);
        assert_eq!(ended.code(), 125, "{bytes:x?}: {ended}");
    }
}

#[test]
fn words_of_a_guest_cannot_drive_the_terminal() {
    let fail = Fail::new(FailCode::Internal, "\u{1b}]0;owned\u{7}\u{1b}[2J");
    let guest = Guest::saying(after_hello(&[Message::Fail(fail)]));
    for args in [PROBE, EXEC] {
        let ended = guest.tool(args);
        assert_ne!(ended.code(), 0, "{ended}");
        assert!(
            !ended.stderr.contains(&0x1b) && !ended.stdout.contains(&0x1b),
            "{ended}"
        );
    }
}

#[test]
fn output_that_skips_or_repeats_bytes_is_not_passed_off_as_whole() {
    for second in [stdout(9, b"x"), stdout(0, b"x")] {
        let flight = after_hello(&[started(), stdout(0, b"abc"), second]);
        let ended = Guest::saying(flight).tool(EXEC).exits(125);
        assert_eq!(ended.stdout, b"abc");
    }
}

#[test]
fn an_end_without_exited_is_unknown_and_never_success() {
    let guest = Guest::new(|stream| {
        let _ = stream.write_all(&after_hello(&[started()]));
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes);
    });
    guest.tool(EXEC).exits(125).complains("unknown");
}
