//! The watch for a restore epoch, with the rest of the agent.

use super::*;
use shared::message::Reopen;

const SECOND: Duration = Duration::from_secs(1);

/// A guest that is to watch, before its first REBIND.
fn without_generation() -> World {
    let mut world = World::new();
    world.agent.settings.watches_mmds = true;
    world
}

/// A guest that watches, and whose service has answered once, with the first epoch.
fn watching() -> World {
    let mut world = without_generation();
    let host = world.connect();
    world.ask(host, &rebind(G, Cause::Boot));
    world.end(host, Ended::ByPeer);
    world.pass(SECOND * 2);
    assert_eq!(asked(&mut world).as_deref(), Some("PUT"));
    answer(&mut world, "200 OK", "token");
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    answer(&mut world, "200 OK", &G.to_string());
    assert_eq!(counted(&world), (1, 0, 0));
    world.actions.clear();
    world
}

/// The method of the last question since the last call, if its connection is still open.
fn asked(world: &mut World) -> Option<String> {
    let actions = std::mem::take(&mut world.actions);
    actions.into_iter().fold(None, |open, action| match action {
        Action::AskMmds(request) => request.split(' ').next().map(str::to_owned),
        Action::CloseMmds => None,
        _ => open,
    })
}

/// The service answers, byte by byte.
fn answer(world: &mut World, status: &str, body: &str) {
    let len = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n{body}");
    for byte in text.bytes() {
        world.agent.handle_mmds_bytes(&[byte], world.now);
    }
    world.drain_actions();
}

/// Epochs read, new epochs, and failures.
fn counted(world: &World) -> (u64, u64, u64) {
    let counters = world.agent.counters;
    (
        counters.mmds_reads,
        counters.mmds_epochs,
        counters.mmds_failures,
    )
}

#[test]
fn without_the_setting_nothing_is_waited_for() {
    let mut world = World::with_generation(G);
    world.pass(SECOND * 3600);
    assert_eq!(world.agent.poll_timeout(), None);
    assert_eq!(asked(&mut world), None);
}

#[test]
fn before_its_first_rebind_a_guest_asks_nothing() {
    let mut world = without_generation();
    let host = world.connect();
    world.end(host, Ended::ByReset);
    world.pass(SECOND * 3600);
    assert_eq!(world.agent.poll_timeout(), None);
    assert_eq!(asked(&mut world), None);
}

#[test]
fn another_epoch_rearms_the_listener_and_concludes_nothing() {
    let mut world = watching();
    let rearms = world.agent.counters.rearms;
    for (epoch, counts, rearmed) in [(G, (2, 0, 0), 0), (H, (3, 1, 0), 1), (H, (4, 1, 0), 1)] {
        world.pass(SECOND * 10);
        assert_eq!(asked(&mut world).as_deref(), Some("GET"));
        answer(&mut world, "200 OK", &epoch.to_string());
        assert_eq!(counted(&world), counts);
        assert_eq!(world.agent.counters.rearms, rearms + rearmed);
        let is_rearmed = world.actions.contains(&Action::RearmListener);
        assert_eq!(is_rearmed, counts == (3, 1, 0));
        let is_drained = world.actions.contains(&Action::DrainAccept);
        assert_eq!(is_drained, is_rearmed);
    }
    let stands = (world.agent.state(), world.agent.generation());
    assert_eq!(stands, (State::Rebound(G), Some(G)));
}

#[test]
fn a_service_that_is_silent_or_gone_is_given_up_and_asked_again() {
    let mut world = watching();
    world.pass(SECOND * 10);
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    world.pass(SECOND * 10);
    assert_eq!((asked(&mut world), counted(&world)), (None, (1, 0, 1)));
    world.pass(SECOND * 10);
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    world.agent.handle_mmds_failed(world.now);
    world.drain_actions();
    assert_eq!(counted(&world), (1, 0, 2));
    // An answer on a closed connection is ignored.
    answer(&mut world, "200 OK", &H.to_string());
    assert_eq!(counted(&world), (1, 0, 2));
    world.pass(SECOND * 10);
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    world.agent.handle_mmds_bytes(b"x", world.now);
    world.drain_actions();
    assert_eq!(counted(&world), (1, 0, 3));
    world.pass(SECOND * 10);
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    world.agent.handle_mmds_bytes(b"HTTP/1.1 200", world.now);
    world.agent.handle_mmds_bytes(&[b' '; 1 << 20], world.now);
    world.drain_actions();
    assert_eq!((asked(&mut world), counted(&world)), (None, (1, 0, 4)));
}

#[test]
fn a_reset_brings_the_next_look_nearer_and_many_do_not_put_it_off() {
    let mut world = watching();
    for _ in 0..2 {
        let id = world.connect();
        world.end(id, Ended::ByReset);
        assert_eq!(asked(&mut world), None);
        world.pass(SECOND);
    }
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    // The open question may be half dead, so it is asked again.
    let id = world.connect();
    world.end(id, Ended::ByReset);
    assert!(world.actions.contains(&Action::CloseMmds));
    assert_eq!(asked(&mut world), None);
    world.pass(SECOND * 2);
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    assert_eq!(counted(&world), (1, 0, 0));
}

#[test]
fn a_guest_that_reopens_asks_later() {
    let mut world = watching();
    let control = world.connect();
    world.ask(control, &quiesce(Policy::Keep));
    world.pass(SECOND * 15);
    assert_eq!(asked(&mut world), None, "silent");
    let reopen = Message::Reopen(Reopen { token: TOKEN });
    assert_eq!(world.ask(control, &reopen), [Message::Ok]);
    world.pass(SECOND * 10);
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
}

#[test]
fn nothing_is_open_from_quiesce_to_the_new_generation() {
    let mut world = watching();
    world.pass(SECOND * 10);
    let control = world.connect();
    assert_eq!(
        world.ask(control, &quiesce(Policy::Keep)),
        [Message::Quiesced(TOKEN)]
    );
    assert!(world.actions.contains(&Action::CloseMmds));
    assert_eq!(asked(&mut world), None);
    world.end(control, Ended::ByReset);
    world.pass(SECOND * 20);
    assert_eq!(asked(&mut world), None, "silent");
    let host = world.connect();
    world.ask(host, &rebind(H, Cause::Restore));
    world.pass(SECOND);
    assert_eq!(asked(&mut world), None, "the proof comes first");
    world.pass(SECOND);
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    answer(&mut world, "401 Unauthorized", "");
    assert_eq!(asked(&mut world).as_deref(), Some("PUT"));
    answer(&mut world, "200 OK", "another");
    assert_eq!(asked(&mut world).as_deref(), Some("GET"));
    answer(&mut world, "200 OK", &H.to_string());
    assert_eq!(counted(&world), (2, 1, 0));
    assert_eq!(world.agent.generation(), Some(H));
}
