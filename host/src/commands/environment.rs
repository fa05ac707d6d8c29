//! The environment of a command in a guest, collected from `-e` and `--env-file`.
//!
//! Both follow docker. `NAME=VALUE` sets a variable. `NAME` alone passes on the value that it has
//! in this process, if any. A later entry replaces an earlier one, and `-e` replaces entries of
//! files. In a file the value is everything after the first `=`, quotes included. Empty lines and
//! lines that begin with `#` are skipped.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use shared::limits::EXEC_PAYLOAD_LEN_MAX;
use shared::message::ByteString;

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;

/// Values by name; any bytes except NUL.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment(BTreeMap<Vec<u8>, Vec<u8>>);

impl Environment {
    /// Reads `files`, then `pairs`; both in order.
    pub(crate) fn collect<P: AsRef<Path>>(files: &[P], pairs: &[String]) -> Result<Self, Failure> {
        let mut environment = Self::default();
        for file in files {
            environment.read_file(file.as_ref())?;
        }
        for pair in pairs {
            environment.add(pair.as_bytes()).map_err(|reason| {
                let pair = pair.escape_debug();
                Failure::usage(format!(
                    "-e takes NAME=VALUE or NAME, not '{pair}': {reason}"
                ))
            })?;
        }
        Ok(environment)
    }

    /// Passes on this process's value of `name`, unless an entry sets it.
    pub(crate) fn pass_on(&mut self, name: &str) {
        if !self.0.contains_key(name.as_bytes())
            && let Some(value) = env::var_os(name)
        {
            self.0.insert(name.into(), value.into_vec());
        }
    }

    /// The entries as `NAME=VALUE`, the form of EXEC.
    pub(crate) fn into_pairs(self) -> Vec<ByteString> {
        let pairs = self.0.into_iter();
        // None is dropped: `add` refuses a NUL byte, and values of this process have none.
        let pair =
            |(name, value): (Vec<u8>, Vec<u8>)| ByteString::new([&name[..], b"=", &value].concat());
        pairs.filter_map(pair).collect()
    }

    fn read_file(&mut self, path: &Path) -> Result<(), Failure> {
        let bytes = read_limited(path);
        let bytes = bytes.or_fail(Exit::Usage, || format!("cannot read {}", path.display()))?;
        // Some editors begin a UTF-8 file with a byte order mark. Docker skips it too.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            self.add(line).map_err(|reason| {
                let number = index + 1;
                Failure::usage(format!("{}:{number}: {reason}", path.display()))
            })?;
        }
        Ok(())
    }

    fn add(&mut self, entry: &[u8]) -> Result<(), &'static str> {
        if entry.contains(&0) {
            return Err("a NUL byte cannot be passed on");
        }
        let mut parts = entry.splitn(2, |&byte| byte == b'=');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err("the name before the '=' is missing");
        }
        if name.iter().any(u8::is_ascii_whitespace) {
            return Err("a name cannot contain white space");
        }
        let value = match parts.next() {
            Some(value) => Some(value.to_vec()),
            None => env::var_os(OsStr::from_bytes(name)).map(OsStringExt::into_vec),
        };
        if let Some(value) = value {
            self.0.insert(name.to_vec(), value);
        }
        Ok(())
    }
}

/// Reads a file. Fails if it is larger than an EXEC payload.
fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let limit = u64::try_from(EXEC_PAYLOAD_LEN_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let len = File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if len > EXEC_PAYLOAD_LEN_MAX {
        return Err(io::Error::other(format!(
            "the file is larger than {EXEC_PAYLOAD_LEN_MAX} bytes, the limit for an environment"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::TempDir;

    fn collect(file: &[u8], pairs: &[&str]) -> Result<Vec<String>, String> {
        let temp = TempDir::new("environment");
        let path = temp.path().join("env");
        fs::write(&path, file).unwrap();
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        let environment = Environment::collect(&[&path], &pairs);
        let environment = environment
            .map_err(|failure| failure.to_string().replace(path.to_str().unwrap(), "FILE"))?;
        let pairs = environment.into_pairs();
        Ok(pairs.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn files_are_read_as_docker_does() {
        let file = b"\xef\xbb\xbf# comment\n\nA=1 2 \r\n  B=\"x\"\nC=a=b\n #D=1\nE=\nF=\xff";
        let expected = ["A=1 2 ", "B=\\\"x\\\"", "C=a=b", "E=", "F=\u{fffd}"];
        assert_eq!(collect(file, &[]).unwrap(), expected);
    }

    #[test]
    fn later_entries_win_and_bare_names_take_this_processs_value() {
        let path = env::var("PATH").unwrap();
        let pairs = collect(b"A=1\nPATH\nA=2\n", &["A=3", "NO_SUCH_VARIABLE_HERE"]).unwrap();
        assert_eq!(pairs, ["A=3".to_owned(), format!("PATH={path}")]);
    }

    #[test]
    fn errors_give_the_file_and_line() {
        let text = "FILE:2: a name cannot contain white space";
        assert_eq!(collect(b"A=1\nB C=2\n", &[]).unwrap_err(), text);
        assert_eq!(
            collect(b"=x", &[]).unwrap_err(),
            "FILE:1: the name before the '=' is missing"
        );
        assert_eq!(
            collect(b"\n\nA=\0", &[]).unwrap_err(),
            "FILE:3: a NUL byte cannot be passed on"
        );
        let error = collect(b"", &["=x"]).unwrap_err();
        assert!(
            error.starts_with("-e takes NAME=VALUE or NAME, not '=x'"),
            "{error}"
        );
        let error = Environment::collect(&["/no/such"], &[]).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot read /no/such: "),
            "{error}"
        );
    }

    #[test]
    fn pass_on_keeps_a_value_that_was_set() {
        let mut environment = Environment::collect::<&str>(&[], &["PATH=x".to_owned()]).unwrap();
        environment.pass_on("PATH");
        assert_eq!(environment.into_pairs()[0].as_bytes(), b"PATH=x");
    }
}
