//! Reading typed fields of a JSON object, with errors that name the field, and writing objects.
//!
//! Unknown fields are ignored, so that a newer sender may add some. A field that is missing, of
//! another type or out of range makes the whole object invalid. Errors do not say where the object
//! came from: the caller adds the frame or the file.

mod write;

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

pub use write::bytes_to_value;
pub(crate) use write::{
    Bytes, Hex, ToJson, encoded_len, object, value_of, write_object, write_plain,
};

use crate::id::decode_hex;
use crate::text::clipped;

/// Why an object is invalid.
#[derive(Debug)]
pub enum JsonError {
    /// The text is not a JSON object.
    Syntax(serde_json::Error),
    /// A field is missing, of the wrong type, or out of range.
    Field {
        /// The field's name.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(_) => f.write_str("not a JSON object"),
            Self::Field { name, expected } => write!(f, "field \"{name}\" must be {expected}"),
        }
    }
}

impl std::error::Error for JsonError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Syntax(source) => Some(source),
            Self::Field { .. } => None,
        }
    }
}

/// The fields of a JSON object, read by name and type. A field that is null counts as missing.
///
/// Every method fails on a field that is not `expected`. Those that begin with `opt_` accept a
/// missing field, the others do not.
#[derive(Debug, Clone)]
pub struct Object(Map<String, Value>);

/// Most bytes of memory that parsing a text of JSON takes, with copies of its strings.
///
/// `serde_json` allocates without asking. A text of one mebibyte may become eighty in memory: an
/// object of a few characters is a node of a tree with room for eleven members.
#[must_use]
pub fn parsed_len_max(text: &[u8]) -> usize {
    // A value, in a list that has doubled and is being copied.
    const VALUE: usize = 3 * size_of::<Value>();
    // The first allocation of a list.
    const LIST: usize = 4 * size_of::<Value>() + 32;
    // A node of a tree with eleven members.
    const OBJECT: usize = 12 * (size_of::<String>() + size_of::<Value>());
    // The text itself and its copies, each with what the allocator rounds up.
    const STRING: usize = 136;
    // Escapes go through a buffer that doubles; an error repeats a string.
    const COPIES: usize = 6;
    let (mut len, mut is_string, mut is_escape) = (text.len() * COPIES + OBJECT, false, false);
    for &byte in text {
        let cost = match (is_string, byte) {
            (true, _) if is_escape => {
                is_escape = false;
                0
            }
            (true, b'\\') => {
                is_escape = true;
                0
            }
            (_, b'"') => {
                is_string = !is_string;
                if is_string { STRING } else { 0 }
            }
            (false, b',') => VALUE,
            (false, b'[') => VALUE + LIST,
            (false, b'{') => VALUE + OBJECT,
            _ => 0,
        };
        len += cost;
    }
    len
}

impl Object {
    /// Parses the text of one object.
    pub fn parse(text: &[u8]) -> Result<Self, JsonError> {
        let map = serde_json::from_slice(text).map_err(JsonError::Syntax)?;
        Ok(Self(map))
    }

    /// The raw value of a field.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// The error that names a field.
    #[must_use]
    pub const fn error(&self, name: &'static str, expected: &'static str) -> JsonError {
        JsonError::Field { name, expected }
    }

    /// A field that `read` understands.
    pub fn get<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, JsonError> {
        let value = self.value(name).and_then(read);
        value.ok_or_else(|| self.error(name, expected))
    }

    /// A field that `read` understands.
    pub fn opt<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, JsonError> {
        match self.value(name) {
            None => Ok(None),
            Some(_) => self.get(name, expected, read).map(Some),
        }
    }

    /// A text.
    pub fn text(&self, name: &'static str) -> Result<String, JsonError> {
        self.get(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A text.
    pub fn opt_text(&self, name: &'static str) -> Result<Option<String>, JsonError> {
        self.opt(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A text of any sender, cut to [`TEXT_LEN_MAX`](crate::limits::TEXT_LEN_MAX) bytes.
    pub(crate) fn clipped_text(&self, name: &'static str) -> Result<String, JsonError> {
        self.get(name, "a string", clipped_text)
    }

    /// The same.
    pub(crate) fn opt_clipped_text(&self, name: &'static str) -> Result<Option<String>, JsonError> {
        self.opt(name, "a string", clipped_text)
    }

    /// `true` or `false`.
    pub fn flag(&self, name: &'static str) -> Result<bool, JsonError> {
        self.get(name, "true or false", Value::as_bool)
    }

    /// `true` or `false`. A missing flag is `false`.
    pub fn opt_flag(&self, name: &'static str) -> Result<bool, JsonError> {
        let flag = self.opt(name, "true or false", Value::as_bool)?;
        Ok(flag.unwrap_or_default())
    }

    /// A number that fits `T`.
    pub fn number<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, JsonError> {
        self.get(name, "a whole number in range", unsigned)
    }

    /// A number that fits `T`.
    pub fn opt_number<T: TryFrom<u64>>(&self, name: &'static str) -> Result<Option<T>, JsonError> {
        self.opt(name, "a whole number in range", unsigned)
    }

    /// A signed number that fits `T`.
    pub fn opt_signed<T: TryFrom<i64>>(&self, name: &'static str) -> Result<Option<T>, JsonError> {
        self.opt(name, "a whole number in range", |value| {
            T::try_from(value.as_i64()?).ok()
        })
    }

    /// A text that `T` is parsed from, such as an id or a keyword.
    pub fn parsed<T: FromStr>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<T, JsonError> {
        self.get(name, expected, |value| value.as_str()?.parse().ok())
    }

    /// A text that `T` is parsed from.
    pub fn opt_parsed<T: FromStr>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, JsonError> {
        self.opt(name, expected, |value| value.as_str()?.parse().ok())
    }

    /// Exactly `N` bytes in hexadecimal.
    pub(crate) fn opt_hex<const N: usize>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<[u8; N]>, JsonError> {
        self.opt(name, expected, |value| {
            let mut bytes = [0; N];
            decode_hex(value.as_str()?, &mut bytes).ok()?;
            Some(bytes)
        })
    }

    /// An object within this one.
    pub fn object(&self, name: &'static str) -> Result<Self, JsonError> {
        self.get(name, "an object", child)
    }

    /// An object within this one.
    pub fn opt_object(&self, name: &'static str) -> Result<Option<Self>, JsonError> {
        self.opt(name, "an object", child)
    }

    /// A list of at most `count_max` objects.
    pub fn objects(&self, name: &'static str, count_max: usize) -> Result<Vec<Self>, JsonError> {
        self.list(name, count_max, "a list of objects", child)
    }

    /// A list of at most `count_max` items that `read_item` understands.
    pub fn list<T>(
        &self,
        name: &'static str,
        count_max: usize,
        expected: &'static str,
        read_item: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, JsonError> {
        match self.value(name) {
            Some(Value::Array(list)) if list.len() <= count_max => {
                let items = list.iter().map(read_item).collect::<Option<_>>();
                items.ok_or_else(|| self.error(name, expected))
            }
            Some(Value::Array(_)) => Err(self.error(name, "a shorter list")),
            _ => Err(self.error(name, expected)),
        }
    }
}

fn child(value: &Value) -> Option<Object> {
    value.as_object().cloned().map(Object)
}

fn unsigned<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn clipped_text(value: &Value) -> Option<String> {
    value.as_str().map(|text| clipped(text).to_owned())
}

/// The bytes that [`bytes_to_value`] was given.
#[must_use]
pub fn value_to_bytes(value: &Value) -> Option<Vec<u8>> {
    if let Some(text) = value.as_str() {
        return Some(text.as_bytes().to_vec());
    }
    let digits = value.get("hex")?.as_str()?;
    let mut bytes = vec![0; digits.len() / 2];
    decode_hex(digits, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_strings_are_carried_without_loss() {
        for bytes in [
            &b""[..],
            b"ls",
            "grüß".as_bytes(),
            b"\xff\x00\xfe",
            b"a\x80b",
        ] {
            let value = bytes_to_value(bytes);
            assert_eq!(value_to_bytes(&value).as_deref(), Some(bytes));
        }
    }

    /// The bounds of texts that become long in memory. That they hold is shown where memory ends,
    /// in the agent's tests.
    #[test]
    fn what_parsing_takes_is_known_before() {
        let at_least = |text: &str, len| {
            let found = parsed_len_max(text.as_bytes());
            assert!(found >= len, "{found} for {text:.20}");
            found
        };
        let object = 11 * (size_of::<String>() + size_of::<Value>());
        at_least(&format!("[{}0]", "{\"\":0},".repeat(1000)), 1000 * object);
        at_least(
            &format!("[{}0]", "0,".repeat(1000)),
            1000 * size_of::<Value>(),
        );
        at_least(
            &format!("[{}0]", "[0],".repeat(1000)),
            5000 * size_of::<Value>(),
        );
        let long = at_least(&format!("[\"{}\"]", "x".repeat(10_000)), 40_000);
        // What is inside of a string is no structure.
        let tricky = format!("[\"{}\"]", "\\\",{[\\\\".repeat(1428));
        assert!(parsed_len_max(tricky.as_bytes()) < long + 1000);
        assert!(serde_json::from_str::<Value>(&tricky).is_ok());
    }

    #[test]
    fn other_byte_strings_are_refused() {
        for text in [
            "1",
            "null",
            "[]",
            r#"{"hex":"0"}"#,
            r#"{"hex":"+1"}"#,
            r#"{"x":1}"#,
        ] {
            let value = serde_json::from_str(text).unwrap();
            assert_eq!(value_to_bytes(&value), None, "{text}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        let object = Object::parse(br#"{"nonce":-1,"name":null}"#).unwrap();
        let error = object.number::<u64>("nonce").unwrap_err();
        let text = "field \"nonce\" must be a whole number in range";
        assert_eq!(error.to_string(), text);
        assert!(object.text("name").is_err() && object.opt_text("name").unwrap().is_none());
        let error = Object::parse(b"[]").unwrap_err();
        assert_eq!(error.to_string(), "not a JSON object");
    }
}
