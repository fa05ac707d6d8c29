//! The guest's side: process 1 or a service, runs commands, and answers every restore.
//!
//! ```text
//! main ▶ run ▶ config, boot ─────────────▶ sys ▶ libc, nix
//!            └▶ event_loop ▶ shell ──────▶ sys
//!                        └──────▶ agent (pure) ▶ shared
//! ```
//!
//! [`agent`] decides and knows no system call; `shell` performs and decides nothing; `event_loop`
//! is the only one that waits; `sys` is the only one that is unsafe. There are no threads, no locks
//! and no async.
#![expect(
    missing_docs,
    reason = "the library serves this program and its tests: names that say it all need no comment"
)]

pub mod accounts;
pub mod agent;
mod boot;
pub mod config;
mod event_loop;
mod local;
mod netlink;
mod shell;
mod sys;

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use log::{error, info, warn};
use mio::Poll;

use agent::{Agent, End, Settings, WorkloadSettings};
use config::mmds::Mmds;
use config::workload::{FILE_LEN_MAX, FILE_PATH_DEFAULT, ImageFile, parse_file};
use config::{Config, Flags, HELP, Sources};
use shell::local::Local;
use shell::{Options, Shell};
use sys::file::read_small;
use sys::power::PowerMode;
use sys::{clock, console, power, process, signals, spawn};

/// What sessions get between TERM and KILL when a signal ends the agent.
const SIGNAL_GRACE: Duration = Duration::from_secs(5);

/// Exit status of a service that was started with arguments or settings that mean nothing.
const EXIT_USAGE: u8 = 2;

/// Why the agent could not start.
#[derive(Debug)]
struct StartError {
    what: String,
    source: io::Error,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.source)
    }
}

/// The program. The order of its first steps matters; each says why.
pub fn run() -> ExitCode {
    let is_init = process::is_init();
    let arguments = read_arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if !is_init && local::is_command(&arguments) {
        return local::run(&arguments);
    }
    // First of all: a signal that arrives before this acts by its default.
    let blocked = signals::block();
    power::power_off_on_panic();
    // Before any descriptor is opened, so that 0, 1 and 2 are never something else.
    let problems = if is_init {
        boot::mount_and_take_console()
    } else {
        Vec::new()
    };
    let standard = spawn::open_missing_standard_descriptors();

    let (config, workload) = match read_config(&arguments, is_init) {
        Ok(read) => read,
        Err(code) => return code,
    };
    start_logging(&config);
    for problem in problems {
        warn!("{problem}");
    }
    for result in [blocked, standard] {
        if let Err(err) = result {
            warn!("start: {err}");
        }
    }
    if is_init {
        boot::set_up(config.hostname.as_deref());
    } else if let Err(err) = process::become_subreaper() {
        warn!("cannot adopt orphans: {err}");
    }

    let started = start(&config, workload, is_init);
    let ended = match started {
        // ---- From here on process 1 may not exit: the kernel would panic. It ends by ending the
        // machine. ----
        Ok((mut poll, mut shell, mut agent)) => {
            info!(
                "guest-agent {} listens on {}",
                env!("CARGO_PKG_VERSION"),
                config.address
            );
            event_loop::run(&mut poll, &mut shell, &mut agent).map_err(|source| StartError {
                what: "wait for events".to_owned(),
                source,
            })
        }
        Err(error) => Err(error),
    };
    finish(ended, is_init)
}

/// Opens everything that the loop needs.
fn start(
    config: &Config,
    workload: Option<WorkloadSettings>,
    is_init: bool,
) -> Result<(Poll, Shell, Agent), StartError> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |source| StartError { what, source }
    };
    let file_limit = process::raise_file_limit().map_err(step("raise the limit on open files"))?;
    let is_preferred = !config.is_unprivileged && process::raise_priority();
    let poll = Poll::new().map_err(step("make a poll set"))?;
    let registry = poll
        .registry()
        .try_clone()
        .map_err(step("make a poll set"))?;
    let signals = signals::open().map_err(step("open a signal descriptor"))?;
    let mmds = config.mmds.and_then(Mmds::address);
    let options = Options {
        is_unprivileged: config.is_unprivileged,
        file_limit,
        is_preferred,
        hooks: config.hooks.clone(),
        mmds,
    };
    let local = config.local.as_deref().and_then(Local::open);
    let listen = format!("listen on {}", config.address);
    let shell = Shell::new(
        options,
        config.failpoints.clone(),
        registry,
        signals,
        &config.address,
        local,
    )
    .map_err(step(&listen))?;
    let read_line = |path| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let settings = Settings {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: read_line("/proc/sys/kernel/random/boot_id"),
        kernel: read_line("/proc/sys/kernel/osrelease"),
        is_init,
        grace: SIGNAL_GRACE,
        has_restore_hooks: shell::hooks::has_restore(&config.hooks),
        watches_mmds: mmds.is_some(),
        workload,
    };
    Ok((poll, shell, Agent::new(settings, clock::now())))
}

/// Ends the machine, if it is ours to end, or this service.
fn finish(ended: Result<End, StartError>, is_init: bool) -> ExitCode {
    let (end, code) = match ended {
        Ok(end) => (end, ExitCode::SUCCESS),
        Err(err) => {
            error!("{err}");
            (End::PowerOff, ExitCode::FAILURE)
        }
    };
    console::release();
    if !is_init {
        return code;
    }
    let mode = match end {
        End::PowerOff => PowerMode::Off,
        End::Reboot => PowerMode::Restart,
    };
    let failure = power::end_machine(mode);
    console::write_epitaph(&format!("guest-agent: cannot end the machine: {failure}"));
    // Still process 1, so still not allowed to exit, and nothing is left to do.
    loop {
        nix::unistd::pause();
    }
}

/// Reads the settings, and what the image's file says of its workload. A service with bad ones
/// prints what is wrong and does not start; process 1 has nobody to ask, and goes on without them.
fn read_config(
    arguments: &[&str],
    is_init: bool,
) -> Result<(Config, Option<WorkloadSettings>), ExitCode> {
    let flags = match Flags::from_args(&["guest-agent"], arguments) {
        Ok(flags) => flags,
        Err(_) if is_init => Flags::default(),
        Err(early) => return Err(leave_early(&early)),
    };
    if flags.version && !is_init {
        let _ = writeln!(io::stdout(), "guest-agent {}", env!("CARGO_PKG_VERSION"));
        return Err(ExitCode::SUCCESS);
    }
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    let kernel = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    // A service in a machine that another init has booted shares the kernel command line with it,
    // as it should.
    let (mut config, bad) = config::resolve(&Sources::new(&flags, environment, &kernel));
    let mut problems: Vec<_> = bad.iter().map(ToString::to_string).collect();
    let file = read_file(config.file.as_deref()).unwrap_or_else(|problem| {
        problems.push(problem);
        ImageFile::default()
    });
    for problem in &problems {
        let _ = writeln!(io::stderr(), "guest-agent: {problem}");
    }
    if problems.is_empty() || is_init {
        config.mmds = config.mmds.or(file.mmds);
        let workload = config.workload.clone().on_top_of(file.workload);
        Ok((config, workload))
    } else {
        Err(ExitCode::from(EXIT_USAGE))
    }
}

/// Prints what the flags ask for instead of a start, or what is wrong with them.
fn leave_early(early: &argh::EarlyExit) -> ExitCode {
    // A closed standard output is the caller's wish not to know.
    if early.status.is_ok() {
        let _ = writeln!(io::stdout(), "{HELP}");
        return ExitCode::SUCCESS;
    }
    let problem = early.output.trim_end();
    let _ = writeln!(io::stderr(), "{problem}\nSee guest-agent --help");
    ExitCode::from(EXIT_USAGE)
}

/// What the file says. Only a file that was asked for has to be there.
fn read_file(path: Option<&Path>) -> Result<ImageFile, String> {
    let is_given = path.is_some();
    let path = path.unwrap_or_else(|| Path::new(FILE_PATH_DEFAULT));
    match read_small(path, FILE_LEN_MAX) {
        Ok(text) => parse_file(&text).map_err(|err| format!("{}: {err}", path.display())),
        Err(err) if err.kind() == io::ErrorKind::NotFound && !is_given => Ok(ImageFile::default()),
        Err(err) => Err(format!("cannot read {}: {err}", path.display())),
    }
}

fn read_arguments() -> Vec<String> {
    std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

/// Short lines, collected and released by the event loop.
fn start_logging(config: &Config) {
    if let Err(err) = console::open(config.console.as_deref()) {
        let _ = writeln!(io::stderr(), "guest-agent: cannot open the log: {err}");
    }
    env_logger::Builder::new()
        .filter_level(config.log)
        .target(env_logger::Target::Pipe(Box::new(console::Writer)))
        .format(|line, record| {
            writeln!(
                line,
                "guest-agent: {}: {}",
                record.level().as_str().to_ascii_lowercase(),
                record.args()
            )
        })
        .init();
}
