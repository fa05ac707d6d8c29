//! The settings, their sources, and which source wins.
//!
//! | Name | Value | Default |
//! |---|---|---|
//! | `listen` | `vsock`, `vsock:PORT`, `unix:PATH` or `unix-any:PATH` | `vsock` |
//! | `port` | port of a `vsock` without one | 5252 |
//! | `log` | least severe log line: `off`, `error`, `warn`, `info`, `debug` or `trace` | `info` |
//! | `console` | file for log lines | standard error |
//! | `hostname` | host name to set at boot | none |
//! | `local` | socket for programs in the guest; empty: none | in `/run/guest-agent` |
//! | `hooks` | folder with `snapshot.d` and `restore.d` | `/etc/guest-agent` |
//! | `mmds` | watch the metadata service: `0`, `1` or `ADDRESS:PORT` | as in `config`, or `0` |
//! | `cgroups` | `0`: sessions get no cgroups | `1` |
//! | `unprivileged` | `1`: do not set the clock, the random pool or the identity | `0` |
//! | `config` | file with the workload | `/etc/guest-agent/agent.json`, if it exists |
//! | `workload` | its arguments, split at spaces outside of quotes; empty: none | as in `config` |
//! | `workload_restart` | when it is restarted: `no` or `on-failure` | as in `config`, or `no` |
//! | `workload_end` | what follows its end: `keep` or `poweroff` | as in `config`, or `keep` |
//!
//! Debug builds also have `failpoints`, without a flag; see `Failpoints`.
//!
//! Each can be a flag (`--listen`, `--workload-end`; `--unprivileged` has no value), a variable of
//! the environment (`GUEST_AGENT_LISTEN`) or a parameter of the kernel (`agent.listen=`), there in
//! double quotes if it contains spaces.
//!
//! A flag wins over the environment, the environment over the kernel command line, and that over
//! the file. The kernel passes parameters for others to process 1 too, as flags and in its
//! environment. So process 1 reports an invalid value and uses the next source, while a service
//! refuses to start.

pub(crate) mod mmds;
pub mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use argh::FromArgs;
use log::LevelFilter;
use shared::limits::PORT_DEFAULT;
use shared::message::Identity;

use crate::agent::Limits;
use crate::client::SOCKET_PATH_DEFAULT;
use crate::shell::failpoint::Failpoints;
use crate::sys::socket::{Access, Address};

use mmds::Mmds;
use workload::{
    ARGUMENTS_EXPECTED, END_EXPECTED, Overrides, RESTART_EXPECTED, parse_end, parse_restart,
    split_arguments,
};

/// The folder of an image's hooks.
const HOOKS_DEFAULT: &str = "/etc/guest-agent";

/// The text of `--help`. argh's own help would take five times as many bytes of the binary.
pub(crate) const HELP: &str = "\
Usage: guest-agent [OPTION]...

Runs commands in a microVM for host-tool, and answers every restore.

  --listen ADDRESS   vsock, vsock:PORT, unix:PATH or unix-any:PATH
  --port PORT        of vsock, default 5252
  --log LEVEL        off, error, warn, info, debug or trace
  --console FILE     for log lines
  --hostname NAME    to set at boot, as process 1
  --hooks DIR        with snapshot.d and restore.d
  --local PATH       socket for programs in the guest, '' for none
  --mmds 0|1|ADDRESS:PORT
                     watch the metadata service
  --cgroups 0|1      whether each session gets a cgroup, default 1
  --unprivileged     do not set clock, random pool and identity
  --config FILE      with the workload
  --workload COMMAND, --workload-restart no|on-failure,
  --workload-end keep|poweroff
  --version

Also: guest-agent checkpoint|generation --help";

/// Runs commands in a microVM for host-tool, and answers every restore.
#[derive(Debug, Default, FromArgs)]
pub struct Flags {
    /// where to listen: vsock, vsock:PORT, unix:PATH or unix-any:PATH (default: vsock)
    #[argh(option)]
    listen: Option<String>,
    /// vsock port (default: 5252)
    #[argh(option)]
    port: Option<String>,
    /// off, error, warn, info, debug or trace (default: info)
    #[argh(option)]
    log: Option<String>,
    /// file for log lines (default: standard error)
    #[argh(option)]
    console: Option<String>,
    /// host name to set at boot, as process 1 only
    #[argh(option)]
    hostname: Option<String>,
    /// folder with snapshot.d and restore.d (default: /etc/guest-agent)
    #[argh(option)]
    hooks: Option<String>,
    /// socket for programs in the guest, empty for none (default:
    /// /run/guest-agent/agent.sock, none with --unprivileged)
    #[argh(option)]
    local: Option<String>,
    /// watch the metadata service for restores: 0, 1 or ADDRESS:PORT (default: 0)
    #[argh(option)]
    mmds: Option<String>,
    /// whether each session gets a cgroup: 0 or 1 (default: 1)
    #[argh(option)]
    cgroups: Option<String>,
    /// do not set clock, random pool and identity (for development and tests)
    #[argh(switch)]
    unprivileged: bool,
    /// file with the workload (default: /etc/guest-agent/agent.json, if it exists)
    #[argh(option)]
    config: Option<String>,
    /// arguments of the workload (default: those in the file)
    #[argh(option)]
    workload: Option<String>,
    /// when the workload is restarted: no or on-failure (default: no)
    #[argh(option)]
    workload_restart: Option<String>,
    /// what follows the workload's end: keep or poweroff (default: keep)
    #[argh(option)]
    workload_end: Option<String>,
    /// print the version and exit
    #[argh(switch)]
    pub(crate) version: bool,
}

/// The settings, each from the strongest source that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) address: Address,
    pub(crate) log: LevelFilter,
    /// File for log lines; `None` is standard error.
    pub(crate) console: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) hooks: PathBuf,
    /// Socket for programs in the guest.
    pub(crate) local: Option<PathBuf>,
    /// The setting outside of the file, which has one too.
    pub(crate) mmds: Option<Mmds>,
    /// Whether each session gets a cgroup, if that can be.
    pub(crate) has_cgroups: bool,
    /// The file's limits for a session.
    pub(crate) limits: Limits,
    pub(crate) is_unprivileged: bool,
    /// The file with the workload. If it is given, it must exist.
    pub(crate) file: Option<PathBuf>,
    /// The settings of the workload outside of the file.
    pub(crate) workload: Overrides,
    pub(crate) failpoints: Failpoints,
}

/// An invalid value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    /// The flag, variable or parameter, as the user wrote it.
    pub source: String,
    pub value: String,
    pub expected: &'static str,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            value,
            expected,
        } = self;
        write!(f, "bad value {value:?} for {source}: expected {expected}")
    }
}

impl std::error::Error for BadValue {}

/// The three sources of settings besides the file.
#[derive(Debug, Default)]
pub struct Sources {
    flags: BTreeMap<&'static str, String>,
    environment: BTreeMap<String, String>,
    kernel: BTreeMap<String, String>,
}

impl Sources {
    pub fn new(
        flags: &Flags,
        environment: impl IntoIterator<Item = (String, String)>,
        kernel_command_line: &str,
    ) -> Self {
        let unprivileged = flags.unprivileged.then(|| "1".to_owned());
        let given = [
            ("listen", flags.listen.clone()),
            ("port", flags.port.clone()),
            ("log", flags.log.clone()),
            ("console", flags.console.clone()),
            ("hostname", flags.hostname.clone()),
            ("hooks", flags.hooks.clone()),
            ("local", flags.local.clone()),
            ("mmds", flags.mmds.clone()),
            ("cgroups", flags.cgroups.clone()),
            ("unprivileged", unprivileged),
            ("config", flags.config.clone()),
            ("workload", flags.workload.clone()),
            ("workload_restart", flags.workload_restart.clone()),
            ("workload_end", flags.workload_end.clone()),
        ];
        let flags = given
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        Self {
            flags,
            environment: environment.into_iter().collect(),
            kernel: kernel_parameters(kernel_command_line)
                .filter_map(assignment)
                .collect(),
        }
    }

    /// The setting's values, the strongest first, each with its source as the user wrote it.
    fn candidates(&self, name: &'static str) -> impl Iterator<Item = (String, &str)> {
        let variable = format!("GUEST_AGENT_{}", name.to_ascii_uppercase());
        let flag = self
            .flags
            .get(name)
            .map(|value| (format!("--{}", name.replace('_', "-")), value.as_str()));
        let environment = self
            .environment
            .get(&variable)
            .map(|value| (variable, value.as_str()));
        let kernel = self
            .kernel
            .get(name)
            .map(|value| (format!("agent.{name}"), value.as_str()));
        [flag, environment, kernel].into_iter().flatten()
    }
}

/// The settings, and the invalid values.
pub fn resolve(sources: &Sources) -> (Config, Vec<BadValue>) {
    let mut bad = Vec::new();
    let mut pick = Picker {
        sources,
        bad: &mut bad,
    };
    let port = pick
        .first("port", "a port number", |text| text.parse().ok())
        .unwrap_or(PORT_DEFAULT);
    let expected = "vsock, vsock:PORT, unix:PATH or unix-any:PATH";
    let address = pick.first("listen", expected, |text| parse_address(text, port));
    let expected = "off, error, warn, info, debug or trace";
    let log = pick.first("log", expected, |text| text.parse().ok());
    let console = pick.first("console", "a path", |text| Some(text.to_owned()));
    let hostname = pick.first("hostname", "a host name", |text| {
        Identity::is_hostname(text).then(|| text.to_owned())
    });
    let hooks = pick.first("hooks", "a path", |text| Some(text.to_owned()));
    let local = pick.first("local", "a path", |text| Some(text.to_owned()));
    let mmds = pick.first("mmds", mmds::EXPECTED, mmds::parse);
    let has_cgroups = pick.first("cgroups", "0 or 1", parse_switch);
    let is_unprivileged = pick.first("unprivileged", "0 or 1", parse_switch);
    let file = pick.first("config", "a path", |text| {
        (!text.is_empty()).then(|| PathBuf::from(text))
    });
    let workload = Overrides {
        argv: pick.first("workload", ARGUMENTS_EXPECTED, split_arguments),
        restart: pick.first("workload_restart", RESTART_EXPECTED, parse_restart),
        at_end: pick.first("workload_end", END_EXPECTED, parse_end),
    };
    let is_unprivileged = is_unprivileged.unwrap_or(false);
    // Several agents for development may share a machine with the one that manages it.
    let local_default = if is_unprivileged {
        ""
    } else {
        SOCKET_PATH_DEFAULT
    };
    let local = local.unwrap_or_else(|| local_default.to_owned());
    let expected = "failpoints of a debug build";
    let failpoints = pick.first("failpoints", expected, Failpoints::parse);
    let config = Config {
        hooks: hooks.unwrap_or_else(|| HOOKS_DEFAULT.to_owned()).into(),
        local: (!local.is_empty()).then(|| local.into()),
        address: address.unwrap_or(Address::Vsock { port }),
        log: log.unwrap_or(LevelFilter::Info),
        console,
        hostname,
        mmds,
        has_cgroups: has_cgroups.unwrap_or(true),
        limits: Limits::default(),
        is_unprivileged,
        file,
        workload,
        failpoints: failpoints.unwrap_or_default(),
    };
    (config, bad)
}

struct Picker<'a> {
    sources: &'a Sources,
    bad: &'a mut Vec<BadValue>,
}

impl Picker<'_> {
    /// The strongest valid value.
    fn first<T>(
        &mut self,
        name: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let mut parsed = None;
        self.find(name, expected, &mut |text| {
            parsed = parse(text);
            parsed.is_some()
        });
        parsed
    }

    /// Tries the values until one is accepted. Not generic like [`Self::first`], so that the
    /// program contains it once and not once for each setting.
    fn find(
        &mut self,
        name: &'static str,
        expected: &'static str,
        accept: &mut dyn FnMut(&str) -> bool,
    ) {
        for (source, value) in self.sources.candidates(name) {
            if accept(value) {
                return;
            }
            self.bad.push(BadValue {
                source,
                value: value.to_owned(),
                expected,
            });
        }
    }
}

/// Splits the kernel command line as the kernel does (`next_arg` of `lib/cmdline.c`): at white
/// space outside of double quotes.
fn kernel_parameters(line: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    line.split(move |character: char| {
        is_quoted ^= character == '"';
        character.is_ascii_whitespace() && !is_quoted
    })
}

/// Name and value of an `agent.` parameter, without the quotes around the parameter or the value.
/// Quotes inside are part of the value.
fn assignment(parameter: &str) -> Option<(String, String)> {
    let (name, value) = unquoted(parameter)
        .strip_prefix("agent.")?
        .split_once('=')?;
    Some((name.to_owned(), unquoted(value).to_owned()))
}

/// The text without its first quote and the one at its end, if it begins with one.
fn unquoted(text: &str) -> &str {
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest),
        None => text,
    }
}

fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn parse_address(text: &str, port: u32) -> Option<Address> {
    for (prefix, access) in [("unix:", Access::Own), ("unix-any:", Access::Any)] {
        if let Some(path) = text.strip_prefix(prefix) {
            return (!path.is_empty()).then(|| Address::Unix {
                path: PathBuf::from(path),
                access,
            });
        }
    }
    match text.strip_prefix("vsock")? {
        "" => Some(Address::Vsock { port }),
        rest => Some(Address::Vsock {
            port: rest.strip_prefix(':')?.parse().ok()?,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{Restart, WorkloadEnd};

    fn sources(flags: Flags, environment: &[(&str, &str)], kernel: &str) -> Sources {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Sources::new(&flags, environment.iter().map(pair), kernel)
    }

    fn port_of(config: &Config) -> Option<u32> {
        match config.address {
            Address::Vsock { port } => Some(port),
            Address::Unix { .. } => None,
        }
    }

    #[test]
    fn the_stronger_source_wins() {
        let kernel = "quiet agent.port=1 agent.log=debug root=/dev/vda";
        let environment = [("GUEST_AGENT_PORT", "2")];
        let flags = || Flags {
            port: Some("3".to_owned()),
            ..Flags::default()
        };
        let cases = [
            (sources(flags(), &environment, kernel), 3),
            (sources(Flags::default(), &environment, kernel), 2),
            (sources(Flags::default(), &[], kernel), 1),
            (sources(Flags::default(), &[], ""), PORT_DEFAULT),
        ];
        for (sources, port) in cases {
            let (config, bad) = resolve(&sources);
            assert_eq!((port_of(&config), bad), (Some(port), Vec::new()));
        }
    }

    #[test]
    fn an_invalid_value_is_reported_and_the_next_source_used() {
        let environment = [("GUEST_AGENT_LOG", "loud")];
        let (config, bad) = resolve(&sources(Flags::default(), &environment, "agent.log=warn"));
        assert_eq!(config.log, LevelFilter::Warn);
        let texts: Vec<_> = bad.iter().map(ToString::to_string).collect();
        let expected = "bad value \"loud\" for GUEST_AGENT_LOG: expected off, error, warn, info, debug or trace";
        assert_eq!(texts, [expected]);
    }

    #[test]
    fn kernel_parameters_may_be_quoted() {
        let cases = [
            ("agent.workload=/bin/app quiet", "/bin/app"),
            ("agent.workload=\"/bin/app -x\" quiet", "/bin/app -x"),
            ("ro \"agent.workload=/bin/app -x\"", "/bin/app -x"),
            ("agent.workload=\"sh -c 'a  b'\"\n", "sh -c 'a  b'"),
            ("agent.workload=\"never closed", "never closed"),
            ("agent.workload=a\" \"b c", "a\" \"b"),
            ("agent.workload=\"\"", ""),
            ("agent.workload=", ""),
            ("agent.workload=a agent.workload=b", "b"),
        ];
        for (line, expected) in cases {
            let sources = sources(Flags::default(), &[], line);
            let value = sources.kernel.get("workload").map(String::as_str);
            assert_eq!(value, Some(expected), "{line}");
        }
    }

    #[test]
    fn each_source_can_set_the_workload() {
        let restart = Flags {
            workload_restart: Some("on-failure".to_owned()),
            ..Flags::default()
        };
        let environment = [
            ("GUEST_AGENT_WORKLOAD", "app '1 2'"),
            ("GUEST_AGENT_WORKLOAD_RESTART", "no"),
        ];
        let kernel = "agent.workload=other agent.workload_end=poweroff agent.config=/a.json";
        let (config, bad) = resolve(&sources(restart, &environment, kernel));
        assert_eq!(bad, []);
        assert_eq!(config.file, Some(PathBuf::from("/a.json")));
        let expected = Overrides {
            argv: split_arguments("app '1 2'"),
            restart: Some(Restart::OnFailure),
            at_end: Some(WorkloadEnd::PowerOff),
        };
        assert_eq!(config.workload, expected);

        let wrong = Flags {
            workload: Some("it's".to_owned()),
            workload_end: Some("explode".to_owned()),
            ..Flags::default()
        };
        let (config, bad) = resolve(&sources(wrong, &[], "agent.workload=app"));
        assert_eq!(config.workload.argv, split_arguments("app"));
        let texts: Vec<_> = bad.iter().map(ToString::to_string).collect();
        let expected = [
            "bad value \"it's\" for --workload: expected arguments, with every quote closed",
            "bad value \"explode\" for --workload-end: expected keep or poweroff",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn each_source_can_set_the_metadata_service() {
        let kernel = "agent.mmds=127.0.0.1:8080";
        for (environment, expected) in [
            (&[("GUEST_AGENT_MMDS", "0")][..], "0"),
            (&[("GUEST_AGENT_MMDS", "1")], "1"),
            (&[], "127.0.0.1:8080"),
        ] {
            let (config, bad) = resolve(&sources(Flags::default(), environment, kernel));
            assert_eq!((config.mmds, bad), (mmds::parse(expected), Vec::new()));
        }
        let (config, bad) = resolve(&sources(Flags::default(), &[], "agent.mmds=on"));
        assert_eq!(config.mmds, None);
        let expected = "bad value \"on\" for agent.mmds: expected 0, 1 or ADDRESS:PORT";
        assert_eq!(bad[0].to_string(), expected);
    }

    #[test]
    fn addresses() {
        let unix = |path: &str, access| {
            Some(Address::Unix {
                path: PathBuf::from(path),
                access,
            })
        };
        let vsock = |port| Some(Address::Vsock { port });
        assert_eq!(parse_address("vsock", 7), vsock(7));
        assert_eq!(parse_address("vsock:9", 7), vsock(9));
        assert_eq!(parse_address("unix:/a", 7), unix("/a", Access::Own));
        assert_eq!(parse_address("unix-any:a", 7), unix("a", Access::Any));
        for bad in [
            "",
            "unix:",
            "unix-any:",
            "vsock:",
            "vsock:x",
            "vsocket",
            "tcp:1",
        ] {
            assert_eq!(parse_address(bad, 7), None, "{bad}");
        }
    }
}
