//! Goal: any amount of data passes both ways unchanged, in memory that does not grow with it, and a
//! session that is stuck does not disturb others. Method: the built programs, a stream whose every
//! byte follows from its offset, and peak resident memory as the kernel counts it.

use std::io::Write;
use std::thread;

use nix::sys::signal::Signal;
use shared::message::{Depth, Message, Ping, Probe, Stream};
use tests::agent::Agent;
use tests::client::{exec, exec_numbered, shell};
use tests::fifo::Fifo;
use tests::process::Running;

/// Length of the long stream. `TEST_STREAM_LEN` sets another one.
const STREAM_LEN: u64 = 1024 * 1024 * 1024;

/// What the agent may need for one session, in KiB: two rings and an input of 256 KiB each, an
/// outbox of 384 KiB, a frame that is being read, and as much again for the allocator. The client
/// needs less.
const SESSION_KIB_MAX: u64 = 4 * 1024;

/// A stream in which each block begins with its number and no two neighbours are equal, so that any
/// byte that is lost, repeated or moved shows.
struct Pattern {
    block: Vec<u8>,
}

impl Pattern {
    const BLOCK_LEN: usize = 64 * 1024;

    fn new() -> Self {
        let mut state = 0x2545_f491_u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        Self {
            block: (0..Self::BLOCK_LEN).map(next).collect(),
        }
    }

    /// The block that holds this offset.
    fn block(&mut self, offset: u64) -> &[u8] {
        let number = offset / Self::BLOCK_LEN as u64;
        self.block[..8].copy_from_slice(&number.to_le_bytes());
        &self.block
    }

    fn write(&mut self, len: u64, out: &mut impl Write) {
        let mut offset = 0;
        while offset < len {
            let rest = usize::try_from(len - offset).unwrap_or(usize::MAX);
            let count = rest.min(Self::BLOCK_LEN);
            out.write_all(&self.block(offset)[..count]).unwrap();
            offset += count as u64;
        }
    }

    /// Fails unless these are the bytes at `offset`.
    #[track_caller]
    fn check(&mut self, offset: u64, bytes: &[u8]) {
        let mut offset = offset;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let start = usize::try_from(offset % Self::BLOCK_LEN as u64).unwrap();
            let count = bytes.len().min(Self::BLOCK_LEN - start);
            let is_same = bytes[..count] == self.block(offset)[start..start + count];
            assert!(
                is_same,
                "other bytes between {offset} and {}",
                offset + count as u64
            );
            offset += count as u64;
            bytes = &bytes[count..];
        }
    }
}

/// Reads `len` bytes and compares them with the pattern.
fn check_output(running: &mut Running, len: u64) {
    let (mut pattern, mut offset) = (Pattern::new(), 0);
    let mut bytes = vec![0; 256 * 1024];
    while offset < len {
        let count = running.read_some(&mut bytes);
        assert!(count > 0, "the stream ends after {offset} bytes");
        pattern.check(offset, &bytes[..count]);
        offset += count as u64;
    }
}

fn stream_len() -> u64 {
    let set = std::env::var("TEST_STREAM_LEN").ok();
    set.map_or(STREAM_LEN, |text| text.parse().expect("a number of bytes"))
}

#[test]
fn a_gibibyte_through_cat_is_exact_and_takes_no_more_memory_than_its_rings() {
    let agent = Agent::start();
    let len = stream_len();
    let mut running = agent.run(["exec", "-i"], ["cat"]);
    // After one byte has gone there and back, both programs have their size without a load.
    running.say(b"x");
    assert_eq!(running.read(1), b"x");
    let (client, guest) = (running.status("VmHWM"), agent.status("VmHWM"));
    let mut input = running.take_input();
    let feeder = thread::spawn(move || {
        Pattern::new().write(len, &mut input);
        input
    });
    check_output(&mut running, len);
    // Every byte has come back, and both programs still run.
    let client = running.status("VmHWM").saturating_sub(client);
    let guest = agent.status("VmHWM").saturating_sub(guest);
    assert!(client < SESSION_KIB_MAX, "the client grew by {client} KiB");
    assert!(guest < SESSION_KIB_MAX, "the agent grew by {guest} KiB");
    drop(feeder.join().unwrap());
    assert!(
        running.finish().exits(0).stdout.is_empty(),
        "more came than was sent"
    );
}

/// The guest's command reads nothing until all 64 MiB are sent, and prints only their count.
#[test]
fn the_end_of_a_long_input_is_seen() {
    let agent = Agent::start();
    let mut running = agent.run(["exec", "-i"], ["sh", "-c", "wc -c; exit 3"]);
    let mut input = running.take_input();
    let feeder = thread::spawn(move || Pattern::new().write(64 << 20, &mut input));
    feeder.join().unwrap();
    assert_eq!(running.finish().exits(3).out(), format!("{}\n", 64 << 20));
}

#[test]
fn both_outputs_and_the_input_at_once_do_not_lock_each_other() {
    let agent = Agent::start();
    let mut running = agent.run(["exec", "-i"], ["tee", "/dev/stderr"]);
    let mut input = running.take_input();
    let feeder = thread::spawn(move || Pattern::new().write(16 << 20, &mut input));
    let ended = running.finish_with_open_input().exits(0);
    feeder.join().unwrap();
    for output in [&ended.stdout, &ended.stderr] {
        assert_eq!(output.len(), 16 << 20);
        Pattern::new().check(0, output);
    }
}

/// Every way in which a session can be stuck.
#[test]
fn blocked_sessions_delay_nobody() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    // The ring is full, and its owner neither reads nor acknowledges.
    let mut unread = agent.greet();
    unread.start(&exec(1, &["cat", "/dev/zero"]));
    // The ring is full, and its owner reads and does not acknowledge.
    let mut not_acked = agent.greet();
    not_acked.start(&exec(2, &["cat", "/dev/zero"]));
    not_acked.hear_stdout(256 * 1024);
    // The child is stopped.
    let mut stopped = agent.greet();
    stopped.start(&shell(3, "kill -STOP $$"));
    // The child does not read its input, which is full.
    let mut unfed = agent.greet();
    let mut request = exec(4, &["cat", fifo.path()]);
    request.stdin = true;
    let credit = unfed.start(&request).stdin.limit;
    unfed.feed(0, &vec![0; usize::try_from(credit).unwrap()]);
    // The client is stopped in the middle of its output.
    let mut client = agent.run(["exec"], ["cat", "/dev/zero"]);
    client.read(1);
    client.signal(Signal::SIGSTOP);
    let mut prober = agent.greet();
    for number in 100..150 {
        let probe = Probe {
            generation: None,
            nonce: shared::id::Nonce::from_bytes([1; 16]),
            depth: Depth::Exec,
        };
        prober.probed(&Message::Probe(probe));
        let started = prober.start(&exec_numbered(
            number,
            &["head", "-c", "300000", "/dev/zero"],
        ));
        assert_eq!(prober.follow(&started).stdout.bytes.len(), 300_000);
    }
    agent.exec(["true"]).exits(0);
    client.signal(Signal::SIGCONT);
    client.signal(Signal::SIGKILL);
    client.finish();
}

/// A full ring continues with each acknowledgement, by what was acknowledged and no more.
#[test]
fn a_full_ring_goes_on_as_far_as_it_was_acknowledged() {
    let agent = Agent::start();
    let (ring, piece, total) = (256 * 1024, 64 * 1024, 1024 * 1024);
    let mut owner = agent.greet();
    owner.start(&exec(1, &["head", "-c", &total.to_string(), "/dev/zero"]));
    owner.hear_stdout(ring);
    for acked in (piece..=total - ring).step_by(piece) {
        let ping = Message::Ping(Ping { nonce: 1 });
        assert!(
            matches!(owner.ask(&ping), Message::Pong(_)),
            "more than a ring"
        );
        owner.ack(Stream::Stdout, acked as u64);
        owner.hear_stdout(piece);
    }
    owner.ack(Stream::Stdout, total as u64);
    assert_eq!(owner.hear_exited().stdout_end, total as u64);
}

/// Wherever a client is killed, its command ends and leaves nothing behind.
#[test]
fn a_client_can_be_killed_at_any_point() {
    let agent = Agent::start();
    agent.exec(["true"]).exits(0);
    let fds = agent.idle_fd_count();
    // Points: before any output, after some amounts of it, and when all output was read.
    let total = 2_000_000;
    // The command does not end by itself, because its input stays open.
    let script = format!("head -c {total} /dev/zero; cat >/dev/null");
    let points = [
        0,
        0,
        0,
        0,
        1,
        2,
        1000,
        65_536,
        300_000,
        1_000_000,
        total - 1,
        total,
    ];
    for point in points {
        let mut client = agent.run(["exec", "-i", "--keep", "1ms"], ["sh", "-c", &script]);
        assert_eq!(client.read(point).len(), point);
        client.signal(Signal::SIGKILL);
        assert_eq!(client.finish_with_open_input().code(), 137);
    }
    assert_eq!(agent.idle_fd_count(), fds);
    agent.reaps_all();
}

/// The same for a client that is killed while it sends input.
#[test]
fn a_client_killed_while_it_sends_takes_its_command_along() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let script = format!("head -c 500000 >/dev/null; cat {}", fifo.path());
    let mut client = agent.run(["exec", "-i", "--keep", "1ms"], ["sh", "-c", &script]);
    client.say(&vec![0; 500_000]);
    let held = fifo.hold();
    client.signal(Signal::SIGKILL);
    held.wait_gone();
    drop(client);
    let _fds = agent.idle_fd_count();
}
