//! The shipped machines keep their promises, and each defect beside them is found.

use model::explore::{Report, explore, tell};
use model::mutation::Mutation;
use model::property::Property;
use model::scenario::{
    BOOT, CLONES, DELAY, DETOUR, LOSSES, SCENARIOS, SNAPSHOT, STOLEN, Scenario, TWO_HOSTS,
};

/// Explores to the end. Fails with the shortest run that breaks a property.
#[track_caller]
fn holds(scenario: &Scenario) {
    let report = explore(scenario);
    println!(
        "{}: {} states, {} steps, depth {}, {} at rest, {:.1?}",
        scenario.name, report.states, report.steps, report.depth, report.rests, report.took
    );
    if let Some((property, path)) = &report.broken {
        let (_, lines) = tell(scenario, path);
        panic!("{property:?} is broken:\n{}", lines.join("\n"));
    }
    assert!(report.rests > 0, "no run came to its end");
}

/// Explores until the defect shows.
#[track_caller]
fn is_found(mutation: Mutation) {
    let report: Report = explore(&mutation.scenario());
    let broken = report.broken.map(|(property, _)| property);
    assert_eq!(broken, Some(mutation.breaks()), "{}", mutation.title());
}

#[test]
fn a_boot_with_two_faults() {
    holds(&BOOT);
}

#[test]
fn a_boot_with_a_connection_that_is_overtaken() {
    holds(&DETOUR);
}

#[test]
fn a_boot_on_a_slow_machine() {
    holds(&DELAY);
}

#[test]
fn two_hosts_that_do_not_know_of_each_other() {
    holds(&TWO_HOSTS);
}

#[test]
fn a_snapshot_and_both_lives_after_it() {
    holds(&SNAPSHOT);
}

#[test]
fn a_snapshot_that_nobody_has_prepared() {
    holds(&STOLEN);
}

#[test]
fn clones_of_clones() {
    holds(&CLONES);
}

#[test]
fn an_agent_or_a_result_that_is_lost() {
    holds(&LOSSES);
}

#[test]
fn each_defect_is_found() {
    for mutation in Mutation::ALL {
        is_found(mutation);
    }
}

/// No defect here breaks the one outcome per generation. Our own machine once did, and has a test
/// of its own: `a_generation_that_was_replaced_does_not_come_back`.
#[test]
fn each_other_promise_is_broken_by_a_defect() {
    for property in Property::ALL {
        let mut defects = Mutation::ALL.iter();
        let is_broken = defects.any(|mutation| mutation.breaks() == property);
        assert!(is_broken || property == Property::OneOutcomePerGeneration);
    }
}

#[test]
fn scenarios_have_names_of_their_own() {
    for (at, scenario) in SCENARIOS.iter().enumerate() {
        let mut others = SCENARIOS[at + 1..].iter();
        assert!(others.all(|other| other.name != scenario.name));
    }
}
