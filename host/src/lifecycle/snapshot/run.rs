//! A snapshot from QUIESCE to the published artifact, and the recovery when a step fails.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use shared::message::Hello;

use super::Options;
use super::source::Source;
use crate::artifact::draft::Draft;
use crate::artifact::{DISK_PREFIX, FileEntry, Manifest, digest_of};
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::guest::HOST_VERSION;
use crate::guest::connection::Connection;
use crate::lifecycle::ending::kill;
use crate::os::clock::unix_ms;
use crate::os::disk;
use crate::report::phase::Phase;
use crate::report::progress::Progress;
use crate::report::record::Record;
use crate::values::MIB;
use crate::vmdir::state::Stage;
use crate::vmm::{Drive, MachineSpec, StateFiles, VmmVersion};

#[derive(Debug)]
pub(super) struct SnapshotRun<'a> {
    pub(super) options: &'a Options<'a>,
    pub(super) source: Source,
    pub(super) version: VmmVersion,
    /// Known faults of this VMM version. They are logged only on failure, because a successful
    /// snapshot was not affected.
    pub(super) faults: Vec<&'static str>,
}

impl SnapshotRun<'_> {
    /// Takes the snapshot, and then resumes the source or ends it.
    pub(super) fn take(&mut self, draft: Draft, record: &mut Record) -> Result<(), Failure> {
        record.begin(Phase::Quiesce);
        reach(Point::QuiesceBefore)?;
        self.source.write_stage(Stage::Snapshotting)?;
        let (hello, control) = self.source.quiesce(self.options.policy, record)?;
        let manifest = match self.save(&draft, &hello, record) {
            Ok(manifest) => manifest,
            Err(failure) => return Err(self.recover(failure, control, record)),
        };
        if self.options.stop {
            return self.publish_and_stop(draft, manifest, control, record);
        }
        let resumed = self.source.resume(control, record);
        let failed_phase = record.current();
        // The files are complete, so the artifact is good even if its source is not.
        let published = self.publish(draft, manifest, record);
        match (resumed, published) {
            (Ok(()), published) => published,
            (Err(failure), Ok(())) => {
                self.warn_of_faults();
                record.set("source", "failed");
                record.blame(failed_phase);
                let artifact = self.options.out.display();
                let text = format!("the artifact {artifact} is good, but its source is not");
                Err(failure.context(text))
            }
            (Err(failure), Err(other)) => {
                self.warn_of_faults();
                record.set("source", "failed");
                record.blame(failed_phase);
                log::warn!("{other}");
                let text = "there is no artifact, and the VM did not recover".to_owned();
                Err(failure.context(text))
            }
        }
    }

    /// Pauses the VM and writes everything but the manifest into the draft.
    fn save(
        &mut self,
        draft: &Draft,
        hello: &Hello,
        record: &mut Record,
    ) -> Result<Manifest, Failure> {
        let Source {
            vmm,
            machine,
            limits,
            ..
        } = &mut self.source;
        record.begin(Phase::Pause);
        reach(Point::PauseBefore)?;
        vmm.pause(limits.work)?;
        reach(Point::PauseAfter)?;
        record.begin(Phase::Save);
        let files = StateFiles::in_dir(vmm.kind(), draft.dir());
        let mut progress = Progress::new("saving", u64::from(machine.memory_mib) * MIB);
        vmm.save(&files, &mut |bytes| progress.show(bytes), limits.work)?;
        drop(progress);
        reach(Point::SaveAfter)?;

        record.begin(Phase::Disks);
        let mut paths = vec![files.state];
        paths.extend(files.memory);
        let (machine, disks) = save_disks(machine, draft, limits.work, record)?;
        paths.extend(disks);
        reach(Point::DisksAfter)?;
        let files = paths.into_iter().map(entry).collect::<Result<_, _>>()?;
        let source = &self.source;
        let generation = hello.generation.or(source.generation);
        Ok(Manifest {
            vmm_kind: source.vmm.kind(),
            vmm_version: self.version.text.clone(),
            agent_version: hello.version.clone(),
            agent_protocol: hello.protocol,
            generation: generation
                .ok_or_else(|| Failure::new(Exit::Guest, "the guest has no generation"))?,
            ancestors: source.ancestors.clone(),
            machine,
            vsock_path: source.vsock_path.clone(),
            files,
            created_ms: unix_ms(),
            host_version: HOST_VERSION.to_owned(),
        })
    }

    /// Ends the VM after the artifact is published. Until then a failure can still resume it.
    fn publish_and_stop(
        &mut self,
        draft: Draft,
        manifest: Manifest,
        control: Connection,
        record: &mut Record,
    ) -> Result<(), Failure> {
        if let Err(failure) = self.publish(draft, manifest, record) {
            return Err(self.recover(failure, control, record));
        }
        record.begin(Phase::Stop);
        let reached = reach(Point::StopBefore).map_err(Failure::from);
        let stopped = reached.and_then(|()| self.source.vm().map_or(Ok(()), kill));
        drop(control);
        stopped.map_err(|failure| {
            let artifact = self.options.out.display();
            failure.context(format!(
                "the artifact {artifact} is good, but its source still runs"
            ))
        })?;
        self.source.write_stage(Stage::Ready)
    }

    /// Completes the draft and publishes it. The source usually runs again by now, so digests may
    /// take their time.
    fn publish(
        &self,
        draft: Draft,
        mut manifest: Manifest,
        record: &mut Record,
    ) -> Result<(), Failure> {
        record.begin(Phase::Publish);
        reach(Point::PublishBefore)?;
        if self.options.sha256 {
            let mut progress = Progress::new("reading", manifest.files_len());
            let mut read_len = 0;
            for file in &mut manifest.files {
                let mut report = |len: u64| {
                    read_len += len;
                    progress.show(read_len);
                };
                file.sha256 = Some(digest_of(
                    draft.handle(),
                    &file.name,
                    &mut report,
                    self.source.limits.all,
                )?);
            }
        }
        let path = draft.publish(&manifest)?;
        record.set("artifact", path.display().to_string());
        Ok(())
    }

    /// Resumes and proves the source after a failure. The returned failure says whether it worked.
    fn recover(&mut self, failure: Failure, control: Connection, record: &mut Record) -> Failure {
        let failed_phase = record.current();
        let result = self.source.resume_and_prove(control, record);
        // The record blames the step that failed first, not the recovery.
        record.blame(failed_phase);
        self.warn_of_faults();
        match result {
            Ok(()) => {
                record.set("source", "ready");
                failure.context("there is no artifact; the VM runs again and is ready".to_owned())
            }
            Err(other) => {
                record.set("source", "failed");
                log::warn!("the VM did not recover: {other}");
                failure.context("there is no artifact, and the VM did not recover".to_owned())
            }
        }
    }

    fn warn_of_faults(&self) {
        self.faults.iter().for_each(|fault| log::warn!("{fault}"));
    }
}

/// Copies the writable drives into the draft. Returns the machine with the copies, and their paths.
/// Read-only drives stay in place, and the manifest has their paths.
fn save_disks(
    machine: &MachineSpec,
    draft: &Draft,
    deadline: Instant,
    record: &mut Record,
) -> Result<(MachineSpec, Vec<PathBuf>), Failure> {
    let mut machine = machine.clone();
    let mut copies = Vec::new();
    let mut ways: Vec<Value> = Vec::new();
    for (index, drive) in machine.drives.iter_mut().enumerate() {
        if let Drive {
            path,
            read_only: false,
        } = drive
        {
            let name = format!("{DISK_PREFIX}{index}");
            let copy = draft.dir().join(&name);
            let len = fs::metadata(&*path).map_or(0, |found| found.len());
            let mut progress = Progress::new("copying", len);
            let way = disk::copy(path, &copy, &mut |at| progress.show(at), deadline)
                .map_err(|error| error.into_failure(Exit::Artifact))?;
            ways.push(json!({ "name": name, "how": way.as_str() }));
            *path = name.into();
            copies.push(copy);
        }
    }
    if !ways.is_empty() {
        record.set("disks", ways);
    }
    Ok((machine, copies))
}

/// The manifest's entry for a file of the draft.
fn entry(path: PathBuf) -> Result<FileEntry, Failure> {
    let metadata = fs::metadata(&path).or_fail(Exit::Artifact, || {
        format!("cannot look at {}", path.display())
    })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(FileEntry {
        name: name.into_owned(),
        len: metadata.len(),
        sha256: None,
    })
}
