//! What reaches `guest-agent` besides its peers: the kernel command line, the image's files, and
//! answers of the metadata service.

use agent::accounts::{self, AccountError};
use agent::agent::http::{self, ANSWER_LEN_MAX};
use agent::agent::{Restart, WorkloadEnd, WorkloadSettings};
use agent::config::workload::parse_file;
use agent::config::{self, BadValue, Config, Flags, Sources};
use serde_json::{Value, json};

use crate::host_inputs::beginnings;

/// Separates the parts of an input (the record separator of ASCII).
const SEPARATOR: u8 = 0x1e;

/// The kernel command line. Words for other programs change nothing, however they are quoted, and
/// each value in a complaint was given.
pub fn kernel_command_line(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else {
        return;
    };
    let expected = settings(line);
    let others = "quiet x.agent.log=off agent.log \"agent log=off \" init=\"a agent.port=1\" ";
    assert_eq!(settings(&format!("{others}{line}")), expected, "{line:?}");
    // A word at the end counts, unless a quote before it is open.
    if line.matches('"').count().is_multiple_of(2) {
        let (bad, _) = settings(&format!(
            "{line} agent.port=none agent.listen=none agent.log=none"
        ));
        let is_there = |name: &str| {
            let source = format!("agent.{name}");
            bad.iter()
                .any(|it| it.source == source && it.value == "none")
        };
        assert!(
            ["port", "listen", "log"].into_iter().all(is_there),
            "{line:?}"
        );
    }
    for BadValue { source, value, .. } in expected.0 {
        let name = source
            .strip_prefix("agent.")
            .expect("nothing else was given");
        let given = [format!("{name}={value}"), format!("{name}=\"{value}")];
        assert!(
            given.iter().any(|given| line.contains(given)),
            "{value:?} was not given"
        );
    }
}

/// The complaints, and the settings.
fn settings(line: &str) -> (Vec<BadValue>, Config) {
    let sources = Sources::new(&Flags::default(), [], line);
    let (config, bad) = config::resolve(&sources);
    (bad, config)
}

/// `agent.json`. What it names can be run, and reading what was written gives the same.
pub fn agent_json(data: &[u8]) {
    let Ok(file) = parse_file(data) else {
        return;
    };
    let Some(workload) = file.workload else {
        return;
    };
    let optional = || workload.cwd.iter().chain(&workload.user);
    let mut strings = workload.argv.iter().chain(&workload.env).chain(optional());
    assert!(strings.all(|string| !string.contains(&0)), "a NUL");
    assert!(!workload.argv.is_empty(), "nothing to run");
    assert!(optional().all(|string| !string.is_empty()), "an empty name");
    let is_pair = |pair: &Vec<u8>| pair[1..].contains(&b'=') && pair[0] != b'=';
    assert!(workload.env.iter().all(is_pair), "no NAME=value");
    let written = to_value(&workload).to_string();
    let again = parse_file(written.as_bytes()).expect("what was written is read");
    assert_eq!(again.workload, Some(workload));
}

fn to_value(workload: &WorkloadSettings) -> Value {
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).expect("it was JSON");
    let texts = |list: &[Vec<u8>]| list.iter().map(text).collect::<Vec<_>>();
    json!({ "workload": {
        "argv": texts(&workload.argv),
        "env": texts(&workload.env),
        "cwd": workload.cwd.as_ref().map(text),
        "user": workload.user.as_ref().map(text),
        "restart": match workload.restart {
            Restart::No => "no",
            Restart::OnFailure => "on-failure",
        },
        "at_end": match workload.at_end {
            WorkloadEnd::Keep => "keep",
            WorkloadEnd::PowerOff => "poweroff",
        },
    }})
}

/// A user, the text of `passwd` and that of `group`, with separators between them. The ids are
/// valid for the kernel, stand in the files or in the name, and do not change with lines that are
/// not entries.
pub fn accounts(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == SEPARATOR);
    let [wanted, passwd, group] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let found = accounts::resolve(wanted, passwd, group);
    let behind = |text: &[u8]| {
        [
            text,
            b"\n#root:x:0:0::/:\n+\n\n:x:0:0:\n-@a:x:1:1:root:/:\n\0:",
        ]
        .concat()
    };
    let again = accounts::resolve(wanted, &behind(passwd), &behind(group));
    assert_eq!(again, found, "lines that are no entries count");
    let account = match found {
        Ok(account) => account,
        Err(AccountError::NoUserGiven) => return assert!(wanted.is_empty() || wanted[0] == b':'),
        Err(_) => return,
    };
    assert_eq!(account.groups.first(), Some(&account.gid));
    for (at, id) in account.groups.iter().enumerate() {
        assert!(!account.groups[..at].contains(id), "group {id} twice");
    }
    let mut ids = account.groups.iter().chain([&account.uid, &account.gid]);
    assert!(ids.all(|id| *id != u32::MAX), "an id that means none");
    assert!(
        !account.home.is_empty() && !account.home.contains(&0),
        "no folder"
    );
    let texts = [wanted, passwd, group].map(String::from_utf8_lossy);
    for id in account.groups.iter().chain([&account.uid]) {
        let is_given = texts.iter().any(|text| text.contains(&id.to_string()));
        // With leading zeros, or with the group of a user without an entry.
        let is_padded = texts.iter().any(|text| text.contains("00"));
        assert!(is_given || is_padded || *id == 0, "{id} comes from nowhere");
    }
}

/// An answer of the metadata service. Rejected bytes stay rejected, an answer ends where its bytes
/// do and within its limit, and reading what was written gives the same.
pub fn metadata_answer(data: &[u8]) {
    let verdict = http::parse(data);
    for beginning in beginnings(data) {
        let is_final = http::parse(beginning) != Ok(None);
        assert!(!is_final || verdict.is_err(), "more bytes make an answer");
    }
    let Ok(Some(answer)) = verdict else {
        return;
    };
    assert!((100..600).contains(&answer.status), "{answer:?}");
    assert!(data.len() <= ANSWER_LEN_MAX && data.ends_with(answer.body));
    let (status, len) = (answer.status, answer.body.len());
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n");
    let written = [head.as_bytes(), answer.body].concat();
    if written.len() <= ANSWER_LEN_MAX {
        assert_eq!(http::parse(&written), Ok(Some(answer)), "written anew");
    }
}
