//! Values as users write them on the command line: times, sizes, names, drives.
//!
//! The error of each parser is a sentence for the user.

pub(crate) mod keyword;
pub(crate) mod network;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use shared::message::{Identity, is_tag};

use crate::os::random;

/// Bytes of a mebibyte.
pub(crate) const MIB: u64 = 1024 * 1024;

/// Longest name of a VM, in bytes. It is a path component and, by default, the guest's host name.
pub(crate) const NAME_LEN_MAX: usize = 63;

/// Longest time limit. A longer one is probably a wrong unit.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Most guest memory, in MiB: 16 TiB. More is probably a wrong unit.
const MEMORY_MIB_MAX: u32 = 16 * 1024 * 1024;

/// The error of a parser that expects `what`.
fn is_not(text: &str, what: &str) -> String {
    format!("'{}' is not {what}", text.escape_debug())
}

/// Splits `30s` into 30 and `s`. `None` if there is no number, or it is out of range.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..end].parse().ok()?;
    Some((number, &text[end..]))
}

/// Parses `500ms`, `30s`, `2m` or `1h`. The unit is required, because some tools take a number
/// without one for seconds and others for milliseconds.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    let millis = split_unit(text).and_then(|(number, unit)| {
        let millis_per_unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            _ => return None,
        };
        Some(number.saturating_mul(millis_per_unit))
    });
    let millis = millis.ok_or_else(|| is_not(text, "a time such as 500ms, 30s or 2m"))?;
    let timeout = Duration::from_millis(millis);
    if timeout.is_zero() {
        return Err("a time limit must be more than zero".to_owned());
    }
    if timeout > TIMEOUT_MAX {
        return Err(format!("'{text}' is more than the longest time limit, 24h"));
    }
    Ok(timeout)
}

/// Parses `256M`, `256MiB`, `1G` or `1GiB`, in MiB.
pub(crate) fn parse_memory_mib(text: &str) -> Result<u32, String> {
    let mib = split_unit(text).and_then(|(number, unit)| {
        let mib_per_unit = match unit {
            "M" | "MiB" => 1,
            "G" | "GiB" => 1024,
            _ => return None,
        };
        let mib = number.saturating_mul(mib_per_unit);
        u32::try_from(mib).ok()
    });
    mib.filter(|mib| (1..=MEMORY_MIB_MAX).contains(mib))
        .ok_or_else(|| is_not(text, "an amount of memory such as 256M or 1G"))
}

/// The name of a VM: one safe path component that is also a host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VmName(String);

impl VmName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a VM without `--name`.
    pub(crate) fn generated(random: [u8; 4]) -> Self {
        Self(format!("vm-{:08x}", u32::from_be_bytes(random)))
    }
}

impl FromStr for VmName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_valid = text.bytes().next().is_some_and(is_plain)
            && text
                .bytes()
                .all(|byte| is_plain(byte) || b"._-".contains(&byte))
            && text.len() <= NAME_LEN_MAX;
        if is_valid {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "'{}' cannot name a VM: use a lower-case letter or digit, then up to {} more of them, \
             '.', '_' or '-'",
            text.escape_debug(),
            NAME_LEN_MAX - 1
        ))
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The argument of `--drive`: `FILE` or `FILE:ro`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DriveArgument {
    /// The image file.
    pub(crate) path: PathBuf,
    /// The guest may not write to it.
    pub(crate) read_only: bool,
}

impl FromStr for DriveArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        if path.is_empty() {
            return Err(is_not(text, "a drive such as disk.ext4 or disk.ext4:ro"));
        }
        let path = Path::new(path).to_path_buf();
        Ok(Self { path, read_only })
    }
}

/// What to do with a guest's machine id (`machine-id(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MachineId {
    Keep,
    /// Set a random one, so that clones of one guest differ.
    Draw,
    /// Set this one.
    Given(String),
}

impl MachineId {
    /// The id to set, if any.
    pub(crate) fn choose(&self) -> io::Result<Option<String>> {
        match self {
            Self::Keep => Ok(None),
            Self::Draw => {
                let drawn = u128::from_be_bytes(random::bytes()?);
                Ok(Some(format!("{drawn:032x}")))
            }
            Self::Given(id) => Ok(Some(id.clone())),
        }
    }
}

impl FromStr for MachineId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            id if Identity::is_machine_id(id) => Ok(Self::Given(id.to_owned())),
            _ => Err(format!(
                "'{}' is neither 'keep' nor 32 lower-case hexadecimal digits",
                text.escape_debug()
            )),
        }
    }
}

/// `message` with every control character escaped, line ends included. All else stays as it is,
/// also what is escaped already. This is the last step before a message goes to a terminal: parts
/// of it may come from a VMM or a file.
pub(crate) fn without_controls(message: &str) -> String {
    let mut safe = String::with_capacity(message.len());
    for char in message.chars() {
        if char.is_control() {
            safe.extend(char.escape_default());
        } else {
            safe.push(char);
        }
    }
    safe
}

/// `text` on one line, with everything escaped that could control a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.escape_debug()
        .to_string()
        .replace("\\'", "'")
        .replace("\\\"", "\"")
}

/// Most clones of one command. Each needs four descriptors until all are done, and a process may
/// have 1024 open.
pub(crate) const COUNT_MAX: usize = 128;

/// Parses `--count` and `--parallel`.
pub(crate) fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok();
    count
        .filter(|count| (1..=COUNT_MAX).contains(count))
        .ok_or_else(|| is_not(text, &format!("a number from 1 to {COUNT_MAX}")))
}

/// The checkpoint to wait for: one with this tag, or any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckpointTag(pub(crate) Option<String>);

impl CheckpointTag {
    /// Parses the value of `--at-checkpoint=`. An empty one means any.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self(None)),
            text if is_tag(text) => Ok(Self(Some(text.to_owned()))),
            _ => Err("a tag is 1 to 256 printable ASCII characters without spaces".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_a_unit_and_are_not_zero() {
        let millis = |text| parse_timeout(text).map(|timeout| timeout.as_millis());
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("30s"), Ok(30_000));
        assert_eq!(millis("2m"), Ok(120_000));
        assert_eq!(millis("24h"), Ok(86_400_000));
        for bad in [
            "",
            "5",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "25h",
            "1 s",
            "99999999999999999999s",
            "5S",
        ] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_is_whole_mebibytes() {
        assert_eq!(parse_memory_mib("256M"), Ok(256));
        assert_eq!(parse_memory_mib("2GiB"), Ok(2048));
        for bad in [
            "",
            "256",
            "0M",
            "M",
            "1T",
            "99999999G",
            "18446744073709551615G",
            "1.5G",
        ] {
            assert!(parse_memory_mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_one_safe_path_component() {
        let longest = "a".repeat(NAME_LEN_MAX);
        for good in ["a", "0", "clone-1", "a.b_c-d", &longest] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(NAME_LEN_MAX + 1);
        for bad in [
            "", ".", "..", "-a", ".a", "A", "a/b", "a b", "é", "a\n", &too_long,
        ] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
        }
        let generated = VmName::generated([0, 1, 2, 255]);
        assert_eq!(generated.as_str(), "vm-000102ff");
        assert_eq!(generated.as_str().parse(), Ok(generated));
    }

    #[test]
    fn a_machine_id_is_kept_drawn_or_given() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!("keep".parse(), Ok(MachineId::Keep));
        let given: MachineId = id.parse().unwrap();
        assert_eq!(given.choose().unwrap().as_deref(), Some(id));
        assert_eq!(MachineId::Keep.choose().unwrap(), None);
        let draw = || MachineId::Draw.choose().unwrap().unwrap();
        assert!(Identity::is_machine_id(&draw()));
        assert_ne!(draw(), draw());
        for bad in ["", "Keep", "abc", &id.to_uppercase(), &format!("{id}0")] {
            assert!(bad.parse::<MachineId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn drives_are_writable_without_ro() {
        let drive = |text: &str| {
            text.parse()
                .map(|drive: DriveArgument| (drive.path, drive.read_only))
        };
        assert_eq!(drive("a.img"), Ok(("a.img".into(), false)));
        assert_eq!(drive("a.img:rw"), Ok(("a.img".into(), false)));
        assert_eq!(drive("/x/a:b:ro"), Ok(("/x/a:b".into(), true)));
        assert!(drive(":ro").is_err() && drive("").is_err());
    }

    #[test]
    fn a_message_is_one_line_and_what_was_escaped_stays() {
        let escaped = without_controls("caf\u{e9} \x1b[2J\u{9b}\r\n\\u{1b}");
        assert_eq!(escaped, "caf\u{e9} \\u{1b}[2J\\u{9b}\\r\\n\\u{1b}");
    }

    #[test]
    fn what_a_guest_says_cannot_steer_a_terminal() {
        assert_eq!(printable("it's \"fine\""), "it's \"fine\"");
        assert_eq!(printable("\x1b[2Ja\nb"), "\\u{1b}[2Ja\\nb");
    }

    #[test]
    fn counts_have_a_limit() {
        assert_eq!(parse_count("1"), Ok(1));
        assert_eq!(parse_count("128"), Ok(COUNT_MAX));
        for bad in ["0", "129", "-1", "", "two", "99999999999999999999"] {
            let error = parse_count(bad).unwrap_err();
            assert!(error.contains("from 1 to 128"), "{error}");
        }
    }

    #[test]
    fn a_tag_may_be_any_and_must_be_one() {
        assert_eq!(CheckpointTag::parse(""), Ok(CheckpointTag(None)));
        let tag = CheckpointTag(Some("sha256:1".to_owned()));
        assert_eq!(CheckpointTag::parse("sha256:1"), Ok(tag));
        assert!(CheckpointTag::parse("a b").is_err());
    }
}
