//! Goal: whatever happens to the transport reset around a snapshot, `host-tool restore` ends with a
//! guest that is ready. Method: the built programs, a fake Firecracker, and a vsock device between
//! them that loses, repeats and delays on demand. SIGSTOP of the agent stands for the pause of its
//! VM, and the accept queue of its Unix socket, which is as long, for that of its vsock port.

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

/// A guest that can be restored, and its host.
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

    /// Greeted connections of the generation before the snapshot.
    fn stale(&self, count: usize) -> Vec<Client> {
        let socket = self.host.muxer().socket();
        let greeted = |_| {
            let mut client = Client::connect_hybrid(socket);
            client.greet();
            client
        };
        (0..count).map(greeted).collect()
    }

    /// Quiesces the guest as for a snapshot, and gives the connection that asked for it.
    fn quiesced(&self, round: u8) -> Client {
        let mut control = self.stale(1).remove(0);
        control.quiesced(&quiesce(round, Policy::Keep));
        control
    }

    fn restoring(&self) -> Running {
        let artifact = self.host.artifact();
        let args = ["restore", "--name", "clone", "--json", "--timeout", "60s"];
        Running::start(self.host.tool(args).arg(artifact))
    }

    /// Checks that the restored guest is ready and runs commands, and removes it.
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

/// How often the host asked in a phase.
fn attempts(record: &serde_json::Value, phase: &str) -> u64 {
    record["attempts"][phase].as_u64().unwrap()
}

/// The host's ends are closed with the old VMM, and the guest does not notice.
#[test]
fn a_reset_that_is_never_delivered() {
    let fixture = Fixture::new();
    let _stale = fixture.stale(5);
    let _control = fixture.quiesced(1);
    let _late = fixture.stale(3);
    fixture.host.muxer().reset(Closed::ForHost);
    let record = fixture.restores();
    // QUIESCE has closed the first five; the control connection and the three later ones are open.
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

/// The second reset also closes the connection that carries the REBIND.
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

/// The reset comes after the first connections of the new generation were accepted: at many places
/// of the two conversations that make a guest ready, seen by both sides or by one.
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
                (140, Closed::ForGuest),
                (150, Closed::ForHost),
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

/// A conversation comes byte by byte, and the connections before it are lost, refused, or get an OK
/// line and nothing more.
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
        // The first pair is for the rebind, the second one for the probe.
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

/// The host's connection is in the guest's accept queue before the guest runs again.
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
            // When the guest comes to the connection in its queue, it is closed.
            muxer.reset(closed);
            muxer.await_arrival(index + 1);
        }
        fixture.agent.signal(Signal::SIGCONT);
        fixture.is_ready(restoring.finish());
    }
    fixture.host.is_clean();
}

/// Connects to the agent until its accept queue is full.
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

/// Half of the dead connections have sent something, and one stays open to the end.
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
        // The queue is full for the host, too, which is refused until the guest runs again.
        fixture.host.muxer().await_refused(refused + 2);
        fixture.agent.signal(Signal::SIGCONT);
        fixture.is_ready(restoring.finish());
        drop(last);
    }
    fixture.host.is_clean();
}
