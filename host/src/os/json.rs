//! Reading this program's own JSON files, with errors that name the file, and byte strings in them.
//!
//! A file that another version wrote, that a full disk cut short, or that was edited by hand is
//! either valid as a whole or refused.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use shared::json::{JsonError, Object, bytes_to_value, value_to_bytes};

/// Largest file that is read, in bytes. The largest legitimate ones have a few kilobytes.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// Why a JSON file could not be used.
#[derive(Debug)]
pub(crate) enum JsonFileError {
    /// The file could not be read.
    Read {
        path: PathBuf,
        /// The file system's error.
        source: io::Error,
    },
    /// The file's content is invalid.
    Content {
        path: PathBuf,
        /// What is wrong with it.
        source: JsonError,
    },
}

impl fmt::Display for JsonFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, .. } => write!(f, "cannot read {}", path.display()),
            Self::Content { path, source } => match source {
                JsonError::Syntax(_) => write!(f, "{} is {source}", path.display()),
                JsonError::Field { .. } => write!(f, "{}: {source}", path.display()),
            },
        }
    }
}

impl std::error::Error for JsonFileError {
    /// For invalid content the JSON parser's error: the message contains the [`JsonError`] itself.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Content { source, .. } => source.source(),
        }
    }
}

impl JsonFileError {
    /// Whether the file does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// For `map_err`, where the file's content was read by other means than [`read`].
    pub(crate) fn content(path: &Path) -> impl Fn(JsonError) -> Self {
        let path = path.to_owned();
        move |source| Self::Content {
            path: path.clone(),
            source,
        }
    }
}

/// Reads a file as the `T` that `from_object` makes of its object. `path` is for messages.
pub(crate) fn read<T>(
    opened: io::Result<File>,
    path: &Path,
    from_object: impl FnOnce(&Object) -> Result<T, JsonError>,
) -> Result<T, JsonFileError> {
    let text = opened.and_then(read_text);
    let text = text.map_err(|source| JsonFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    Object::parse(&text)
        .and_then(|object| from_object(&object))
        .map_err(JsonFileError::content(path))
}

fn read_text(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(io::Error::other("the file is far too large"));
    }
    Ok(text)
}

/// A path or argument: a string if it is UTF-8, else `{"hex": "…"}`.
pub(crate) fn os_to_value(text: impl AsRef<OsStr>) -> Value {
    bytes_to_value(text.as_ref().as_bytes())
}

pub(crate) fn value_to_os(value: &Value) -> Option<OsString> {
    value_to_bytes(value).map(OsString::from_vec)
}

pub(crate) fn value_to_path(value: &Value) -> Option<PathBuf> {
    value_to_os(value).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn errors_name_the_file_and_the_field() {
        let temp = TempDir::new("json");
        let path = temp.path().join("state.json");
        let read_pid = |text: &str| {
            fs::write(&path, text).unwrap();
            read(File::open(&path), &path, |object| {
                object.number::<u32>("pid")
            })
        };
        assert_eq!(read_pid(r#"{"pid":1}"#).unwrap(), 1);
        let name = path.display();
        for (text, expected) in [
            (
                r#"{"pid":-1}"#,
                format!("{name}: field \"pid\" must be a whole number in range"),
            ),
            ("[]", format!("{name} is not a JSON object")),
        ] {
            assert_eq!(read_pid(text).unwrap_err().to_string(), expected);
        }
        let missing = temp.path().join("missing.json");
        let error = read(File::open(&missing), &missing, |_| Ok(())).unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(
            error.to_string(),
            format!("cannot read {}", missing.display())
        );
    }
}
