//! Reading this program's own JSON files: typed fields, and errors that name file and field.
//!
//! Files that were written by another version, cut short by a full disk, or edited by hand are
//! refused as a whole. Unknown fields are ignored, so that a newer version may say more.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::os::files;

/// Largest file that is read. The largest legitimate ones have a few kilobytes.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// Why a file was not understood.
#[derive(Debug)]
pub enum JsonError {
    /// The file could not be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The file is no JSON object.
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A field is missing, of the wrong type, or out of range.
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: &'static str,
        /// What was expected there.
        expected: &'static str,
    },
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, .. } => write!(f, "cannot read {}", path.display()),
            Self::Syntax { path, .. } => write!(f, "{} is not a JSON object", path.display()),
            Self::Field {
                path,
                field,
                expected,
            } => {
                write!(
                    f,
                    "{}: field \"{field}\" must be {expected}",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for JsonError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Syntax { source, .. } => Some(source),
            Self::Field { .. } => None,
        }
    }
}

impl JsonError {
    /// Whether the file is not there at all.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A JSON object out of a file.
#[derive(Debug, Clone)]
pub struct Object {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Object {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, JsonError> {
        let read_error = |source| JsonError::Read {
            path: path.to_owned(),
            source,
        };
        let opened = files::open_regular(path, OpenOptions::new().read(true));
        let file = opened.map_err(read_error)?;
        let mut bytes = Vec::new();
        file.take(FILE_LEN_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(read_error)?;
        if bytes.len() as u64 > FILE_LEN_MAX {
            return Err(read_error(io::Error::other("the file is far too large")));
        }
        Self::parse(path, &bytes)
    }

    /// Reads the content of the file `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, JsonError> {
        match serde_json::from_slice(bytes) {
            Ok(map) => Ok(Self {
                path: path.to_owned(),
                map,
            }),
            Err(source) => Err(JsonError::Syntax {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The value of a field; `None` when it is missing or null.
    #[must_use]
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The error that names `field`.
    #[must_use]
    pub fn error(&self, field: &'static str, expected: &'static str) -> JsonError {
        JsonError::Field {
            path: self.path.clone(),
            field,
            expected,
        }
    }

    /// A text.
    pub fn text(&self, field: &'static str) -> Result<String, JsonError> {
        self.opt_text(field)?
            .ok_or_else(|| self.error(field, "a string"))
    }

    /// A text that may be missing.
    pub fn opt_text(&self, field: &'static str) -> Result<Option<String>, JsonError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.error(field, "a string")),
        }
    }

    /// A number that fits `T`.
    pub fn number<T: TryFrom<u64>>(&self, field: &'static str) -> Result<T, JsonError> {
        self.opt_number(field)?
            .ok_or_else(|| self.error(field, "a whole number in range"))
    }

    /// A number that may be missing.
    pub fn opt_number<T: TryFrom<u64>>(&self, field: &'static str) -> Result<Option<T>, JsonError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let number = value.as_u64().and_then(|number| T::try_from(number).ok());
        number
            .map(Some)
            .ok_or_else(|| self.error(field, "a whole number in range"))
    }

    /// A yes or no.
    pub fn flag(&self, field: &'static str) -> Result<bool, JsonError> {
        let flag = self.value(field).and_then(Value::as_bool);
        flag.ok_or_else(|| self.error(field, "true or false"))
    }

    /// A text that `T` reads.
    pub fn parsed<T: std::str::FromStr>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<T, JsonError> {
        self.opt_parsed(field, expected)?
            .ok_or_else(|| self.error(field, expected))
    }

    /// A text that `T` reads, or nothing.
    pub fn opt_parsed<T: std::str::FromStr>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, JsonError> {
        let Some(text) = self.opt_text(field)? else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| self.error(field, expected))
    }

    /// An object.
    pub fn object(&self, field: &'static str) -> Result<Self, JsonError> {
        self.opt_object(field)?
            .ok_or_else(|| self.error(field, "an object"))
    }

    /// An object that may be missing.
    pub fn opt_object(&self, field: &'static str) -> Result<Option<Self>, JsonError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.child(map))),
            Some(_) => Err(self.error(field, "an object")),
        }
    }

    /// A list of at most `count_max` objects.
    pub fn objects(&self, field: &'static str, count_max: usize) -> Result<Vec<Self>, JsonError> {
        let list = self.list(field, count_max)?.iter();
        let objects = list.map(|value| value.as_object().map(|map| self.child(map)));
        objects
            .collect::<Option<_>>()
            .ok_or_else(|| self.error(field, "a list of objects"))
    }

    /// A list of at most `count_max` byte strings, such as arguments.
    pub fn byte_strings(
        &self,
        field: &'static str,
        count_max: usize,
    ) -> Result<Vec<OsString>, JsonError> {
        let strings = self.list(field, count_max)?.iter().map(value_to_os);
        strings
            .collect::<Option<_>>()
            .ok_or_else(|| self.error(field, "a list of byte strings"))
    }

    /// A path.
    pub fn path(&self, field: &'static str) -> Result<PathBuf, JsonError> {
        let path = self.value(field).and_then(value_to_os).map(PathBuf::from);
        path.ok_or_else(|| self.error(field, "a path"))
    }

    fn list(&self, field: &'static str, count_max: usize) -> Result<&[Value], JsonError> {
        match self.value(field) {
            Some(Value::Array(list)) if list.len() <= count_max => Ok(list),
            _ => Err(self.error(field, "a list that is not too long")),
        }
    }

    fn child(&self, map: &Map<String, Value>) -> Self {
        Self {
            path: self.path.clone(),
            map: map.clone(),
        }
    }
}

/// Bytes that are usually text: a string where they are UTF-8, else `{"hex": "…"}`.
#[must_use]
pub fn os_to_value(text: impl AsRef<OsStr>) -> Value {
    let text = text.as_ref();
    match text.to_str() {
        Some(text) => Value::from(text),
        None => {
            let digits: String = text
                .as_bytes()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            json!({ "hex": digits })
        }
    }
}

/// Reads what [`os_to_value`] wrote.
fn value_to_os(value: &Value) -> Option<OsString> {
    if let Some(text) = value.as_str() {
        return Some(text.into());
    }
    let digits = value.get("hex")?.as_str()?.as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let is_hex = digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit);
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
    bytes.filter(|_| is_hex).map(OsString::from_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_strings_are_carried_without_loss() {
        for bytes in [&b""[..], b"a b", "grüß".as_bytes(), b"\xff\x00\x80"] {
            let text = OsString::from_vec(bytes.to_vec());
            assert_eq!(value_to_os(&os_to_value(&text)), Some(text));
        }
        for bad in [
            json!(1),
            json!({ "hex": "0" }),
            json!({ "hex": "+1" }),
            json!({ "x": 1 }),
        ] {
            assert_eq!(value_to_os(&bad), None, "{bad}");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        let object =
            Object::parse(Path::new("a/state.json"), br#"{"pid":-1,"name":null}"#).unwrap();
        let error = object.number::<u32>("pid").unwrap_err();
        let text = "a/state.json: field \"pid\" must be a whole number in range";
        assert_eq!(error.to_string(), text);
        assert!(object.text("name").is_err() && object.opt_text("name").unwrap().is_none());
        let error = Object::parse(Path::new("a/state.json"), b"[]").unwrap_err();
        assert_eq!(error.to_string(), "a/state.json is not a JSON object");
    }
}
