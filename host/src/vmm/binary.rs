//! Finds a VMM binary on this machine and runs its `--version`.

use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{VersionError, VmmKind, VmmVersion};
use crate::os::deadline::{WaitError, Watch};
use crate::sys::pidfd;

/// How long `--version` may take. It takes milliseconds; an emulated machine is far slower.
const VERSION_WAIT_MAX: Duration = Duration::from_secs(20);

/// Bytes of a `--version` output that are read.
const VERSION_LEN_MAX: u64 = 4096;

/// A VMM binary found on this machine.
#[derive(Debug, Clone)]
pub(crate) struct VmmBinary {
    pub(crate) kind: VmmKind,
    /// Absolute path of the program.
    pub(crate) path: PathBuf,
    /// From the output of `--version`.
    pub(crate) version: VmmVersion,
}

/// How to find a VMM of one kind.
struct Lookup {
    kind: VmmKind,
    /// Environment variable with the path of the program. If it is set, `PATH` is not searched.
    variable: &'static str,
    /// Name of the program in the directories of `PATH`.
    program: &'static str,
    remedy: &'static str,
}

/// In order of preference.
const LOOKUPS: [Lookup; 2] = [
    Lookup {
        kind: VmmKind::Firecracker,
        variable: "FIRECRACKER",
        program: "firecracker",
        remedy: "put a Firecracker release's binary on PATH or name it in FIRECRACKER",
    },
    Lookup {
        kind: VmmKind::Qemu,
        variable: "QEMU",
        program: "qemu-system-x86_64",
        remedy: "install QEMU for x86-64 (qemu-system-x86 on Debian) or name its binary in QEMU",
    },
];

/// Finds a VMM of the given kind, or without a kind Firecracker or else QEMU: at the path in the
/// environment variable (`FIRECRACKER`, `QEMU`), or in `PATH`. Runs its `--version`.
pub(crate) fn find_binary(kind: Option<VmmKind>) -> Result<VmmBinary, FindError> {
    let (kind, path) = locate(kind, &|variable| env::var_os(variable))?;
    let version = run_version(&path)?;
    Ok(VmmBinary {
        kind,
        path,
        version,
    })
}

/// The search itself. The environment is an argument because a test cannot change its own.
fn locate(
    kind: Option<VmmKind>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(VmmKind, PathBuf), FindError> {
    let path = variable("PATH").unwrap_or_default();
    let wanted = LOOKUPS
        .iter()
        .filter(|lookup| kind.is_none_or(|kind| kind == lookup.kind));
    for lookup in wanted {
        if let Some(named) = variable(lookup.variable).filter(|named| !named.is_empty()) {
            return absolute(Path::new(&named)).map(|path| (lookup.kind, path));
        }
        if let Some(found) = in_path(&path, lookup.program) {
            return absolute(&found).map(|path| (lookup.kind, path));
        }
    }
    Err(FindError::NotFound { kind })
}

fn in_path(path: &OsStr, program: &str) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The supervisor runs in another directory. Symbolic links are not resolved: a program may behave
/// differently under another name.
fn absolute(program: &Path) -> Result<PathBuf, FindError> {
    std::path::absolute(program).map_err(|source| FindError::Run {
        program: program.to_owned(),
        source,
    })
}

fn run_version(program: &Path) -> Result<VmmVersion, FindError> {
    let run = |source| FindError::Run {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(run)?;
    let output = read_output(&mut child);
    // If it still runs, it hangs or writes too much. To a process that has ended this does nothing.
    let killed = child.kill().and_then(|()| child.wait());
    let output = output
        .and_then(|output| killed.map(|_| output))
        .map_err(run)?;
    VmmVersion::parse(&String::from_utf8_lossy(&output)).map_err(|source| FindError::Version {
        program: program.to_owned(),
        source,
    })
}

/// Reads until the program has ended or closed its output, within a bounded time.
fn read_output(child: &mut Child) -> io::Result<Vec<u8>> {
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("no standard output"))?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let watch = Watch::until(Instant::now() + VERSION_WAIT_MAX);
    let mut stdout = stdout.take(VERSION_LEN_MAX);
    let mut output = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        watch.readable(stdout.get_ref()).map_err(timed_out)?;
        match stdout.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => output.extend_from_slice(&chunk[..len]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    // A program that writes more gets EPIPE instead of blocking.
    drop(stdout);
    // Let it end by itself, so that it can write profiles or traces at its end.
    watch.readable(pidfd::open(pid)?).map_err(timed_out)?;
    Ok(output)
}

fn timed_out(err: WaitError) -> io::Error {
    match err {
        WaitError::Io(source) => source,
        WaitError::Deadline | WaitError::ProcessExited => {
            io::Error::new(io::ErrorKind::TimedOut, "it does not end")
        }
    }
}

/// Why no VMM can be started.
#[derive(Debug)]
pub(crate) enum FindError {
    /// No program was found.
    NotFound {
        /// The kind that was asked for, if one was.
        kind: Option<VmmKind>,
    },
    /// The program cannot be run, or does not end.
    Run {
        program: PathBuf,
        /// Why it cannot be run.
        source: io::Error,
    },
    /// The program does not print a version.
    Version {
        program: PathBuf,
        /// What it printed instead.
        source: VersionError,
    },
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { kind } => {
                let wanted = |lookup: &&Lookup| kind.is_none_or(|kind| kind == lookup.kind);
                let lookups: Vec<_> = LOOKUPS.iter().filter(wanted).collect();
                let programs: Vec<_> = lookups.iter().map(|lookup| lookup.program).collect();
                let remedies: Vec<_> = lookups.iter().map(|lookup| lookup.remedy).collect();
                write!(f, "no {} on PATH; ", programs.join(" and no "))?;
                f.write_str(&remedies.join(", or "))
            }
            Self::Run { program, .. } => write!(f, "cannot run {} --version", program.display()),
            Self::Version { program, .. } => {
                write!(f, "unknown version of {}", program.display())
            }
        }
    }
}

impl Error for FindError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotFound { .. } => None,
            Self::Run { source, .. } => Some(source),
            Self::Version { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::VmmKind::{Firecracker, Qemu};
    use super::*;
    use crate::testing::TempDir;

    fn put(dir: &Path, name: &str, script: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_environment_wins_over_path_and_firecracker_over_qemu() {
        let temp = TempDir::new("find");
        let firecracker = put(temp.path(), "firecracker", "", 0o755);
        let qemu = put(temp.path(), "qemu-system-x86_64", "", 0o755);
        let env = |pairs: &'static [(&str, &str)]| {
            let path = temp.path().as_os_str().to_owned();
            move |variable: &str| match pairs.iter().find(|pair| pair.0 == variable) {
                Some(pair) => Some(pair.1.into()),
                None => (variable == "PATH").then(|| path.clone()),
            }
        };
        let nothing = env(&[]);
        assert_eq!(
            locate(None, &nothing).unwrap(),
            (Firecracker, firecracker.clone())
        );
        assert_eq!(locate(Some(Qemu), &nothing).unwrap(), (Qemu, qemu.clone()));
        let named = env(&[("FIRECRACKER", "/opt/fc"), ("QEMU", "")]);
        assert_eq!(
            locate(None, &named).unwrap(),
            (Firecracker, "/opt/fc".into())
        );
        assert_eq!(locate(Some(Qemu), &named).unwrap(), (Qemu, qemu.clone()));

        // A file that is not executable is skipped.
        put(temp.path(), "firecracker", "", 0o644);
        assert_eq!(locate(None, &nothing).unwrap(), (Qemu, qemu));
        let err = locate(Some(Firecracker), &nothing).unwrap_err();
        assert_eq!(
            err.to_string(),
            "no firecracker on PATH; put a Firecracker release's binary on PATH or name it in \
             FIRECRACKER"
        );
        assert!(locate(None, &env(&[("PATH", "/nonexistent")])).is_err());
    }

    #[test]
    fn the_version_is_read_from_the_programs_output() {
        let temp = TempDir::new("find");
        let script = "test \"$1\" = --version && echo Firecracker v1.16.1 && echo more";
        let version = run_version(&put(temp.path(), "fc", script, 0o755)).unwrap();
        assert_eq!(version.text, "1.16.1");

        let err = run_version(&put(temp.path(), "odd", "echo hello", 0o755)).unwrap_err();
        assert!(matches!(err, FindError::Version { .. }), "{err:?}");
        let err = run_version(&temp.path().join("none")).unwrap_err();
        assert!(matches!(err, FindError::Run { .. }), "{err:?}");
    }

    #[test]
    fn endless_output_is_cut_off() {
        let temp = TempDir::new("find");
        let script = "echo Firecracker v1.16.1; exec 2>&-; head -c 100000 /dev/zero";
        run_version(&put(temp.path(), "fc", script, 0o755)).unwrap();
    }
}
