//! Goal: the agent keeps to the protocol whatever a client sends. Method: a real agent process on a
//! Unix socket, and clients that send frames which a well-behaved client would not.

use std::time::Instant;

use nix::sys::signal::Signal;
use shared::frame::FrameKind;
use shared::message::{
    Cause, Depth, Exec, FailCode, Hello, Message, Ping, Policy, Rebind, Reopen, Role,
};
use shared::version::VersionRange;
use tests::DEADLINE;
use tests::agent::Agent;
use tests::client::{exec, frame, generation, probe, quiesce, rebind, rebind_fields};
use tests::fifo::Fifo;

#[test]
fn hello_carries_a_generation_only_after_a_rebind() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let hello = client.greet();
    assert_eq!((hello.role, hello.generation), (Role::Guest, None));
    assert!(hello.boot_id.is_some());
    client.rebound(&rebind(1));
    let hello = agent.connect().greet();
    assert_eq!(hello.generation, Some(generation(1)));
}

#[test]
fn a_peer_without_a_common_version_hears_both_ranges() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let protocol = VersionRange { min: 8, max: 9 };
    client.say(&Message::Hello(Hello {
        protocol,
        ..Hello::host("test")
    }));
    let fail = client.is_refused(FailCode::Version);
    assert!(
        fail.text.contains("speaks 1") && fail.text.contains("8 to 9"),
        "{fail:?}"
    );
}

#[test]
fn broken_frames_end_the_connection_with_a_word() {
    let agent = Agent::start();
    let hello = Message::Hello(Hello::host("test")).encode();
    let after_hello = |bytes: &[u8]| [&hello[..], bytes].concat();
    let cases = [
        ("no HELLO", Message::Ping(Ping { nonce: 1 }).encode()),
        ("unknown kind", after_hello(&[0, 0, 0, 0, 99, 0, 0, 0])),
        ("flags", after_hello(&[0, 0, 0, 0, 3, 1, 0, 0])),
        ("too long", after_hello(&[1, 0, 1, 0, 3, 0, 0, 0])),
        ("no JSON", after_hello(&frame(FrameKind::Ping, "nonsense"))),
        ("a guest's frame", after_hello(&frame(FrameKind::Ok, "{}"))),
        ("two HELLOs", after_hello(&hello)),
    ];
    for (name, bytes) in cases {
        let mut client = agent.connect();
        client.send(&bytes);
        let fail = client.is_refused(FailCode::Protocol);
        assert!(!fail.text.is_empty(), "{name}");
    }
    // The agent still works.
    assert_eq!(agent.exec(["true"]).code(), 0);
}

#[test]
fn requests_may_arrive_byte_by_byte_and_all_at_once() {
    let agent = Agent::start();
    let mut flight = Message::Hello(Hello::host("test")).encode();
    for nonce in 0..100 {
        Message::Ping(Ping { nonce }).encode_into(&mut flight);
    }
    let pongs = |mut client: tests::client::Client| {
        assert!(matches!(client.hear(), Message::Hello(_)));
        for nonce in 0..100 {
            assert_eq!(client.hear(), Message::Pong(Ping { nonce }));
        }
    };
    let mut client = agent.connect();
    client.send(&flight);
    pongs(client);
    let mut client = agent.connect();
    for byte in flight {
        client.send(&[byte]);
    }
    pongs(client);
}

#[test]
fn the_same_generation_is_answered_twice_and_acted_on_once() {
    let agent = Agent::start();
    let first = agent.greet().rebound(&rebind(1));
    let again = agent.greet().rebound(&rebind(1));
    assert_eq!(first, again, "the second answer repeats the first");
    let other = agent.greet().rebound(&rebind(2));
    assert_eq!(other.listener_serial, first.listener_serial + 1);
}

#[test]
fn a_rebind_closes_the_connections_of_the_generation_before() {
    let agent = Agent::start();
    let mut old = agent.greet();
    let rebound = agent.greet().rebound(&rebind(1));
    assert!(rebound.connections_dropped >= 1, "{rebound:?}");
    while let Some(message) = old.hear_or_end() {
        assert!(matches!(message, Message::Sever(_)), "{message:?}");
    }
}

#[test]
fn a_probe_proves_the_listener_it_came_through() {
    let agent = Agent::start();
    let mut control = agent.greet();
    let rebound = control.rebound(&rebind(1));
    let refused = control.ask(&probe(1, Depth::Listener));
    assert!(
        matches!(refused, Message::Fail(_)),
        "accepted before the rebind: {refused:?}"
    );
    let probed = agent.greet().probed(&probe(1, Depth::Exec));
    assert_eq!(probed.listener_serial, rebound.listener_serial);
    assert!(
        probed.accepts_since_rebind >= 1 && probed.exec_us.is_some(),
        "{probed:?}"
    );
    agent.refuses(&probe(2, Depth::Exec), FailCode::Stale);
}

/// One event of the listener stands for all connections that came while the guest was paused. The
/// last one speaks first, so that the earlier ones cannot wake the agent for it.
#[test]
fn connections_that_come_during_a_pause_are_all_served() {
    let agent = Agent::start();
    agent.signal(Signal::SIGSTOP);
    let mut clients: Vec<_> = (0..10).map(|_| agent.connect()).collect();
    agent.signal(Signal::SIGCONT);
    for client in clients.iter_mut().rev() {
        client.greet();
    }
}

/// The guest finds a probe and, behind it, a new connection in the accept queue. Accepting must not
/// stop at the probe: the new connection would get no event of its own.
#[test]
fn a_connection_that_comes_with_a_probe_is_served() {
    let agent = Agent::start();
    agent.greet().rebound(&rebind(1));
    let mut prover = agent.greet();
    agent.signal(Signal::SIGSTOP);
    prover.say(&probe(1, Depth::Listener));
    let mut late = agent.connect();
    agent.signal(Signal::SIGCONT);
    assert!(matches!(prover.hear(), Message::Probed(_)));
    late.greet();
}

#[test]
fn an_exec_of_another_generation_does_not_run() {
    let agent = Agent::start();
    agent.greet().rebound(&rebind(1));
    let file = agent.folder().join("ran");
    let touch = exec(9, &["touch", file.to_str().unwrap()]);
    let stale = Exec {
        generation: Some(generation(2)),
        ..touch.clone()
    };
    agent.refuses(&Message::Exec(stale), FailCode::Stale);
    let mut client = agent.greet();
    let good = Exec {
        generation: Some(generation(1)),
        ..touch
    };
    assert!(!file.exists());
    client.start(&good);
    client.collect();
    assert!(file.exists());
}

#[test]
fn a_quiesced_agent_refuses_work_until_it_is_reopened_or_rebound() {
    let agent = Agent::start();
    for (round, reopen) in [(1, true), (2, false)] {
        let mut other = agent.greet();
        let mut control = agent.greet();
        control.quiesced(&quiesce(round, Policy::Keep));
        while let Some(message) = other.hear_or_end() {
            assert!(matches!(message, Message::Sever(_)), "{message:?}");
        }
        agent.refuses(&Message::Exec(exec(round, &["true"])), FailCode::Refusing);
        if reopen {
            let token = shared::id::Token::from_bytes([round; 16]);
            let answer = agent.greet().ask(&Message::Reopen(Reopen { token }));
            assert_eq!(answer, Message::Ok);
        } else {
            agent.greet().rebound(&rebind(round));
        }
        assert_eq!(agent.exec(["true"]).code(), 0, "round {round}");
    }
}

#[test]
fn quiesce_refuses_or_waits_for_sessions_as_its_policy_says() {
    let agent = Agent::start();
    let mut running = agent.greet();
    let fifo = Fifo::new(agent.folder(), "fifo");
    running.start(&exec(1, &["cat", fifo.path()]));
    let refused = agent.greet().ask(&quiesce(1, Policy::Refuse));
    assert!(matches!(refused, Message::Fail(_)), "{refused:?}");
    let mut control = agent.greet();
    control.say(&quiesce(2, Policy::Drain));
    let Message::Busy(busy) = control.hear() else {
        panic!()
    };
    assert_eq!(busy.sessions.len(), 1);
    fifo.release();
    loop {
        match control.hear() {
            Message::Busy(_) => {}
            answer => break assert!(matches!(answer, Message::Quiesced(_)), "{answer:?}"),
        }
    }
}

/// A connection that comes after the asker has closed is another client, and is cut like all
/// others.
#[test]
fn what_a_lost_connection_has_asked_for_is_told_to_no_other() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut running = agent.greet();
    running.start(&exec(1, &["cat", fifo.path()]));
    let held = fifo.hold();
    let mut control = agent.greet();
    control.say(&quiesce(1, Policy::Drain));
    let busy = control.hear();
    assert!(matches!(busy, Message::Busy(_)), "{busy:?}");
    drop(control);
    let began = Instant::now();
    while running.info().connections > 1 {
        assert!(began.elapsed() < DEADLINE, "the asker is still there");
    }
    let mut other = agent.greet();
    drop(held);
    let told = other.hear();
    assert!(matches!(told, Message::Sever(_)), "{told:?}");
    assert_eq!(other.hear_or_end(), None);
}

#[test]
fn a_restore_without_entropy_is_no_restore() {
    let agent = Agent::start();
    let bad = Rebind {
        cause: Cause::Restore,
        entropy: None,
        ..rebind_fields(1)
    };
    let mut client = agent.greet();
    client.say(&Message::Rebind(bad));
    let fail = client.is_refused(FailCode::Protocol);
    assert!(fail.text.contains("entropy"), "{fail:?}");
}

#[test]
fn more_clients_than_there_is_room_for_are_told_so() {
    let agent = Agent::start();
    let mut clients = Vec::new();
    // Many more than any documented limit, and none of them sends anything after HELLO.
    let refused = (0..5000).find_map(|_| {
        let mut client = agent.connect();
        client.try_send(&Message::Hello(Hello::host("test")).encode());
        let answer = client.hear_or_end();
        let is_refused = !matches!(answer, Some(Message::Hello(_)));
        clients.push(client);
        is_refused.then_some(answer)
    });
    let refused = refused.expect("a limit");
    let is_limit = matches!(&refused, Some(Message::Fail(fail)) if fail.code == FailCode::Limit);
    assert!(is_limit || refused.is_none(), "{refused:?}");
    drop(clients);
    assert_eq!(agent.exec(["true"]).code(), 0, "there is room again");
}
