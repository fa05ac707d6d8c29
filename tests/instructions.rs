//! Goal: a slower agent is noticed. Method: callgrind counts the agent's instructions in five fixed
//! scenarios, independently of other load, and compares them with `instructions.json` beside this
//! file.
//!
//! Repeated counts of a scenario differ by less than 1 %, and those of the scenario that moves
//! output by 2 % (more or fewer turns of the loop). So a growth of 5 % comes from the code. A
//! commit that means it updates the file:
//!
//! ```console
//! $ TEST_UPDATE_INSTRUCTIONS=1 cargo test --package tests --test instructions
//! ```
//!
//! Another compiler or C library makes another program. So the file names the ones it was made
//! with, and with others the cases are listed as ignored.
#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use shared::id::ExecId;
use shared::message::{Ack, ByteString, Depth, Exec, ExitAck, Message, Stream};
use tempfile::TempDir;
use tests::client::{Client, probe, rebind};
use tests::process::{run, signal};
use tests::{DEADLINE, release_agent, top};

/// Most percent by which a count may exceed the file's.
const GROWTH_PERCENT_MAX: u64 = 5;

/// How often a scenario is counted before a growth is believed. The lowest count is taken.
const COUNTS_MAX: usize = 3;

/// How often a scenario is counted for the file, which gets the median.
const COUNTS_FOR_FILE: usize = 5;

/// Bytes that the output scenario moves.
const OUTPUT_LEN: u64 = 16 << 20;

/// Half a ring: how much output is acknowledged at a time.
const ACK_LEN: u64 = 128 * 1024;

/// The C library chooses its copying functions by the processor's features. These settings leave
/// one choice on every processor.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX2_Usable,-AVX,-ERMS,-FSRM";

/// What an agent under callgrind has to do.
type Scenario = fn(&Path);

const SCENARIOS: [(&str, Scenario); 5] = [
    ("idle_start", |_| {}),
    ("exec_100", exec_100),
    ("stdout_16_mib", stdout_16_mib),
    ("connections_100", connections_100),
    ("rebind_and_probe", rebind_and_probe),
];

fn exec_100(socket: &Path) {
    for number in 1..=100 {
        let mut client = Client::connect(socket);
        client.greet();
        exec(&mut client, number, &["true"]);
    }
}

fn stdout_16_mib(socket: &Path) {
    let mut client = Client::connect(socket);
    client.greet();
    let count = format!("count={}", OUTPUT_LEN / 65536);
    exec(
        &mut client,
        1,
        &["dd", "if=/dev/zero", "bs=65536", &count, "status=none"],
    );
}

fn connections_100(socket: &Path) {
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..100 {
        let mut client = Client::connect(socket);
        client.greet();
        clients.push(client);
    }
}

/// The probe has depth `listener`. For `exec` the agent would start itself through
/// `/proc/self/exe`, which under callgrind is callgrind. A command stands for it.
fn rebind_and_probe(socket: &Path) {
    let mut client = Client::connect(socket);
    client.greet();
    let answer = client.ask(&rebind(7));
    assert!(matches!(answer, Message::Rebound(_)), "{answer:?}");
    let mut fresh = Client::connect(socket);
    fresh.greet();
    let answer = fresh.ask(&probe(7, Depth::Listener));
    assert!(matches!(answer, Message::Probed(_)), "{answer:?}");
    exec(&mut fresh, 1, &["true"]);
}

/// Runs a command to its end, as a client that acknowledges what it gets.
fn exec(client: &mut Client, number: u128, argv: &[&str]) {
    let string = |text: &&str| ByteString::new(*text).unwrap();
    let id = ExecId::from_bytes(number.to_le_bytes());
    let exec = Exec::new(id, argv.iter().map(string).collect());
    client.say(&Message::Exec(exec));
    let (mut consumed, mut acknowledged) = (0, 0);
    loop {
        match client.hear() {
            Message::Started(_) => {}
            Message::Stdout(chunk) => {
                consumed += u64::try_from(chunk.bytes.len()).unwrap();
                if consumed - acknowledged >= ACK_LEN {
                    acknowledged = consumed;
                    client.say(&Message::Ack(Ack {
                        stream: Stream::Stdout,
                        offset: consumed,
                    }));
                }
            }
            Message::Exited(exited) => {
                assert_eq!(exited.status.shell_code(), 0, "{exited:?}");
                let session = exited.session;
                return client.say(&Message::ExitAck(ExitAck { session }));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// An agent under callgrind, killed when dropped.
struct Counted {
    child: Child,
    folder: TempDir,
}

impl Counted {
    fn start(agent: &Path) -> Self {
        let folder = TempDir::new().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(agent)
            .arg("--listen")
            .arg(format!("unix:{}/s", folder.path().display()))
            // What an agent finds in the machine's cgroups would be counted, too.
            .args(["--unprivileged", "--log", "warn", "--cgroups", "0"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("GLIBC_TUNABLES", TUNABLES)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn socket(&mut self) -> PathBuf {
        let socket = self.folder.path().join("s");
        let started_at = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let has_ended = self.child.try_wait().unwrap().is_some();
            let is_late = started_at.elapsed() > DEADLINE;
            assert!(!has_ended && !is_late, "no agent: {}", self.log());
            std::thread::yield_now();
        }
        socket
    }

    /// Ends the agent and gives the count.
    fn finish(mut self) -> u64 {
        signal(self.child.id(), Signal::SIGTERM);
        let status = self.child.wait().unwrap();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{:?}: {log}", status.signal());
        let line = log.lines().find_map(|line| line.split_once("Collected : "));
        let (_, count) = line.unwrap_or_else(|| panic!("no count: {log}"));
        count.trim().parse().unwrap()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Instructions of the agent's process from its start to its end, with a scenario in between.
fn count(agent: &Path, scenario: Scenario) -> u64 {
    let mut counted = Counted::start(agent);
    let socket = counted.socket();
    // The scenario begins when the agent waits for events.
    Client::connect(&socket).greet();
    scenario(&socket);
    counted.finish()
}

fn median(agent: &Path, scenario: Scenario) -> u64 {
    let mut counts = [0; COUNTS_FOR_FILE].map(|_| count(agent, scenario));
    counts.sort_unstable();
    counts[COUNTS_FOR_FILE / 2]
}

fn file() -> PathBuf {
    top().join("tests/instructions.json")
}

/// Everything but our code that decides the number of instructions.
fn toolchain(agent: &Path) -> String {
    let first_line = |program: &str| {
        let text = run(Command::new(program).arg("--version")).exits(0).out();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let target = agent.ancestors().nth(2).and_then(Path::file_name);
    let target = target.unwrap_or_default().to_string_lossy().into_owned();
    let lines = ["rustc", "ldd", "valgrind"].map(first_line);
    format!("{target}; {}", lines.join("; "))
}

fn check(agent: &Path, name: &str, scenario: Scenario, limit: u64) -> Result<(), Failed> {
    let mut best = u64::MAX;
    for _ in 0..COUNTS_MAX {
        best = best.min(count(agent, scenario));
        if best <= limit + limit * GROWTH_PERCENT_MAX / 100 {
            return Ok(());
        }
    }
    let growth = (best - limit) * 100 / limit;
    let text = format!(
        "{name} takes {best} instructions, {growth} % more than the {limit} of {}; make it \
         cheaper, or update the file in this commit (TEST_UPDATE_INSTRUCTIONS=1)",
        file().display()
    );
    Err(text.into())
}

/// Counts everything again and writes the file.
fn update(agent: &Path) {
    let counts: BTreeMap<&str, u64> = SCENARIOS
        .iter()
        .map(|&(name, scenario)| (name, median(agent, scenario)))
        .collect();
    let value = json!({ "toolchain": toolchain(agent), "instructions": counts });
    let text = serde_json::to_string_pretty(&value).unwrap();
    fs::write(file(), text + "\n").unwrap();
    println!("{counts:#?}");
}

/// Why the cases cannot be counted on this machine, if they cannot.
fn missing(agent: Option<&Path>, kept: &Value) -> Option<String> {
    let Some(agent) = agent else {
        return Some("valgrind is not installed".to_owned());
    };
    let (ours, theirs) = (toolchain(agent), kept["toolchain"].as_str()?);
    (ours != theirs).then(|| format!("counted with another toolchain: {theirs}; here: {ours}"))
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each case has two processes that need a processor.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_valgrind = std::env::split_paths(&path).any(|folder| folder.join("valgrind").exists());
    let agent: Option<Arc<Path>> = has_valgrind.then(|| release_agent().into());
    if let Some(agent) = &agent
        && std::env::var_os("TEST_UPDATE_INSTRUCTIONS").is_some()
    {
        update(agent);
        return ExitCode::SUCCESS;
    }
    let kept: Value = serde_json::from_str(&fs::read_to_string(file()).unwrap()).unwrap();
    let missing = missing(agent.as_deref(), &kept);
    if let Some(reason) = &missing {
        println!("skipped: instructions: {reason}");
    }
    let trials = SCENARIOS.map(|(name, scenario)| {
        let agent = agent.clone();
        let limit = kept["instructions"][name].as_u64();
        let trial = Trial::test(format!("instructions::{name}"), move || {
            let limit = limit.ok_or_else(|| format!("the file lacks {name}"))?;
            let agent = agent.ok_or("no agent")?;
            check(&agent, name, scenario, limit)
        });
        trial.with_ignored_flag(missing.is_some())
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}
