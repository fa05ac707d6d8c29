//! What users and scripts learn about good, damaged and hostile artifacts.

use super::*;
use crate::artifact::digest::Digest;
use crate::artifact::tests::{digests, manifest_of, publish};
use crate::testing::TempDir;

fn command(dir: &Path, sha256: bool) -> SnapshotsVerify {
    SnapshotsVerify {
        dir: dir.to_owned(),
        sha256,
        timeout: None,
        json: false,
        quiet: false,
        verbose: 0,
        state_dir: None,
    }
}

fn verify_error(dir: &Path, sha256: bool) -> Failure {
    do_verify(&command(dir, sha256), &mut Record::new()).unwrap_err()
}

#[test]
fn a_directory_is_listed_with_what_is_wrong_in_it() {
    let temp = TempDir::new("snapshots");
    let at = |name: &str| temp.path().join(name);
    publish(&at("good"), false).unwrap();
    publish(&at("bad"), false).unwrap();
    fs::remove_file(at("bad").join("memory")).unwrap();
    fs::create_dir(at("late.tmp-0123abcd")).unwrap();
    fs::create_dir(at("others")).unwrap();
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("odd\u{1b}[2J")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("odd\u{1b}[2J").join(MANIFEST)).unwrap();

    let rows = find(temp.path()).unwrap();
    let text = table(&rows, 5001).replace(temp.path().to_str().unwrap(), "TOP");
    let name = "05".repeat(16);
    assert_eq!(
        text,
        format!(
            "\
NAME               AGE  VMM          VERSION  MEM  SIZE  GENERATION
bad                -    -            -        -    -     damaged
good               5s   firecracker  1.16.1   64M  1M    {name}
late.tmp-0123abcd  -    -            -        -    -     damaged
odd\\u{{1b}}[2J       -    -            -        -    -     damaged

bad: the artifact's file TOP/bad/memory is missing

late.tmp-0123abcd: never finished; the next snapshot with the same --out removes it

odd\\u{{1b}}[2J: the artifact's file TOP/odd\\u{{1b}}[2J/manifest.json is not a regular file
"
        )
    );
    let values: Vec<Value> = rows.iter().map(Row::to_value).collect();
    assert_eq!(values[0]["status"], "damaged");
    assert_eq!(values[1]["status"], "good");
    assert_eq!(values[1]["len"], 8);
    assert_eq!(
        find(&at("good")).unwrap().len(),
        1,
        "an artifact lists itself"
    );
    assert_eq!(find(&at("none")).unwrap_err().exit(), Exit::Artifact);
}

#[test]
fn an_artifact_is_described_with_its_lineage() {
    let mut manifest = manifest_of(&[("vmstate", 3)]);
    manifest.vmm_version = "1.16.1\u{1b}[2J".to_owned();
    manifest.ancestors = [4, 3]
        .map(|byte| shared::id::Generation::from_bytes([byte; 16]))
        .into();
    manifest.files[0].sha256 = Some("ab".repeat(32).parse::<Digest>().unwrap());
    let text = describe(Path::new("/a"), &manifest, 60_001);
    let (own, parent, before) = ("05".repeat(16), "04".repeat(16), "03".repeat(16));
    for line in [
        "directory     /a\n",
        &format!("generation    {own}\n  came after  {parent}\n              {before}\n"),
        "age           1m\n",
        "vmm           firecracker 1.16.1\\u{1b}[2J\n",
        "drive         disk0\n",
        &format!(
            "file          vmstate, 3 bytes, SHA-256 {}\n",
            "ab".repeat(32)
        ),
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
}

#[test]
fn digests_find_other_bytes_of_the_same_length() {
    let temp = TempDir::new("snapshots");
    let with = publish(&temp.path().join("with"), true).unwrap();
    let without = publish(&temp.path().join("without"), false).unwrap();
    for (dir, sha256) in [(&with, false), (&with, true), (&without, false)] {
        do_verify(&command(dir, sha256), &mut Record::new()).unwrap();
    }
    let failure = verify_error(&without, true);
    assert_eq!(failure.exit(), Exit::Artifact);
    let text = format!(
        "{} has no SHA-256 digests; 'host-tool snapshot --sha256' records them",
        without.display()
    );
    assert_eq!(failure.to_string(), text);

    for dir in [&with, &without] {
        fs::write(dir.join("memory"), "other").unwrap();
    }
    let failure = verify_error(&with, false);
    assert_eq!(failure.exit(), Exit::Artifact);
    assert!(
        failure.to_string().ends_with("its SHA-256 differs"),
        "{failure}"
    );
    // Without digests only sizes are compared.
    do_verify(&command(&without, false), &mut Record::new()).unwrap();
}

#[test]
fn a_time_limit_ends_the_reading() {
    let temp = TempDir::new("snapshots");
    let dir = publish(&temp.path().join("a"), true).unwrap();
    let artifact = Artifact::open(&dir).unwrap();
    let error = artifact.verify(&mut |_| {}, Instant::now()).unwrap_err();
    assert_eq!(Failure::from(error).exit(), Exit::Deadline);
    assert_eq!(digests(&dir).len(), 3);
}
