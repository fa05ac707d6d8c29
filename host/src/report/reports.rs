//! The files that `--trace` and `--timeline` ask for.
//!
//! They describe a command and are not part of its result. An impossible path is refused before the
//! command does anything; a file that cannot be written at the end is a warning. A command that
//! fails writes them, too: that is when they are needed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Failure;
use crate::guest::HOST_VERSION;
use crate::os::clock::unix_ms;
use crate::report::timeline::Track;
use crate::report::{chrome, svg};

#[derive(Debug, Clone, Default)]
pub(crate) struct Reports {
    title: String,
    trace: Option<PathBuf>,
    timeline: Option<PathBuf>,
    began_ms: u64,
}

impl Reports {
    /// Checks the paths given by `--trace` and `--timeline` of `command`.
    pub(crate) fn new(
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

    pub(crate) fn write(&self, tracks: &[Track]) {
        if let Some(path) = &self.trace {
            let text = chrome::render(tracks, self.facts()).to_string();
            write("trace", path, &text);
        }
        if let Some(path) = &self.timeline {
            write("timeline", path, &svg::render(&self.title, tracks));
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
        return refuse("it is a directory; give the path of a file");
    }
    match path.parent() {
        Some(dir) if dir != Path::new("") && !dir.is_dir() => {
            refuse("its directory does not exist; create it first")
        }
        _ => Ok(()),
    }
}

fn write(what: &str, path: &Path, text: &str) {
    if let Err(error) = fs::write(path, text) {
        log::warn!(
            "cannot write the {what} {}: {error}; the command's own outcome is not affected",
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
    fn an_impossible_path_is_refused_at_once() {
        let temp = TempDir::new("reports");
        let refused = [
            (temp.path().to_owned(), "it is a directory;"),
            (temp.path().join("none/a.json"), "does not exist;"),
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
