//! The files that `--trace` and `--timeline` ask for.
//!
//! They are about a command and no part of its result: a path that cannot be right is refused
//! before anything is done, but a file that cannot be written at the end is a warning. They are
//! written when the command fails, too, which is when they are looked at.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Failure;
use crate::guest::HOST_VERSION;
use crate::os::clock::unix_ms;
use crate::report::timeline::Lane;
use crate::report::{chrome, svg};

/// Where to write them.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    /// What the command does.
    title: String,
    trace: Option<PathBuf>,
    timeline: Option<PathBuf>,
    began_ms: u64,
}

impl Reports {
    /// The files that the command line of `command` asks for, by options of these names.
    pub fn new(
        command: &str,
        trace: Option<&Path>,
        timeline: Option<&Path>,
    ) -> Result<Self, Failure> {
        check("--trace", trace)?;
        check("--timeline", timeline)?;
        Ok(Self {
            title: format!("host-tool {command}"),
            trace: trace.map(Path::to_owned),
            timeline: timeline.map(Path::to_owned),
            began_ms: unix_ms(),
        })
    }

    /// Writes what was asked for.
    pub fn write(&self, lanes: &[Lane]) {
        if let Some(path) = &self.trace {
            let text = chrome::render(lanes, self.facts()).to_string();
            write("trace", path, &text);
        }
        if let Some(path) = &self.timeline {
            write("time line", path, &svg::render(&self.title, lanes));
        }
    }

    fn facts(&self) -> Value {
        json!({
            "command": self.title,
            "host_tool": HOST_VERSION,
            "began_unix_ms": self.began_ms,
            "clock": "host, µs since the command began; guest slices are placed by the handshake",
        })
    }
}

fn check(option: &str, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let refuse = |why: &str| {
        let text = format!("{option} {}: {why}", path.display());
        Err(Failure::usage(text))
    };
    if path.is_dir() || path.file_name().is_none() {
        return refuse("that is a directory, and a file is to be written");
    }
    match path.parent() {
        Some(dir) if dir != Path::new("") && !dir.is_dir() => {
            refuse("the directory that it would be in is not there")
        }
        _ => Ok(()),
    }
}

fn write(what: &str, path: &Path, text: &str) {
    if let Err(error) = fs::write(path, text) {
        log::warn!(
            "cannot write the {what} {}: {error}; what the command itself did is not touched by \
             that",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::testing::TempDir;

    #[test]
    fn a_path_that_cannot_be_right_is_refused_at_once() {
        let temp = TempDir::new("reports");
        let refused = [
            (temp.path().to_owned(), "a directory"),
            (temp.path().join("none/a.json"), "is not there"),
        ];
        for (path, part) in refused {
            let failure = Reports::new("restore", Some(&path), None).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage);
            assert!(failure.to_string().contains(part), "{failure}");
        }
        Reports::new(
            "restore",
            Some(Path::new("a.json")),
            Some(&temp.path().join("a.svg")),
        )
        .unwrap();
    }

    #[test]
    fn both_files_are_written() {
        let temp = TempDir::new("reports");
        let (trace, timeline) = (temp.path().join("a.json"), temp.path().join("a.svg"));
        let reports = Reports::new("restore", Some(&trace), Some(&timeline)).unwrap();
        reports.write(&[]);
        let text = fs::read_to_string(trace).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["otherData"]["command"], "host-tool restore");
        assert!(fs::read_to_string(timeline).unwrap().contains("<svg"));
    }
}
