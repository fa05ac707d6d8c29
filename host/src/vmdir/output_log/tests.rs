//! The log holds every byte once. Method: a writer is killed after each step and within appends,
//! and the guest sends again what was not acknowledged.

use std::fs;
use std::time::{Duration, Instant};

use super::reader::View;
use super::*;
use crate::testing::TempDir;
use shared::message::Stream;

/// How long a lock may stay held after its release.
const LIMIT: Duration = Duration::from_secs(30);

/// In bytes: full after a few lines.
const LEN_MAX: u64 = 30;

fn vm_dir(temp: &TempDir) -> VmDir {
    VmDir::of_test(temp.path())
}

/// The guest's two streams.
struct Guest {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        let lines = |name: &str| -> Vec<u8> {
            let lines = (0..6).map(|n| format!("{name} {n}\n"));
            lines.collect::<String>().into_bytes()
        };
        Self {
            stdout: lines("out"),
            stderr: lines("err"),
        }
    }

    /// Sends the next line of each stream from where the log ends.
    fn send(&self, journal: &mut Journal) {
        for (stream, bytes) in [
            (Stream::Stdout, &self.stdout),
            (Stream::Stderr, &self.stderr),
        ] {
            let from = journal.committed().wanted(stream).unwrap();
            let rest = &bytes[usize::try_from(from).unwrap()..];
            let line = rest.split_inclusive(|&byte| byte == b'\n').next();
            journal.handle_output(stream, line.unwrap_or_default());
        }
    }

    fn is_logged(&self, record: &Record) -> bool {
        let len = |bytes: &[u8]| Some(bytes.len() as u64);
        record.stdout == len(&self.stdout) && record.stderr == len(&self.stderr)
    }
}

fn files(dir: &VmDir) -> Files {
    Files {
        dir: dir.clone(),
        file: None,
    }
}

fn journal(dir: &VmDir) -> Journal {
    let record = read_record(dir).unwrap();
    let record = files(dir).recover(record, Some(0)).unwrap();
    Journal::new(record, LEN_MAX)
}

/// Start position and text of what a reader finds.
fn read(dir: &VmDir) -> (u64, String) {
    let view = View::open(dir).unwrap();
    let mut text = Vec::new();
    let mut position = view.start();
    let mut buffer = [0; 7];
    loop {
        let (found, len) = view.read(position, &mut buffer).unwrap();
        assert_eq!(found, position, "a gap");
        if len == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..len]);
        position += len as u64;
    }
    assert_eq!(position, view.tail(0).unwrap());
    (view.start(), String::from_utf8(text).unwrap())
}

/// The log as it would be without a limit.
fn expected() -> String {
    let lines = (0..6).map(|n| format!("out {n}\nerr {n}\n"));
    lines.collect()
}

#[track_caller]
fn check_reader_finds_part_of_the_log(dir: &VmDir) {
    let (start, text) = read(dir);
    let whole = expected();
    let rest = &whole[usize::try_from(start).unwrap()..];
    assert!(rest.starts_with(&text), "from {start}: {text}");
}

/// Logs everything, but is killed after `steps` steps, and after `bytes` bytes of the next step if
/// that appends. `None` if everything takes fewer steps.
fn run_killed(dir: &VmDir, guest: &Guest, steps: usize, bytes: usize) -> Option<()> {
    let mut left = steps;
    let (mut files, mut journal) = (files(dir), journal(dir));
    while !guest.is_logged(journal.committed()) {
        guest.send(&mut journal);
        for step in journal.poll_commit() {
            if left == 0 {
                match step {
                    Step::Append(all) => {
                        files.append(&all[..bytes.min(all.len())]).unwrap();
                    }
                    Step::Rotate | Step::Record(_) => {}
                }
                return Some(());
            }
            left -= 1;
            files.perform(step).unwrap();
        }
        journal.handle_committed();
    }
    None
}

#[test]
fn nothing_is_lost_or_repeated_whenever_the_writer_is_killed() {
    let guest = Guest::new();
    for bytes in [0, 1, 9, 1000] {
        let mut steps = 0;
        loop {
            let temp = TempDir::new("output");
            let dir = vm_dir(&temp);
            let killed = run_killed(&dir, &guest, steps, bytes);
            check_reader_finds_part_of_the_log(&dir);
            // A second writer finishes it, and a third finds nothing to do.
            assert_eq!(run_killed(&dir, &guest, usize::MAX, 0), None);
            assert_eq!(run_killed(&dir, &guest, 0, 0), None);
            let (start, text) = read(&dir);
            assert_eq!(text, expected()[usize::try_from(start).unwrap()..]);
            assert!(start > 0, "the log was never rotated");
            if killed.is_none() {
                break;
            }
            steps += 1;
        }
        assert!(steps > 15, "{steps} steps");
    }
}

#[test]
fn one_writer_at_a_time_and_the_next_continues() {
    let temp = TempDir::new("output");
    let dir = vm_dir(&temp);
    let now = Instant::now();
    let lock = dir.output_lock(now).unwrap().unwrap();
    let mut log = OutputLog::open(&dir, lock, Some(0)).unwrap();
    assert!(dir.output_lock(now).unwrap().is_none());
    log.journal().handle_output(Stream::Stdout, b"a\n");
    log.commit().unwrap();
    log.journal()
        .handle_output(Stream::Stdout, b"never committed\n");
    log.roll_back().unwrap();
    log.journal().handle_output(Stream::Stdout, b"b\n");
    log.commit().unwrap();
    drop(log);
    // Not at once: a child that another test forks holds the file open until it executes a program.
    let lock = dir.output_lock(now + LIMIT).unwrap().unwrap();
    let mut log = OutputLog::open(&dir, lock, Some(0)).unwrap();
    assert_eq!(log.journal().committed().stdout, Some(4));
    assert_eq!(read(&dir), (0, "a\nb\n".to_owned()));
}

#[test]
fn a_log_that_the_user_emptied_continues() {
    let temp = TempDir::new("output");
    let dir = vm_dir(&temp);
    let guest = Guest::new();
    run_killed(&dir, &guest, 4, 0).unwrap();
    fs::write(dir.file(OUTPUT_LOG), "").unwrap();
    assert_eq!(run_killed(&dir, &guest, usize::MAX, 0), None);
    assert!(guest.is_logged(&read_record(&dir).unwrap().unwrap()));
    read(&dir);
}

#[test]
fn the_tail_is_counted_in_lines_across_both_files() {
    let temp = TempDir::new("output");
    let dir = vm_dir(&temp);
    assert_eq!(View::open(&dir).unwrap().tail(3).unwrap(), 0);
    run_killed(&dir, &Guest::new(), usize::MAX, 0);
    let view = View::open(&dir).unwrap();
    let (start, text) = read(&dir);
    for count in 0..20 {
        let from = view.tail(count).unwrap();
        let lines = text.split_inclusive('\n').count() as u64;
        let tail = &text[usize::try_from(from - start).unwrap()..];
        assert_eq!(tail.lines().count() as u64, count.min(lines), "{tail}");
    }
    // A line without a newline counts.
    let mut journal = journal(&dir);
    journal.handle_output(Stream::Stdout, b"x\ny");
    for step in journal.poll_commit() {
        files(&dir).perform(step).unwrap();
    }
    let view = View::open(&dir).unwrap();
    assert_eq!(view.tail(1).unwrap(), view.tail(0).unwrap() - 1);
    assert_eq!(view.tail(2).unwrap(), view.tail(0).unwrap() - 3);
}
