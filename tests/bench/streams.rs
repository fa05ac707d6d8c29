//! Streams: bytes a second from a command to its client and back, and the CPU time they cost.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::UsageWho;
use tests::program;

use crate::catalogue::Unit;
use crate::peers::{self, Server};
use crate::results::Results;
use crate::rounds::{Outcome, Subject, interleave};
use crate::stats::count;
use crate::wire::{Input, Ran, Wire, exec_of};
use crate::{Failure, Options, procfs};

/// Bytes of one write of the command, or of one write or frame of the client.
const PIECES: [usize; 6] = [64, 1024, 4096, 16 * 1024, 64 * 1024, 1024 * 1024];

/// Most writes of one run, which limits the time that small ones take.
const WRITES_MAX: usize = 128 * 1024;

/// Block size of the commands and clients of this file.
const BLOCK_LEN: usize = 64 * 1024;

/// One run.
struct Flow {
    mebibytes_per_second: f64,
    /// CPU time of the server and the command, ms for one GiB.
    server_ms: f64,
    /// CPU time of the client, ms for one GiB.
    client_ms: f64,
}

pub(crate) fn measure(options: &Options, results: &mut Results) -> Result<(), Failure> {
    let agent = peers::agent()?;
    let rounds = if options.is_quick { 3 } else { 7 };
    let writes_max = if options.is_quick {
        WRITES_MAX / 4
    } else {
        WRITES_MAX
    };
    for piece in PIECES {
        // The piece that the budgets are about is moved by the gibibyte.
        let total = match (options.is_quick, piece) {
            (true, _) => 1 << 27,
            (false, BLOCK_LEN) => 1 << 30,
            (false, _) => 1 << 28,
        };
        let run = Run {
            agent: &agent,
            len: total.min(piece * writes_max),
            piece,
        };
        let x = count(piece);
        let stdout = run.subjects(
            "produce",
            |run, stream| run.take(stream),
            Run::stdout_agent,
            Run::stdout_host_tool,
        );
        add(results, "stdout", x, interleave(rounds, stdout));
        let stdin = run.subjects(
            "consume",
            Run::give_all,
            Run::stdin_agent,
            Run::stdin_host_tool,
        );
        add(results, "stdin", x, interleave(rounds, stdin));
    }
    Ok(())
}

fn add(results: &mut Results, stream: &str, x: f64, outcomes: Vec<Outcome<Flow>>) {
    for outcome in outcomes {
        let Some((subject, flows)) = results.measured(&format!("streams/{stream}"), outcome) else {
            continue;
        };
        let mut add = |case: &str, unit, figure: fn(&Flow) -> f64| {
            let samples: Vec<f64> = flows.iter().map(figure).collect();
            let case = format!("streams/{stream}{case}");
            results.add(&case, subject, Some(x), unit, &samples);
        };
        add("", Unit::MebibytesPerSecond, |flow| {
            flow.mebibytes_per_second
        });
        let unit = Unit::MillisecondsPerGibibyte;
        add("_cpu_server", unit, |flow| flow.server_ms);
        add("_cpu_client", unit, |flow| flow.client_ms);
    }
}

/// What one round moves.
#[derive(Clone, Copy)]
struct Run<'a> {
    agent: &'a Server,
    len: usize,
    piece: usize,
}

impl<'a> Run<'a> {
    /// All subjects of a stream: the raw ones run the command `verb` and move its bytes by
    /// `transfer`.
    fn subjects(
        self,
        verb: &'static str,
        transfer: fn(Self, UnixStream) -> Result<(), Failure>,
        agent: fn(Self) -> Result<Vec<Flow>, Failure>,
        host_tool: fn(Self) -> Result<Vec<Flow>, Failure>,
    ) -> Vec<Subject<'a, Flow>> {
        vec![
            Subject::new("socketpair", move || self.over_socketpair(verb, transfer)),
            Subject::new("agent", move || agent(self)),
            Subject::new("socat", move || self.over_socat(verb, transfer)),
            Subject::new("host_tool", move || host_tool(self)),
        ]
    }

    /// The argument vector of the command that writes, or of the one that reads.
    fn argv(self, verb: &str) -> Result<Vec<String>, Failure> {
        let path = std::env::current_exe()?;
        let path = path.to_str().ok_or("a path that is not UTF-8")?.to_owned();
        Ok(vec![
            path,
            verb.to_owned(),
            self.len.to_string(),
            self.piece.to_string(),
        ])
    }

    fn flow(self, took: Duration, server_ms: f64, client_ms: f64) -> Vec<Flow> {
        let mebibytes = count(self.len) / f64::from(1 << 20);
        let per_gib = 1024.0 / mebibytes;
        vec![Flow {
            mebibytes_per_second: mebibytes / took.as_secs_f64(),
            server_ms: server_ms * per_gib,
            client_ms: client_ms * per_gib,
        }]
    }

    /// The floor: the command has the client's socket as its input and output.
    fn over_socketpair(
        self,
        verb: &str,
        transfer: fn(Self, UnixStream) -> Result<(), Failure>,
    ) -> Result<Vec<Flow>, Failure> {
        let before = Cpu::now()?;
        let started_at = Instant::now();
        let (ours, theirs) = UnixStream::pair()?;
        let argv = self.argv(verb)?;
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(OwnedFd::from(theirs.try_clone()?))
            .stdout(OwnedFd::from(theirs))
            .spawn()?;
        let result = transfer(self, ours);
        let took = started_at.elapsed();
        child.wait()?;
        result?;
        self.flow_since(took, &before)
    }

    fn over_socat(
        self,
        verb: &str,
        transfer: fn(Self, UnixStream) -> Result<(), Failure>,
    ) -> Result<Vec<Flow>, Failure> {
        let before = Cpu::now()?;
        let argv = self.argv(verb)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let socat = peers::socat_once(&argv)?;
        transfer(self, socat.stream.try_clone()?)?;
        let took = socat.opened_at.elapsed();
        socat.wait()?;
        self.flow_since(took, &before)
    }

    fn stdout_agent(self) -> Result<Vec<Flow>, Failure> {
        let exec = exec_of(self.argv("produce")?);
        self.over_agent(|| {
            let ran = Wire::run(&self.agent.endpoint(), exec)?;
            let len = u64::try_from(self.len)?;
            let is_whole = ran.stdout_len == len;
            is_whole
                .then_some(ran)
                .ok_or_else(|| "output is missing".into())
        })
    }

    fn stdin_agent(self) -> Result<Vec<Flow>, Failure> {
        let mut exec = exec_of(self.argv("consume")?);
        exec.stdin = true;
        let request = shared::message::Message::Exec(exec).encode();
        self.over_agent(|| {
            let mut wire = Wire::open(&self.agent.endpoint(), &request)?;
            let ran = wire.finish(Some(Input::new(u64::try_from(self.len)?, self.piece)))?;
            let code = ran.exited.status.shell_code();
            if code != 0 {
                return Err(format!("the command that reads ended with {code}").into());
            }
            Ok(ran)
        })
    }

    fn over_agent(self, call: impl FnOnce() -> Result<Ran, Failure>) -> Result<Vec<Flow>, Failure> {
        let before = Cpu::now()?;
        let agent_before = procfs::cpu_ms(self.agent.pid())?;
        let started_at = Instant::now();
        let ran = call()?;
        let took = started_at.elapsed();
        let agent_ms = procfs::cpu_ms(self.agent.pid())? - agent_before;
        let command_ms = f64::from(u32::try_from(ran.cpu_us())?) / 1e3;
        let client_ms = Cpu::now()?.thread_ms - before.thread_ms;
        Ok(self.flow(took, agent_ms + command_ms, client_ms))
    }

    fn stdout_host_tool(self) -> Result<Vec<Flow>, Failure> {
        self.over_host_tool("produce", &[], |stdin, stdout| {
            drop(stdin);
            self.take(stdout)
        })
    }

    fn stdin_host_tool(self) -> Result<Vec<Flow>, Failure> {
        self.over_host_tool("consume", &["-i"], |mut stdin, mut stdout| {
            self.give(&mut stdin)?;
            drop(stdin);
            confirmed(&mut stdout)
        })
    }

    /// The client's CPU time is that of host-tool. The server's is that of the agent alone.
    fn over_host_tool(
        self,
        verb: &str,
        flags: &[&str],
        transfer: impl FnOnce(
            std::process::ChildStdin,
            std::process::ChildStdout,
        ) -> Result<(), Failure>,
    ) -> Result<Vec<Flow>, Failure> {
        let before = Cpu::now()?;
        let agent_before = procfs::cpu_ms(self.agent.pid())?;
        let started_at = Instant::now();
        let mut child = Command::new(program("host-tool"))
            .arg("exec")
            .args(flags)
            .arg("--unix")
            .arg(self.agent.socket())
            .arg("--")
            .args(self.argv(verb)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or("no pipes")?;
        let result = transfer(stdin, stdout);
        let took = started_at.elapsed();
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr)
                .trim()
                .to_owned()
                .into());
        }
        result?;
        let agent_ms = procfs::cpu_ms(self.agent.pid())? - agent_before;
        let client_ms = Cpu::now()?.children_ms - before.children_ms;
        Ok(self.flow(took, agent_ms, client_ms))
    }

    /// Reads to the end and compares the length.
    fn take(self, mut stream: impl Read) -> Result<(), Failure> {
        let mut bytes = vec![0; BLOCK_LEN];
        let mut left = self.len;
        loop {
            match stream.read(&mut bytes)? {
                0 if left == 0 => return Ok(()),
                0 => return Err(format!("{left} bytes are missing").into()),
                len => left = left.checked_sub(len).ok_or("more bytes than were sent")?,
            }
        }
    }

    fn give(self, stream: &mut impl Write) -> Result<(), Failure> {
        produce_into(stream, self.len, self.piece)
    }

    fn give_all(self, mut stream: UnixStream) -> Result<(), Failure> {
        self.give(&mut stream)?;
        stream.shutdown(Shutdown::Write)?;
        confirmed(&mut stream)
    }

    /// A flow with the CPU time of this thread since `before`, and of the children that have ended.
    fn flow_since(self, took: Duration, before: &Cpu) -> Result<Vec<Flow>, Failure> {
        let now = Cpu::now()?;
        let server_ms = now.children_ms - before.children_ms;
        Ok(self.flow(took, server_ms, now.thread_ms - before.thread_ms))
    }
}

/// CPU time so far.
struct Cpu {
    thread_ms: f64,
    children_ms: f64,
}

impl Cpu {
    fn now() -> Result<Self, Failure> {
        Ok(Self {
            thread_ms: procfs::cpu_used_ms(UsageWho::RUSAGE_THREAD)?,
            children_ms: procfs::cpu_used_ms(UsageWho::RUSAGE_CHILDREN)?,
        })
    }
}

/// `bench produce LEN PIECE`: writes zeros, so much at a time.
pub(crate) fn produce(len: usize, piece: usize) -> Result<(), Failure> {
    // Not through `stdout()`, whose buffer would merge the pieces.
    let mut stdout = std::fs::File::from(nix::unistd::dup(std::io::stdout())?);
    produce_into(&mut stdout, len, piece)
}

fn produce_into(out: &mut impl Write, len: usize, piece: usize) -> Result<(), Failure> {
    let bytes = vec![0; piece];
    let mut left = len;
    while left > 0 {
        let piece = piece.min(left);
        out.write_all(&bytes[..piece])?;
        left -= piece;
    }
    Ok(())
}

/// `bench consume LEN`: reads to the end, and confirms it with one byte.
pub(crate) fn consume(len: usize) -> Result<(), Failure> {
    let mut bytes = vec![0; BLOCK_LEN];
    let mut total = 0;
    let mut stdin = std::fs::File::from(nix::unistd::dup(std::io::stdin())?);
    loop {
        match stdin.read(&mut bytes)? {
            0 if total == len => break,
            0 => return Err(format!("{total} of {len} bytes came").into()),
            len => total += len,
        }
    }
    Ok(std::io::stdout().write_all(b"k")?)
}

/// Waits for that byte.
fn confirmed(stream: &mut impl Read) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    if bytes == b"k" {
        return Ok(());
    }
    Err("the command did not read all of its input".into())
}
