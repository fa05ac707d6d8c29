//! Cutting texts to the lengths that the protocol allows.

use crate::limits::TEXT_LEN_MAX;

/// `text`, cut at a character boundary to at most [`TEXT_LEN_MAX`] bytes.
pub(crate) fn clipped(text: &str) -> &str {
    clipped_to(text, TEXT_LEN_MAX)
}

/// `text`, cut at a character boundary to at most `len_max` bytes.
pub(crate) fn clipped_to(text: &str, len_max: usize) -> &str {
    let mut end = text.len().min(len_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
