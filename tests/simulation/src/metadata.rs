//! The metadata service: what the guest asked, and every possible reaction.

use shared::id::Generation;

use crate::guest::Guest;
use crate::random::Random;
use crate::tally::Mark;

/// What the service does next.
enum Reply {
    /// Nothing yet, or ever.
    Nothing,
    Break,
    Bytes(Vec<u8>),
}

fn reply(question: &str, random: &mut Random) -> Reply {
    let whole = |status: &str, body: &str| {
        let len = body.len();
        format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n{body}").into_bytes()
    };
    match random.below(16) {
        0..8 => Reply::Nothing,
        8 => Reply::Break,
        9 => Reply::Bytes(b"SSH-2.0-x\r\n".to_vec()),
        10 => Reply::Bytes(vec![b'x'; 1 << 16]),
        11 => Reply::Bytes(whole("401 Unauthorized", "")),
        _ if question.starts_with("PUT ") => Reply::Bytes(whole("200 OK", "token")),
        _ => {
            let epoch = Generation::from_bytes([random.small(3); 16]);
            Reply::Bytes(whole("200 OK", &epoch.to_string()))
        }
    }
}

impl Guest {
    /// Lets the service react to an open request; the answer comes whole or in two parts.
    pub(crate) fn serve_metadata(&mut self) {
        let Some(question) = &self.question else {
            return;
        };
        let bytes = match reply(question, &mut self.kernel.random) {
            Reply::Nothing => return,
            Reply::Break => {
                self.question = None;
                self.agent.handle_mmds_failed(self.now);
                return self.drain_actions();
            }
            Reply::Bytes(bytes) => bytes,
        };
        self.kernel.tally.count(Mark::Metadata);
        let (first, rest) = bytes.split_at(self.kernel.random.part(bytes.len()));
        for part in [first, rest] {
            // A request that is sent meanwhile has another connection.
            if self.question.is_some() && !part.is_empty() {
                self.agent.handle_mmds_bytes(part, self.now);
            }
        }
        self.drain_actions();
    }
}
