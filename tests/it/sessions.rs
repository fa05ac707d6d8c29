//! Goal: a session keeps every promise of `docs/protocol.md` to whoever is attached to it, comes
//! back, or comes too late. Method: raw connections that say exactly the frames a case is about.

mod attaching;
mod ending;
mod input;
mod listing;
mod results;

use shared::message::{AttachMode, FailCode, Message, SessionRef, Started};
use tests::client::{Client, attach};

/// ATTACH by a session's number.
fn by_number(started: &Started, mode: AttachMode) -> shared::message::Attach {
    attach(SessionRef::Number(started.session), mode)
}

/// The next message is FAIL with this code.
#[track_caller]
fn hears_fail(client: &mut Client, code: FailCode) {
    loop {
        match client.hear() {
            // Sent before the reason for the FAIL was there.
            Message::Window(_) | Message::Stdout(_) | Message::Stderr(_) => {}
            Message::Fail(fail) => {
                assert_eq!(fail.code, code, "{fail:?}");
                return;
            }
            other => panic!("no FAIL but {other:?}"),
        }
    }
}

/// The connection ends, after a word that says why.
#[track_caller]
fn is_cut(client: &mut Client, code: FailCode) {
    hears_fail(client, code);
    assert_eq!(client.hear_or_end(), None, "the connection goes on");
}
