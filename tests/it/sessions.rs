//! Goal: a session keeps every promise of `docs/protocol.md` to the clients that are attached to
//! it, come back, or come too late. Method: raw connections that send exactly the frames of a case.

mod at_most_once;
mod attaching;
mod cgroups;
mod ending;
mod faults;
mod input;
mod listing;
mod results;

use shared::message::{AttachMode, FailCode, Message, SessionRef, Started};
use tests::client::{Client, attach};

/// ATTACH with a session's number.
fn by_number(started: &Started, mode: AttachMode) -> shared::message::Attach {
    attach(SessionRef::Number(started.session), mode)
}

/// Expects a FAIL with this code.
#[track_caller]
fn hears_fail(client: &mut Client, code: FailCode) {
    loop {
        match client.hear() {
            // The guest may have sent these before it had a reason to fail.
            Message::Window(_) | Message::Stdout(_) | Message::Stderr(_) => {}
            Message::Fail(fail) => {
                assert_eq!(fail.code, code, "{fail:?}");
                return;
            }
            other => panic!("no FAIL but {other:?}"),
        }
    }
}

/// Expects a FAIL with this code, and then the end of the connection.
#[track_caller]
fn is_cut(client: &mut Client, code: FailCode) {
    hears_fail(client, code);
    assert_eq!(client.hear_or_end(), None, "the connection stays open");
}
