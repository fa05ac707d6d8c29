//! Goal: whatever becomes of the transport reset around a snapshot, `host-tool restore` ends with a
//! guest that is ready. Method: the built programs, a fake Firecracker, and a vsock device
//! between them that loses, repeats and delays on demand. SIGSTOP of the agent stands for the pause
//! of its VM, and the accept queue of its Unix socket for that of its vsock port: it is as long.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use shared::message::{Hello, Message, Policy};
use tests::agent::Agent;
use tests::client::{Client, quiesce};
use tests::host::TestHost;
use tests::muxer::Treatment;
use tests::process::{Finished, Running};
use tests::proxy::{Closed, Direction};
use tests::raise_descriptor_limit;

/// A guest that can be restored.
struct Fixture {
    host: TestHost,
    agent: Agent,
}

impl Fixture {
    fn new() -> Self {
        let agent = Agent::start();
        let host = TestHost::new(&agent);
        Self { host, agent }
    }

    /// Connections of the generation before, which know nothing of any snapshot.
    fn stale(&self, count: usize) -> Vec<Client> {
        let socket = self.host.muxer().socket();
        let greeted = |_| {
            let mut client = Client::connect_hybrid(socket);
            client.greet();
            client
        };
        (0..count).map(greeted).collect()
    }

    /// Leaves the guest as a snapshot finds it: silent, with the connection that asked for it.
    fn quiesced(&self, round: u8) -> Client {
        let mut control = self.stale(1).remove(0);
        control.quiesced(&quiesce(round, Policy::Keep));
        control
    }

    fn restoring(&self) -> Running {
        let artifact = self.host.artifact();
        let words = ["restore", "--name", "clone", "--json", "--timeout", "60s"];
        Running::start(self.host.tool(words).arg(artifact))
    }

    /// The restored guest is ready, takes commands, and goes.
    #[track_caller]
    fn is_ready(&self, restored: Finished) -> serde_json::Value {
        let record = restored.exits(0).json();
        assert_eq!(record["event"], "ready", "{record}");
        let exec = ["exec", "--name", "clone", "--timeout", "60s", "--", "true"];
        self.host.run(exec).exits(0);
        self.host.run(["rm", "--force", "clone"]).exits(0);
        assert_eq!(self.host.muxer().malformed_count(), 0);
        record
    }

    #[track_caller]
    fn restores(&self) -> serde_json::Value {
        self.is_ready(self.restoring().finish())
    }
}

/// How often the guest was asked in a phase.
fn attempts(record: &serde_json::Value, phase: &str) -> u64 {
    record["attempts"][phase].as_u64().unwrap()
}

/// The host's ends are gone with the old VMM, and the guest does not hear of it.
#[test]
fn a_reset_that_is_never_delivered() {
    let fixture = Fixture::new();
    let _stale = fixture.stale(5);
    let _control = fixture.quiesced(1);
    let _late = fixture.stale(3);
    fixture.host.muxer().reset(Closed::ForHost);
    let record = fixture.restores();
    // The five were closed by QUIESCE, and the control connection is still there.
    let dropped = record["guest"]["connections_dropped"].as_u64().unwrap();
    assert!(dropped >= 4, "{record}");
    fixture.host.is_clean();
}

#[test]
fn a_reset_that_is_delivered_once() {
    let fixture = Fixture::new();
    let _control = fixture.quiesced(1);
    fixture.host.muxer().reset(Closed::Both);
    fixture.restores();
    fixture.host.is_clean();
}

/// The second one takes the connection with it over which the guest is being named.
#[test]
fn a_reset_that_is_delivered_twice() {
    let fixture = Fixture::new();
    for closed in [Closed::Both, Closed::ForGuest] {
        let _stale = fixture.stale(2);
        fixture.host.muxer().reset(Closed::ForGuest);
        fixture.host.muxer().plan(&[Treatment::Severed {
            direction: Direction::ToHost,
            after: 0,
            closed,
        }]);
        let record = fixture.restores();
        assert!(attempts(&record, "rebind") >= 2, "{record}");
    }
    fixture.host.is_clean();
}

/// The first connections of the new generation are accepted, and then the reset comes: at places
/// all over the two conversations that make a guest ready, seen by both sides or by one.
#[test]
fn a_reset_after_the_first_accept() {
    let fixture = Fixture::new();
    for connection in 0..2 {
        for direction in [Direction::ToGuest, Direction::ToHost] {
            for (after, closed) in [
                (0, Closed::ForGuest),
                (1, Closed::Both),
                (8, Closed::ForHost),
                (120, Closed::Both),
                (180, Closed::ForGuest),
                (200, Closed::ForHost),
            ] {
                let mut plan = vec![Treatment::Passed; connection];
                plan.push(Treatment::Severed {
                    direction,
                    after,
                    closed,
                });
                fixture.host.muxer().pass_all();
                fixture.host.muxer().plan(&plan);
                let record = fixture.restores();
                let phase = ["rebind", "probe"][connection];
                assert!(attempts(&record, phase) >= 2, "{plan:?}: {record}");
            }
        }
    }
    fixture.host.is_clean();
}

/// Bytes of a conversation come one at a time, and the connections before it never arrive, are
/// refused, or have a line and nobody behind it.
#[test]
fn connections_that_are_lost_refused_or_dead_delay_nothing_for_good() {
    let fixture = Fixture::new();
    let muxer = fixture.host.muxer();
    for treatment in [
        Treatment::Lost,
        Treatment::Refused,
        Treatment::Dead,
        Treatment::Held,
    ] {
        // One for the rebind and, behind the one that goes well, one for the probe.
        muxer.plan(&[
            treatment,
            Treatment::Bytewise,
            treatment,
            Treatment::Bytewise,
        ]);
        let record = fixture.restores();
        for phase in ["rebind", "probe"] {
            assert!(attempts(&record, phase) >= 2, "{treatment:?}: {record}");
        }
    }
}

/// The guest's kernel has taken the host's connection before the guest runs again.
#[test]
fn a_connection_that_is_accepted_while_the_vm_is_paused() {
    let fixture = Fixture::new();
    for closed in [None, Some(Closed::ForHost), Some(Closed::Both)] {
        let _control = fixture.quiesced(1);
        let muxer = fixture.host.muxer();
        let index = muxer.count();
        fixture.agent.signal(Signal::SIGSTOP);
        let restoring = fixture.restoring();
        muxer.await_arrival(index);
        if let Some(closed) = closed {
            // What is in the queue is dead when the guest comes to it.
            muxer.reset(closed);
            muxer.await_arrival(index + 1);
        }
        fixture.agent.signal(Signal::SIGCONT);
        fixture.is_ready(restoring.finish());
    }
    fixture.host.is_clean();
}

/// Connects to the agent until its kernel takes no more, and leaves each in the accept queue.
fn fill_accept_queue(agent: &Path) -> Vec<OwnedFd> {
    let address = UnixAddr::new(agent).unwrap();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let mut queued = Vec::new();
    loop {
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => queued.push(fd),
            Err(errno) => {
                assert_eq!(errno, Errno::EAGAIN);
                return queued;
            }
        }
    }
}

/// Some of the dead have said something, some nothing, and one hangs on to the end.
#[test]
fn an_accept_queue_that_is_full_of_dead_connections() {
    raise_descriptor_limit();
    let fixture = Fixture::new();
    let hello = Message::Hello(Hello::host("test")).encode();
    for round in 1..=2 {
        let _control = fixture.quiesced(round);
        let refused = fixture.host.muxer().refused_count();
        fixture.agent.signal(Signal::SIGSTOP);
        let mut queued = fill_accept_queue(&fixture.agent.socket());
        assert!(queued.len() >= 1024, "{} in the queue", queued.len());
        for fd in queued.iter().step_by(2) {
            nix::unistd::write(fd, &hello[..hello.len() / 2]).unwrap();
        }
        let last = queued.pop();
        drop(queued);
        let restoring = fixture.restoring();
        // The queue is full for the host, too: it is refused until the guest runs again.
        fixture.host.muxer().await_refused(refused + 2);
        fixture.agent.signal(Signal::SIGCONT);
        fixture.is_ready(restoring.finish());
        drop(last);
    }
    fixture.host.is_clean();
}
