//! A parser for one answer of an HTTP/1.1 server. Strict. No I/O.
//!
//! ```text
//! HTTP/1.1 200 OK\r\n
//! Content-Length: 5\r\n
//! \r\n
//! bytes
//! ```
//!
//! It takes what a small server answers to a small question: a status line, header lines, and a
//! body of announced length (RFC 9112). It refuses chunks, folded lines, bare line feeds and bytes
//! after the body. An answer that comes in pieces is parsed anew with each piece, which its limit
//! makes cheap.

/// Bytes of an answer, head and body together.
pub const ANSWER_LEN_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Three digits.
    pub status: u16,
    /// `Content-Length` bytes; none without that header.
    pub body: &'a [u8],
}

/// Bytes that cannot become an answer, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidAnswer {
    /// More than [`ANSWER_LEN_MAX`] came or were announced.
    TooLong,
    /// Not HTTP, or not the part of it that is accepted.
    Malformed,
}

impl InvalidAnswer {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "the answer is too long",
            Self::Malformed => "not an answer in HTTP/1.1",
        }
    }
}

/// Parses all bytes that a server has sent. `None`: the answer is incomplete.
///
/// # Errors
///
/// If no further bytes can complete these to an answer.
pub fn parse(bytes: &[u8]) -> Result<Option<Answer<'_>>, InvalidAnswer> {
    if bytes.len() > ANSWER_LEN_MAX {
        return Err(InvalidAnswer::TooLong);
    }
    let mut lines = Lines(bytes);
    let Some(first) = lines.next() else {
        let mut pairs = bytes.iter().zip(b"HTTP/1.");
        let is_begun = pairs.all(|(is, wanted)| is == wanted);
        return is_begun.then_some(None).ok_or(InvalidAnswer::Malformed);
    };
    let status = parse_status(first).ok_or(InvalidAnswer::Malformed)?;
    let mut body_len = None;
    loop {
        match lines.next() {
            None => return Ok(None),
            Some(b"\r") => break,
            Some(line) => parse_header(line, &mut body_len).ok_or(InvalidAnswer::Malformed)?,
        }
    }
    let Lines(body) = lines;
    let (body_len, head_len) = (body_len.unwrap_or(0), bytes.len() - body.len());
    if body_len > ANSWER_LEN_MAX - head_len {
        return Err(InvalidAnswer::TooLong);
    }
    if body.len() > body_len {
        return Err(InvalidAnswer::Malformed);
    }
    Ok((body.len() == body_len).then_some(Answer { status, body }))
}

/// Whole lines, each without its line feed. The rest of the bytes stays.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == b'\n')?;
        let (line, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(line)
    }
}

/// The text of a line without its carriage return: printable ASCII, blanks and tabs.
fn text(line: &[u8]) -> Option<&[u8]> {
    let (b'\r', text) = line.split_last()? else {
        return None;
    };
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
    text.iter().all(is_text).then_some(text)
}

fn parse_status(line: &[u8]) -> Option<u16> {
    let rest = text(line)?.strip_prefix(b"HTTP/1.")?;
    let [
        b'0' | b'1',
        b' ',
        class @ b'1'..=b'5',
        tens,
        ones,
        reason @ ..,
    ] = rest
    else {
        return None;
    };
    let status = parse_digits(&[*class, *tens, *ones])?;
    matches!(reason, [] | [b' ', ..]).then_some(status.try_into().ok()?)
}

/// Takes a header line. Only the length of the body counts.
fn parse_header(line: &[u8], body_len: &mut Option<usize>) -> Option<()> {
    let line = text(line)?;
    let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':')?);
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    if name.is_empty() || name.iter().any(is_blank) {
        return None;
    }
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        return None;
    }
    if name.eq_ignore_ascii_case(b"content-length") {
        // A repeated length could be read differently by two parsers (request smuggling, RFC 9112,
        // 6.3).
        if body_len.is_some() {
            return None;
        }
        *body_len = Some(parse_digits(value[1..].trim_ascii())?);
    }
    Some(())
}

/// One to five digits, and nothing else.
fn parse_digits(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 5 {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + usize::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Result<Option<Answer<'_>>, InvalidAnswer> {
        let body = body.as_bytes();
        Ok(Some(Answer { status, body }))
    }

    #[test]
    fn what_is_an_answer_or_a_part_of_one() {
        let incomplete = || Ok(None);
        let cases = [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
                answer(200, "ab"),
            ),
            (
                "HTTP/1.0 200\r\ncontent-length:\t2 \r\nX: y:z\r\n\r\nab",
                answer(200, "ab"),
            ),
            ("HTTP/1.1 401 Unauthorized\r\n\r\n", answer(401, "")),
            (
                "HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n",
                answer(204, ""),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na",
                incomplete(),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", incomplete()),
            ("HTT", incomplete()),
            ("", incomplete()),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_refused() {
        let malformed = [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\n\r\nabc",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c: d\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: gr\u{fc}n\r\n\r\n",
            "HTTP/1.1 200OK\r\n\r\n",
            "HTTP/1.1 99 OK\r\n\r\n",
            "HTTP/1.1 600 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "SSH-2.0-x\r\n",
            "h",
        ];
        for text in malformed {
            assert_eq!(
                parse(text.as_bytes()),
                Err(InvalidAnswer::Malformed),
                "{text:?}"
            );
        }
        for len in ["4097", "99999"] {
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
            assert_eq!(
                parse(text.as_bytes()),
                Err(InvalidAnswer::TooLong),
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_answer_may_be_as_long_as_its_limit_and_no_longer() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 4055\r\n\r\n";
        let room = ANSWER_LEN_MAX - head.len();
        assert_eq!(room, 4055);
        let whole = format!("{head}{}", "x".repeat(room));
        let read = parse(whole.as_bytes()).unwrap().unwrap();
        assert_eq!(read.body.len(), room);
        let longer = head.replace("4055", "4056");
        assert_eq!(parse(longer.as_bytes()), Err(InvalidAnswer::TooLong));
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(ANSWER_LEN_MAX));
        let endless = endless.as_bytes();
        assert_eq!(parse(&endless[..ANSWER_LEN_MAX]), Ok(None));
        assert_eq!(
            parse(&endless[..=ANSWER_LEN_MAX]),
            Err(InvalidAnswer::TooLong)
        );
    }

    /// With any byte left out, doubled or changed, the result is an answer, a part of one or an
    /// error; and each beginning of an answer is a part of one.
    #[test]
    fn any_bytes_are_parsed() {
        let whole = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 9\r\n\r\n012345678";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), Ok(None), "{end}");
        }
        for at in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut changed = whole.to_vec();
                changed[at] = byte;
                let parsed = parse(&changed);
                if let Ok(Some(read)) = parsed {
                    assert!(changed.ends_with(read.body), "{at} {byte}");
                }
                changed.remove(at);
                let _ = parse(&changed);
                drop(changed.splice(at..at, [byte, byte]));
                let _ = parse(&changed);
            }
        }
    }
}
