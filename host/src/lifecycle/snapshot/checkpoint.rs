//! `--at-checkpoint`: waits for a program in the guest that is ready for its snapshot.

use serde_json::json;

use super::source::Source;
use crate::error::Failure;
use crate::exit::Exit;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::values::CheckpointTag;

/// Returns when a program in the guest waits at the checkpoint.
pub(super) fn wait(
    source: &Source,
    wanted: &CheckpointTag,
    record: &mut Record,
) -> Result<(), Failure> {
    record.begin(Phase::Checkpoint);
    let CheckpointTag(tag) = wanted;
    match source.guest().await_checkpoint(tag.clone()) {
        Ok(checkpoint) => {
            let value = json!({ "tag": checkpoint.tag, "left_ms": checkpoint.left_ms });
            record.set("checkpoint", value);
            Ok(())
        }
        Err(error) => {
            let failure = Failure::from(error);
            if failure.exit() != Exit::Deadline {
                return Err(failure);
            }
            let text = match tag {
                Some(tag) => format!("no program in the guest reached checkpoint {tag}"),
                None => "no program in the guest reached a checkpoint".to_owned(),
            };
            Err(failure.context(text))
        }
    }
}
