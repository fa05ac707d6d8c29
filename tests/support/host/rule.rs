//! What a fake VMM does otherwise than the real one, as data in its folder.

use serde_json::{Value, json};

/// What follows the bytes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next request is read.
    Continue,
    /// Nothing until the client closes the connection.
    Hang,
    /// The end of the connection.
    Close,
    /// The end of the process, with status 1.
    Exit,
    /// The same bytes again, until the client closes the connection.
    Repeat,
}

impl Then {
    const ALL: [(Self, &str); 5] = [
        (Self::Continue, "continue"),
        (Self::Hang, "hang"),
        (Self::Close, "close"),
        (Self::Exit, "exit"),
        (Self::Repeat, "repeat"),
    ];
}

/// How one request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// How the request begins, its line and body joined by a blank: `PATCH /vm {"state":"Paused`.
    pub on: String,
    /// Which of these requests, counted from 1.
    pub nth: u64,
    /// What is sent. `None` carries the request out and sends the proper answer.
    pub send: Option<Vec<u8>>,
    /// Whether each byte is written by itself.
    pub is_bytewise: bool,
    /// Whether the answer waits until the client has closed the connection or sent another request.
    pub is_late: bool,
    /// What follows the answer.
    pub then: Then,
}

impl Rule {
    /// The proper answer to the first request that begins so.
    pub fn on(request: &str) -> Self {
        Self {
            on: request.to_owned(),
            nth: 1,
            send: None,
            is_bytewise: false,
            is_late: false,
            then: Then::Continue,
        }
    }

    /// Another answer.
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        Self {
            send: Some(bytes.as_ref().to_vec()),
            ..self
        }
    }

    /// Something other than the next request after the answer.
    pub fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }

    /// The rule for a later one of these requests.
    pub fn nth(self, nth: u64) -> Self {
        Self { nth, ..self }
    }

    /// The rule as JSON.
    pub fn to_value(&self) -> Value {
        let then = Then::ALL.iter().find(|(then, _)| *then == self.then);
        json!({
            "on": self.on,
            "nth": self.nth,
            "send": self.send,
            "is_bytewise": self.is_bytewise,
            "is_late": self.is_late,
            "then": then.map(|(_, word)| word),
        })
    }

    /// Reads what [`Rule::to_value`] wrote.
    pub fn from_value(value: &Value) -> Option<Self> {
        let byte = |byte: &Value| byte.as_u64().and_then(|byte| u8::try_from(byte).ok());
        let send = value["send"].as_array();
        let word = value["then"].as_str()?;
        Some(Self {
            on: value["on"].as_str()?.to_owned(),
            nth: value["nth"].as_u64()?,
            send: send.map(|bytes| bytes.iter().filter_map(byte).collect()),
            is_bytewise: value["is_bytewise"].as_bool()?,
            is_late: value["is_late"].as_bool()?,
            then: Then::ALL.iter().find(|(_, known)| *known == word)?.0,
        })
    }
}
