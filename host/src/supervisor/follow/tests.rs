//! Following a guest that cuts its connections, has lost output, or has no workload.

use std::thread;

use super::testing::Guest;
use super::*;
use crate::guest::address::GuestAddress;
use crate::testing::TempDir;
use crate::vmdir::output_log::journal::Step;
use crate::vmdir::output_log::record::Record;

/// A sink in memory.
struct Memory {
    journal: Journal,
    text: Vec<u8>,
    exited: Option<Exited>,
}

impl Memory {
    fn new(from: Option<u64>) -> Self {
        Self {
            journal: Journal::new(Record::empty(from), u64::MAX),
            text: Vec::new(),
            exited: None,
        }
    }
}

impl Sink for Memory {
    fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    fn commit(&mut self) -> Result<(), Failure> {
        for step in self.journal.poll_commit() {
            if let Step::Append(bytes) = step {
                self.text.extend(bytes);
            }
        }
        self.journal.handle_committed();
        Ok(())
    }

    fn handle_end(&mut self, exited: &Exited) -> Result<(), Failure> {
        assert!(!self.journal.is_dirty(), "the end before the output");
        self.exited = Some(*exited);
        Ok(())
    }

    fn await_turn(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// Follows `guest` while it does what `script` says.
fn follow(
    sink: &mut Memory,
    mode: AttachMode,
    wanted: Option<Lengths>,
    adapt: impl FnOnce(&mut Guest),
    script: impl FnOnce(&Guest) + Send,
) -> (Guest, End) {
    let temp = TempDir::new("workload");
    let path = temp.path().join("s");
    let mut guest = Guest::listen(&path, false);
    adapt(&mut guest);
    let endpoint = Endpoint {
        address: GuestAddress::Unix { path },
        port: 0,
    };
    let end = thread::scope(|scope| {
        scope.spawn(|| script(&guest));
        let mut follower = Follower {
            endpoint: &endpoint,
            watch: Watch::until(Instant::now() + Duration::from_secs(60)),
            mode,
            sink,
            wanted,
        };
        follower.run().unwrap()
    });
    (guest, end)
}

#[test]
fn an_owner_gets_every_byte_once_across_cuts() {
    let mut sink = Memory::new(Some(0));
    // One stream only: with two, the log interleaves them as they arrive.
    let adapt = |guest: &mut Guest| guest.stderr.clear();
    let (guest, end) = follow(&mut sink, AttachMode::Own, None, adapt, |guest| {
        guest.serve(&[1, 999, 70_000, 100_000], &|stream, _| {
            assert_eq!(stream, Stream::Stdout);
        });
    });
    assert!(matches!(end, End::Exited), "{end:?}");
    assert!(sink.text == guest.stdout);
    assert_eq!(sink.exited.unwrap().status.shell_code(), 3);
}

#[test]
fn both_streams_are_whole_and_lost_bytes_are_reported() {
    let mut sink = Memory::new(Some(0));
    let adapt = |guest: &mut Guest| guest.stdout_dropped = 6;
    let (guest, _) = follow(&mut sink, AttachMode::Own, None, adapt, |guest| {
        guest.serve(&[], &|_, _| {});
    });
    assert!(
        sink.text
            .starts_with(b"[host-tool: stdout bytes 0 to 6 are lost]\n")
    );
    let record = sink.journal.committed();
    assert_eq!(record.stdout, u64::try_from(guest.stdout.len()).ok());
    assert_eq!(record.stderr, u64::try_from(guest.stderr.len()).ok());
}

#[test]
fn an_observer_stops_at_the_wanted_lengths() {
    let mut sink = Memory::new(None);
    let wanted = Lengths {
        stdout: 50_000,
        stderr: 0,
    };
    let adapt = |guest: &mut Guest| {
        guest.stdout_dropped = 6;
        guest.stderr.clear();
    };
    let serve = |guest: &Guest| guest.serve_parts(&[60_000]);
    let (guest, end) = follow(&mut sink, AttachMode::Observe, Some(wanted), adapt, serve);
    assert!(matches!(end, End::Reached), "{end:?}");
    assert!(sink.text.len() >= 50_000 - 6);
    assert!(guest.stdout[6..].starts_with(&sink.text), "without a gap");
}

#[test]
fn a_guest_without_a_workload_is_not_followed() {
    for code in [FailCode::NoSession, FailCode::Unsupported] {
        let mut sink = Memory::new(Some(0));
        let refuse = |guest: &Guest| guest.refuse(code);
        let (_, end) = follow(&mut sink, AttachMode::Own, None, |_| {}, refuse);
        assert!(matches!(end, End::NoWorkload(fail) if fail.code == code));
    }
}
