//! A published artifact is complete, and a damaged or forged one is refused by a message that says
//! what is wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::draft::{Draft, DraftError, DraftStatus, draft_status};
use super::*;
use crate::error::Failure;
use crate::os::dir::Dir;
use crate::os::mark;
use crate::testing::TempDir;
use crate::vmm::testing::machine;
use crate::vmm::{MachineSpec, VmmKind};

/// A manifest that lists these files.
pub(crate) fn manifest_of(files: &[(&str, u64)]) -> Manifest {
    let file = |&(name, len): &(&str, u64)| FileEntry {
        name: name.to_owned(),
        len,
        sha256: None,
    };
    Manifest {
        vmm_kind: VmmKind::Firecracker,
        vmm_version: "1.16.1".to_owned(),
        agent_version: "0.1.0".to_owned(),
        agent_protocol: SUPPORTED,
        generation: Generation::from_bytes([5; 16]),
        ancestors: vec![Generation::from_bytes([4; 16])],
        machine: MachineSpec {
            memory_mib: 64,
            drives: vec![Drive {
                path: "disk0".into(),
                read_only: false,
            }],
            ..machine()
        },
        vsock_path: None,
        files: files.iter().map(file).collect(),
        created_ms: 1,
        host_version: "0.1.0".to_owned(),
    }
}

const FILES: [(&str, u64); 3] = [("vmstate", 3), ("memory", 5), ("disk0", 0)];

/// Publishes a small artifact.
pub(crate) fn publish(target: &Path, has_digests: bool) -> Result<PathBuf, DraftError> {
    let draft = Draft::create(target)?;
    for (name, len) in FILES {
        fs::write(
            draft.dir().join(name),
            vec![b'x'; usize::try_from(len).unwrap()],
        )
        .unwrap();
    }
    let mut manifest = manifest_of(&FILES);
    if has_digests {
        for (file, digest) in manifest.files.iter_mut().zip(digests(draft.dir())) {
            file.sha256 = Some(digest);
        }
    }
    draft.publish(&manifest)
}

/// The digests of the files of an artifact from [`publish`].
pub(crate) fn digests(dir: &Path) -> Vec<Digest> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let opened = Dir::open(dir).unwrap();
    let digest = |(name, _): &(&str, u64)| digest_of(&opened, name, &mut |_| {}, deadline);
    FILES.iter().map(|file| digest(file).unwrap()).collect()
}

/// Publishes an artifact, lets `change` alter it and its manifest, and checks that it is refused.
#[track_caller]
fn refused(change: impl FnOnce(&Path, &mut Value), expected: &str) {
    let temp = TempDir::new("artifact");
    let dir = publish(&temp.path().join("a"), false).unwrap();
    let mut value = manifest_of(&FILES).to_value();
    change(&dir, &mut value);
    if dir.join(MANIFEST).is_file() {
        fs::write(dir.join(MANIFEST), value.to_string()).unwrap();
    }
    let error = Artifact::open(&dir).unwrap_err().to_string();
    let text = error.replace(dir.to_str().unwrap(), "DIR");
    assert_eq!(text, expected);
}

#[test]
fn what_was_published_can_be_opened() {
    let temp = TempDir::new("artifact");
    let dir = publish(&temp.path().join("a"), false).unwrap();
    let artifact = Artifact::open(&dir).unwrap();
    assert_eq!(*artifact.manifest(), manifest_of(&FILES));
    assert_eq!(
        artifact.stored_drive("disk0".as_ref()).unwrap().path,
        dir.join("disk0")
    );
    assert_eq!(artifact.state_files().memory, Some(dir.join("memory")));
    assert!(!artifact.state_files().overrides_vsock);
    let names = ancestors(Some(&dir), Some(Generation::from_bytes([5; 16])));
    assert_eq!(names, [5, 4].map(|byte| Generation::from_bytes([byte; 16])));
    let entries = fs::read_dir(temp.path()).unwrap().count();
    assert_eq!(entries, 1, "nothing else is left");
}

#[test]
fn an_artifact_is_never_overwritten() {
    let temp = TempDir::new("artifact");
    let target = temp.path().join("a");
    let late = Draft::create(&target).unwrap();
    publish(&target, false).unwrap();
    assert!(matches!(
        publish(&target, false),
        Err(DraftError::Exists { .. })
    ));
    fs::write(late.dir().join("vmstate"), "").unwrap();
    let error = late.publish(&manifest_of(&[("vmstate", 0)])).unwrap_err();
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
fn the_next_draft_removes_abandoned_ones_and_keeps_those_in_use() {
    let temp = TempDir::new("artifact");
    let target = temp.path().join("a");
    let in_use = Draft::create(&target).unwrap();
    let leftover = temp.path().join("a.tmp-12345678");
    let others = [
        "b.tmp-12345678",
        "a.tmp-old",
        "a.tmp-1234567x",
        "a.tmp-123456789",
    ];
    let others = others.map(|name| temp.path().join(name));
    fs::create_dir(&leftover).unwrap();
    for dir in &others {
        fs::create_dir(dir).unwrap();
    }
    let parent = Dir::open(temp.path()).unwrap();
    let status = |path: &Path| draft_status(&parent, path.file_name().unwrap());
    let marked = temp.path().join("a.tmp-00000001");
    fs::create_dir(&marked).unwrap();
    mark::write(&Dir::open(&marked).unwrap()).unwrap();
    fs::write(marked.join("disk0"), "").unwrap();
    let users = temp.path().join("a.tmp-00000002");
    fs::create_dir(&users).unwrap();
    fs::write(users.join("disk0"), "").unwrap();
    assert!(status(&users).is_none(), "it has no mark");
    let elsewhere = temp.path().join("a.tmp-abcdef01");
    symlink(&others[0], &elsewhere).unwrap();
    assert!(matches!(status(in_use.dir()), Some(DraftStatus::InUse)));
    assert!(matches!(
        status(&leftover),
        Some(DraftStatus::Abandoned { .. })
    ));
    assert!(status(&others[1]).is_none());

    let _draft = Draft::create(&target).unwrap();
    assert!(!leftover.exists() && !marked.exists() && in_use.dir().exists());
    assert!(users.join("disk0").exists(), "a user's own directory");
    assert!(others.iter().all(|other| other.exists()), "not drafts of a");
    assert!(elsewhere.is_symlink(), "a link is not a draft");
}

/// Between the creation of a directory and its lock, others may take it for a leftover.
#[test]
fn concurrent_drafts_do_not_remove_each_other() {
    let temp = TempDir::new("artifact");
    let target = temp.path().join("a");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let draft = Draft::create(&target).unwrap();
                    fs::write(draft.dir().join("vmstate"), "x").unwrap();
                    assert!(draft.dir().join("vmstate").exists());
                }
            });
        }
    });
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn damage_is_reported_with_the_file() {
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
fn a_file_that_is_not_regular_is_neither_opened_nor_followed() {
    for name in ["vmstate", "manifest.json"] {
        let expected = format!("the artifact's file DIR/{name} is not a regular file");
        let replaced = |with: &dyn Fn(&Path)| {
            refused(
                |dir, _| {
                    fs::remove_file(dir.join(name)).unwrap();
                    with(&dir.join(name));
                },
                &expected,
            );
        };
        // It has no writer: a plain open for reading would block for ever.
        replaced(&|path| mkfifo(path, Mode::S_IRWXU).unwrap());
        replaced(&|path| symlink("/dev/zero", path).unwrap());
        replaced(&|path| symlink("nowhere", path).unwrap());
        replaced(&|path| fs::create_dir(path).unwrap());
        replaced(&|path| drop(UnixListener::bind(path).unwrap()));
    }
}

#[test]
fn a_guest_writes_to_copies_of_its_own_only() {
    let temp = TempDir::new("artifact");
    let disk = temp.path().join("disk");
    fs::write(&disk, "x").unwrap();
    let path = disk.to_str().unwrap().to_owned();
    let expected = format!(
        "the guest would write to {path}, which is not in the artifact: a clone may only write to \
         a copy of its own"
    );
    let drive = |path: &str, read_only: bool| json!([{ "path": path, "read_only": read_only }]);
    refused(
        |_, value| value["machine"]["drives"] = drive(&path, false),
        &expected,
    );
    refused(
        |_, value| value["machine"]["drives"] = drive("/dev/zero", true),
        "the artifact's file /dev/zero is not a regular file",
    );
    let dir = publish(&temp.path().join("a"), false).unwrap();
    let mut value = manifest_of(&FILES).to_value();
    value["machine"]["drives"] = drive(&path, true);
    fs::write(dir.join(MANIFEST), value.to_string()).unwrap();
    Artifact::open(&dir).unwrap();
}

#[test]
fn numbers_and_nesting_beyond_reason_are_refused() {
    refused(
        |_, value| value["files"][1]["len"] = u64::MAX.into(),
        "the artifact's file DIR/memory has 5 bytes instead of 18446744073709551615: it was cut \
         short or replaced",
    );
    let not_a_number = "DIR/manifest.json: field \"len\" must be a whole number in range";
    for len in [json!(-1), json!(1e300), json!("5")] {
        refused(|_, value| value["files"][1]["len"] = len, not_a_number);
    }
    let files: Vec<Value> = (0..=FILES_MAX)
        .map(|index| json!({ "name": format!("f{index}"), "len": 0 }))
        .collect();
    refused(
        |_, value| value["files"] = files.into(),
        "DIR/manifest.json: field \"files\" must be a shorter list",
    );

    let temp = TempDir::new("artifact");
    let open = |text: &str| {
        fs::write(temp.path().join(MANIFEST), text).unwrap();
        Failure::from(Artifact::open(temp.path()).unwrap_err()).to_string()
    };
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(open(&deep).contains("recursion limit"), "{}", open(&deep));
    let long = " ".repeat(usize::try_from(MANIFEST_LEN_MAX).unwrap());
    assert!(open(&format!("{long}{{}}")).contains("too long for a manifest"));
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
        "a\u{7}",
    ] {
        refused(
            |_, value| value["files"][1]["name"] = name.into(),
            &format!(
                "the manifest lists a file '{}': names must be plain and unique",
                name.escape_debug()
            ),
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
        |_, value| value["files"][0]["sha256"] = "x".into(),
        "DIR/manifest.json: field \"sha256\" must be 64 hexadecimal digits",
    );
    refused(
        |_, value| value["ancestors"] = json!(["x"]),
        "DIR/manifest.json: field \"ancestors\" must be a list of 32 hexadecimal digits each",
    );
    refused(
        |_, value| value["generation"] = "x".into(),
        "DIR/manifest.json: field \"generation\" must be 32 hexadecimal digits",
    );
}

#[test]
fn a_directory_that_is_not_an_artifact_is_refused() {
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
