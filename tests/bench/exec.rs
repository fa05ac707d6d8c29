//! Exec: from the request until the client knows that the command has ended.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::Instant;

use tests::program;

use crate::Failure;
use crate::catalogue::Unit;
use crate::peers::{self, Dropbear, GuestAgentOfQemu, Server};
use crate::results::Results;
use crate::rounds::{Subject, interleave};
use crate::wire::{Endpoint, Wire, exec_of};
use crate::{Options, stats};

/// The program that does nothing. It is dynamically linked, as most programs are.
pub(crate) const NOOP: &str = "/bin/true";

/// How many clients ask at once.
const PARALLEL: [usize; 3] = [1, 10, 100];

pub(crate) fn measure(options: &Options, results: &mut Results) -> Result<(), Failure> {
    let agent = peers::agent()?;
    let qemu_ga = GuestAgentOfQemu::start();
    let socat = peers::socat(&[NOOP]);
    let noop = Noop {
        case: "exec/round_trip",
        program: NOOP,
        agent: &agent,
        socat: &socat,
        qemu_ga: &qemu_ga,
    };
    for parallel in PARALLEL {
        noop.round_trips(options, results, parallel);
    }
    // The same with an empty static program, which the kernel starts faster, if bench.sh built one.
    if let Ok(program) = std::env::var("BENCH_EMPTY") {
        let noop = Noop {
            case: "exec/round_trip_static",
            program: &program,
            socat: &peers::socat(&[&program]),
            ..noop
        };
        for parallel in PARALLEL {
            noop.round_trips(options, results, parallel);
        }
    }
    let dropbear = Dropbear::start();
    for parallel in [1, 10] {
        processes(options, results, parallel, &agent, &socat, &dropbear);
    }
    Ok(())
}

/// One case of round trips: a program that does nothing, and the servers that run it.
#[derive(Clone, Copy)]
struct Noop<'a> {
    case: &'static str,
    program: &'a str,
    agent: &'a Server,
    socat: &'a Result<Server, Failure>,
    qemu_ga: &'a Result<GuestAgentOfQemu, Failure>,
}

impl Noop<'_> {
    /// One request by a client that is a thread of this process.
    fn round_trips(self, options: &Options, results: &mut Results, parallel: usize) {
        // Rounds are short, so that a disturbance meets all subjects. With many clients, each call
        // but a client's first waits for the calls of the others, so the first must weigh little.
        let each = if parallel == 100 { 10 } else { 20 };
        let agent = self.agent.endpoint();
        let program = self.program;
        let mut subjects = vec![
            Subject::new("posix_spawn", || {
                at_once(parallel, each, || spawn_and_wait(program))
            }),
            Subject::new("agent", || {
                at_once(parallel, each, || fresh_connection(&agent, program))
            }),
            Subject::new("agent_kept", || {
                kept_connection(&agent, program, parallel, each)
            }),
        ];
        match self.socat {
            Ok(socat) => subjects.push(Subject::new("socat", move || {
                let endpoint = socat.endpoint();
                at_once(parallel, each, || read_to_end(&endpoint))
            })),
            Err(failure) => results.skip(&format!("{}/socat", self.case), failure),
        }
        match self.qemu_ga {
            Ok(qemu_ga) => subjects.push(Subject::new("qemu_ga", move || {
                at_once(parallel, each, || qemu_ga.exec(program))
            })),
            Err(failure) => results.skip(&format!("{}/qemu_ga", self.case), failure),
        }
        let rounds = match (options.is_quick, parallel) {
            (true, 1) => 10,
            (true, _) => 2,
            (false, 1) => 300,
            (false, 10) => 10,
            (false, _) => 4,
        };
        let x = Some(stats::count(parallel));
        let outcomes = interleave(rounds, subjects);
        results.add_all(self.case, x, Unit::Microseconds, outcomes);
    }
}

/// One whole client process for each request, as in a script.
fn processes(
    options: &Options,
    results: &mut Results,
    parallel: usize,
    agent: &Server,
    socat: &Result<Server, Failure>,
    dropbear: &Result<Dropbear, Failure>,
) {
    let each = if parallel == 1 { 5 } else { 1 };
    let socket = agent.socket();
    let mut subjects = vec![
        Subject::new("posix_spawn", || {
            at_once(parallel, each, || spawn_and_wait(NOOP))
        }),
        Subject::new("host_tool", || {
            at_once(parallel, each, || {
                let mut tool = Command::new(program("host-tool"));
                tool.args(["exec", "--unix"]).arg(&socket);
                succeed(tool.args(["--", NOOP]))
            })
        }),
    ];
    match socat {
        Ok(socat) => subjects.push(Subject::new("socat", move || {
            let address = format!("UNIX-CONNECT:{}", socat.socket().display());
            at_once(parallel, each, || {
                succeed(Command::new("socat").args(["-t0", "-u", &address, "-"]))
            })
        })),
        Err(failure) => results.skip("exec/process/socat", failure),
    }
    match dropbear {
        Ok(dropbear) => subjects.push(Subject::new("dropbear", move || {
            at_once(parallel, each, || {
                let (mut client, stream) = dropbear.client(NOOP)?;
                let result = succeed(&mut client);
                drop(stream);
                result
            })
        })),
        Err(failure) => results.skip("exec/process/dropbear", failure),
    }
    let rounds = match (options.is_quick, parallel) {
        (true, _) => 4,
        (false, 1) => 40,
        (false, _) => 20,
    };
    let x = Some(stats::count(parallel));
    results.add_all(
        "exec/process",
        x,
        Unit::Microseconds,
        interleave(rounds, subjects),
    );
}

/// Starts `parallel` threads together, each of which makes `each` calls. Returns the time of every
/// call in microseconds.
pub(crate) fn at_once(
    parallel: usize,
    each: usize,
    call: impl Fn() -> Result<(), Failure> + Sync,
) -> Result<Vec<f64>, Failure> {
    let start = Barrier::new(parallel);
    let work = || -> Result<Vec<f64>, Failure> {
        start.wait();
        (0..each).map(|_| timed(&call)).collect()
    };
    if parallel == 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
        let mut samples = Vec::with_capacity(parallel * each);
        for thread in threads {
            samples.extend(thread.join().map_err(|_| "a client panicked")??);
        }
        Ok(samples)
    })
}

/// Microseconds that a call takes.
pub(crate) fn timed(call: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let started_at = Instant::now();
    call()?;
    Ok(started_at.elapsed().as_secs_f64() * 1e6)
}

/// The floor: a process without an agent. The standard library uses `posix_spawn` here.
fn spawn_and_wait(program: &str) -> Result<(), Failure> {
    succeed(&mut Command::new(program))
}

fn succeed(command: &mut Command) -> Result<(), Failure> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{:?} ended with {status}", command.get_program()).into())
}

/// As host-tool does: connect, HELLO and EXEC in one write, and read until EXITED.
pub(crate) fn fresh_connection(endpoint: &Endpoint, program: &str) -> Result<(), Failure> {
    let ran = Wire::run(endpoint, exec_of([program]))?;
    is_good(&ran)
}

fn is_good(ran: &crate::wire::Ran) -> Result<(), Failure> {
    let code = ran.exited.status.shell_code();
    if code == 0 {
        return Ok(());
    }
    Err(format!("the command ended with {code}").into())
}

/// The same over connections that stay open.
fn kept_connection(
    endpoint: &Endpoint,
    program: &str,
    parallel: usize,
    each: usize,
) -> Result<Vec<f64>, Failure> {
    let start = Barrier::new(parallel);
    let work = || -> Result<Vec<f64>, Failure> {
        // A thread that failed must reach the barrier too, or the others never pass it.
        let wire = Wire::open(endpoint, &[]).and_then(|mut wire| {
            is_good(&wire.exec(exec_of([program]))?)?;
            Ok(wire)
        });
        start.wait();
        let mut wire = wire?;
        (0..each)
            .map(|_| timed(|| is_good(&wire.exec(exec_of([program]))?)))
            .collect()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
        let mut samples = Vec::new();
        for thread in threads {
            samples.extend(thread.join().map_err(|_| "a client panicked")??);
        }
        Ok(samples)
    })
}

/// Connects and reads to the end: socat reports no more of a command than that.
pub(crate) fn read_to_end(endpoint: &Endpoint) -> Result<(), Failure> {
    let mut stream = endpoint.open(b"")?;
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes)? > 0 {}
    Ok(())
}
