//! A child with an odd behaviour that no shell script has. The first argument names it: it fills a
//! pipe to the brim, or leaves its process group. The cases of `exec::conformance` use it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{Pid, setpgid};

/// Most bytes that a pipe holds unless an administrator allows more (`pipe(7)`).
const PIPE_LEN_MAX: usize = 1024 * 1024;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let behaviour = args.next().unwrap_or_default();
    let done = match behaviour.to_str() {
        Some("fill-pipe") => fill_pipe(),
        Some("regroup") => regroup(args),
        _ => Err(io::Error::other("give one of: fill-pipe, regroup ARGV...")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("odd-child: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the pipe on standard output as large as possible, fills it with one write, and ends, so
/// that its whole output is still in the pipe when it has ended.
fn fill_pipe() -> io::Result<()> {
    let len = i32::try_from(PIPE_LEN_MAX).map_err(io::Error::other)?;
    fcntl(io::stdout(), FcntlArg::F_SETPIPE_SZ(len))?;
    io::stdout().write_all(&vec![b'x'; PIPE_LEN_MAX])
}

/// Leaves the process group that it leads for another one, and executes ARGV there.
fn regroup(mut argv: impl Iterator<Item = OsString>) -> io::Result<()> {
    // A group lasts as long as any member, so its first leader may end once it has been joined.
    let mut leader = Command::new("cat");
    leader.process_group(0).stdin(Stdio::piped());
    let mut leader = leader.stdout(Stdio::null()).spawn()?;
    let group = Pid::from_raw(i32::try_from(leader.id()).map_err(io::Error::other)?);
    setpgid(Pid::from_raw(0), group)?;
    drop(leader.stdin.take());
    leader.wait()?;
    let program = argv.next().unwrap_or_default();
    Err(Command::new(program).args(argv).exec())
}
