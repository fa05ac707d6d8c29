//! The image's file `agent.json`, and the settings that override its workload. No I/O.
//!
//! ```json
//! {"workload": {"argv": ["/bin/app", "-x"], "env": ["A=1"], "cwd": "/", "user": "app",
//!               "restart": "on-failure", "at_end": "keep"},
//!  "mmds": "1",
//!  "limits": {"pids_max": 100, "memory_max": 67108864}}
//! ```
//!
//! A workload's `argv` is required, everything else may be missing. Settings elsewhere override
//! `argv`, `restart` or `at_end`, each alone: as in a container, another command still runs with
//! the environment, the directory and the user of the image.
//!
//! Unknown fields are ignored, so that an image may be made for a newer agent. A field of another
//! type makes the whole file invalid.

use std::fmt;

use serde_json::Value;
use shared::json::{JsonError, Object};

use super::mmds::{self, Mmds};
use crate::agent::{Limits, Restart, WorkloadEnd, WorkloadSettings};

pub(crate) const FILE_PATH_DEFAULT: &str = "/etc/guest-agent/agent.json";

/// Largest file that is read, in bytes.
pub const FILE_LEN_MAX: usize = 1024 * 1024;

/// Why the file is invalid.
#[derive(Debug)]
pub struct FileError {
    error: JsonError,
    /// Prefix of the field's name: that of the object that contains it, and a dot.
    parent: &'static str,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parent = self.parent;
        match &self.error {
            JsonError::Syntax(source) => write!(f, "not a JSON object: {source}"),
            JsonError::Field { name, expected } => {
                write!(f, "field \"{parent}{name}\" must be {expected}")
            }
        }
    }
}

impl std::error::Error for FileError {}

impl From<JsonError> for FileError {
    fn from(error: JsonError) -> Self {
        Self { error, parent: "" }
    }
}

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFile {
    pub workload: Option<WorkloadSettings>,
    pub(crate) mmds: Option<Mmds>,
    /// For each session whose request has none.
    pub(crate) limits: Limits,
}

/// The settings of the workload outside of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// An empty list means that there is no workload, even if the file has one.
    pub argv: Option<Vec<Vec<u8>>>,
    pub restart: Option<Restart>,
    pub at_end: Option<WorkloadEnd>,
}

impl Overrides {
    /// The workload, given that of the file.
    pub(crate) fn on_top_of(self, file: Option<WorkloadSettings>) -> Option<WorkloadSettings> {
        let mut workload = match (self.argv, file) {
            (Some(argv), _) if argv.is_empty() => return None,
            (Some(argv), Some(file)) => WorkloadSettings { argv, ..file },
            (Some(argv), None) => with_defaults(argv),
            (None, file) => file?,
        };
        workload.restart = self.restart.unwrap_or(workload.restart);
        workload.at_end = self.at_end.unwrap_or(workload.at_end);
        Some(workload)
    }
}

pub fn parse_file(text: &[u8]) -> Result<ImageFile, FileError> {
    let file = Object::parse(text)?;
    let mmds = file.opt("mmds", mmds::EXPECTED, |value| mmds::parse(value.as_str()?))?;
    let workload = file.opt_object("workload")?;
    let workload = workload.as_ref().map(parse_workload).transpose();
    let workload = workload.map_err(|error| FileError {
        error,
        parent: "workload.",
    })?;
    let limits = file.opt_object("limits")?;
    let limits = limits.as_ref().map(parse_limits).transpose();
    let limits = limits.map_err(|error| FileError {
        error,
        parent: "limits.",
    })?;
    Ok(ImageFile {
        workload,
        mmds,
        limits: limits.unwrap_or_default(),
    })
}

fn parse_limits(object: &Object) -> Result<Limits, JsonError> {
    let number = |name| {
        object.opt(name, "a whole number from 1", |value| {
            value.as_u64().filter(|number| *number > 0)
        })
    };
    Ok(Limits {
        pids_max: number("pids_max")?,
        memory_max: number("memory_max")?,
    })
}

fn parse_workload(object: &Object) -> Result<WorkloadSettings, JsonError> {
    let non_empty = |value: &Value| string(value).filter(|bytes| !bytes.is_empty());
    let argv = object.get(
        "argv",
        "a list of at least one string without NUL",
        |value| strings(value).filter(|argv| !argv.is_empty()),
    )?;
    let env = object.opt("env", "a list of NAME=value strings without NUL", |value| {
        strings(value).filter(|env| env.iter().all(|pair| is_environment_pair(pair)))
    })?;
    let cwd = object.opt("cwd", "a path without NUL", non_empty)?;
    let user = object.opt("user", "NAME, UID, NAME:GROUP or UID:GID", non_empty)?;
    let restart = object.opt("restart", RESTART_EXPECTED, |value| {
        parse_restart(value.as_str()?)
    })?;
    let at_end = object.opt("at_end", END_EXPECTED, |value| parse_end(value.as_str()?))?;
    let defaults = with_defaults(argv);
    Ok(WorkloadSettings {
        env: env.unwrap_or_default(),
        cwd,
        user,
        restart: restart.unwrap_or(defaults.restart),
        at_end: at_end.unwrap_or(defaults.at_end),
        ..defaults
    })
}

/// The values that [`parse_restart`] accepts.
pub(super) const RESTART_EXPECTED: &str = "no or on-failure";

/// The values that [`parse_end`] accepts.
pub(super) const END_EXPECTED: &str = "keep or poweroff";

/// The values that [`split_arguments`] accepts.
pub(super) const ARGUMENTS_EXPECTED: &str = "arguments, with every quote closed";

pub(super) fn parse_restart(text: &str) -> Option<Restart> {
    match text {
        "no" => Some(Restart::No),
        "on-failure" => Some(Restart::OnFailure),
        _ => None,
    }
}

pub(super) fn parse_end(text: &str) -> Option<WorkloadEnd> {
    match text {
        "keep" => Some(WorkloadEnd::Keep),
        "poweroff" => Some(WorkloadEnd::PowerOff),
        _ => None,
    }
}

/// Splits a command at white space outside of quotes. As in a shell, single and double quotes keep
/// a part of it together; no other character is special. `None` if a quote is not closed.
pub(super) fn split_arguments(text: &str) -> Option<Vec<Vec<u8>>> {
    let mut arguments = Vec::new();
    let mut argument: Option<String> = None;
    let mut quote = None;
    for character in text.chars() {
        match quote {
            Some(open) if character == open => quote = None,
            None if matches!(character, '"' | '\'') => {
                quote = Some(character);
                // Two quotes with nothing between are an argument too.
                argument.get_or_insert_default();
            }
            None if character.is_ascii_whitespace() => {
                arguments.extend(argument.take().map(String::into_bytes));
            }
            Some(_) | None => argument.get_or_insert_default().push(character),
        }
    }
    arguments.extend(argument.map(String::into_bytes));
    quote.is_none().then_some(arguments)
}

fn with_defaults(argv: Vec<Vec<u8>>) -> WorkloadSettings {
    WorkloadSettings {
        argv,
        env: Vec::new(),
        cwd: None,
        user: None,
        restart: Restart::No,
        at_end: WorkloadEnd::Keep,
    }
}

fn strings(value: &Value) -> Option<Vec<Vec<u8>>> {
    value.as_array()?.iter().map(string).collect()
}

/// A string without NUL, which no program could receive.
fn string(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str()?;
    (!text.contains('\0')).then(|| text.as_bytes().to_vec())
}

/// Whether it is `NAME=value` and NAME is not empty.
fn is_environment_pair(pair: &[u8]) -> bool {
    pair.iter().position(|&byte| byte == b'=') > Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter()
            .map(|argument| argument.as_bytes().to_vec())
            .collect()
    }

    #[test]
    fn a_whole_file_is_read_and_unknown_fields_are_ignored() {
        let text =
            br#"{"workload": {"argv": ["/bin/app", "", "gr\u00fc\u00df"], "env": ["A=1", "B="],
            "cwd": "/srv", "user": "app:app", "restart": "on-failure", "at_end": "poweroff",
            "later": 1}, "later": []}"#;
        let expected = WorkloadSettings {
            argv: argv(&["/bin/app", "", "grüß"]),
            env: argv(&["A=1", "B="]),
            cwd: Some(b"/srv".to_vec()),
            user: Some(b"app:app".to_vec()),
            restart: Restart::OnFailure,
            at_end: WorkloadEnd::PowerOff,
        };
        assert_eq!(parse_file(text).unwrap().workload, Some(expected));
    }

    #[test]
    fn missing_fields_and_null_have_their_default() {
        let expected = with_defaults(argv(&["a"]));
        for text in [
            r#"{"workload": {"argv": ["a"]}}"#,
            r#"{"workload": {"argv": ["a"], "env": null, "cwd": null, "user": null, "restart": null,
                "at_end": null}}"#,
        ] {
            assert_eq!(
                parse_file(text.as_bytes()).unwrap().workload.as_ref(),
                Some(&expected)
            );
        }
        for text in ["{}", r#"{"workload": null}"#] {
            assert_eq!(parse_file(text.as_bytes()).unwrap(), ImageFile::default());
        }
    }

    #[test]
    fn the_metadata_service_is_set_beside_the_workload() {
        let file = parse_file(br#"{"mmds": "1"}"#).unwrap();
        assert_eq!((file.workload, file.mmds), (None, mmds::parse("1")));
        let file = parse_file(br#"{"mmds": null}"#).unwrap();
        assert_eq!(file, ImageFile::default());
    }

    #[test]
    fn limits_are_set_beside_the_workload() {
        let file = parse_file(br#"{"limits": {"pids_max": 7}}"#).unwrap();
        let expected = Limits {
            pids_max: Some(7),
            memory_max: None,
        };
        assert_eq!((file.workload, file.limits), (None, expected));
        let file = parse_file(br#"{"limits": null}"#).unwrap();
        assert_eq!(file, ImageFile::default());
    }

    #[test]
    fn errors_name_the_field() {
        let argv_text = "field \"workload.argv\" must be a list of at least one string without NUL";
        let env_text = "field \"workload.env\" must be a list of NAME=value strings without NUL";
        let cases = [
            (
                r#"{"workload": "app"}"#,
                "field \"workload\" must be an object",
            ),
            (r#"{"workload": {}}"#, argv_text),
            (r#"{"workload": {"argv": []}}"#, argv_text),
            (r#"{"workload": {"argv": "app"}}"#, argv_text),
            (r#"{"workload": {"argv": ["app", 1]}}"#, argv_text),
            (r#"{"workload": {"argv": ["a\u0000b"]}}"#, argv_text),
            (
                r#"{"workload": {"argv": ["a"], "env": {"A": "1"}}}"#,
                env_text,
            ),
            (r#"{"workload": {"argv": ["a"], "env": ["A"]}}"#, env_text),
            (r#"{"workload": {"argv": ["a"], "env": ["=1"]}}"#, env_text),
            (
                r#"{"workload": {"argv": ["a"], "cwd": ""}}"#,
                "field \"workload.cwd\" must be a path without NUL",
            ),
            (
                r#"{"workload": {"argv": ["a"], "user": 1000}}"#,
                "field \"workload.user\" must be NAME, UID, NAME:GROUP or UID:GID",
            ),
            (
                r#"{"workload": {"argv": ["a"], "restart": "always"}}"#,
                "field \"workload.restart\" must be no or on-failure",
            ),
            (
                r#"{"workload": {"argv": ["a"], "at_end": true}}"#,
                "field \"workload.at_end\" must be keep or poweroff",
            ),
            (
                r#"{"limits": {"pids_max": 0}}"#,
                "field \"limits.pids_max\" must be a whole number from 1",
            ),
            (
                r#"{"limits": {"memory_max": "1G"}}"#,
                "field \"limits.memory_max\" must be a whole number from 1",
            ),
            (
                r#"{"mmds": 1}"#,
                "field \"mmds\" must be 0, 1 or ADDRESS:PORT",
            ),
        ];
        for (text, expected) in cases {
            let error = parse_file(text.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
        for text in ["", "[]", "{", "null", "\u{feff}{}", "{} {}"] {
            let error = parse_file(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("not a JSON object: "), "{text}: {error}");
        }
    }

    #[test]
    fn arguments_end_at_space_unless_quoted() {
        let cases: &[(&str, Option<&[&str]>)] = &[
            ("", Some(&[])),
            ("  ", Some(&[])),
            ("/bin/app", Some(&["/bin/app"])),
            (" /bin/app\t -x ", Some(&["/bin/app", "-x"])),
            ("sh -c 'echo \"a b\"'", Some(&["sh", "-c", "echo \"a b\""])),
            ("sh -c \"echo 'a b'\"", Some(&["sh", "-c", "echo 'a b'"])),
            ("a b' 'c\" d\"", Some(&["a", "b c d"])),
            ("a '' \"\"", Some(&["a", "", ""])),
            ("a\\ b $c #d", Some(&["a\\", "b", "$c", "#d"])),
            ("it's", None),
            ("a \"b", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(argv);
            assert_eq!(split_arguments(text), expected, "{text}");
        }
    }

    #[test]
    fn each_override_replaces_its_part_of_the_file() {
        let file = || WorkloadSettings {
            user: Some(b"app".to_vec()),
            restart: Restart::OnFailure,
            ..with_defaults(argv(&["a"]))
        };
        let none = Overrides::default();
        assert_eq!(none.clone().on_top_of(None), None);
        assert_eq!(none.on_top_of(Some(file())), Some(file()));

        let other = |list: &[&str]| Overrides {
            argv: Some(argv(list)),
            ..Overrides::default()
        };
        let expected = WorkloadSettings {
            argv: argv(&["b", "c"]),
            ..file()
        };
        assert_eq!(other(&["b", "c"]).on_top_of(Some(file())), Some(expected));
        let expected = with_defaults(argv(&["b"]));
        assert_eq!(other(&["b"]).on_top_of(None), Some(expected));
        assert_eq!(other(&[]).on_top_of(Some(file())), None);

        let rest = Overrides {
            argv: None,
            restart: Some(Restart::No),
            at_end: Some(WorkloadEnd::PowerOff),
        };
        let expected = WorkloadSettings {
            restart: Restart::No,
            at_end: WorkloadEnd::PowerOff,
            ..file()
        };
        assert_eq!(rest.clone().on_top_of(Some(file())), Some(expected));
        assert_eq!(rest.on_top_of(None), None);
    }
}
