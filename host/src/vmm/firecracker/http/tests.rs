//! Byte vectors in both directions: every truncation, every limit, every refusal.

use super::*;

const NO_CONTENT: &[u8] =
    b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
const VERSION: &[u8] = b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
    Content-Type: application/json\r\nContent-Length: 32\r\n\r\n{\"firecracker_version\":\"1.16.1\"}";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Every proper prefix is incomplete; the whole is parsed, with or without bytes behind it.
#[track_caller]
fn check(bytes: &[u8], status: u16, body: &[u8]) {
    for len in 0..bytes.len() {
        assert_eq!(
            parse_response(&bytes[..len]),
            Ok(None),
            "the first {len} bytes"
        );
    }
    let expected = Response {
        status,
        body: body.to_vec(),
    };
    for rest in [&b""[..], b"HTTP/1.1 200 \r\n", b"\0\xff"] {
        let input = [bytes, rest].concat();
        assert_eq!(
            parse_response(&input),
            Ok(Some((expected.clone(), bytes.len())))
        );
    }
}

#[track_caller]
fn refuse(bytes: &[u8], expected: &HttpError) {
    assert_eq!(&parse_response(bytes).unwrap_err(), expected);
}

#[test]
fn responses_and_their_truncations() {
    check(NO_CONTENT, 204, b"");
    check(VERSION, 200, b"{\"firecracker_version\":\"1.16.1\"}");
    check(
        b"HTTP/1.1 400 Bad Request\r\ncontent-LENGTH:  2 \r\n\r\n{}",
        400,
        b"{}",
    );
    check(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b"");
    check(
        b"HTTP/1.0 500 \r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        500,
        b"x",
    );
}

#[test]
fn interim_responses_are_skipped() {
    check(&[CONTINUE, NO_CONTENT].concat(), 204, b"");
    check(
        &[CONTINUE, CONTINUE, VERSION].concat(),
        200,
        b"{\"firecracker_version\":\"1.16.1\"}",
    );
}

#[test]
fn a_204_has_no_body_whatever_its_headers_say() {
    check(b"HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n", 204, b"");
}

#[test]
fn limits_hold_at_and_past_them() {
    let with_body = |len: usize| {
        let mut bytes = format!("HTTP/1.1 200 \r\nContent-Length: {len}\r\n\r\n").into_bytes();
        bytes.resize(bytes.len() + len, b'x');
        bytes
    };
    assert!(parse_response(&with_body(BODY_LEN_MAX)).unwrap().is_some());
    refuse(
        &with_body(BODY_LEN_MAX + 1),
        &HttpError::BodyTooLong {
            len: BODY_LEN_MAX + 1,
        },
    );

    let with_head = |len: usize| {
        let (start, end) = ("HTTP/1.1 204 \r\nX: ", "\r\n\r\n");
        format!("{start}{}{end}", "x".repeat(len - start.len() - end.len())).into_bytes()
    };
    assert!(parse_response(&with_head(HEAD_LEN_MAX)).unwrap().is_some());
    refuse(&with_head(HEAD_LEN_MAX + 1), &HttpError::HeadTooLong);
}

#[test]
fn each_unsupported_response_has_its_error() {
    let malformed = |source| HttpError::Malformed { source };
    refuse(b"SSH-2.0-OpenSSH\r\n", &malformed(httparse::Error::Version));
    refuse(
        b"HTTP/1.1 2x0 \r\n\r\n",
        &malformed(httparse::Error::Status),
    );
    refuse(
        b"HTTP/1.1 200 \r\n: no name\r\n\r\n",
        &malformed(httparse::Error::HeaderName),
    );
    refuse(b"HTTP/1.1 099 \r\n\r\n", &HttpError::Status { status: 99 });
    refuse(b"HTTP/1.1 700 \r\n\r\n", &HttpError::Status { status: 700 });
    refuse(b"HTTP/1.1 200 \r\n\r\n{}", &HttpError::NoContentLength);
    refuse(
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n",
        &HttpError::TransferEncoding,
    );
    for value in ["", "x", "-1", "+1", "1 1", "99999999999999999999"] {
        let bytes = format!("HTTP/1.1 200 \r\nContent-Length: {value}\r\n\r\n");
        refuse(bytes.as_bytes(), &HttpError::ContentLength);
    }
    refuse(
        b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        &HttpError::ContentLength,
    );
}

#[test]
fn interim_responses_have_a_limit() {
    const INTERIM: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    let count = HEAD_LEN_MAX / INTERIM.len();
    assert_eq!(parse_response(INTERIM.repeat(count).as_bytes()), Ok(None));
    refuse(
        INTERIM.repeat(count + 1).as_bytes(),
        &HttpError::HeadTooLong,
    );
}

#[test]
fn requests_as_bytes() {
    assert_eq!(
        encode_request(Method::Get, "/version", None),
        b"GET /version HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
    );
    assert_eq!(
        encode_request(Method::Patch, "/vm", Some("{}")),
        b"PATCH /vm HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
          Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    );
}
