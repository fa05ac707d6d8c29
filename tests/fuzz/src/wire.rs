//! The wire format: frames from bytes, and messages from frames.

use serde_json::Value;
use shared::frame::{Decoder, Frame, FrameError, FrameKind};
use shared::limits::{COMMAND_TEXT_LEN_MAX, HEADER_LEN, HOOK_NAME_LEN_MAX, TEXT_LEN_MAX};
use shared::message::{Message, Role};

/// Most bytes that are pushed at once, as the programs read them.
const PIECE_LEN_MAX: usize = 64 * 1024;

/// The frames and the error of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Stream {
    frames: Vec<(FrameKind, Vec<u8>)>,
    error: Option<FrameError>,
    is_mid_frame: bool,
}

/// The frame decoder. The first byte says how the others are cut. However they are cut, they give
/// the same frames and the same error, in bounded memory.
pub fn frames(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else {
        return;
    };
    let expected = read(stream);
    assert_eq!(decode(stream, &mut || PIECE_LEN_MAX), expected, "in one");
    let mut state = u32::from(cut);
    let mut piece = || {
        // The generator of Numerical Recipes; its upper bits are good enough to choose cuts.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match state >> 30 {
            0 => 1,
            1 => HEADER_LEN,
            _ => 1 + (state >> 16) as usize % 4_096,
        }
    };
    assert_eq!(decode(stream, &mut piece), expected, "in pieces");
    if stream.len() <= 4_096 {
        assert_eq!(decode(stream, &mut || 1), expected, "byte by byte");
    }
}

/// The frames by a plain reading of `docs/protocol.md`.
fn read(stream: &[u8]) -> Stream {
    let mut rest = stream;
    let mut frames = Vec::new();
    let mut error = None;
    while let (Some((header, behind)), None) = (rest.split_first_chunk::<HEADER_LEN>(), error) {
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let bytes = [header[4], header[5], header[6], header[7]];
        let kind = FrameKind::ALL.iter().find(|kind| kind.code() == bytes[0]);
        error = match kind {
            None => Some(FrameError::UnknownKind { code: bytes[0] }),
            Some(_) if bytes[1..] != [0; 3] => Some(FrameError::ReservedBits { bytes }),
            Some(&kind) if len as usize > kind.payload_len_max() => {
                Some(FrameError::PayloadTooLong { kind, len })
            }
            Some(&kind) => match behind.split_at_checked(len as usize) {
                None => break,
                Some((payload, behind)) => {
                    frames.push((kind, payload.to_vec()));
                    rest = behind;
                    None
                }
            },
        };
    }
    Stream {
        frames,
        error,
        is_mid_frame: !rest.is_empty(),
    }
}

/// The frames of the decoder, for pieces as long as `piece` says.
fn decode(stream: &[u8], piece: &mut dyn FnMut() -> usize) -> Stream {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut error = None;
    let mut rest = stream;
    let (mut held, mut peak) = (0, 0);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece().min(rest.len()));
        decoder.push(now);
        rest = later;
        if error.is_none() {
            held += now.len();
        }
        peak = held.max(peak);
        loop {
            match decoder.poll_frame() {
                Ok(Some(frame)) => {
                    assert!(error.is_none(), "a frame behind an error");
                    held -= HEADER_LEN + frame.payload.len();
                    frames.push((frame.kind, frame.payload.to_vec()));
                }
                Ok(None) => break,
                Err(found) => {
                    assert_eq!(error.unwrap_or(found), found, "an error stays");
                    error = Some(found);
                    break;
                }
            }
        }
        // A vector may have twice the capacity that it needs, and a minimum.
        let most = (2 * peak).max(64);
        assert!(
            decoder.memory_len() <= most,
            "more memory than its bytes need"
        );
    }
    Stream {
        frames,
        error,
        is_mid_frame: decoder.is_mid_frame(),
    }
}

/// Message payloads. The first byte says which side sends, the second which kind; the rest is the
/// payload. Encoding and decoding give the same message, except for texts that the sender clips,
/// and encoding again changes nothing.
pub fn messages(data: &[u8]) {
    let [sender, code, payload @ ..] = data else {
        return;
    };
    let sender = [Role::Host, Role::Guest, Role::Local][usize::from(sender % 3)];
    let Some(kind) = FrameKind::from_code(*code) else {
        return;
    };
    if payload.len() > kind.payload_len_max() {
        return;
    }
    let Ok(message) = Message::parse(Frame { kind, payload }, sender) else {
        return;
    };
    let bytes = message.encode();
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    let frame = decoder.poll_frame().expect("a frame").expect("all of it");
    assert_eq!(frame.kind, kind);
    let again = Message::parse(frame, sender).expect("what was written is read");
    if again != message {
        assert!(is_cut(kind, payload), "{message:?} is read as {again:?}");
    }
    assert_eq!(again.encode(), bytes, "and written again");
    // Missing fields are written as null, and a message holds nothing that did not come.
    let most = HEADER_LEN + 8 * payload.len() + 1_024;
    assert!(
        bytes.len() <= most,
        "{} bytes of {}",
        bytes.len(),
        payload.len()
    );
}

/// Whether a payload has a text that is longer than a sender may make it.
fn is_cut(kind: FrameKind, payload: &[u8]) -> bool {
    let len_max = match kind {
        FrameKind::Sessions => COMMAND_TEXT_LEN_MAX,
        FrameKind::Hooked => HOOK_NAME_LEN_MAX,
        FrameKind::Hello | FrameKind::Fail | FrameKind::Progress | FrameKind::Info => TEXT_LEN_MAX,
        _ => return false,
    };
    serde_json::from_slice(payload).is_ok_and(|value| text_len_max(&value) > len_max)
}

/// The length of the longest text in a value.
fn text_len_max(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(text_len_max).max().unwrap_or(0),
        Value::Object(fields) => fields.values().map(text_len_max).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}
