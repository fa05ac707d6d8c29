//! The QEMU Machine Protocol: JSON objects, one a line. No I/O.

use std::fmt;

use serde_json::{Value, json};

/// The longest line that is read, in bytes. Real ones are under 2 KiB.
pub const LINE_LEN_MAX: usize = 1024 * 1024;

/// A message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line of a connection.
    Greeting,
    /// A command succeeded.
    Return {
        /// Number of the command.
        id: Option<u64>,
        /// Its result.
        value: Value,
    },
    /// A command was refused.
    Error {
        /// Number of the command; `None` if QEMU could not parse it.
        id: Option<u64>,
        /// The class, nearly always `GenericError`.
        class: String,
        /// QEMU's error message.
        description: String,
    },
    /// An asynchronous event.
    Event(Event),
}

/// An asynchronous event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// In capitals.
    pub name: String,
    /// Details; null if the event has none.
    pub data: Value,
}

/// Writes a command. Its `id` comes back in the answer.
pub(super) fn encode_command(command: &str, arguments: Option<Value>, id: u64) -> Vec<u8> {
    let mut object = json!({ "execute": command, "id": id });
    if let Some(arguments) = arguments {
        object["arguments"] = arguments;
    }
    let mut line = object.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Cuts the first line off `received`. `None` while it is incomplete.
pub fn take_message(received: &mut Vec<u8>) -> Result<Option<Message>, QmpError> {
    loop {
        let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
            return if received.len() > LINE_LEN_MAX {
                Err(QmpError::LineTooLong)
            } else {
                Ok(None)
            };
        };
        let line: Vec<u8> = received.drain(..=end).collect();
        if line.len() > LINE_LEN_MAX {
            return Err(QmpError::LineTooLong);
        }
        if !line.trim_ascii().is_empty() {
            return parse_line(&line).map(Some);
        }
    }
}

fn parse_line(line: &[u8]) -> Result<Message, QmpError> {
    let mut object: Value =
        serde_json::from_slice(line).map_err(|source| QmpError::Json { source })?;
    let id = object.get("id").and_then(Value::as_u64);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if object.get("QMP").is_some() {
        return Ok(Message::Greeting);
    }
    if let Some(value) = object.get_mut("return").map(Value::take) {
        return Ok(Message::Return { id, value });
    }
    if let Some(error) = object.get("error") {
        let class = error.get("class").and_then(text).ok_or(QmpError::Shape)?;
        let description = error.get("desc").and_then(text).ok_or(QmpError::Shape)?;
        return Ok(Message::Error {
            id,
            class,
            description,
        });
    }
    if let Some(name) = object.get("event").and_then(text) {
        let data = object.get_mut("data").map(Value::take).unwrap_or_default();
        return Ok(Message::Event(Event { name, data }));
    }
    Err(QmpError::Shape)
}

/// Why bytes are not QMP.
#[derive(Debug)]
pub enum QmpError {
    /// A line exceeds [`LINE_LEN_MAX`].
    LineTooLong,
    /// A line is not JSON.
    Json {
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A line is JSON, but not a greeting, return, error or event.
    Shape,
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LineTooLong => write!(f, "QMP line exceeds {LINE_LEN_MAX} bytes"),
            Self::Json { .. } => f.write_str("QMP line is not JSON"),
            Self::Shape => f.write_str("QMP line is not a greeting, return, error or event"),
        }
    }
}

impl std::error::Error for QmpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Json { source } => Some(source),
            Self::LineTooLong | Self::Shape => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &Message) {
        for len in 0..line.len() {
            let mut received = line.as_bytes()[..len].to_vec();
            assert_eq!(
                take_message(&mut received).unwrap(),
                None,
                "the first {len} bytes"
            );
            assert_eq!(received.len(), len);
        }
        for end in ["\n", "\r\n"] {
            let mut received = format!("{line}{end}rest").into_bytes();
            assert_eq!(
                take_message(&mut received).unwrap().as_ref(),
                Some(expected)
            );
            assert_eq!(received, b"rest");
        }
    }

    #[test]
    fn every_kind_of_line() {
        check(
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#,
            &Message::Greeting,
        );
        check(
            r#"{"return": {}}"#,
            &Message::Return {
                id: None,
                value: json!({}),
            },
        );
        check(
            r#"{"return": {"status": "paused"}, "id": 7}"#,
            &Message::Return {
                id: Some(7),
                value: json!({ "status": "paused" }),
            },
        );
        check(
            r#"{"id": 1, "error": {"class": "GenericError", "desc": "no"}}"#,
            &Message::Error {
                id: Some(1),
                class: "GenericError".into(),
                description: "no".into(),
            },
        );
        check(
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
            &Message::Event(Event {
                name: "STOP".into(),
                data: Value::Null,
            }),
        );
        check(
            r#"{"event": "MIGRATION", "data": {"status": "active"}}"#,
            &Message::Event(Event {
                name: "MIGRATION".into(),
                data: json!({"status": "active"}),
            }),
        );
    }

    #[test]
    fn empty_lines_are_skipped() {
        let mut received = b"\r\n\n{\"return\": 1}\n\n".to_vec();
        let expected = Message::Return {
            id: None,
            value: json!(1),
        };
        assert_eq!(take_message(&mut received).unwrap(), Some(expected));
        assert_eq!(take_message(&mut received).unwrap(), None);
        assert!(received.is_empty());
    }

    #[test]
    fn what_is_not_qmp_is_refused() {
        let refused = |line: &str| take_message(&mut format!("{line}\n").into_bytes()).unwrap_err();
        assert!(matches!(refused("hello"), QmpError::Json { .. }));
        for line in [
            "[]",
            "1",
            "{}",
            r#"{"error": {}}"#,
            r#"{"event": 1}"#,
            r#"{"error": "no"}"#,
        ] {
            assert!(matches!(refused(line), QmpError::Shape), "{line}");
        }
    }

    #[test]
    fn lines_up_to_the_limit() {
        let line = |len: usize| {
            let (start, end) = (r#"{"return": ""#, "\"}\n");
            format!("{start}{}{end}", "x".repeat(len - start.len() - end.len())).into_bytes()
        };
        assert!(take_message(&mut line(LINE_LEN_MAX)).unwrap().is_some());
        assert!(matches!(
            take_message(&mut line(LINE_LEN_MAX + 1)),
            Err(QmpError::LineTooLong)
        ));
        let mut endless = vec![b'x'; LINE_LEN_MAX + 1];
        assert!(matches!(
            take_message(&mut endless),
            Err(QmpError::LineTooLong)
        ));
        assert!(matches!(
            take_message(&mut vec![b'x'; LINE_LEN_MAX]),
            Ok(None)
        ));
    }

    #[test]
    fn commands_as_bytes() {
        assert_eq!(
            encode_command("stop", None, 1),
            b"{\"execute\":\"stop\",\"id\":1}\n"
        );
        let bytes = encode_command("getfd", Some(json!({ "fdname": "f" })), 2);
        let text = "{\"arguments\":{\"fdname\":\"f\"},\"execute\":\"getfd\",\"id\":2}\n";
        assert_eq!(bytes, text.as_bytes());
    }
}
