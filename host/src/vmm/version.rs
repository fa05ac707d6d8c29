//! The kinds of VMM, and their versions.

use std::fmt;
use std::str::FromStr;

/// The implementations of [`Vmm`](super::Vmm).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum VmmKind {
    /// Firecracker, by its API socket.
    Firecracker,
    /// QEMU's `microvm` machine with vhost-vsock, by QMP.
    Qemu,
}

impl VmmKind {
    /// Both, in the order in which they are looked for.
    pub(crate) const ALL: [Self; 2] = [Self::Firecracker, Self::Qemu];
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        })
    }
}

impl FromStr for VmmKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "firecracker" => Ok(Self::Firecracker),
            "qemu" => Ok(Self::Qemu),
            _ => Err(format!(
                "unknown VMM '{text}', expected firecracker or qemu"
            )),
        }
    }
}

/// Major, minor and patch number.
pub(super) type Number = (u32, u32, u32);

/// A release, compared by its three numbers.
#[derive(Debug, Clone)]
pub(crate) struct VmmVersion {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Third number; 0 where the text has only two.
    pub(crate) patch: u32,
    /// The version as the VMM wrote it, with a suffix if it has one (`1.17.0-dev`).
    pub(crate) text: String,
}

impl VmmVersion {
    /// Parses a bare version, or the first line of a `--version` output: the first word there that
    /// starts with a number and a dot, after an optional `v`.
    pub(crate) fn parse(text: &str) -> Result<Self, VersionError> {
        let line = text.lines().next().unwrap_or_default();
        line.split_whitespace()
            .find_map(Self::from_word)
            .ok_or_else(|| VersionError {
                text: line.chars().take(VersionError::TEXT_LEN_MAX).collect(),
            })
    }

    fn from_word(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let end = word
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(word.len());
        let mut numbers = word[..end]
            .trim_end_matches('.')
            .split('.')
            .map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next()?.ok()?;
        let patch = numbers.next().unwrap_or(Ok(0)).ok()?;
        Some(Self {
            major,
            minor,
            patch,
            text: word.to_owned(),
        })
    }

    pub(super) const fn number(&self) -> Number {
        (self.major, self.minor, self.patch)
    }
}

impl PartialEq for VmmVersion {
    fn eq(&self, other: &Self) -> bool {
        self.number() == other.number()
    }
}

impl Eq for VmmVersion {}

impl PartialOrd for VmmVersion {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for VmmVersion {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

impl fmt::Display for VmmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text without a version. A VMM of unknown version is not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionError {
    text: String,
}

impl VersionError {
    const TEXT_LEN_MAX: usize = 80;
}

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot find a version in '{}'", self.text)
    }
}

impl std::error::Error for VersionError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parsed(text: &str, number: Number, kept: &str) {
        let version = VmmVersion::parse(text).unwrap();
        assert_eq!((version.number(), version.text.as_str()), (number, kept));
    }

    #[test]
    fn versions_are_found_where_vmms_print_them() {
        parsed("Firecracker v1.16.1\n\n2026 exiting", (1, 16, 1), "1.16.1");
        parsed("Firecracker v1.17.0-dev", (1, 17, 0), "1.17.0-dev");
        parsed("1.10.1", (1, 10, 1), "1.10.1");
        parsed(
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
            (7, 2, 22),
            "7.2.22",
        );
        parsed("QEMU emulator version 10.0 (v10.0.0)", (10, 0, 0), "10.0");
        parsed(
            "Firecracker v1.16.1-5-gabcdef",
            (1, 16, 1),
            "1.16.1-5-gabcdef",
        );
    }

    #[test]
    fn text_without_a_version_is_an_error() {
        for text in [
            "",
            "\n1.2.3",
            "Firecracker",
            "v",
            "1",
            "v.1",
            "99999999999.1.1",
            "é1.2",
        ] {
            assert!(VmmVersion::parse(text).is_err(), "{text}");
        }
        let err = VmmVersion::parse("who knows").unwrap_err();
        assert_eq!(err.to_string(), "cannot find a version in 'who knows'");
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |text| VmmVersion::parse(text).unwrap();
        assert!(version("1.9.9") < version("1.10.0"));
        assert!(version("1.16.1") < version("1.16.2"));
        assert!(version("1.16.1") < version("2.0"));
        assert_eq!(version("1.17.0-dev"), version("1.17.0"));
    }

    #[test]
    fn kinds_are_written_as_they_are_read() {
        for kind in VmmKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let err = "xen".parse::<VmmKind>().unwrap_err();
        assert_eq!(
            err.to_string(),
            "unknown VMM 'xen', expected firecracker or qemu"
        );
    }
}
