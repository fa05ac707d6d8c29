//! Writing a control payload directly into its frame.
//!
//! Building a tree of values first, as `json!` does, took a third of the agent's instructions for a
//! command. `serde_json` still writes the texts and numbers, so nothing is escaped here.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::id::{ExecId, Generation, Instance, Nonce, Token, push_hex};

/// A value in a control payload.
pub(crate) trait ToJson {
    /// Appends the value as JSON.
    fn write_json(&self, out: &mut Vec<u8>);
}

/// Appends an object. `members` are sorted by name, as in `docs/protocol.md`.
///
/// One function for all messages: inlined into each it would be a large part of the agent.
pub(crate) fn write_object(out: &mut Vec<u8>, members: &[(&'static str, &dyn ToJson)]) {
    debug_assert!(members.is_sorted_by_key(|(name, _)| name));
    out.push(b'{');
    for (index, (name, value)) in members.iter().enumerate() {
        write_comma(out, index);
        write_plain(out, name);
        out.push(b':');
        value.write_json(out);
    }
    out.push(b'}');
}

/// Separates the item at `index` of an object or a list from the one before.
fn write_comma(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}

/// Appends an object, with the syntax of `json!`.
macro_rules! object {
    ($out:expr, { $($name:literal: $value:expr),* $(,)? }) => {
        $crate::json::write_object($out, &[$(($name, &$value)),*])
    };
}
pub(crate) use object;

/// Appends a member's name or a keyword, which needs no escapes.
pub(crate) fn write_plain(out: &mut Vec<u8>, text: &str) {
    debug_assert!(
        text.bytes()
            .all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
    );
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// The value as a tree, to become a part of a record or file.
pub(crate) fn value_of(value: &dyn ToJson) -> Value {
    let mut text = Vec::new();
    value.write_json(&mut text);
    serde_json::from_slice(&text).expect("what was written is JSON")
}

/// Number of bytes of the encoded value.
pub(crate) fn encoded_len(value: &dyn ToJson) -> usize {
    let mut text = Vec::new();
    value.write_json(&mut text);
    text.len()
}

/// Bytes that are usually text: a JSON string if they are UTF-8, else an object `{"hex": "…"}`.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl ToJson for Bytes<'_> {
    fn write_json(&self, out: &mut Vec<u8>) {
        match std::str::from_utf8(self.0) {
            Ok(text) => text.write_json(out),
            Err(_) => object!(out, { "hex": Hex(self.0) }),
        }
    }
}

/// A byte string as a tree, for files and records.
#[must_use]
pub fn bytes_to_value(bytes: &[u8]) -> Value {
    value_of(&Bytes(bytes))
}

/// Bytes as hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl ToJson for Hex<'_> {
    fn write_json(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        push_hex(self.0, out);
        out.push(b'"');
    }
}

impl ToJson for str {
    fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("a text, into memory");
    }
}

impl ToJson for String {
    fn write_json(&self, out: &mut Vec<u8>) {
        self.as_str().write_json(out);
    }
}

impl ToJson for u64 {
    fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("a number, into memory");
    }
}

impl ToJson for i64 {
    fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("a number, into memory");
    }
}

macro_rules! numbers {
    ($($small:ident as $large:ident),*) => {
        $(impl ToJson for $small {
            fn write_json(&self, out: &mut Vec<u8>) {
                $large::from(*self).write_json(out);
            }
        })*
    };
}
numbers!(u8 as u64, u16 as u64, u32 as u64, i32 as i64);

macro_rules! ids {
    ($($id:ident),*) => {
        $(impl ToJson for $id {
            fn write_json(&self, out: &mut Vec<u8>) {
                Hex(self.as_bytes()).write_json(out);
            }
        })*
    };
}
ids!(ExecId, Generation, Instance, Nonce, Token);

impl ToJson for bool {
    fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

impl<T: ToJson> ToJson for Option<T> {
    fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.write_json(out),
            None => out.extend_from_slice(b"null"),
        }
    }
}

impl<T: ToJson + ?Sized> ToJson for &T {
    fn write_json(&self, out: &mut Vec<u8>) {
        (**self).write_json(out);
    }
}

impl<T: ToJson> ToJson for [T] {
    fn write_json(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (index, value) in self.iter().enumerate() {
            write_comma(out, index);
            value.write_json(out);
        }
        out.push(b']');
    }
}

impl<T: ToJson> ToJson for Vec<T> {
    fn write_json(&self, out: &mut Vec<u8>) {
        self.as_slice().write_json(out);
    }
}

impl<T: ToJson, const N: usize> ToJson for [T; N] {
    fn write_json(&self, out: &mut Vec<u8>) {
        self.as_slice().write_json(out);
    }
}

impl ToJson for BTreeMap<String, u64> {
    fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("numbers with names, into memory");
    }
}
