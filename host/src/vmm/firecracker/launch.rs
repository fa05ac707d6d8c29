//! Firecracker's command line. No I/O.

use std::ffi::OsString;

use crate::vmm::{API_SOCKET, VMM_LOG};

/// Longest instance id that Firecracker accepts.
const INSTANCE_ID_LEN_MAX: usize = 64;

/// Arguments of a Firecracker that runs in its VM directory. It logs to a file, because its
/// standard output is the guest's serial console.
pub(in crate::vmm) fn launch_args(name: &str) -> Vec<OsString> {
    let id = instance_id(name);
    [
        "--api-sock",
        API_SOCKET,
        "--id",
        &id,
        "--log-path",
        VMM_LOG,
        "--level",
        "Info",
    ]
    .map(OsString::from)
    .into()
}

/// Firecracker accepts letters, digits and hyphens. The id appears only in its log.
fn instance_id(name: &str) -> String {
    let is_accepted = |c: char| c.is_ascii_alphanumeric();
    name.chars()
        .take(INSTANCE_ID_LEN_MAX)
        .map(|c| if is_accepted(c) { c } else { '-' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ids_that_firecracker_accepts() {
        assert_eq!(instance_id("web_1.a"), "web-1-a");
        assert_eq!(instance_id(&"x".repeat(80)).len(), INSTANCE_ID_LEN_MAX);
        let args = launch_args("vm").join(&OsString::from(" "));
        assert_eq!(
            args,
            "--api-sock api.sock --id vm --log-path vmm.log --level Info"
        );
    }
}
