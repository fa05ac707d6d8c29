//! What reaches `host-tool`: answers of a VMM and of its vsock device, and artifacts.

use host::fuzzing::Manifest;
use host::fuzzing::http::{BODY_LEN_MAX, HEAD_LEN_MAX, parse_response};
use host::fuzzing::hybrid_vsock::{LINE_LEN_MAX, NotHybridVsock, parse_answer};
use host::fuzzing::qmp::{self, take_message};

/// Most places at which an input is cut in two.
const CUTS_MAX: usize = 64;

/// Some beginnings of `data`: all if there are few, else the shortest and some others.
pub(crate) fn beginnings(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let step = data.len().div_ceil(CUTS_MAX).max(1);
    let first = 0..data.len().min(CUTS_MAX);
    first
        .chain((0..data.len()).step_by(step))
        .map(|len| &data[..len])
}

/// Responses of the Firecracker API, one after another. The verdict on one does not change with the
/// bytes that follow, it is within its limits, and reading what was written gives the same.
pub fn http_response(data: &[u8]) {
    let mut rest = data;
    for _ in 0..8 {
        let verdict = parse_response(rest);
        for beginning in beginnings(rest) {
            let early = parse_response(beginning);
            assert!(early == Ok(None) || early == verdict, "{early:?} changes");
        }
        let Ok(Some((response, len))) = verdict else {
            return;
        };
        let (status, body) = (response.status, &response.body);
        assert!((200..600).contains(&status), "status {status}");
        assert!(body.len() <= BODY_LEN_MAX && rest[..len].ends_with(body));
        assert!(
            len - body.len() <= 2 * HEAD_LEN_MAX,
            "a head of {len} bytes"
        );
        let head = format!(
            "HTTP/1.1 {status} \r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let written = [head.as_bytes(), body].concat();
        let written_len = written.len();
        assert_eq!(
            parse_response(&written),
            Ok(Some((response, written_len))),
            "written and read again"
        );
        rest = &rest[len..];
    }
}

/// Lines of QMP. However the bytes are cut, they give the same messages and the same error, and no
/// more than a line is kept.
pub fn qmp(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else {
        return;
    };
    let whole = lines(stream, stream.len().max(1));
    assert_eq!(lines(stream, 1 + usize::from(cut)), whole, "in pieces");
}

/// The result of a stream in pieces of this length.
fn lines(stream: &[u8], piece_len: usize) -> (Vec<qmp::Message>, Option<String>) {
    let mut received = Vec::new();
    let mut messages = Vec::new();
    for piece in stream.chunks(piece_len) {
        received.extend_from_slice(piece);
        loop {
            match take_message(&mut received) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
        assert!(received.len() <= qmp::LINE_LEN_MAX, "more than a line");
        assert!(!received.contains(&b'\n'), "a line is left");
    }
    (messages, None)
}

/// The answer to CONNECT. Only an OK line is accepted, and the verdict does not change with the
/// bytes that follow.
pub fn hybrid_vsock(data: &[u8]) {
    let verdict = parse_answer(data);
    for beginning in beginnings(data) {
        let early = parse_answer(beginning);
        assert!(early == Ok(None) || early == verdict, "{early:?} changes");
    }
    match verdict {
        Ok(Some(len)) => {
            assert!(len <= LINE_LEN_MAX);
            let line = std::str::from_utf8(&data[..len]).expect("ASCII");
            let number = line
                .strip_prefix("OK ")
                .and_then(|it| it.strip_suffix('\n'));
            let number = number.expect("OK and the end of the line");
            assert!(number.bytes().all(|byte| byte.is_ascii_digit()), "{line:?}");
        }
        Ok(None) => assert!(data.len() < LINE_LEN_MAX && !data.contains(&b'\n')),
        Err(NotHybridVsock) => {}
    }
}

/// Manifests of artifacts. Reading what was written gives the same.
pub fn manifest(data: &[u8]) {
    let Some(manifest) = Manifest::parse(data) else {
        return;
    };
    let written = manifest.to_text();
    let read_again = Manifest::parse(written.as_bytes());
    assert_eq!(read_again.as_ref(), Some(&manifest), "{written}");
    let sum: u128 = manifest.file_lens().map(u128::from).sum();
    assert_eq!(u128::from(manifest.files_len()), sum.min(u64::MAX.into()));
}
