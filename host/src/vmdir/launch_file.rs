//! `launch.json` in a VM directory: the VMM command line that the supervisor runs.

use serde_json::{Value, json};

use super::error::VmDirError;
use super::names::LAUNCH;
use super::vm_dir::VmDir;
use crate::os::json::{os_to_value, value_to_os, value_to_path};
use crate::vmm::Launch;

const ARGS_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaunchFile(pub(crate) Launch);

impl LaunchFile {
    pub(crate) fn write(&self, dir: &VmDir) -> Result<(), VmDirError> {
        let args: Vec<Value> = self.0.args.iter().map(os_to_value).collect();
        let value = json!({ "program": os_to_value(&self.0.program), "args": args });
        dir.replace(LAUNCH, &value)
    }

    pub(crate) fn read(dir: &VmDir) -> Result<Self, VmDirError> {
        let launch = dir.read_required(LAUNCH, |object| {
            Ok(Launch {
                program: object.get("program", "a path", value_to_path)?,
                args: object.list("args", ARGS_MAX, "a list of arguments", value_to_os)?,
            })
        })?;
        Ok(Self(launch))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_launch_is_carried_byte_by_byte() {
        let temp = TempDir::new("link");
        let dir = VmDir::of_test(temp.path());
        let odd = OsString::from_vec(vec![b'x', 0xff]);
        let launch = Launch {
            program: "/bin/\u{e9}".into(),
            args: vec![odd, "-S".into()],
        };
        LaunchFile(launch.clone()).write(&dir).unwrap();
        assert_eq!(LaunchFile::read(&dir).unwrap().0, launch);
    }
}
