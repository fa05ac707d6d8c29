//! Explores every state breadth first, each once by its hash, so that the first run that breaks
//! something is a shortest one.
//!
//! Why no ready-made checker: the claim is that every run ends well, and stateright, the checker
//! for Rust, documents that its `eventually` misses counter-examples where runs join or form
//! cycles. Here the graph is kept as numbers. States at rest are checked, and a run that never
//! rests would be a cycle, which is searched for at the end.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::thread;
use std::time::{Duration, Instant};

use crate::hasher::Mixer;
use crate::property::Property;
use crate::scenario::Scenario;
use crate::trace::Trace;
use crate::world::{Step, World};

/// States that are expanded before their successors are visited. Bounds the memory.
const BATCH_LEN: usize = 8192;

#[derive(Debug)]
pub struct Report {
    pub states: usize,
    pub steps: usize,
    /// Steps of the longest of all shortest runs.
    pub depth: usize,
    /// States in which nothing but faults can happen.
    pub rests: usize,
    pub took: Duration,
    /// The property that was broken first, and a shortest run to it.
    pub broken: Option<(Property, Vec<Step>)>,
}

/// A state that a step has led to.
struct Successor {
    parent: u32,
    step: Step,
    hash: u64,
    world: World,
}

#[derive(Default)]
struct Graph {
    numbers: HashMap<u64, u32>,
    origins: Vec<(u32, Option<Step>)>,
    edges: Vec<(u32, u32)>,
}

impl Graph {
    /// The state's number, and whether it is new.
    fn visit(&mut self, hash: u64, parent: u32, step: Option<Step>) -> (u32, bool) {
        let next = u32::try_from(self.origins.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(hash).or_insert(next);
        if number == next {
            self.origins.push((parent, step));
        }
        if step.is_some() {
            self.edges.push((parent, number));
        }
        (number, number == next)
    }

    fn path(&self, mut number: u32) -> Vec<Step> {
        let mut path = Vec::new();
        while let (parent, Some(step)) = self.origins[number as usize] {
            path.push(step);
            number = parent;
        }
        path.reverse();
        path
    }

    /// A state on a cycle, if there is one. Removes states without a predecessor until only cycles
    /// are left.
    fn find_cycle(&mut self) -> Option<u32> {
        let mut ways_in = vec![0_u32; self.origins.len()];
        for (_, to) in &self.edges {
            ways_in[*to as usize] += 1;
        }
        self.edges.sort_unstable();
        let mut free: Vec<u32> = (0..)
            .zip(&ways_in)
            .filter(|it| *it.1 == 0)
            .map(|it| it.0)
            .collect();
        while let Some(number) = free.pop() {
            let from = self.edges.partition_point(|edge| edge.0 < number);
            for (_, to) in self.edges[from..]
                .iter()
                .take_while(|edge| edge.0 == number)
            {
                ways_in[*to as usize] -= 1;
                if ways_in[*to as usize] == 0 {
                    free.push(*to);
                }
            }
        }
        (0..).zip(&ways_in).find(|it| *it.1 > 0).map(|it| it.0)
    }
}

/// Explores a scenario to its end, or to the first broken property.
pub fn explore(scenario: &Scenario) -> Report {
    let began = Instant::now();
    let mut graph = Graph::default();
    let world = scenario.world(began, Trace::default());
    graph.visit(hash_of(&world), 0, None);
    let mut report = Report {
        states: 0,
        steps: 0,
        depth: 0,
        rests: 0,
        took: Duration::ZERO,
        broken: None,
    };
    let mut level = vec![(0, world)];
    while !level.is_empty() && report.broken.is_none() {
        report.depth += 1;
        let mut next = Vec::new();
        for batch in level.chunks(BATCH_LEN) {
            for (number, property) in rests_of(batch, &mut report.rests) {
                let path = graph.path(number);
                report.broken.get_or_insert((property, path));
            }
            for successor in expand(batch) {
                let Successor {
                    parent,
                    step,
                    hash,
                    world,
                } = successor;
                let (number, is_new) = graph.visit(hash, parent, Some(step));
                if let Some(property) = world.broken {
                    report
                        .broken
                        .get_or_insert_with(|| (property, graph.path(number)));
                }
                if is_new {
                    next.push((number, world));
                }
            }
            if report.broken.is_some() {
                break;
            }
        }
        level = next;
    }
    report.states = graph.origins.len();
    report.steps = graph.edges.len();
    if report.broken.is_none()
        && let Some(number) = graph.find_cycle()
    {
        report.broken = Some((Property::EveryRunEnds, graph.path(number)));
    }
    report.took = began.elapsed();
    report
}

fn hash_of(world: &World) -> u64 {
    let mut hasher = Mixer::default();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Checks the states that are at rest.
fn rests_of(batch: &[(u32, World)], rests: &mut usize) -> Vec<(u32, Property)> {
    let mut broken = Vec::new();
    for (number, world) in batch {
        if world.is_at_rest() {
            *rests += 1;
            broken.extend(world.check_rest().map(|property| (*number, property)));
        }
    }
    broken
}

/// All successors, in an order that does not depend on the number of threads.
fn expand(batch: &[(u32, World)]) -> Vec<Successor> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = batch.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let handles: Vec<_> = batch
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().flat_map(successors).collect::<Vec<_>>()))
            .collect();
        let results = handles.into_iter().map(|handle| handle.join());
        results.flat_map(|part| part.expect("no panic")).collect()
    })
}

fn successors((parent, world): &(u32, World)) -> Vec<Successor> {
    let steps = world.steps().into_iter();
    steps
        .map(|step| {
            let mut next = world.clone();
            next.apply(step);
            Successor {
                parent: *parent,
                step,
                hash: hash_of(&next),
                world: next,
            }
        })
        .collect()
}

/// Repeats a run and records its trace.
pub fn tell(scenario: &Scenario, path: &[Step]) -> (World, Vec<String>) {
    let mut world = scenario.world(Instant::now(), Trace::recorded());
    for step in path {
        world.apply(*step);
    }
    let lines = std::mem::take(&mut world.trace).lines();
    (world, lines)
}
