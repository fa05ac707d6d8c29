//! Naming a guest that was started without the proof, or kept although it failed it.
//!
//! A clone wakes quiesced and refuses all work until a host has named it, so that somebody has to
//! after `--no-wait`: the first `probe` does. `naming.json` in the VM directory holds the name that
//! was meant for the guest. A guest that is named twice with one name acts once, which makes every
//! later try safe, whoever makes it and wherever an earlier one broke off.

use std::fs;
use std::io;
use std::time::Instant;

use serde_json::json;
use shared::exchange::Request;
use shared::json::{JsonError, Object};
use shared::message::{Identity, Message};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::answer::Answer;
use crate::lifecycle::handshake::{Naming, rebind_request};
use crate::os::json;
use crate::values::VmName;
use crate::vmdir::state::Stage;
use crate::vmdir::{StateDir, VmDir, VmDirError};

/// Name of the file in a VM directory.
const FILE: &str = "naming.json";

/// Leaves the name for whoever asks the guest first.
pub fn write_pending(dir: &VmDir, naming: &Naming) -> Result<(), VmDirError> {
    let value = json!({
        "generation": naming.generation.to_string(),
        "parent": naming.parent.map(|parent| parent.to_string()),
        "cause": naming.cause.as_str(),
        "hostname": naming.identity.hostname,
        "machine_id": naming.identity.machine_id,
        "network": naming.identity.network.to_value(),
    });
    dir.replace(FILE, &value.to_string())
}

/// Takes it back: the guest has its name.
pub fn remove_pending(dir: &VmDir) -> Result<(), Failure> {
    let path = dir.file(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.or_fail(Exit::Internal, || {
            format!("cannot remove {}", path.display())
        }),
    }
}

/// The name that was left, if there is one.
fn read(dir: &VmDir) -> Result<Option<Naming>, VmDirError> {
    Ok(json::read_if_exists(&dir.file(FILE), from_object)?)
}

fn from_object(object: &Object) -> Result<Naming, JsonError> {
    Ok(Naming {
        generation: object.parsed("generation", "32 hexadecimal digits")?,
        parent: object.opt_parsed("parent", "32 hexadecimal digits")?,
        cause: object.parsed("cause", "boot, restore or resume")?,
        identity: Identity::from_object(object)?,
    })
}

/// Names the guest of a VM that waits for a name; `ask` carries the request. Does nothing for any
/// other VM.
pub fn rebind_pending(
    state_dir: &StateDir,
    name: &VmName,
    deadline: Instant,
    ask: impl FnOnce(Request) -> Result<Answer, Failure>,
) -> Result<(), Failure> {
    let dir = state_dir.vm(name)?;
    if read(&dir)?.is_none() {
        return Ok(());
    }
    // Whoever holds the lock may be naming the guest, or have done it.
    let lock = dir.lock(deadline)?;
    let Some(naming) = read(&dir)? else {
        return Ok(());
    };
    let mut vm = dir.running_under(&lock)?;
    if vm.state.generation.is_none() {
        let answer = ask(rebind_request(&naming)?)?;
        if !matches!(answer.message, Message::Rebound(_)) {
            let text = format!("the exchange ended with {}", answer.message.kind());
            return Err(Failure::new(Exit::Internal, text));
        }
        vm.state.generation = Some(naming.generation);
        vm.state.agent_version = Some(answer.hello.version);
        vm.state.stage = Stage::Ready;
        vm.dir.write_state(&vm.state)?;
    }
    remove_pending(&vm.dir)
}

#[cfg(test)]
mod tests {
    use shared::message::Cause;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_name_that_was_left_is_found() {
        let temp = TempDir::new("naming");
        let state_dir = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let (dir, _lock) = state_dir.create_vm(None).unwrap();
        assert!(read(&dir).unwrap().is_none());
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
        let naming = Naming::new(Cause::Restore, None, identity).unwrap();
        write_pending(&dir, &naming).unwrap();
        let found = read(&dir).unwrap().unwrap();
        assert_eq!(found.generation, naming.generation);
        assert_eq!((found.cause, found.parent), (Cause::Restore, None));
        assert_eq!(found.identity, naming.identity);
        remove_pending(&dir).unwrap();
        remove_pending(&dir).unwrap();
        assert!(read(&dir).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
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

    #[test]
    fn a_vm_that_waits_for_no_name_is_left_alone() {
        let temp = TempDir::new("naming");
        let state_dir = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let (dir, _lock) = state_dir.create_vm(None).unwrap();
        let settled = rebind_pending(&state_dir, dir.name(), Instant::now(), |_| {
            panic!("nothing is asked")
        });
        settled.unwrap();
    }
}
