//! Goal: many commands, one after another and at once, cost a limited amount and leave nothing
//! behind. Method: raw connections, which are faster than any client, and the agent's figures:
//! descriptors, resident memory, zombies, orphans.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use shared::id::Nonce;
use shared::message::{Depth, ExitStatus, Message, Probe};
use tests::agent::Agent;
use tests::client::{Client, exec_numbered};

/// Growth of resident memory, in KiB, that is noise of the allocator. A leak of half a KiB per
/// command would exceed it, since these tests run a thousand or more.
const RSS_NOISE_KIB: u64 = 512;

/// Runs a command to its end.
#[track_caller]
fn run(client: &mut Client, number: u64, argv: &[&str]) -> ExitStatus {
    let started = client.start(&exec_numbered(number, argv));
    assert!(started.fresh);
    client.follow(&started).exited.status
}

#[track_caller]
fn probe(client: &mut Client) {
    let probe = Probe {
        generation: None,
        nonce: Nonce::from_bytes([7; 16]),
        depth: Depth::Exec,
    };
    client.probed(&Message::Probe(probe));
}

#[test]
fn ten_thousand_commands_leave_nothing_and_probes_are_answered_meanwhile() {
    let agent = Agent::start();
    let mut client = agent.greet();
    // More than the number of results that are kept, so that the table is full.
    for number in 0..300 {
        run(&mut client, number, &["true"]);
    }
    drop(client);
    let before = (agent.idle_fd_count(), agent.status("VmRSS"));
    let mut client = agent.greet();
    let is_over = AtomicBool::new(false);
    let probes = thread::scope(|scope| {
        let prober = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                probe(&mut agent.greet());
                count += 1;
            }
            count
        });
        for number in 1_000..11_000 {
            let code = (number % 2).to_string();
            let argv = [["true"], ["false"]][usize::try_from(number % 2).unwrap()];
            let status = run(&mut client, number, &argv);
            assert_eq!(status, ExitStatus::Code(code.parse().unwrap()));
        }
        is_over.store(true, Ordering::Relaxed);
        prober.join().unwrap()
    });
    assert!(probes > 0, "no probe was answered");
    drop(client);
    let after = (agent.idle_fd_count(), agent.status("VmRSS"));
    assert_eq!(after.0, before.0);
    agent.reaps_all();
    let growth = after.1.saturating_sub(before.1);
    assert!(growth <= RSS_NOISE_KIB, "{growth} KiB more than before");
}

/// All commands wait for the end of their input, so they do run at the same time.
fn run_at_once(agent: &Agent, round: u64, count: u64) {
    let code_of = |number: u64| u8::try_from(number % 200).unwrap();
    let start = |number| {
        let mut client = agent.greet();
        let code = code_of(number).to_string();
        let argv = ["sh", "-c", "echo $0; cat; exit $0", &code];
        let mut request = exec_numbered(round * 1_000 + number, &argv);
        request.stdin = true;
        client.start(&request);
        let line = format!("{code}\n");
        assert_eq!(client.hear_stdout(line.len()), line.as_bytes());
        client
    };
    let mut clients: Vec<_> = (0..count).map(start).collect();
    probe(&mut agent.greet());
    assert_eq!(u64::from(agent.greet().info().sessions), count);
    for client in &mut clients {
        client.feed_end(0);
    }
    for (number, client) in (0..).zip(&mut clients) {
        let exited = client.hear_exited();
        client.ack_exit(&exited);
        assert_eq!(exited.status, ExitStatus::Code(code_of(number)));
    }
}

#[test]
fn five_hundred_at_once_all_succeed_and_leave_nothing() {
    let agent = Agent::start();
    // Twice before the measurement, since the first rounds spread the allocator's memory by chance.
    run_at_once(&agent, 1, 500);
    run_at_once(&agent, 2, 500);
    let before = (agent.idle_fd_count(), agent.status("VmRSS"));
    run_at_once(&agent, 3, 500);
    run_at_once(&agent, 4, 500);
    let after = (agent.idle_fd_count(), agent.status("VmRSS"));
    assert_eq!(after.0, before.0);
    agent.reaps_all();
    let growth = after.1.saturating_sub(before.1);
    assert!(growth <= RSS_NOISE_KIB, "{growth} KiB more than before");
}

/// Orphans become the agent's children, as the children of any process that ends. Their ends come
/// through the same queue as those of commands, and must not be mistaken for one.
#[test]
fn orphans_never_take_the_status_of_a_session() {
    let agent = Agent::start();
    let before = agent.greet().info().orphans_reaped;
    let (threads, rounds) = (4, 250);
    thread::scope(|scope| {
        for thread in 0..threads {
            let agent = &agent;
            scope.spawn(move || {
                let mut client = agent.greet();
                for round in 0..rounds {
                    let number = thread * 10_000 + round + 1;
                    let code = (number % 100).to_string();
                    // Two orphans per command: one exits with another code, one ends by a signal.
                    let script = "(sh -c 'exit 211' &); (sh -c 'kill -9 $$' &); exit $0";
                    let argv = ["sh", "-c", script, &code];
                    let status = run(&mut client, number, &argv);
                    assert_eq!(status, ExitStatus::Code(code.parse().unwrap()));
                }
            });
        }
    });
    let expected = before + threads * rounds * 2;
    let mut client = agent.greet();
    let started = std::time::Instant::now();
    // The last orphans may still run. With each answer the agent's loop completes a turn.
    while client.info().orphans_reaped < expected {
        assert!(started.elapsed() < tests::DEADLINE, "{:?}", client.info());
    }
    assert_eq!(
        client.info().orphans_reaped,
        expected,
        "none was counted twice"
    );
    agent.reaps_all();
}
