//! Reading typed values out of a JSON object, and the error that says which field was wrong; and
//! the other way round.
//!
//! Unknown fields are ignored, so that a newer peer may say more. A field that is missing, of
//! another type or out of range refuses the whole payload: nothing is half valid.

mod write;

use std::fmt;

use serde_json::{Map, Value};

pub(crate) use write::{
    Hex, ToJson, encoded_len, object, value_of, write_bytes, write_object, write_plain,
};

use crate::frame::FrameKind;
use crate::id::decode_hex;
use crate::limits::TEXT_LEN_MAX;
use crate::text::clipped_to;

/// Why a payload was refused. It ends the connection.
#[derive(Debug)]
pub enum PayloadError {
    /// The payload is no JSON object.
    Syntax {
        /// The frame that carried it.
        kind: FrameKind,
        /// What the JSON parser said.
        source: serde_json::Error,
    },
    /// A field is missing, of the wrong type, or out of range.
    Field {
        /// The frame that carried it.
        kind: FrameKind,
        /// The field's name.
        field: &'static str,
        /// What was expected there.
        expected: &'static str,
    },
    /// A stream payload is shorter than its offset.
    Truncated {
        /// The frame that carried it.
        kind: FrameKind,
    },
    /// This side of the conversation never receives such a frame.
    WrongDirection {
        /// The frame received.
        kind: FrameKind,
    },
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { kind, .. } => write!(f, "{kind} payload is not a JSON object"),
            Self::Field {
                kind,
                field,
                expected,
            } => {
                write!(f, "{kind} payload: field \"{field}\" must be {expected}")
            }
            Self::Truncated { kind } => write!(f, "{kind} payload is shorter than its offset"),
            Self::WrongDirection { kind } => write!(f, "{kind} frame from the wrong side"),
        }
    }
}

impl std::error::Error for PayloadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Syntax { source, .. } => Some(source),
            Self::Field { .. } | Self::Truncated { .. } | Self::WrongDirection { .. } => None,
        }
    }
}

/// The fields of one control payload.
#[derive(Debug)]
pub(crate) struct Fields {
    kind: FrameKind,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads `payload` as the JSON object of a frame of `kind`.
    pub(crate) fn parse(kind: FrameKind, payload: &[u8]) -> Result<Self, PayloadError> {
        serde_json::from_slice(payload)
            .map(|map| Self { kind, map })
            .map_err(|source| PayloadError::Syntax { kind, source })
    }

    /// The object held by a field of this object.
    pub(crate) fn object(&self, field: &'static str) -> Result<Self, PayloadError> {
        match self.value(field) {
            Some(Value::Object(map)) => Ok(Self {
                kind: self.kind,
                map: map.clone(),
            }),
            _ => Err(self.error(field, "an object")),
        }
    }

    /// The objects of a list of at most `count_max`.
    pub(crate) fn objects(
        &self,
        field: &'static str,
        count_max: usize,
    ) -> Result<Vec<Self>, PayloadError> {
        let error = || self.error(field, "a list of objects");
        let list = self.list(field, count_max)?;
        let object = |value: &Value| {
            Some(Self {
                kind: self.kind,
                map: value.as_object()?.clone(),
            })
        };
        list.iter()
            .map(object)
            .collect::<Option<_>>()
            .ok_or_else(error)
    }

    /// A list of at most `count_max` values.
    pub(crate) fn list(
        &self,
        field: &'static str,
        count_max: usize,
    ) -> Result<&[Value], PayloadError> {
        match self.value(field) {
            Some(Value::Array(list)) if list.len() <= count_max => Ok(list),
            Some(Value::Array(_)) => Err(self.error(field, "a shorter list")),
            _ => Err(self.error(field, "a list")),
        }
    }

    /// A required text.
    pub(crate) fn text(&self, field: &'static str) -> Result<String, PayloadError> {
        self.opt_text(field)?
            .ok_or_else(|| self.error(field, "a string"))
    }

    /// A text that may be missing or null. Its sender has cut it to [`TEXT_LEN_MAX`] bytes; where
    /// not, this does, since texts are printed and kept.
    pub(crate) fn opt_text(&self, field: &'static str) -> Result<Option<String>, PayloadError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(clipped_to(text, TEXT_LEN_MAX).to_owned())),
            Some(_) => Err(self.error(field, "a string")),
        }
    }

    /// A required yes or no.
    pub(crate) fn flag(&self, field: &'static str) -> Result<bool, PayloadError> {
        let flag = self.value(field).and_then(Value::as_bool);
        flag.ok_or_else(|| self.error(field, "true or false"))
    }

    /// A yes or no; no when it is missing or null.
    pub(crate) fn opt_flag(&self, field: &'static str) -> Result<bool, PayloadError> {
        match self.value(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.error(field, "true or false")),
        }
    }

    /// A required number that fits `T`.
    pub(crate) fn number<T: TryFrom<u64>>(&self, field: &'static str) -> Result<T, PayloadError> {
        self.opt_number(field)?
            .ok_or_else(|| self.error(field, "a whole number in range"))
    }

    /// A number that may be missing or null.
    pub(crate) fn opt_number<T: TryFrom<u64>>(
        &self,
        field: &'static str,
    ) -> Result<Option<T>, PayloadError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let number = value.as_u64().and_then(|number| T::try_from(number).ok());
        number
            .map(Some)
            .ok_or_else(|| self.error(field, "a whole number in range"))
    }

    /// A signed number that may be missing or null.
    pub(crate) fn opt_signed<T: TryFrom<i64>>(
        &self,
        field: &'static str,
    ) -> Result<Option<T>, PayloadError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let number = value.as_i64().and_then(|number| T::try_from(number).ok());
        number
            .map(Some)
            .ok_or_else(|| self.error(field, "a whole number in range"))
    }

    /// A required text that `T` reads, such as an opaque name or one of a few words.
    pub(crate) fn parsed<T: std::str::FromStr>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<T, PayloadError> {
        self.opt_parsed(field, expected)?
            .ok_or_else(|| self.error(field, expected))
    }

    /// A text that `T` reads, or nothing.
    pub(crate) fn opt_parsed<T: std::str::FromStr>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, PayloadError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let parsed = value.as_str().and_then(|text| text.parse().ok());
        parsed.map(Some).ok_or_else(|| self.error(field, expected))
    }

    /// Exactly `N` bytes in hexadecimal, or nothing.
    pub(crate) fn opt_hex<const N: usize>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<[u8; N]>, PayloadError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let mut bytes = [0; N];
        let decoded = value
            .as_str()
            .and_then(|text| decode_hex(text, &mut bytes).ok());
        decoded
            .map(|()| Some(bytes))
            .ok_or_else(|| self.error(field, expected))
    }

    /// The raw value of a field; `None` when it is missing or null.
    pub(crate) fn value(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The error that names `field`.
    pub(crate) fn error(&self, field: &'static str, expected: &'static str) -> PayloadError {
        PayloadError::Field {
            kind: self.kind,
            field,
            expected,
        }
    }
}

/// Reads what [`write_bytes`] wrote. NUL is refused: no C string can hold it, and Linux would
/// silently cut the argument there.
pub(crate) fn value_to_bytes(value: &Value) -> Option<Vec<u8>> {
    let bytes = match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Object(map) => {
            let text = map.get("hex")?.as_str()?;
            let mut bytes = vec![0; text.len() / 2];
            decode_hex(text, &mut bytes).ok()?;
            bytes
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => return None,
    };
    (!bytes.contains(&0)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_strings_are_carried_without_loss() {
        for bytes in [&b""[..], b"ls", "grüß".as_bytes(), b"\xff\xfe", b"a\x80b"] {
            let mut text = Vec::new();
            write_bytes(&mut text, bytes);
            let value = serde_json::from_slice(&text).unwrap();
            assert_eq!(value_to_bytes(&value).as_deref(), Some(bytes));
        }
    }

    #[test]
    fn other_byte_strings_are_refused() {
        for text in [
            "1",
            "null",
            "[]",
            r#"{"hex":"0"}"#,
            r#"{"hex":"00"}"#,
            r#""a\u0000b""#,
        ] {
            assert_eq!(
                value_to_bytes(&serde_json::from_str(text).unwrap()),
                None,
                "{text}"
            );
        }
    }

    #[test]
    fn errors_name_the_field() {
        let fields = Fields::parse(FrameKind::Ping, br#"{"nonce":-1}"#).unwrap();
        let error = fields.number::<u64>("nonce").unwrap_err();
        let text = "PING payload: field \"nonce\" must be a whole number in range";
        assert_eq!(error.to_string(), text);
        let error = Fields::parse(FrameKind::Ping, b"[]").unwrap_err();
        assert_eq!(error.to_string(), "PING payload is not a JSON object");
    }
}
