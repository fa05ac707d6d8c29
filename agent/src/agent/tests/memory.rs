//! Memory runs out: in the budget, and in the allocator. What asks for it is refused by name, what
//! runs goes on, and the agent lives.

use super::*;
use crate::agent::sessions::buffers::PAGE_LEN;
use crate::agent::transport::connection::DECODER_LEN_FREE;
use crate::sys::failing::{self, Shortage, armed};
use shared::message::{Chunk, Ping, SessionsRequest};

/// The least budget: three quarters of it are for what grows.
const LEN_MIN: usize = 1024 * 1024;

fn small() -> World {
    World::of(Settings {
        memory_len: LEN_MIN,
        ..settings()
    })
}

fn numbered(number: usize) -> Message {
    let mut request = exec(0);
    if let Message::Exec(exec) = &mut request {
        let mut bytes = [7; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        exec.id = ExecId::from_bytes(bytes);
    }
    request
}

/// Starts a command over a connection of its own that reads nothing more.
fn stuck(world: &mut World, number: usize) -> (ConnectionId, i32) {
    let id = world.connect();
    let answer = world.ask(id, &numbered(number));
    assert!(matches!(answer[..], [Message::Started(_)]), "{answer:?}");
    world.peers.get_mut(&id).unwrap().room = Some(0);
    (id, world.pid())
}

fn text_of(answer: &[Message]) -> &str {
    match answer {
        [Message::Fail(fail)] => &fail.text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn floods_do_not_starve_others() {
    let mut world = small();
    let flooding: Vec<_> = (0..20).map(|number| stuck(&mut world, number)).collect();
    let mut written = Vec::new();
    for (_, pid) in &flooding {
        written.push(world.fill(*pid, Stream::Stdout));
        world.agent.assert_invariants();
    }
    assert_eq!(written[0], RING_LEN_MAX, "the first ones have whole rings");
    assert_eq!(written[19], PAGE_LEN, "the last ones have their page");
    // Others still start, write and end, and each of them gets all of its output.
    let id = world.connect();
    assert!(matches!(
        world.ask(id, &numbered(99))[..],
        [Message::Started(_)]
    ));
    let pid = world.pid();
    for round in 1..50 {
        world.write(pid, Stream::Stdout, &[b'y'; 1000]);
        let received = world.receive(id);
        assert!(matches!(received[..], [Message::Stdout(_)]), "{received:?}");
        world.send(id, &ack(Stream::Stdout, round * 1000));
    }
    world.agent.assert_invariants();
    // A client that reads and acknowledges gives the memory back, and short rings are read on.
    let (first, first_pid) = flooding[0];
    world.unblock(first);
    let short = world.session_of(flooding[19].1);
    for (id, pid) in &flooding[..10] {
        world.unblock(*id);
        let end = world.agent.sessions.get(world.session_of(*pid)).unwrap();
        let end = end.ring(Stream::Stdout).end();
        world.send(*id, &ack(Stream::Stdout, end));
        world.agent.assert_invariants();
    }
    assert!(world.actions.contains(&Action::ResumeOutput(short)));
    assert!(world.fill(flooding[19].1, Stream::Stdout) > PAGE_LEN);
    assert!(world.fill(first_pid, Stream::Stdout) > PAGE_LEN);
    world.agent.assert_invariants();
}

/// An owner acknowledges little by little what a short ring holds, because a PING asks for it.
#[test]
fn the_owner_of_a_short_ring_is_asked_for_acknowledgements_once() {
    let mut world = small();
    for number in 0..8 {
        let (_, pid) = stuck(&mut world, number);
        world.fill(pid, Stream::Stdout);
    }
    let id = world.connect();
    world.ask(id, &numbered(50));
    let pid = world.pid();
    let mut end = 0;
    let is_ping = |message: &Message| matches!(message, Message::Ping(_));
    for round in 0..3 {
        end += world.fill(pid, Stream::Stdout) as u64;
        world.drain_actions();
        let pings = world.receive(id).iter().filter(|it| is_ping(it)).count();
        assert_eq!(pings, usize::from(round == 0), "round {round}");
        world.send(id, &ack(Stream::Stdout, end));
    }
    assert!(end >= 3 * PAGE_LEN as u64);
    world.agent.assert_invariants();
}

#[test]
fn without_a_page_for_each_stream_a_command_is_refused_by_name() {
    let mut world = small();
    let count = LEN_MIN / (2 * PAGE_LEN);
    let ids: Vec<_> = (0..count).map(|number| stuck(&mut world, number)).collect();
    let id = world.connect();
    let answer = world.ask(id, &numbered(count));
    assert_eq!(fail_code(&answer), FailCode::Limit);
    assert!(text_of(&answer).contains("no memory"), "{answer:?}");
    assert!(!world.is_closed(id), "the connection goes on");
    world.agent.assert_invariants();
    // What runs goes on, in its pages.
    assert_eq!(world.fill(ids[3].1, Stream::Stderr), PAGE_LEN);
    // One end makes room for the next command, and the refused request has not run.
    world.finish(ids[0].1, 0);
    let answer = world.ask(id, &numbered(count));
    assert!(
        matches!(answer[..], [Message::Started(it)] if it.fresh),
        "{answer:?}"
    );
}

#[test]
fn the_kept_output_of_ended_sessions_goes_first() {
    let mut world = small();
    for number in 0..12 {
        let id = world.connect();
        world.ask(id, &numbered(number));
        let pid = world.pid();
        world.write(pid, Stream::Stdout, &vec![b'k'; 100_000]);
        world.end(id, Ended::ByReset);
        world.finish(pid, 0);
        world.agent.assert_invariants();
    }
    let kept = |world: &World| -> Vec<usize> {
        let sessions = world.agent.sessions.after(0);
        sessions
            .map(crate::agent::sessions::session::Session::kept_len)
            .collect()
    };
    let before = kept(&world);
    assert_eq!(
        (before[0], before[11]),
        (0, 100_000),
        "the oldest went first"
    );
    // A running command gets all of it.
    let (_, pid) = stuck(&mut world, 99);
    assert_eq!(world.fill(pid, Stream::Stdout), RING_LEN_MAX);
    assert_eq!(world.fill(pid, Stream::Stderr), RING_LEN_MAX);
    assert!(kept(&world)[..12].iter().sum::<usize>() < before.iter().sum());
}

#[test]
fn frames_take_their_memory_from_the_budget() {
    let mut world = small();
    let header = |len: u32| [&len.to_le_bytes()[..], &[32, 0, 0, 0]].concat();
    let mut refused = 0;
    for number in 0..20 {
        let id = world.connect();
        world.send_bytes(id, &header(900_000));
        for _ in 0..8 {
            if world.agent.interest(id).is_some_and(|it| it.readable) {
                world.send_bytes(id, &[b' '; 50_000]);
            }
        }
        world.agent.assert_invariants();
        if let [Message::Fail(fail)] = &world.receive(id)[..] {
            assert_eq!(fail.code, FailCode::Limit);
            assert!(
                fail.text.contains("EXEC with 900000 bytes"),
                "{number}: {fail:?}"
            );
            refused += 1;
        }
    }
    assert!(refused > 10, "{refused} of 20");
    // Usual requests are still served.
    let id = world.connect();
    let ping = Message::Ping(Ping { nonce: 1 });
    assert!(matches!(world.ask(id, &ping)[..], [Message::Pong(_)]));
    assert!(matches!(
        world.ask(id, &numbered(1))[..],
        [Message::Started(_)]
    ));
    assert!(world.agent.read_len(id, 64 * 1024) <= DECODER_LEN_FREE);
}

#[test]
fn a_request_that_would_become_too_large_is_refused_by_name() {
    let mut world = small();
    let id = world.connect();
    let bomb = ["{\"x\":[", &"{\"\":0},".repeat(20_000), "0]}"].concat();
    let mut bytes = u32::try_from(bomb.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend([32, 0, 0, 0]);
    bytes.extend(bomb.as_bytes());
    world.send_bytes(id, &bytes);
    let answer = world.receive(id);
    assert_eq!(fail_code(&answer), FailCode::Limit);
    assert!(
        text_of(&answer).contains("no memory for EXEC"),
        "{answer:?}"
    );
    assert!(matches!(
        world.ask(id, &numbered(1))[..],
        [Message::Started(_)]
    ));
}

#[test]
fn input_that_was_promised_is_taken_while_memory_is_tight() {
    let mut world = small();
    let with_input = |exec: &mut Exec| exec.stdin = true;
    let (id, pid) = running_with(&mut world, &exec_with(1, with_input));
    let session = world.session_of(pid);
    world.inputs.entry(session).or_default().room = Some(0);
    for number in 10..30 {
        let (_, pid) = stuck(&mut world, number);
        world.fill(pid, Stream::Stdout);
    }
    let bytes = vec![b'i'; STREAM_DATA_LEN_MAX];
    world.send(id, &Message::Stdin(Chunk { offset: 0, bytes }));
    world.agent.assert_invariants();
    let received = world.receive(id);
    assert!(!world.is_closed(id) && received.is_empty(), "{received:?}");
    assert_eq!(
        world.agent.input_pending(session).len(),
        STREAM_DATA_LEN_MAX
    );
    // A new command is promised a page.
    let id = world.connect();
    let answer = world.ask(id, &exec_with(2, with_input));
    let is_page = |it: &shared::message::Started| it.stdin.limit == PAGE_LEN as u64;
    assert!(
        matches!(&answer[..], [Message::Started(it)] if is_page(it)),
        "{answer:?}"
    );
}

/// A host at work, of which each call into the core may run out of memory.
struct Work {
    agent: Agent,
    now: Instant,
    pids: Vec<(SessionId, i32)>,
}

impl Work {
    fn new() -> Self {
        let world = World::new();
        Self {
            agent: world.agent,
            now: world.now,
            pids: Vec::with_capacity(64),
        }
    }

    fn call(&mut self, call: impl FnOnce(&mut Agent, Instant)) {
        armed(|| call(&mut self.agent, self.now));
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(action) = armed(|| self.agent.poll_action()) {
            let now = self.now;
            match action {
                Action::Flush(id) => self.flush(id),
                Action::Spawn { purpose, command } => {
                    armed(move || drop(command));
                    let pid = 100 + i32::try_from(self.pids.len()).unwrap();
                    if let Purpose::Session(id) = purpose {
                        self.pids.push((id, pid));
                    }
                    armed(|| self.agent.handle_spawned(purpose, Ok(pid), now));
                }
                Action::CollectFigures(id) => {
                    let figures = Figures { fds: 5, rss_kib: 6 };
                    armed(|| self.agent.handle_figures(id, figures, now));
                }
                Action::RearmListener => armed(|| self.agent.handle_rearmed(Ok(()), now)),
                other => armed(move || drop(other)),
            }
        }
    }

    fn flush(&mut self, id: ConnectionId) {
        armed(|| self.agent.handle_flush(id));
        loop {
            let mut headers = Headers::default();
            // A slow reader: frames are sent in parts.
            let len = self.agent.pending(id, &mut headers).len().min(30_000);
            if len == 0 {
                return;
            }
            let now = self.now;
            armed(|| self.agent.handle_written(id, len, now));
        }
    }

    fn send(&mut self, id: ConnectionId, message: &Message) {
        for piece in message.encode().chunks(64 * 1024) {
            if self.agent.interest(id).is_some_and(|it| it.readable) {
                self.call(|agent, now| agent.handle_bytes(id, piece, now));
            }
        }
    }

    fn connect(&mut self) -> Option<ConnectionId> {
        let id = armed(|| self.agent.handle_accepted(true, self.now))?;
        self.drain();
        self.send(id, &Message::Hello(Hello::host("test")));
        Some(id)
    }

    fn output(&mut self, id: SessionId, stream: Stream, len: usize) {
        let bytes = vec![b'o'; len];
        let room = armed(|| self.agent.output_room(id, stream)).min(len);
        let mut rest = &bytes[..room];
        for slice in self.agent.output_spare(id, stream) {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice[..now.len()].copy_from_slice(now);
            rest = later;
        }
        let spare_len = room - rest.len();
        self.call(|agent, now| agent.handle_output_read(id, stream, spare_len, rest, now));
    }

    /// Everything that makes the core allocate by what others decide.
    fn day(&mut self, first: usize, words_len: usize) {
        for number in first..first + 4 {
            let Some(id) = self.connect() else {
                continue;
            };
            let mut request = numbered(number);
            if let Message::Exec(exec) = &mut request {
                exec.stdin = true;
                exec.output = [OutputPolicy::Block, OutputPolicy::DropOldest][number % 2];
                let word = "w".repeat(number * 5_000 % (words_len + 1));
                exec.argv
                    .extend((0..5).filter_map(|_| ByteString::new(word.clone())));
            }
            self.send(id, &request);
            let offset = 0;
            let bytes = vec![b'i'; 60_000];
            self.send(id, &Message::Stdin(Chunk { offset, bytes }));
            self.send(id, &Message::InfoRequest);
            self.send(id, &Message::SessionsRequest(SessionsRequest { after: 0 }));
        }
        for round in 0..6 {
            for (session, _) in self.pids.clone() {
                for &stream in Stream::ALL {
                    self.output(session, stream, 1 << (10 + round));
                }
            }
        }
        for (session, pid) in std::mem::take(&mut self.pids) {
            for &stream in Stream::ALL {
                self.call(|agent, now| agent.handle_output_closed(session, stream, now));
            }
            let exit = Exit {
                status: ExitStatus::Code(0),
                usage: ResourceUsage::default(),
            };
            self.call(|agent, now| agent.handle_child_exit(pid, exit, now));
        }
        let ids: Vec<_> = self.agent.connections.keys().copied().collect();
        for id in ids {
            self.call(|agent, now| agent.handle_closed(id, Ended::ByPeer, now));
        }
        self.agent.assert_invariants();
    }

    /// Whether a new host is served as on the first day.
    fn assert_served(&mut self, number: usize) {
        failing::set_shortage(None);
        let id = self.connect().expect("there is memory again");
        self.send(id, &numbered(number));
        assert_eq!(self.pids.len(), 1);
        self.day(number + 1, 0);
    }
}

/// An agent that aborts ends this test without a word.
#[test]
fn no_failed_allocation_ends_the_agent() {
    let mut shortages: Vec<_> = (0..60).map(Shortage::Once).collect();
    shortages.extend((0..20).map(|count| Shortage::Always(count * 4)));
    let mut failed = 0;
    for shortage in shortages {
        let mut work = Work::new();
        failing::set_shortage(Some(shortage));
        // What parsing takes was there a moment before, so it must not fail.
        work.day(100, 500);
        failed += failing::failures();
        work.assert_served(200);
    }
    assert!(failed > 60, "only {failed} allocations failed");
}

/// As a limit on the address space does it: all allocations count, and the small ones fit.
#[test]
fn a_limit_on_memory_does_not_end_the_agent() {
    let mut failed = 0;
    for step in (4..100).step_by(3) {
        let mut work = Work::new();
        let cap = failing::held() + step * 16 * 1024;
        failing::set_shortage(Some(Shortage::Cap(cap)));
        work.day(100, 90_000);
        failed += failing::failures();
        work.assert_served(200);
    }
    assert!(failed > 60, "only {failed} allocations failed");
}
