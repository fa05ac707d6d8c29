//! An artifact is whole or not there, and one that somebody tampered with is named and refused.

use std::os::unix::fs::symlink;

use super::draft::{Draft, DraftError};
use super::*;
use crate::vmm::Drive;
use crate::vmm::testing::TempDir;

fn manifest(files: &[(&str, u64)]) -> Manifest {
    let file = |&(name, len): &(&str, u64)| FileEntry {
        name: name.to_owned(),
        len,
    };
    Manifest {
        vmm_kind: VmmKind::Firecracker,
        vmm_version: "1.16.1".to_owned(),
        agent_version: "0.1.0".to_owned(),
        agent_protocol: SUPPORTED,
        generation: Generation::from_bytes([5; 16]),
        machine: MachineSpec {
            kernel: "/k".into(),
            initrd: "/i".into(),
            memory_mib: 64,
            vcpu_count: 1,
            drives: vec![Drive {
                path: "disk0".into(),
                read_only: false,
            }],
            append: String::new(),
            guest_cid: 3,
        },
        files: files.iter().map(file).collect(),
        created_ms: 1,
        host_version: "0.1.0".to_owned(),
    }
}

const FILES: [(&str, u64); 3] = [("vmstate", 3), ("memory", 5), ("disk0", 0)];

fn publish(target: &Path) -> Result<PathBuf, DraftError> {
    let draft = Draft::create(target)?;
    for (name, len) in FILES {
        fs::write(
            draft.dir().join(name),
            vec![b'x'; usize::try_from(len).unwrap()],
        )
        .unwrap();
    }
    draft.publish(&manifest(&FILES))
}

/// Writes the manifest of a good artifact anew, changed by `change`, and opens it.
#[track_caller]
fn refused(change: impl FnOnce(&Path, &mut Value), expected: &str) {
    let temp = TempDir::new("artifact");
    let dir = publish(&temp.path().join("a")).unwrap();
    let mut value = manifest(&FILES).to_value();
    change(&dir, &mut value);
    fs::write(dir.join(MANIFEST), value.to_string()).unwrap();
    let error = Artifact::open(&dir).unwrap_err().to_string();
    let text = error.replace(dir.to_str().unwrap(), "DIR");
    assert_eq!(text, expected);
}

#[test]
fn what_was_published_can_be_opened() {
    let temp = TempDir::new("artifact");
    let dir = publish(&temp.path().join("a")).unwrap();
    let artifact = Artifact::open(&dir).unwrap();
    assert_eq!(*artifact.manifest(), manifest(&FILES));
    assert_eq!(
        artifact.stored_drive("disk0".as_ref()),
        Some(dir.join("disk0"))
    );
    assert_eq!(artifact.state_files().memory, Some(dir.join("memory")));
    let entries = fs::read_dir(temp.path()).unwrap().count();
    assert_eq!(entries, 1, "nothing else is left");
}

#[test]
fn an_artifact_is_never_overwritten() {
    let temp = TempDir::new("artifact");
    let target = temp.path().join("a");
    let late = Draft::create(&target).unwrap();
    publish(&target).unwrap();
    assert!(matches!(publish(&target), Err(DraftError::Exists { .. })));
    fs::write(late.dir().join("vmstate"), "").unwrap();
    let error = late.publish(&manifest(&[("vmstate", 0)])).unwrap_err();
    assert!(matches!(error, DraftError::Exists { .. }), "{error:?}");
    Artifact::open(&target).unwrap();
    assert_eq!(
        fs::read_dir(temp.path()).unwrap().count(),
        1,
        "the late draft is gone"
    );
    assert!(matches!(
        Draft::create("/".as_ref()),
        Err(DraftError::NoName { .. })
    ));
}

#[test]
fn leftovers_go_with_the_next_draft_but_not_those_at_work() {
    let temp = TempDir::new("artifact");
    let target = temp.path().join("a");
    let at_work = Draft::create(&target).unwrap();
    let leftover = temp.path().join("a.tmp-12345678");
    let other = temp.path().join("b.tmp-12345678");
    for dir in [&leftover, &other] {
        fs::create_dir(dir).unwrap();
    }
    let _draft = Draft::create(&target).unwrap();
    assert!(!leftover.exists() && other.exists() && at_work.dir().exists());
}

#[test]
fn damage_is_named() {
    refused(
        |dir, _| fs::remove_file(dir.join("memory")).unwrap(),
        "the artifact's file DIR/memory is missing",
    );
    refused(
        |dir, _| fs::write(dir.join("vmstate"), "xx").unwrap(),
        "the artifact's file DIR/vmstate has 2 bytes instead of 3: it was cut short or replaced",
    );
    refused(
        |dir, _| {
            fs::rename(dir.join("memory"), dir.join("m")).unwrap();
            symlink("m", dir.join("memory")).unwrap();
        },
        "the artifact's file DIR/memory is not a regular file",
    );
    refused(
        |_, value| value["files"] = json!([{ "name": "vmstate", "len": 3 }]),
        "the artifact's file DIR/memory is missing",
    );
    refused(
        |_, value| value["machine"]["drives"][0]["path"] = "../disk".into(),
        "the artifact's file ../disk is missing",
    );
}

#[test]
fn names_stay_in_the_directory() {
    for name in [
        "../vmstate",
        "/etc/passwd",
        "",
        ".",
        "..",
        "a/b",
        "manifest.json",
        "vmstate",
    ] {
        refused(
            |_, value| value["files"][1]["name"] = name.into(),
            &format!("the artifact names a file '{name}', which it must not"),
        );
    }
    assert!(is_plain_name(&"a".repeat(FILE_NAME_LEN_MAX)));
    assert!(!is_plain_name(&"a".repeat(FILE_NAME_LEN_MAX + 1)));
}

#[test]
fn newer_formats_and_protocols_are_refused_with_a_remedy() {
    refused(
        |_, value| value["format"] = 2.into(),
        "the artifact has format 2 and this host-tool knows format 1; use the host-tool that made \
         it, or a newer one",
    );
    refused(
        |_, value| {
            value["agent"]["protocol_min"] = 8.into();
            value["agent"]["protocol_max"] = 9.into();
        },
        "the guest in the artifact runs guest-agent 0.1.0: no common protocol version: this side \
         speaks 1, the peer 8 to 9; use a host-tool that speaks its version",
    );
    refused(
        |_, value| value["generation"] = "x".into(),
        "DIR/manifest.json: field \"generation\" must be 32 hexadecimal digits",
    );
}

#[test]
fn what_is_no_artifact_says_so() {
    let temp = TempDir::new("artifact");
    let error = |path: &Path| Artifact::open(path).unwrap_err();
    assert!(matches!(
        error(&temp.path().join("none")),
        ArtifactError::NotThere { .. }
    ));
    assert!(matches!(
        error(temp.path()),
        ArtifactError::NoManifest { .. }
    ));
    fs::write(temp.path().join(MANIFEST), "[").unwrap();
    assert!(matches!(error(temp.path()), ArtifactError::Manifest(_)));
}
