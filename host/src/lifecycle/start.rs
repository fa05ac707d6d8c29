//! The common part of `boot` and `restore`: make the VM directory, start the VMM under a
//! supervisor, rebind and prove the guest. A failure leaves nothing behind.

use crate::error::Failure;
use crate::lifecycle::foreground::Signals;
use crate::lifecycle::plan::Plan;
use crate::lifecycle::starting::StartingVm;
use crate::os::notify::{READY, notify};
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::supervisor::link::Order;

/// Starts the VM and prints the record. With `--foreground`, returns when the VM has ended. A VM of
/// which the user was not told is taken away again.
pub(crate) fn start(plan: &Plan<'_>, mut record: Record) -> Result<(), Failure> {
    let is_json = plan.json;
    record.begin(Phase::Spawn);
    let made = StartingVm::create(plan).and_then(|vm| {
        record.set("name", vm.name().as_str());
        vm.start(plan, &mut record)
    });
    let order = match plan.foreground {
        true => Order::Attach,
        false => Order::Keep,
    };
    let signals = plan.foreground.then(Signals::take).transpose()?;
    let released = made.and_then(|mut vm| match vm.release(order) {
        Ok(()) => Ok(vm),
        Err(failure) => Err(vm.abort(failure, plan.keep_on_failure)),
    });
    let vm = match released {
        Ok(vm) => vm,
        Err(failure) => return Err(record.fail(failure, is_json)),
    };
    if let Err(failure) = record.tell(plan.event(), is_json) {
        record.blame(Some(Phase::Publish));
        let failure = vm.take_back(failure, plan.keep_on_failure);
        return Err(record.fail(failure, is_json));
    }
    match signals {
        Some(signals) => vm.wait(&signals, || notify(READY)),
        None => Ok(()),
    }
}
