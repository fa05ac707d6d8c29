//! The guest's side: runs as process 1 or as a service, runs commands, and answers every restore.
//!
//! ```text
//! main ▶ run ▶ config, boot ─────────────▶ sys ▶ libc, nix
//!            └▶ event_loop ▶ shell ──────▶ sys
//!                        └──────▶ agent (pure) ▶ shared
//! ```
//!
//! [`agent`] makes all decisions and no system calls; `shell` performs what it decides. Only
//! `event_loop` waits, and only `sys` is unsafe. There are no threads, no locks and no async.
#![expect(
    missing_docs,
    reason = "the library serves this program and its tests: names that say it all need no comment"
)]

pub mod accounts;
pub mod agent;
mod boot;
mod cgroups;
mod client;
pub mod config;
mod event_loop;
mod memory;
mod netlink;
mod record;
mod shell;
mod sys;

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use argh::FromArgs;
use log::{error, info, warn};
use mio::Poll;
use shared::id::Instance;

use agent::{Agent, Confinement, End, Limits, Settings, WorkloadSettings};
use config::mmds::Mmds;
use config::workload::{FILE_LEN_MAX, FILE_PATH_DEFAULT, ImageFile, parse_file};
use config::{Config, Flags, HELP, Sources};
use shell::cgroups::Cgroups;
use shell::local::Local;
use shell::record::Record;
use shell::{Options, Shell};
use sys::file::{Last, read_small, trusted};
use sys::power::PowerMode;
use sys::{clock, console, entropy, power, process, signals, spawn};

/// Exit status of a service with invalid arguments or settings.
const EXIT_USAGE: u8 = 2;

#[derive(Debug)]
struct StartError {
    /// What failed, to follow "cannot".
    what: String,
    source: io::Error,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.source)
    }
}

/// The program. The order of its first steps matters.
pub fn run() -> ExitCode {
    let is_init = process::is_init();
    let arguments = read_arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if !is_init && client::is_command(&arguments) {
        return client::run(&arguments);
    }
    // First, because a signal that arrives earlier has its default action.
    let blocked = signals::block();
    power::power_off_on_panic();
    // Before anything else is opened, which could get descriptor 0, 1 or 2.
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
        // ---- From here on process 1 must not exit, or the kernel panics. It ends the machine
        // instead. ----
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

/// Opens everything that the event loop needs.
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
    let oom_score_adj = (!config.is_unprivileged)
        .then(process::avoid_oom_killer)
        .flatten();
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
        oom_score_adj,
        hooks: config.hooks.clone(),
        mmds,
    };
    let local = config.local.as_deref().and_then(Local::open);
    let listen = format!("listen on {}", config.address);
    let mut shell = Shell::new(
        options,
        config.failpoints.clone(),
        registry,
        signals,
        &config.address,
        local,
    )
    .map_err(step(&listen))?;
    let instance = entropy::draw().map_err(step("draw random bytes"))?;
    let instance = Instance::from_bytes(instance);
    let (confinement, left) = keep_sessions(&mut shell, config, is_init);
    let read_line = |path| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let settings = Settings {
        boot_id: read_line("/proc/sys/kernel/random/boot_id"),
        kernel: read_line("/proc/sys/kernel/osrelease"),
        is_init,
        memory_len: memory::budget(),
        confinement,
        has_restore_hooks: shell::hooks::has_restore(&config.hooks),
        watches_mmds: mmds.is_some(),
        workload,
        ..Settings::new(instance)
    };
    let mut agent = Agent::new(settings, clock::now());
    agent.note_predecessor(left);
    Ok((poll, shell, agent))
}

/// Makes sure that no command outlives its agent for long, and ends what a predecessor has left.
/// Returns how far sessions can be held, and how much was ended.
///
/// The shell listens already. So the address is this agent's, and so is what is found for it.
fn keep_sessions(shell: &mut Shell, config: &Config, is_init: bool) -> (Confinement, u64) {
    let cgroups = config
        .has_cgroups
        .then(|| Cgroups::open(&config.address, is_init));
    let (cgroups, left) = cgroups.flatten().unzip();
    let confinement = Confinement {
        has_cgroups: cgroups.is_some(),
        has_limits: cgroups.as_ref().is_some_and(Cgroups::has_limits),
        limits: config.limits,
    };
    if config.limits != Limits::default() && !confinement.has_limits {
        warn!("sessions get no limits: there are no cgroups for memory and processes");
    }
    // Nothing survives process 1.
    let record = (!confinement.has_cgroups && !is_init)
        .then(|| Record::open(&config.address, config.local.as_deref()));
    let (record, recorded) = record.flatten().unzip();
    shell.set_keepers(cgroups, record);
    (confinement, left.or(recorded).unwrap_or(0))
}

/// Ends the machine as process 1, or this service.
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
    // Process 1 must not exit even now.
    loop {
        nix::unistd::pause();
    }
}

/// Reads the settings and the image's file. If any is invalid, a service prints why and does not
/// start; process 1 prints it and continues without.
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
    // A service under another init reads the kernel command line too.
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
        config.limits = file.limits;
        let workload = config.workload.clone().on_top_of(file.workload);
        Ok((config, workload))
    } else {
        Err(ExitCode::from(EXIT_USAGE))
    }
}

/// Prints the help, or what is wrong with the flags.
fn leave_early(early: &argh::EarlyExit) -> ExitCode {
    // A caller that closed standard output does not want the text.
    if early.status.is_ok() {
        let _ = writeln!(io::stdout(), "{HELP}");
        return ExitCode::SUCCESS;
    }
    let problem = early.output.trim_end();
    let _ = writeln!(io::stderr(), "{problem}\nSee guest-agent --help");
    ExitCode::from(EXIT_USAGE)
}

/// Reads the image's file. The default one may be missing.
fn read_file(path: Option<&Path>) -> Result<ImageFile, String> {
    let is_given = path.is_some();
    let path = path.unwrap_or_else(|| Path::new(FILE_PATH_DEFAULT));
    let read = trusted(path, Last::Private).and_then(|path| read_small(&path, FILE_LEN_MAX));
    match read {
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

/// Log lines are held until the event loop releases them; see [`console`].
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
