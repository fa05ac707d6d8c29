//! `host-tool snapshots`: lists, shows and verifies artifacts.
//!
//! Artifacts are untrusted: their texts are escaped for the terminal, and a list opens only
//! manifests.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::artifact::draft::{DraftStatus, draft_status};
use crate::artifact::{Artifact, ArtifactError, MANIFEST, Manifest};
use crate::cli::snapshots::{
    Snapshots, SnapshotsCommand, SnapshotsInspect, SnapshotsLs, SnapshotsVerify,
};
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::clock::unix_ms;
use crate::os::dir::Dir;
use crate::os::json::os_to_value;
use crate::report::output::print;
use crate::report::phase::Phase;
use crate::report::progress::Progress;
use crate::report::record::Record;
use crate::report::table::{age, columns, size};
use crate::values::{printable, without_controls};

/// Time limit of `verify` without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10 * 60);

pub(crate) fn run(command: &Snapshots) -> Result<(), Failure> {
    match &command.command {
        SnapshotsCommand::Ls(command) => list(command),
        SnapshotsCommand::Inspect(command) => inspect(command),
        SnapshotsCommand::Verify(command) => verify(command),
    }
}

fn list(command: &SnapshotsLs) -> Result<(), Failure> {
    let here = [PathBuf::from(".")];
    let dirs = match &command.dirs[..] {
        [] => &here,
        dirs => dirs,
    };
    let mut rows = Vec::new();
    for dir in dirs {
        rows.extend(find(dir)?);
    }
    if command.json {
        let rows: Vec<Value> = rows.iter().map(Row::to_value).collect();
        return print(&json!({ "snapshots": rows }).to_string());
    }
    print(table(&rows, unix_ms()).trim_end())
}

/// The artifact that `dir` is, or else the artifacts in it, by name.
fn find(dir: &Path) -> Result<Vec<Row>, Failure> {
    if has_manifest(dir) {
        return Ok(vec![Row::of(dir)]);
    }
    let context = || format!("cannot read the directory {}", dir.display());
    let opened = Dir::open(dir).or_fail(Exit::Artifact, context)?;
    let mut names = opened.names().or_fail(Exit::Artifact, context)?;
    names.sort();
    Ok(names.iter().filter_map(|name| row(&opened, name)).collect())
}

fn has_manifest(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join(MANIFEST)).is_ok()
}

/// The row of a directory entry, if it is an artifact or an abandoned draft.
fn row(parent: &Dir, name: &OsStr) -> Option<Row> {
    let path = parent.path().join(name);
    match draft_status(parent, name) {
        Some(DraftStatus::InUse) => None,
        Some(DraftStatus::Abandoned { .. }) => Some(Row {
            dir: path,
            found: Err(
                "never finished; the next snapshot with the same --out removes it".to_owned(),
            ),
        }),
        None => has_manifest(&path).then(|| Row::of(&path)),
    }
}

/// One line of the list.
#[derive(Debug)]
struct Row {
    dir: PathBuf,
    /// The manifest, or the reason why the artifact cannot be used.
    found: Result<Manifest, String>,
}

impl Row {
    fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            found: Artifact::open(dir)
                .map(|artifact| artifact.manifest().clone())
                .map_err(|error| Failure::from(error).to_string()),
        }
    }

    fn name(&self) -> String {
        let name = self.dir.file_name().unwrap_or(self.dir.as_os_str());
        printable(&name.to_string_lossy())
    }

    fn to_value(&self) -> Value {
        let mut value = json!({ "name": self.name(), "dir": os_to_value(&self.dir) });
        match &self.found {
            Ok(manifest) => {
                value["status"] = "good".into();
                value["manifest"] = manifest.to_value();
                value["len"] = manifest.files_len().into();
            }
            Err(reason) => {
                value["status"] = "damaged".into();
                value["error"] = reason.as_str().into();
            }
        }
        value
    }
}

fn table(rows: &[Row], now_ms: u64) -> String {
    let head = ["NAME", "AGE", "VMM", "VERSION", "MEM", "SIZE", "GENERATION"];
    let mut lines = vec![head.map(str::to_owned)];
    let mut reasons = String::new();
    for row in rows {
        let dash = || "-".to_owned();
        lines.push(match &row.found {
            Ok(manifest) => [
                row.name(),
                age(now_ms.saturating_sub(manifest.created_ms)),
                manifest.vmm_kind.to_string(),
                printable(&manifest.vmm_version),
                format!("{}M", manifest.machine.memory_mib),
                size(manifest.files_len()),
                manifest.generation.to_string(),
            ],
            Err(reason) => {
                reasons.push_str(&format!("\n{}: {}\n", row.name(), without_controls(reason)));
                [
                    row.name(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    "damaged".to_owned(),
                ]
            }
        });
    }
    columns(&lines) + &reasons
}

fn inspect(command: &SnapshotsInspect) -> Result<(), Failure> {
    let artifact = Artifact::open(&command.dir)?;
    let manifest = artifact.manifest();
    if command.json {
        let mut value = manifest.to_value();
        value["dir"] = os_to_value(artifact.dir());
        value["len"] = manifest.files_len().into();
        return print(&value.to_string());
    }
    print(describe(artifact.dir(), manifest, unix_ms()).trim_end())
}

/// Describes an artifact, with one fact on each line.
fn describe(dir: &Path, manifest: &Manifest, now_ms: u64) -> String {
    let machine = &manifest.machine;
    let mut lines = Vec::new();
    let mut add = |key: &str, value: String| lines.push([key.to_owned(), printable(&value)]);
    add("directory", dir.display().to_string());
    add("generation", manifest.generation.to_string());
    for (index, ancestor) in manifest.ancestors.iter().enumerate() {
        let key = if index == 0 { "  came after" } else { "" };
        add(key, ancestor.to_string());
    }
    add("age", age(now_ms.saturating_sub(manifest.created_ms)));
    add(
        "vmm",
        format!("{} {}", manifest.vmm_kind, manifest.vmm_version),
    );
    let protocol = manifest.agent_protocol;
    add(
        "agent",
        format!(
            "guest-agent {} (protocol {protocol})",
            manifest.agent_version
        ),
    );
    add("made by", format!("host-tool {}", manifest.host_version));
    add("memory", format!("{}M", machine.memory_mib));
    add("processors", machine.vcpu_count.to_string());
    for drive in &machine.drives {
        let mode = if drive.read_only { ", read-only" } else { "" };
        add("drive", format!("{}{mode}", drive.path.display()));
    }
    if let Some(nic) = &machine.nic {
        add("interface", format!("{}, {}", nic.tap, nic.mac));
    }
    add("kernel", machine.kernel.display().to_string());
    add("initrd", machine.initrd.display().to_string());
    if !machine.append.is_empty() {
        add("parameters", machine.append.clone());
    }
    for file in &manifest.files {
        let digest = file.sha256.map(|digest| format!(", SHA-256 {digest}"));
        let text = format!(
            "{}, {} bytes{}",
            file.name,
            file.len,
            digest.unwrap_or_default()
        );
        add("file", text);
    }
    columns(&lines)
}

fn verify(command: &SnapshotsVerify) -> Result<(), Failure> {
    let mut record = Record::new();
    let result = do_verify(command, &mut record);
    record.conclude(result, "verified", command.json)
}

fn do_verify(command: &SnapshotsVerify, record: &mut Record) -> Result<(), Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    record.begin(Phase::Artifact);
    let artifact = Artifact::open(&command.dir)?;
    let manifest = artifact.manifest();
    record.set("artifact", artifact.dir().display().to_string());
    record.set_generation(manifest.generation);
    let has_digests = manifest.has_digests();
    if !has_digests && command.sha256 {
        let path = artifact.dir().to_owned();
        return Err(ArtifactError::NoDigests { path }.into());
    }
    let mut progress = Progress::new("reading", manifest.files_len());
    artifact.verify(&mut |bytes| progress.show(bytes), deadline)?;
    record.set("sha256", has_digests);
    if !has_digests {
        log::warn!(
            "only sizes were compared: the artifact has no SHA-256; 'host-tool snapshot --sha256' \
             records it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
