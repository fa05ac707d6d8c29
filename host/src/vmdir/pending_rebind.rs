//! `naming.json` in a VM directory: the rebind that the guest still waits for.

use std::io;

use serde_json::json;
use shared::json::{JsonError, Object};
use shared::message::Identity;

use super::error::VmDirError;
use super::names::PENDING_REBIND;
use super::vm_dir::VmDir;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::requests::RebindPlan;

/// Leaves the rebind to the first command that asks the guest something.
pub(crate) fn write_pending(dir: &VmDir, plan: &RebindPlan) -> Result<(), VmDirError> {
    let value = json!({
        "generation": plan.generation.to_string(),
        "parent": plan.parent.map(|parent| parent.to_string()),
        "cause": plan.cause.as_str(),
        "hostname": plan.identity.hostname,
        "machine_id": plan.identity.machine_id,
        "network": plan.identity.network.to_value(),
    });
    dir.replace(PENDING_REBIND, &value)
}

/// For a guest that has its generation.
pub(crate) fn remove_pending(dir: &VmDir) -> Result<(), Failure> {
    match dir.unlink(PENDING_REBIND) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.or_fail(Exit::Internal, || {
            format!("cannot remove {}", dir.file(PENDING_REBIND).display())
        }),
    }
}

pub(crate) fn read_pending(dir: &VmDir) -> Result<Option<RebindPlan>, VmDirError> {
    dir.read(PENDING_REBIND, from_object)
}

fn from_object(object: &Object) -> Result<RebindPlan, JsonError> {
    Ok(RebindPlan {
        generation: object.parsed("generation", "32 hexadecimal digits")?,
        parent: object.opt_parsed("parent", "32 hexadecimal digits")?,
        cause: object.parsed("cause", "boot, restore or resume")?,
        identity: Identity::from_object(object)?,
    })
}

#[cfg(test)]
mod tests {
    use shared::message::Cause;

    use super::*;
    use crate::testing::TempDir;
    use crate::vmdir::StateDir;

    #[test]
    fn a_pending_rebind_is_found_until_it_is_removed() {
        let temp = TempDir::new("pending");
        let state_dir = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let (dir, _lock) = state_dir.create_vm(None).unwrap();
        assert!(read_pending(&dir).unwrap().is_none());
        let identity = Identity {
            hostname: Some("clone-7".to_owned()),
            machine_id: None,
            network: crate::vmm::network::settings(
                "10.0.0.2/24".parse().ok(),
                "02:00:00:00:00:01".parse().ok(),
                None,
            )
            .unwrap(),
        };
        let plan = RebindPlan::new(Cause::Restore, None, identity).unwrap();
        write_pending(&dir, &plan).unwrap();
        let found = read_pending(&dir).unwrap().unwrap();
        assert_eq!(found.generation, plan.generation);
        assert_eq!((found.cause, found.parent), (Cause::Restore, None));
        assert_eq!(found.identity, plan.identity);
        remove_pending(&dir).unwrap();
        remove_pending(&dir).unwrap();
        assert!(read_pending(&dir).unwrap().is_none());
    }

    #[test]
    fn a_file_that_describes_no_valid_rebind_is_refused() {
        let parse = |text: &str| Object::parse(text.as_bytes()).unwrap();
        let good = r#""generation":"00112233445566778899aabbccddeeff","cause":"boot""#;
        from_object(&parse(&format!("{{{good}}}"))).unwrap();
        for bad in [
            r#"{"cause":"boot"}"#.to_owned(),
            format!(r#"{{{good},"hostname":"a b"}}"#),
            format!(r#"{{{good},"machine_id":"x"}}"#),
            format!(r#"{{{good},"network":{{"mac":"x"}}}}"#),
        ] {
            assert!(from_object(&parse(&bad)).is_err(), "{bad}");
        }
    }
}
