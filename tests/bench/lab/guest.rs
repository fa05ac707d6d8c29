//! Commands and a stream over vsock in a running guest, by the agent and by the alternatives, which
//! run in the same guest as commands of the agent.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::{ORIGIN, Tool};
use crate::catalogue::Unit;
use crate::exec::{at_once, fresh_connection, read_to_end, timed};
use crate::footprint::pass;
use crate::peers::GuestAgentOfQemu;
use crate::results::Results;
use crate::rounds::{Subject, interleave};
use crate::stats::count;
use crate::wire::{Wire, exec_of};
use crate::{Failure, Options};

/// Ports of the alternatives in the guest.
const SOCAT_PORT: u32 = 7000;
const QEMU_GA_PORT: u32 = 7001;
const SOCAT_STREAM_PORT: u32 = 7002;

/// The no-op of the image.
const TRUE: &str = "/bin/true";

/// How many clients ask at once.
const PARALLEL: [usize; 2] = [1, 10];

/// Bytes of the stream.
const STREAM_LEN: usize = 8 << 20;

/// How long a server in the guest may take until it listens.
const START_MAX: Duration = Duration::from_secs(60);

/// Pause between two attempts to connect to it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Tool {
    /// Measures in the VM [`ORIGIN`]. A piece that fails does not end it.
    pub(super) fn guest(&self, options: &Options, ledger: &mut Ledger<'_>) -> Result<(), Failure> {
        ledger.measure(&self.case("exec"), |results| self.execs(options, results))?;
        ledger.measure(&self.case("stdout"), |results| {
            self.stream(options, results)
        })?;
        Ok(())
    }

    fn execs(&self, options: &Options, results: &mut Results) -> Result<(), Failure> {
        let agent = self.endpoint(ORIGIN)?;
        let (socat, qemu_ga) = (agent.with_port(SOCAT_PORT), agent.with_port(QEMU_GA_PORT));
        let listen = format!("VSOCK-LISTEN:{SOCAT_PORT},fork,backlog=256");
        let exec = format!("EXEC:{TRUE}");
        let argv = ["socat", "-t0", "-b65536", &listen, &exec];
        let held_socat = self.hold(&argv, || read_to_end(&socat));
        let path = format!("4294967295:{QEMU_GA_PORT}");
        let argv = ["qemu-ga", "-m", "vsock-listen", "-p", &path, "-t", "/run"];
        let held_qemu_ga = self.hold(&argv, || {
            let client = GuestAgentOfQemu::connect(&qemu_ga)?;
            client.exec(TRUE)
        });
        let client = held_qemu_ga.and_then(|held| {
            let client = GuestAgentOfQemu::connect(&qemu_ga)?;
            Ok((held, client))
        });
        for parallel in PARALLEL {
            let mut subjects = vec![Subject::new("agent", || {
                at_once(parallel, 1, || fresh_connection(&agent, TRUE))
            })];
            match &held_socat {
                Ok(_) => subjects.push(Subject::new("socat", || {
                    at_once(parallel, 1, || read_to_end(&socat))
                })),
                Err(failure) => results.skip(&format!("{}/socat", self.case("exec")), failure),
            }
            match &client {
                Ok((_, client)) => subjects.push(Subject::new("qemu_ga", || {
                    at_once(parallel, 1, || client.exec(TRUE))
                })),
                Err(failure) => results.skip(&format!("{}/qemu_ga", self.case("exec")), failure),
            }
            let rounds = options.count(if parallel == 1 { 100 } else { 8 });
            let outcomes = interleave(rounds, subjects);
            let x = Some(count(parallel));
            results.add_all(&self.case("exec"), x, Unit::Microseconds, outcomes);
        }
        Ok(())
    }

    /// Standard output of a command, moved by the agent and by socat.
    fn stream(&self, options: &Options, results: &mut Results) -> Result<(), Failure> {
        let agent = self.endpoint(ORIGIN)?;
        let socat = agent.with_port(SOCAT_STREAM_PORT);
        let len = STREAM_LEN.to_string();
        let argv = ["head", "-c", &len, "/dev/zero"];
        let listen = format!("VSOCK-LISTEN:{SOCAT_STREAM_PORT},fork,backlog=256");
        let exec = format!("EXEC:{}", argv.join(" "));
        let held = self.hold(&["socat", "-t0", "-b65536", &listen, &exec], || {
            read_to_end(&socat)
        });
        let rate = |took_us: f64| vec![count(STREAM_LEN) / f64::from(1 << 20) / (took_us / 1e6)];
        let mut subjects = vec![Subject::new("agent", || {
            let ran = |exec| -> Result<(), Failure> {
                let ran = Wire::run(&agent, exec)?;
                let is_whole = ran.stdout_len == u64::try_from(STREAM_LEN)?;
                is_whole
                    .then_some(())
                    .ok_or_else(|| "output is missing".into())
            };
            Ok(rate(timed(|| ran(exec_of(argv)))?))
        })];
        match &held {
            Ok(_) => subjects.push(Subject::new("socat", || {
                Ok(rate(timed(|| read_to_end(&socat))?))
            })),
            Err(failure) => results.skip(&format!("{}/socat", self.case("stdout")), failure),
        }
        let outcomes = interleave(options.count(7), subjects);
        let unit = Unit::MebibytesPerSecond;
        results.add_all(&self.case("stdout"), None, unit, outcomes);
        Ok(())
    }

    /// Starts a server in the guest and waits until `is_there` succeeds. It ends with the result.
    fn hold(
        &self,
        argv: &[&str],
        is_there: impl Fn() -> Result<(), Failure>,
    ) -> Result<Held, Failure> {
        let mut command = self.command("exec");
        command.args(["--name", ORIGIN, "--"]).args(argv);
        let null = Stdio::null;
        let child = command
            .stdin(null())
            .stdout(null())
            .stderr(null())
            .spawn()?;
        let mut held = Held(child);
        let started_at = Instant::now();
        loop {
            match is_there() {
                Ok(()) => return Ok(held),
                Err(failure) if held.0.try_wait()?.is_some() => {
                    return Err(format!("{} ended: {failure}", argv[0]).into());
                }
                Err(failure) if started_at.elapsed() > START_MAX => {
                    return Err(format!("{} does not listen: {failure}", argv[0]).into());
                }
                Err(_) => pass(LOOK_EVERY)?,
            }
        }
    }
}

/// A client of a running command, killed when dropped.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
