//! HTTP/1.1 as the Firecracker API speaks it: one request out, one response in. No I/O.
//!
//! Requests have a JSON body or none. Responses have a `Content-Length` or no body (204). All else
//! that HTTP allows is refused with its own error: chunked bodies, bodies that end with the stream,
//! other versions.

use std::fmt;

/// Most bytes of a response's status line and headers, and of all interim responses before it.
pub const HEAD_LEN_MAX: usize = 64 * 1024;

/// Most bytes of a response's body.
pub const BODY_LEN_MAX: usize = 1024 * 1024;

/// Most headers of a response. Firecracker sends four or five.
const HEADERS_MAX: usize = 64;

/// What a request does with its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates or replaces, and runs actions.
    Put,
    /// Changes a part.
    Patch,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
        })
    }
}

/// The bytes of a request. The connection is kept open: one command sends several requests.
#[must_use]
pub fn encode_request(method: Method, path: &str, body: Option<&str>) -> Vec<u8> {
    let mut bytes =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if let Some(body) = body {
        bytes.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    } else {
        bytes.push_str("\r\n");
    }
    bytes.into_bytes()
}

/// A complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code, 200 to 599: interim responses are skipped.
    pub status: u16,
    /// The body, empty where there is none.
    pub body: Vec<u8>,
}

/// Parses one response at the start of `bytes`: `None` while it is incomplete, else the response
/// and its length in bytes.
pub fn parse_response(bytes: &[u8]) -> Result<Option<(Response, usize)>, HttpError> {
    let mut start = 0;
    loop {
        let Some(head) = parse_head(&bytes[start..])? else {
            return Ok(None);
        };
        let body_start = start + head.len;
        // 1xx announces another response, for instance `100 Continue` for a request with a body.
        if head.status < 200 {
            // An endless row of them must not fill the memory.
            if body_start > HEAD_LEN_MAX {
                return Err(HttpError::HeadTooLong);
            }
            start = body_start;
            continue;
        }
        let body_len = head.body_len()?;
        let Some(body) = bytes.get(body_start..body_start + body_len) else {
            return Ok(None);
        };
        let response = Response {
            status: head.status,
            body: body.to_vec(),
        };
        return Ok(Some((response, body_start + body_len)));
    }
}

/// Status line and the headers that decide where the body ends.
#[derive(Debug)]
struct Head {
    status: u16,
    content_len: Option<usize>,
    is_transfer_encoded: bool,
    /// Bytes up to and including the empty line.
    len: usize,
}

impl Head {
    fn body_len(&self) -> Result<usize, HttpError> {
        if self.status == 204 || self.status == 304 {
            return Ok(0);
        }
        if self.is_transfer_encoded {
            return Err(HttpError::TransferEncoding);
        }
        match self.content_len {
            None => Err(HttpError::NoContentLength),
            Some(len) if len > BODY_LEN_MAX => Err(HttpError::BodyTooLong { len }),
            Some(len) => Ok(len),
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let window = &bytes[..bytes.len().min(HEAD_LEN_MAX)];
    let len = match response.parse(window) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if window.len() == HEAD_LEN_MAX => {
            return Err(HttpError::HeadTooLong);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(source) => return Err(HttpError::Malformed { source }),
    };
    let status = response.code.ok_or(HttpError::Status { status: 0 })?;
    if !(100..600).contains(&status) {
        return Err(HttpError::Status { status });
    }
    let mut head = Head {
        status,
        content_len: None,
        is_transfer_encoded: false,
        len,
    };
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let len = parse_content_len(header.value)?;
            // With two different lengths the start of the next response would be ambiguous.
            if head.content_len.is_some_and(|earlier| earlier != len) {
                return Err(HttpError::ContentLength);
            }
            head.content_len = Some(len);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            head.is_transfer_encoded = true;
        }
    }
    Ok(Some(head))
}

/// Digits only: `usize::from_str` would also take a sign.
fn parse_content_len(value: &[u8]) -> Result<usize, HttpError> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::ContentLength);
    }
    let text = std::str::from_utf8(value).map_err(|_| HttpError::ContentLength)?;
    text.parse().map_err(|_| HttpError::ContentLength)
}

/// Why bytes are not a response that this program accepts.
#[derive(Debug, PartialEq, Eq)]
pub enum HttpError {
    /// Not HTTP/1.x.
    Malformed {
        /// The parser's error.
        source: httparse::Error,
    },
    /// The status line and headers exceed [`HEAD_LEN_MAX`].
    HeadTooLong,
    /// The body exceeds [`BODY_LEN_MAX`].
    BodyTooLong {
        /// The announced length in bytes.
        len: usize,
    },
    /// A status code outside 100 to 599.
    Status {
        /// The code.
        status: u16,
    },
    /// `Content-Length` is not a number, or is given twice with different values.
    ContentLength,
    /// A response with a body, but without `Content-Length`.
    NoContentLength,
    /// A body in chunks or otherwise encoded.
    TransferEncoding,
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { .. } => f.write_str("malformed HTTP response"),
            Self::HeadTooLong => write!(f, "HTTP response head exceeds {HEAD_LEN_MAX} bytes"),
            Self::BodyTooLong { len } => {
                write!(
                    f,
                    "HTTP response body of {len} bytes exceeds {BODY_LEN_MAX}"
                )
            }
            Self::Status { status } => write!(f, "HTTP response with impossible status {status}"),
            Self::ContentLength => f.write_str("HTTP response with unusable content-length"),
            Self::NoContentLength => f.write_str("HTTP response without content-length"),
            Self::TransferEncoding => f.write_str("HTTP response with a transfer encoding"),
        }
    }
}

impl std::error::Error for HttpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Malformed { source } => Some(source),
            Self::HeadTooLong
            | Self::BodyTooLong { .. }
            | Self::Status { .. }
            | Self::ContentLength
            | Self::NoContentLength
            | Self::TransferEncoding => None,
        }
    }
}

#[cfg(test)]
mod tests;
