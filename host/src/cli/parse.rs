//! Parses the process's arguments into a [`Command`].
//!
//! argh takes only UTF-8 and gives errors the exit code 1. So the command after `--`, which may be
//! any bytes, is split off before argh runs, and errors get the exit code of the named command.

use std::ffi::OsString;

use argh::FromArgs;
use shared::version::SUPPORTED;

use super::{COMMANDS, Command, HostTool};
use crate::exit::{Exit, Table};
use crate::guest::HOST_VERSION;

/// A valid command line.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) command: Command,
    /// The arguments after `--`, if there was one.
    pub(crate) argv: Option<Vec<OsString>>,
}

/// A command line that only prints something: help, the version or an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EarlyExit {
    /// The text, with its last line end.
    pub(crate) text: String,
    /// With 0 the text goes to standard output, otherwise to standard error.
    pub(crate) code: u8,
}

/// The table of exit codes that the named command uses.
fn table_of(command: Option<&str>) -> Table {
    let known = COMMANDS.iter().find(|(name, _)| Some(*name) == command);
    known.map_or(Table::General, |(_, table)| *table)
}

/// Parses the arguments after the program's name.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Invocation, EarlyExit> {
    let (arguments, argv) = split_argv(arguments);
    let arguments = as_text(&arguments)?;
    let first = arguments.first().copied();
    let table = table_of(first);
    let usage = |text: String| EarlyExit {
        text,
        code: table.code(Exit::Usage),
    };
    match first {
        None => return Err(usage(help())),
        Some("--version" | "-V") => {
            let text = format!("host-tool {HOST_VERSION} (protocol {SUPPORTED})\n");
            return Err(EarlyExit { text, code: 0 });
        }
        Some(first) if !first.starts_with('-') && !names().any(|name| name == first) => {
            return Err(usage(unknown_command(first)));
        }
        Some(_) => {}
    }
    let parsed = HostTool::from_args(&["host-tool"], &arguments);
    let command = parsed.map_err(|exit| early_exit(&exit, table))?.command;
    let takes_argv = matches!(
        command,
        Command::Exec(_) | Command::Stress(_) | Command::Bench(_)
    );
    if argv.is_some() && !takes_argv {
        return Err(usage(
            "host-tool: only exec, stress and bench take a command after '--'\n".to_owned(),
        ));
    }
    Ok(Invocation { command, argv })
}

/// Splits off the arguments after the first `--`, which are not parsed.
fn split_argv(mut arguments: Vec<OsString>) -> (Vec<OsString>, Option<Vec<OsString>>) {
    match arguments.iter().position(|argument| argument == "--") {
        None => (arguments, None),
        Some(index) => {
            let argv = arguments.split_off(index + 1);
            arguments.pop();
            (arguments, Some(argv))
        }
    }
}

fn as_text(arguments: &[OsString]) -> Result<Vec<&str>, EarlyExit> {
    let table = table_of(arguments.first().and_then(|first| first.to_str()));
    let mut texts = Vec::with_capacity(arguments.len());
    for argument in arguments {
        texts.push(argument.to_str().ok_or_else(|| EarlyExit {
            text: format!(
                "host-tool: the argument {argument:?} is not UTF-8; only the command after \
                 '--' may contain other bytes\n"
            ),
            code: table.code(Exit::Usage),
        })?);
    }
    let texts = texts.into_iter().flat_map(with_optional_value);
    Ok(texts.flat_map(single_letters).collect())
}

/// The only option with an optional value: `--at-checkpoint` or `--at-checkpoint=TAG`.
const OPTIONAL_VALUE: &str = "--at-checkpoint";

/// Makes the value an argument of its own: argh supports neither optional values nor `=`.
fn with_optional_value(argument: &str) -> Vec<&str> {
    match argument.strip_prefix(OPTIONAL_VALUE) {
        Some("") => vec![OPTIONAL_VALUE, ""],
        Some(rest) => match rest.strip_prefix('=') {
            Some(value) => vec![OPTIONAL_VALUE, value],
            None => vec![argument],
        },
        None => vec![argument],
    }
}

/// Splits `-it` into `-i -t` and `-vv` into `-v -v`, which argh does not. argh reports letters that
/// are not a switch of the command.
fn single_letters(argument: &str) -> Vec<&str> {
    let letters = argument.strip_prefix('-').unwrap_or_default();
    if letters.len() < 2 || !letters.bytes().all(|letter| SWITCHES.contains(&letter)) {
        return vec![argument];
    }
    letters.bytes().map(switch).collect()
}

/// The letters of all commands' switches, which take no value.
const SWITCHES: &[u8] = b"adfiqtv";

const fn switch(letter: u8) -> &'static str {
    match letter {
        b'a' => "-a",
        b'd' => "-d",
        b'f' => "-f",
        b'i' => "-i",
        b'q' => "-q",
        b't' => "-t",
        _ => "-v",
    }
}

fn early_exit(exit: &argh::EarlyExit, table: Table) -> EarlyExit {
    let output = exit.output.trim_end();
    match exit.status {
        Ok(()) => EarlyExit {
            text: format!("{output}\n{}", table.help()),
            code: 0,
        },
        Err(()) => EarlyExit {
            text: format!("host-tool: {output}\n"),
            code: table.code(Exit::Usage),
        },
    }
}

/// The help of the whole program.
fn help() -> String {
    match HostTool::from_args(&["host-tool"], &["--help"]) {
        Err(exit) => early_exit(&exit, Table::General).text,
        // `--help` is never a command.
        Ok(_) => String::new(),
    }
}

fn unknown_command(command: &str) -> String {
    let command = command.escape_debug().to_string();
    let nearest = names().min_by_key(|name| distance(&command, name));
    match nearest {
        Some(name) if distance(&command, name) <= 2 => {
            format!("host-tool: '{command}' is not a command; did you mean '{name}'?\n")
        }
        _ => format!(
            "host-tool: '{command}' is not a command; the commands are {}\n",
            names().collect::<Vec<_>>().join(", ")
        ),
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| *name)
}

/// The Levenshtein distance: letters to change, add or remove to turn one text into the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (from_index, from_char) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = from_index + 1;
        for (index, to_char) in to.iter().enumerate() {
            let changed = diagonal + usize::from(from_char != *to_char);
            diagonal = row[index + 1];
            row[index + 1] = changed.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::time::Duration;

    use super::*;

    fn run(arguments: &[&str]) -> Result<Invocation, EarlyExit> {
        parse(arguments.iter().map(OsString::from).collect())
    }

    #[track_caller]
    fn refused(arguments: &[&str], code: u8, part: &str) {
        let exit = run(arguments).expect_err("refused");
        assert_eq!(exit.code, code, "{}", exit.text);
        assert!(exit.text.contains(part), "{}", exit.text);
    }

    #[test]
    fn every_command_has_help_with_its_exit_codes() {
        for name in names() {
            let exit = run(&[name, "--help"]).expect_err("help");
            assert_eq!(exit.code, 0, "{name}");
            let table = table_of(Some(name)).help();
            assert!(exit.text.ends_with(&table), "{name}:\n{}", exit.text);
            let is_group = name == "snapshots";
            let has_common = exit.text.contains("--timeout");
            assert!(has_common || is_group, "{name}:\n{}", exit.text);
        }
        for name in ["ls", "inspect", "verify"] {
            let exit = run(&["snapshots", name, "--help"]).expect_err("help");
            assert_eq!(exit.code, 0, "{name}");
            let table = Table::General.help();
            assert!(exit.text.ends_with(&table), "{name}:\n{}", exit.text);
            assert!(exit.text.contains("--timeout"), "{name}:\n{}", exit.text);
        }
        let exit = run(&["--help"]).expect_err("help");
        for name in names() {
            assert!(
                exit.text.contains(&format!("  {name} ")),
                "{name}:\n{}",
                exit.text
            );
        }
    }

    #[test]
    fn wrong_usage_has_the_code_of_its_command() {
        refused(&[], 2, "Usage: host-tool <command>");
        refused(
            &["resotre"],
            2,
            "'resotre' is not a command; did you mean 'restore'?",
        );
        refused(&["frobnicate"], 2, "the commands are boot, ");
        refused(&["snapshot"], 2, "--out");
        refused(&["snapshots"], 2, "ls");
        refused(&["snapshots", "verfy"], 2, "verfy");
        refused(&["snapshots", "verify"], 2, "dir");
        refused(&["probe", "--port", "x"], 3, "--port");
        refused(&["exec", "--nope"], 125, "--nope");
        refused(&["restore", "a", "--timeout", "5"], 2, "'5' is not a time");
        refused(&["ls", "--", "a"], 2, "only exec, stress and bench");
        refused(&["kill", "--unix", "s", "x"], 2, "'x' is not a session");
        refused(
            &["kill", "--unix", "s", "1", "-s", "0"],
            2,
            "'0' is not a signal",
        );
        refused(&["wait", "--unix", "s"], 125, "session");
        refused(
            &["exec", "--output", "x"],
            125,
            "'x' is neither block nor drop-oldest",
        );
    }

    #[test]
    fn the_version_names_the_protocol() {
        let exit = run(&["--version"]).expect_err("a text");
        assert_eq!(
            exit.text,
            format!("host-tool {HOST_VERSION} (protocol 1)\n")
        );
        assert_eq!(exit.code, 0);
    }

    #[test]
    fn the_command_after_the_dashes_may_be_any_bytes() {
        let odd = OsString::from_vec(vec![0xff, 0xfe]);
        let arguments = [
            "exec",
            "--unix",
            "s",
            "-vv",
            "--timeout",
            "2m",
            "--",
            "--help",
            "--",
        ];
        let mut arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        arguments.push(odd.clone());
        let invocation = parse(arguments).unwrap();
        assert_eq!(
            invocation.argv.unwrap(),
            ["--help".into(), "--".into(), odd.clone()]
        );
        let Command::Exec(exec) = invocation.command else {
            panic!("exec")
        };
        assert_eq!(
            (exec.verbose, exec.timeout),
            (2, Some(Duration::from_secs(120)))
        );

        let exit = parse(vec!["exec".into(), "-w".into(), odd]).expect_err("refused");
        assert_eq!(exit.code, 125);
    }

    #[test]
    fn switches_may_be_grouped() {
        let invocation = run(&["exec", "--unix", "s", "-itvv", "-d", "--", "-it"]).unwrap();
        let Command::Exec(exec) = invocation.command else {
            panic!("exec")
        };
        assert!(exec.interactive && exec.tty && exec.detach);
        assert_eq!(exec.verbose, 2);
        assert_eq!(invocation.argv.unwrap(), ["-it"]);
        refused(&["ps", "--unix", "s", "-ai"], 2, "-i");
        refused(&["exec", "-itx"], 125, "-itx");
    }

    #[test]
    fn texts_have_a_distance() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("restore", "restore"), 0);
        assert_eq!(distance("resotre", "restore"), 2);
        assert_eq!(distance("snapshots", "snapshot"), 1);
    }
}
