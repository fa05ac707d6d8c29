//! Goal: a command runs at most once, also when the agent that knew it is gone or has forgotten it.
//! Method: the same request again, and agents that are killed while clients ask them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use shared::message::{FailCode, Message, Origin};
use tests::agent::Agent;
use tests::client::{exec_numbered, shell};
use tests::process::{run, signal};
use tests::{await_true, program};

use nix::sys::signal::Signal;

/// Results that the agent keeps.
const RESULTS_MAX: u64 = 256;

/// Agents that are killed in [`agents_that_are_killed_under_load`], unless the variable says
/// otherwise.
const KILLS: usize = 60;
const KILLS_VARIABLE: &str = "TEST_KILLS";

/// Clients that ask at once.
const CLIENTS: usize = 4;

/// Commands that have run, in their order: each writes its number into a file.
fn ran(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_forgotten_command_does_not_run_again() {
    let agent = Agent::start();
    let file = agent.folder().join("ran");
    let script = format!("echo run >>{}", file.display());
    let id = "a".repeat(32);
    let exec = |id: &str| agent.host_tool(["exec", "--id", id], ["sh", "-c", &script]);
    exec(&id).exits(0);
    exec(&id).exits(0);
    let mut client = agent.greet();
    for number in 1..=RESULTS_MAX + 4 {
        let started = client.start(&exec_numbered(number, &["true"]));
        client.follow(&started);
    }
    exec(&id)
        .exits(125)
        .complains("whether the command ran is unknown");
    assert_eq!(ran(&file), ["run"]);
    // Other ids are not in doubt.
    exec(&"b".repeat(32)).exits(0);
    agent.host_tool(["exec"], ["sh", "-c", &script]).exits(0);
    assert_eq!(ran(&file).len(), 3);
}

/// The error of a doubt names the agent, and a command that names it runs nowhere else.
#[test]
fn a_command_that_names_its_agent_runs_on_no_other() {
    let mut agent = Agent::start();
    let file = agent.folder().join("ran");
    let script = format!("echo run >>{}", file.display());
    let id = "a".repeat(32);
    let instance = agent.connect().greet().instance.expect("an instance");
    let instance = instance.to_string();
    let exec = |agent: &Agent| {
        let options = ["exec", "--id", &id, "--instance", &instance];
        agent.host_tool(options, ["sh", "-c", &script])
    };
    exec(&agent).exits(0);
    exec(&agent).exits(0);
    agent.replace();
    agent.await_answer();
    let refused = exec(&agent).exits(125);
    let wanted = format!("run it again with --id {id} --instance {instance}");
    assert!(refused.err().contains(&wanted), "{refused}");
    assert_eq!(ran(&file), ["run"]);
    let alone = ["exec", "--instance", &instance];
    agent
        .host_tool(alone, ["true"])
        .exits(125)
        .complains("--instance");
}

/// The agent dies between the start of the command and its answer.
#[test]
fn another_agent_does_not_run_what_was_sent_to_the_first() {
    let mut agent = Agent::start();
    let file = agent.folder().join("ran");
    let mut request = shell(1, &format!("echo run >>{}", file.display()));
    let mut client = agent.connect();
    request.origin = client.greet().origin().map(Box::new);
    assert!(request.origin.is_some());
    client.say(&Message::Exec(request.clone()));
    await_true("the command runs", || !ran(&file).is_empty());
    agent.replace();
    agent.await_answer();
    agent.refuses(&Message::Exec(request.clone()), FailCode::Unknown);
    // The second agent says itself what has been sent to it.
    let mut client = agent.connect();
    let origin: Option<Origin> = client.greet().origin();
    assert_ne!(
        origin.map(|it| it.instance),
        request.origin.map(|it| it.instance)
    );
    assert_eq!(ran(&file), ["run"]);
}

/// How `host-tool exec` of a numbered command ended.
fn exec(socket: &Path, file: &Path, number: usize) -> i32 {
    let mut tool = Command::new(program("host-tool"));
    tool.args(["exec", "--timeout", "60s", "--reconnect", "30s", "--unix"]);
    tool.arg(socket).args(["--", "sh", "-c"]);
    tool.arg(format!("echo {number} >>{}", file.display()));
    let finished = run(&mut tool);
    let code = finished.code();
    let is_doubt = code == 125
        && (finished.err().contains("unknown") || finished.err().contains("did not run"));
    assert!(code == 0 || is_doubt, "{finished}");
    code
}

/// Each number is written at most once, and exactly once where the tool says that all is well.
#[test]
fn agents_that_are_killed_under_load() {
    let kills = std::env::var(KILLS_VARIABLE).map_or(KILLS, |text| text.parse().expect(&text));
    let mut agent = Agent::start();
    let (socket, file) = (agent.socket(), agent.folder().join("ran"));
    let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let codes = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    let code = exec(&socket, &file, number);
                    codes.lock().expect("no panic").insert(number, code);
                }
            });
        }
        for kill in 0..kills {
            // At another point of the commands' lives each time.
            let seen = next.load(Ordering::SeqCst);
            await_true("a command is sent", || next.load(Ordering::SeqCst) > seen);
            (0..kill % 40 * 500).for_each(|_| std::hint::spin_loop());
            signal(agent.pid(), Signal::SIGKILL);
            agent.replace();
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let codes = codes.into_inner().expect("no panic");
    let mut counts = BTreeMap::new();
    for number in ran(&file) {
        *counts
            .entry(number.parse::<usize>().expect(&number))
            .or_insert(0) += 1;
    }
    let count = |number: &usize| counts.get(number).copied().unwrap_or(0);
    let twice: Vec<_> = codes.keys().filter(|it| count(it) > 1).collect();
    assert!(twice.is_empty(), "run twice: {twice:?}");
    let is_lost = |(number, code): &(&usize, &i32)| **code == 0 && count(number) != 1;
    let lost: Vec<_> = codes.iter().filter(is_lost).collect();
    assert!(lost.is_empty(), "said to be well: {lost:?}");
    let doubts = codes.values().filter(|code| **code != 0).count();
    println!("{kills} kills, {} commands, {doubts} in doubt", codes.len());
}
