//! Goal: two host-tools that name one guest come to one outcome for each generation, and the one
//! that loses is told why. Method: real processes, each with a vsock device and a fake
//! Firecracker of its own before the same agent, so that the order in which their requests reach
//! the guest is the test's choice; and without such a choice, again and again.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::agent::Agent;
use tests::host::TestHost;
use tests::muxer::Treatment;
use tests::process::{Finished, Running};

/// One of those who name the guest.
struct Rival {
    host: TestHost,
}

impl Rival {
    fn new(agent: &Agent) -> Self {
        Self {
            host: TestHost::new(agent),
        }
    }

    fn restoring(&self) -> Running {
        let words = ["restore", "--name", "clone", "--json", "--timeout", "60s"];
        Running::start(self.host.tool(words).arg(self.host.artifact()))
    }

    fn probing(&self) -> Running {
        Running::start(&mut self.host.tool(["probe", "--name", "clone", "--json"]))
    }

    fn remove(&self) {
        self.host.run(["rm", "--force", "clone"]).exits(0);
        self.host.is_clean();
    }
}

/// The name that the guest has now.
#[track_caller]
fn name_of(agent: &Agent) -> String {
    let probed = agent.host_tool(["probe", "--json"], []).exits(0).json();
    generation(&probed)
}

fn generation(record: &Value) -> String {
    record["generation"].as_str().unwrap().to_owned()
}

/// A failure that says that another has named the guest.
#[track_caller]
fn is_told(lost: Finished) -> Value {
    let lost = lost.exits(6);
    let error = lost.json()["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains("stale") || error.contains("superseded"),
        "{lost}"
    );
    lost.json()
}

/// The first has its REBOUND, and its PROBE is held up until the second is ready.
#[test]
fn a_probe_behind_another_name_is_stale() {
    let agent = Agent::start();
    let (first, second) = (Rival::new(&agent), Rival::new(&agent));
    first.host.muxer().plan(&[Treatment::Passed]);
    first.host.muxer().treat_all(Treatment::Held);
    let losing = first.restoring();
    first.host.muxer().await_count(2);
    let won = second.restoring().finish().exits(0).json();
    first.host.muxer().pass_all();
    first.host.muxer().release_backwards();
    let lost = is_told(losing.finish());
    assert_ne!(generation(&lost), generation(&won));
    assert_eq!(name_of(&agent), generation(&won));
    first.host.is_clean();
    second.remove();
}

/// The first one's REBIND, sent before the second one's, comes behind it: the guest has never heard
/// of it, so that it is the latest. Both are told the truth, each about its own name.
#[test]
fn a_rebind_that_comes_late_is_the_latest() {
    let agent = Agent::start();
    let (first, second) = (Rival::new(&agent), Rival::new(&agent));
    first.host.muxer().treat_all(Treatment::Held);
    let late = first.restoring();
    first.host.muxer().await_count(1);
    let early = second.restoring().finish().exits(0).json();
    assert_eq!(name_of(&agent), generation(&early));
    first.host.muxer().pass_all();
    first.host.muxer().release_backwards();
    let late = late.finish().exits(0).json();
    assert_eq!(name_of(&agent), generation(&late));
    first.remove();
    second.remove();
}

/// A copy of a REBIND that was given up on arrives when another name has replaced its name: it is
/// refused, and the guest keeps the name that it has.
#[test]
fn a_copy_that_comes_behind_another_name_changes_nothing() {
    let agent = Agent::start();
    let (first, second) = (Rival::new(&agent), Rival::new(&agent));
    first.host.muxer().plan(&[Treatment::Held]);
    let replaced = first.restoring().finish().exits(0).json();
    let won = second.restoring().finish().exits(0).json();
    assert_ne!(generation(&replaced), generation(&won));
    first.host.muxer().release(0);
    first.host.muxer().await_delivery(0);
    assert_eq!(name_of(&agent), generation(&won));
    first.remove();
    second.remove();
}

/// Both at once: whoever is ready had its name in the guest, and at least the last one is. No name
/// is given twice, however many are asked for within a second.
#[test]
fn of_two_at_once_the_guest_has_one_name() {
    let agent = Agent::start();
    let rivals = [Rival::new(&agent), Rival::new(&agent)];
    let mut names = BTreeSet::new();
    for round in 0..20 {
        let running = rivals.each_ref().map(Rival::restoring);
        let mut ready = Vec::new();
        for (rival, finished) in rivals.iter().zip(running.map(Running::finish)) {
            let name = if finished.code() == 0 {
                rival.remove();
                let name = generation(&finished.json());
                ready.push(name.clone());
                name
            } else {
                rival.host.is_clean();
                generation(&is_told(finished))
            };
            assert!(names.insert(name), "round {round}: a name of {names:?}");
        }
        let name = name_of(&agent);
        assert!(
            ready.contains(&name),
            "round {round}: {name} is not of {ready:?}"
        );
    }
}

/// A guest that nobody has named yet gets the one name that was left for it, whoever asks.
#[test]
fn two_probes_give_one_name_once() {
    let agent = Agent::start();
    let rival = Rival::new(&agent);
    for held in [0, 1, 2] {
        let words = ["restore", "--name", "clone", "--no-wait"];
        let artifact = rival.host.artifact();
        tests::process::run(rival.host.tool(words).arg(artifact)).exits(0);
        let before = agent.host_tool(["probe", "--json"], []).exits(0).json();
        rival.host.muxer().plan(&vec![Treatment::Held; held]);
        let count = rival.host.muxer().count();
        let probing = [rival.probing(), rival.probing()];
        rival.host.muxer().await_count(count + 2);
        rival.host.muxer().release_backwards();
        let [one, other] = probing.map(|probing| probing.finish().exits(0).json());
        assert_eq!(generation(&one), generation(&other));
        assert_ne!(one["generation"], before["generation"]);
        for probed in [one, other] {
            // Registered once for the name.
            let serial = |value: &Value| value["listener_serial"].as_u64().unwrap();
            assert_eq!(serial(&probed), serial(&before) + 1, "{probed}");
        }
        rival.remove();
    }
}
