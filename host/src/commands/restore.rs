//! `host-tool restore`: restores a guest from an artifact and proves that it is ready.

mod adopt;
mod fleet;
pub(crate) mod plan;

use crate::cli::Restore;
use crate::error::Failure;
use crate::lifecycle::start::start;
use crate::report::record::Record;

pub(crate) fn run(command: &Restore) -> Result<(), Failure> {
    if command.api_sock.is_some() || command.uds.is_some() || command.cid.is_some() {
        return adopt::run(command);
    }
    if command.count.is_some() || command.parallel.is_some() {
        return fleet::run(command);
    }
    let mut record = Record::new();
    match plan::plan(command, &mut record) {
        Ok(plan) => start(&plan, record),
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}
