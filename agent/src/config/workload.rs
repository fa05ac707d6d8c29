//! What the image asks for: `agent.json`, and what may be said on top of its workload. No I/O.
//!
//! ```json
//! {"workload": {"argv": ["/bin/app", "-x"], "env": ["A=1"], "cwd": "/", "user": "app",
//!               "restart": "on-failure", "at_end": "keep"},
//!  "mmds": "1"}
//! ```
//!
//! A workload's `argv` is required and everything else may be missing. What is said elsewhere
//! replaces the arguments, the restarts or the end, each alone: as in a container, another command
//! still runs with the environment, the directory and the user of the image.
//!
//! Unknown fields are ignored, so that an image may be made for a newer agent. A field of another
//! type refuses the file: nothing is half valid.

use std::fmt;

use serde_json::{Map, Value};

use super::mmds::{self, Mmds};
use crate::agent::{Restart, WorkloadEnd, WorkloadSettings};

/// Where the file is unless another is named.
pub(crate) const FILE_PATH_DEFAULT: &str = "/etc/guest-agent/agent.json";

/// Most bytes of the file.
pub const FILE_LEN_MAX: usize = 1024 * 1024;

/// Why the file means nothing.
#[derive(Debug)]
pub enum FileError {
    /// It is no JSON object.
    Syntax(serde_json::Error),
    /// A field is missing or of the wrong type.
    Field {
        /// Its name, with the names of what it is in.
        field: &'static str,
        /// What is taken there.
        expected: &'static str,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(source) => write!(f, "not a JSON object: {source}"),
            Self::Field { field, expected } => write!(f, "field \"{field}\" must be {expected}"),
        }
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Syntax(source) => Some(source),
            Self::Field { .. } => None,
        }
    }
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFile {
    /// The program that the image asks for.
    pub workload: Option<WorkloadSettings>,
    /// What is said of the metadata service.
    pub(crate) mmds: Option<Mmds>,
}

/// What is said outside of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// The arguments. None at all: no workload, whatever the file says.
    pub argv: Option<Vec<Vec<u8>>>,
    /// Whether it is started again.
    pub restart: Option<Restart>,
    /// What its end means.
    pub at_end: Option<WorkloadEnd>,
}

impl Overrides {
    /// The workload, given what the file names.
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

/// Reads the file.
pub fn parse_file(text: &[u8]) -> Result<ImageFile, FileError> {
    let file: Map<String, Value> = serde_json::from_slice(text).map_err(FileError::Syntax)?;
    let mmds = match file.get("mmds") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let parsed = value.as_str().and_then(mmds::parse);
            Some(parsed.ok_or_else(|| error("mmds", mmds::EXPECTED))?)
        }
    };
    let workload = parse_workload(file.get("workload"))?;
    Ok(ImageFile { workload, mmds })
}

/// `None`: the file names no workload.
fn parse_workload(value: Option<&Value>) -> Result<Option<WorkloadSettings>, FileError> {
    let fields = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(fields)) => fields,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            return Err(error("workload", "an object"));
        }
    };
    let field = |name| fields.get(name).filter(|value| !value.is_null());
    let strings = |name, path, expected| match field(name) {
        None => Ok(Vec::new()),
        Some(value) => strings(value).ok_or_else(|| error(path, expected)),
    };
    let optional = |name, path, expected| match field(name) {
        None => Ok(None),
        Some(value) => match string(value).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(error(path, expected)),
        },
    };
    let expected = "a list of at least one string without NUL";
    let argv = strings("argv", "workload.argv", expected)?;
    if argv.is_empty() {
        return Err(error("workload.argv", expected));
    }
    let expected = "a list of NAME=value strings without NUL";
    let env = strings("env", "workload.env", expected)?;
    if !env.iter().all(|pair| is_environment_pair(pair)) {
        return Err(error("workload.env", expected));
    }
    let expected = "a path without NUL";
    let cwd = optional("cwd", "workload.cwd", expected)?;
    let expected = "NAME, UID, NAME:GROUP or UID:GID";
    let user = optional("user", "workload.user", expected)?;
    let restart = match field("restart") {
        None => None,
        Some(value) => Some(
            value
                .as_str()
                .and_then(parse_restart)
                .ok_or_else(|| error("workload.restart", RESTART_EXPECTED))?,
        ),
    };
    let at_end = match field("at_end") {
        None => None,
        Some(value) => Some(
            value
                .as_str()
                .and_then(parse_end)
                .ok_or_else(|| error("workload.at_end", END_EXPECTED))?,
        ),
    };
    let defaults = with_defaults(argv);
    Ok(Some(WorkloadSettings {
        env,
        cwd,
        user,
        restart: restart.unwrap_or(defaults.restart),
        at_end: at_end.unwrap_or(defaults.at_end),
        ..defaults
    }))
}

/// What [`parse_restart`] takes.
pub(super) const RESTART_EXPECTED: &str = "no or on-failure";

/// What [`parse_end`] takes.
pub(super) const END_EXPECTED: &str = "keep or poweroff";

/// What [`parse_words`] takes.
pub(super) const WORDS_EXPECTED: &str = "words, with no quote left open";

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

/// Splits a command at white space. Quotes of either kind keep a part of it together, as in a
/// shell, and nothing else has a meaning. `None`: a quote is left open.
pub(super) fn parse_words(text: &str) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in text.chars() {
        match quote {
            Some(open) if character == open => quote = None,
            None if matches!(character, '"' | '\'') => {
                quote = Some(character);
                // Two quotes with nothing between are a word too.
                word.get_or_insert_default();
            }
            None if character.is_ascii_whitespace() => {
                words.extend(word.take().map(String::into_bytes));
            }
            Some(_) | None => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word.map(String::into_bytes));
    quote.is_none().then_some(words)
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

fn error(field: &'static str, expected: &'static str) -> FileError {
    FileError::Field { field, expected }
}

fn strings(value: &Value) -> Option<Vec<Vec<u8>>> {
    value.as_array()?.iter().map(string).collect()
}

/// A string that programs can receive.
fn string(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str()?;
    (!text.contains('\0')).then(|| text.as_bytes().to_vec())
}

/// Whether it is `NAME=value` with a name.
fn is_environment_pair(pair: &[u8]) -> bool {
    pair.iter().position(|&byte| byte == b'=') > Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_whole_file_is_read_and_unknown_fields_are_ignored() {
        let text =
            br#"{"workload": {"argv": ["/bin/app", "", "gr\u00fc\u00df"], "env": ["A=1", "B="],
            "cwd": "/srv", "user": "app:app", "restart": "on-failure", "at_end": "poweroff",
            "later": 1}, "later": []}"#;
        let expected = WorkloadSettings {
            argv: words(&["/bin/app", "", "grüß"]),
            env: words(&["A=1", "B="]),
            cwd: Some(b"/srv".to_vec()),
            user: Some(b"app:app".to_vec()),
            restart: Restart::OnFailure,
            at_end: WorkloadEnd::PowerOff,
        };
        assert_eq!(parse_file(text).unwrap().workload, Some(expected));
    }

    #[test]
    fn what_is_missing_or_null_has_its_default() {
        let expected = with_defaults(words(&["a"]));
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
    fn the_metadata_service_is_said_beside_the_workload() {
        let file = parse_file(br#"{"mmds": "1"}"#).unwrap();
        assert_eq!((file.workload, file.mmds), (None, mmds::parse("1")));
        let file = parse_file(br#"{"mmds": null}"#).unwrap();
        assert_eq!(file, ImageFile::default());
    }

    #[test]
    fn a_wrong_field_is_named() {
        let argv = "field \"workload.argv\" must be a list of at least one string without NUL";
        let env = "field \"workload.env\" must be a list of NAME=value strings without NUL";
        let cases = [
            (
                r#"{"workload": "app"}"#,
                "field \"workload\" must be an object",
            ),
            (r#"{"workload": {}}"#, argv),
            (r#"{"workload": {"argv": []}}"#, argv),
            (r#"{"workload": {"argv": "app"}}"#, argv),
            (r#"{"workload": {"argv": ["app", 1]}}"#, argv),
            (r#"{"workload": {"argv": ["a\u0000b"]}}"#, argv),
            (r#"{"workload": {"argv": ["a"], "env": {"A": "1"}}}"#, env),
            (r#"{"workload": {"argv": ["a"], "env": ["A"]}}"#, env),
            (r#"{"workload": {"argv": ["a"], "env": ["=1"]}}"#, env),
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
    fn words_end_at_space_unless_quoted() {
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
            let expected = expected.map(words);
            assert_eq!(parse_words(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_said_outside_replaces_its_part_of_the_file() {
        let file = || WorkloadSettings {
            user: Some(b"app".to_vec()),
            restart: Restart::OnFailure,
            ..with_defaults(words(&["a"]))
        };
        let none = Overrides::default();
        assert_eq!(none.clone().on_top_of(None), None);
        assert_eq!(none.on_top_of(Some(file())), Some(file()));

        let argv = |list: &[&str]| Overrides {
            argv: Some(words(list)),
            ..Overrides::default()
        };
        let expected = WorkloadSettings {
            argv: words(&["b", "c"]),
            ..file()
        };
        assert_eq!(argv(&["b", "c"]).on_top_of(Some(file())), Some(expected));
        let expected = with_defaults(words(&["b"]));
        assert_eq!(argv(&["b"]).on_top_of(None), Some(expected));
        assert_eq!(argv(&[]).on_top_of(Some(file())), None);

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
