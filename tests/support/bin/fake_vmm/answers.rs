//! What both VMMs have in common: the rules, the log, and how an answer is sent.

use std::collections::HashMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tests::host::{FOLDER_VARIABLE, GUEST_SOCKET, LOG, MET_MARK, PID_MARK, RULES, Rule, Then};

/// The machine, as both VMMs see it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    #[default]
    NotStarted,
    Running,
    Paused,
}

/// What to do otherwise than a real VMM, and the log.
#[derive(Debug)]
pub(crate) struct Script {
    folder: PathBuf,
    /// How many requests each rule has matched.
    counts: Mutex<HashMap<String, u64>>,
    end: Sender<u8>,
}

impl Script {
    /// The script in the folder that the environment names. A number sent through `end` is the
    /// process' exit code.
    pub(crate) fn open(end: Sender<u8>) -> Self {
        let folder = env::var_os(FOLDER_VARIABLE).expect("the folder with the rules");
        let script = Self {
            folder: folder.into(),
            counts: Mutex::default(),
            end,
        };
        script.log(&format!("{PID_MARK}{}", std::process::id()));
        script
    }

    /// Whether to open the API socket: a rule for `START` may end the process first, or have it do
    /// nothing.
    pub(crate) fn begin(&self) -> bool {
        match self.rule("START") {
            None => true,
            Some(rule) => {
                if rule.then == Then::Exit {
                    self.end(1);
                }
                false
            }
        }
    }

    /// Ends the process.
    pub(crate) fn end(&self, code: u8) {
        let _ = self.end.send(code);
    }

    /// Makes the guest reachable.
    pub(crate) fn show_guest(&self) {
        // It exists already when one process is started or loaded twice.
        let _ = symlink(self.folder.join(GUEST_SOCKET), "vsock.sock");
    }

    /// Logs a request, and gives the rule for it.
    pub(crate) fn rule(&self, request: &str) -> Option<Rule> {
        self.log(&format!("asked {request}"));
        let text = fs::read_to_string(self.folder.join(RULES)).unwrap_or_default();
        let rules: Value = serde_json::from_str(&text).unwrap_or_default();
        let rules = rules.as_array().into_iter().flatten();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in rules.filter_map(Rule::from_value) {
            if !request.starts_with(&rule.on) {
                continue;
            }
            // The same beginning in a later script has a count of its own.
            let count = counts.entry(format!("{text}{}", rule.on)).or_default();
            *count += 1;
            if *count == rule.nth {
                self.log(&format!("{MET_MARK}{request}"));
                return Some(rule);
            }
        }
        None
    }

    fn log(&self, line: &str) {
        let path = self.folder.join(LOG);
        let file = OpenOptions::new().append(true).create(true).open(path);
        // One write per line: several threads and processes share the file.
        let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        written.expect("a log");
    }
}

/// Sends what the rule says, or `proper`. `false` when the connection is finished.
pub(crate) fn answer(
    reader: &mut BufReader<UnixStream>,
    script: &Script,
    rule: &Rule,
    proper: &[u8],
) -> bool {
    if rule.is_late {
        // The next request stays unread.
        let _ = reader.fill_buf();
    }
    let bytes = rule.send.as_deref().unwrap_or(proper);
    let mut sent = send(reader.get_mut(), bytes, rule.is_bytewise);
    match rule.then {
        Then::Continue => return sent,
        Then::Hang => drop(io::copy(reader, &mut io::sink())),
        Then::Close => drop(reader.get_ref().shutdown(Shutdown::Both)),
        Then::Exit => {
            script.end(1);
            // The connection ends with the process, as with a real VMM, and not before.
            loop {
                std::thread::park();
            }
        }
        Then::Repeat => {
            while sent {
                sent = send(reader.get_mut(), bytes, rule.is_bytewise);
            }
        }
    }
    false
}

fn send(stream: &mut UnixStream, bytes: &[u8], is_bytewise: bool) -> bool {
    let len = if is_bytewise { 1 } else { bytes.len().max(1) };
    let mut pieces = bytes.chunks(len);
    pieces.all(|piece| stream.write_all(piece).is_ok())
}

/// Prints on standard output, which may be closed.
pub(crate) fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
