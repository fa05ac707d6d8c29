//! `--at-checkpoint`: the wait for a program in the guest that is ready for its snapshot.

use serde_json::json;
use shared::exchange::Request;
use shared::message::{AwaitCheckpoint, Message, is_tag};

use super::source::Source;
use crate::error::Failure;
use crate::exit::Exit;
use crate::report::phase::Phase;
use crate::report::record::Record;

/// The checkpoint that is waited for: one with this tag, or any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointTag(Option<String>);

impl CheckpointTag {
    /// Reads what stands behind `--at-checkpoint=`; nothing is any.
    ///
    /// # Errors
    ///
    /// A sentence for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self(None)),
            text if is_tag(text) => Ok(Self(Some(text.to_owned()))),
            _ => Err("a tag is 1 to 256 printable ASCII characters without spaces".to_owned()),
        }
    }
}

/// Returns when a program waits there.
pub(super) fn wait(
    source: &Source,
    wanted: &CheckpointTag,
    record: &mut Record,
) -> Result<(), Failure> {
    record.begin(Phase::Checkpoint);
    let CheckpointTag(tag) = wanted;
    let request = Request::AwaitCheckpoint(AwaitCheckpoint { tag: tag.clone() });
    match source.ask(request) {
        Ok(answer) => match answer.message {
            Message::Checkpoint(checkpoint) => {
                let value = json!({ "tag": checkpoint.tag, "left_ms": checkpoint.left_ms });
                record.set("checkpoint", value);
                Ok(())
            }
            other => {
                let text = format!("the exchange ended with {}", other.kind());
                Err(Failure::new(Exit::Internal, text))
            }
        },
        Err(error) => {
            let failure = Failure::from(error);
            if failure.exit() != Exit::Deadline {
                return Err(failure);
            }
            let text = match tag {
                Some(tag) => format!("no program in the guest came to checkpoint {tag}"),
                None => "no program in the guest came to a checkpoint".to_owned(),
            };
            Err(failure.context(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_may_be_any_and_must_be_one() {
        assert_eq!(CheckpointTag::parse(""), Ok(CheckpointTag(None)));
        let tag = CheckpointTag(Some("sha256:1".to_owned()));
        assert_eq!(CheckpointTag::parse("sha256:1"), Ok(tag));
        assert!(CheckpointTag::parse("a b").is_err());
    }
}
