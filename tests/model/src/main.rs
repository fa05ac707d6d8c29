//! Explores all scenarios and defects, and prints the figures and counter-examples of
//! `docs/model.md`.

use std::thread;
use std::time::Instant;

use model::explore::{explore, tell};
use model::mutation::Mutation;
use model::scenario::SCENARIOS;

fn main() {
    let began = Instant::now();
    println!("## Figures\n");
    println!("| Scenario | Bound | States | Steps | Depth | At rest | Seconds | Broken |");
    println!("|---|---|---|---|---|---|---|---|");
    for scenario in SCENARIOS {
        let report = explore(&scenario);
        let broken = report.broken.as_ref();
        let broken = broken.map_or_else(|| "nothing".to_owned(), |it| format!("{:?}", it.0));
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.1} | {broken} |",
            scenario.name,
            scenario.budget.describe(),
            report.states,
            report.steps,
            report.depth,
            report.rests,
            report.took.as_secs_f64(),
        );
        if let Some((_, path)) = &report.broken {
            print_diagram(&tell(&scenario, path).1);
        }
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!(
        "\n{cores} cores, {:.0} s together.",
        began.elapsed().as_secs_f64()
    );
    println!("\n## Counter-examples");
    for mutation in Mutation::ALL {
        let scenario = mutation.scenario();
        let report = explore(&scenario);
        println!("\n### {}\n", mutation.title());
        match &report.broken {
            Some((property, path)) => {
                println!(
                    "Scenario \"{}\": breaks `{property:?}` after {} steps ({} states).\n",
                    scenario.name,
                    path.len(),
                    report.states
                );
                print_diagram(&tell(&scenario, path).1);
            }
            None => println!("Not found in {} states.", report.states),
        }
    }
}

fn print_diagram(lines: &[String]) {
    println!("```mermaid\nsequenceDiagram");
    println!("    participant T as transport");
    for line in lines {
        println!("    {line}");
    }
    println!("```");
}
