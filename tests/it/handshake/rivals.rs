//! Goal: when two hosts rebind one guest at the same time, each generation has one outcome, and the
//! losing host learns why. Method: two `host-tool` processes, each with a vsock device and a fake
//! Firecracker of its own in front of the same agent. The test chooses the order in which their
//! requests reach the guest, or leaves it to chance many times.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::agent::Agent;
use tests::host::TestHost;
use tests::muxer::Treatment;
use tests::process::{Finished, Running};

/// One of the hosts that rebind the guest.
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
        let args = ["restore", "--name", "clone", "--json", "--timeout", "60s"];
        Running::start(self.host.tool(args).arg(self.host.artifact()))
    }

    fn probing(&self) -> Running {
        Running::start(&mut self.host.tool(["probe", "--name", "clone", "--json"]))
    }

    fn remove(&self) {
        self.host.run(["rm", "--force", "clone"]).exits(0);
        self.host.is_clean();
    }
}

/// The guest's current generation.
#[track_caller]
fn generation_of(agent: &Agent) -> String {
    let probed = agent.host_tool(["probe", "--json"], []).exits(0).json();
    generation(&probed)
}

fn generation(record: &Value) -> String {
    record["generation"].as_str().unwrap().to_owned()
}

/// The host has lost, because another one has rebound the guest.
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

/// The first host has its REBOUND. Its PROBE is held until the second host is ready.
#[test]
fn a_probe_after_another_rebind_is_stale() {
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
    assert_eq!(generation_of(&agent), generation(&won));
    first.host.is_clean();
    second.remove();
}

/// The first host's REBIND is sent before the second one's and arrives after it. The guest has not
/// seen it before, so it is the latest. Each host gets a true answer for its own generation.
#[test]
fn a_rebind_that_comes_late_is_the_latest() {
    let agent = Agent::start();
    let (first, second) = (Rival::new(&agent), Rival::new(&agent));
    first.host.muxer().treat_all(Treatment::Held);
    let late = first.restoring();
    first.host.muxer().await_count(1);
    let early = second.restoring().finish().exits(0).json();
    assert_eq!(generation_of(&agent), generation(&early));
    first.host.muxer().pass_all();
    first.host.muxer().release_backwards();
    let late = late.finish().exits(0).json();
    assert_eq!(generation_of(&agent), generation(&late));
    first.remove();
    second.remove();
}

/// A copy of an abandoned REBIND arrives after another generation has replaced its own. It is
/// refused, and the guest keeps its generation.
#[test]
fn a_late_copy_of_a_replaced_rebind_changes_nothing() {
    let agent = Agent::start();
    let (first, second) = (Rival::new(&agent), Rival::new(&agent));
    first.host.muxer().plan(&[Treatment::Held]);
    let replaced = first.restoring().finish().exits(0).json();
    let won = second.restoring().finish().exits(0).json();
    assert_ne!(generation(&replaced), generation(&won));
    first.host.muxer().release(0);
    first.host.muxer().await_delivery(0);
    assert_eq!(generation_of(&agent), generation(&won));
    first.remove();
    second.remove();
}

/// Both at once: a host that gets ready had its generation in the guest, and at least the last one
/// does. No generation occurs twice, however many are drawn within a second.
#[test]
fn of_two_at_once_the_guest_has_one_generation() {
    let agent = Agent::start();
    let rivals = [Rival::new(&agent), Rival::new(&agent)];
    let mut generations = BTreeSet::new();
    for round in 0..20 {
        let running = rivals.each_ref().map(Rival::restoring);
        let mut ready = Vec::new();
        for (rival, finished) in rivals.iter().zip(running.map(Running::finish)) {
            let given = if finished.code() == 0 {
                rival.remove();
                let given = generation(&finished.json());
                ready.push(given.clone());
                given
            } else {
                rival.host.is_clean();
                generation(&is_told(finished))
            };
            assert!(generations.insert(given), "round {round}: {generations:?}");
        }
        let current = generation_of(&agent);
        assert!(
            ready.contains(&current),
            "round {round}: {current} is not of {ready:?}"
        );
    }
}

/// A restored guest that waits for its rebind gets the one generation that was left for it,
/// whichever host asks.
#[test]
fn two_probes_rebind_the_guest_once() {
    let agent = Agent::start();
    let rival = Rival::new(&agent);
    for held in [0, 1, 2] {
        let args = ["restore", "--name", "clone", "--no-wait"];
        let artifact = rival.host.artifact();
        tests::process::run(rival.host.tool(args).arg(artifact)).exits(0);
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
            // The listener is registered once for the generation.
            let serial = |value: &Value| value["listener_serial"].as_u64().unwrap();
            assert_eq!(serial(&probed), serial(&before) + 1, "{probed}");
        }
        rival.remove();
    }
}
