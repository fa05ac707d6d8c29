//! What the guest has cut or lost of a command, in words.

use std::io;

use shared::message::Fault;

/// The fault with its reason. A guest's numbers are those of Linux, as here.
pub(crate) fn fault_text(fault: &Fault) -> String {
    format!("{fault}: {}", io::Error::from_raw_os_error(fault.errno))
}

#[cfg(test)]
mod tests {
    use shared::message::FaultPart;

    use super::*;

    #[test]
    fn a_fault_names_the_place_and_the_reason() {
        for (part, text) in [
            (FaultPart::Stdin, "cut standard input at byte 7: Input/"),
            (FaultPart::Stdout, "lost standard output from byte 7 on: "),
            (FaultPart::Stderr, "lost standard error from byte 7 on: "),
            (FaultPart::Process, "how it ended is unknown: Input/output"),
        ] {
            let fault = Fault {
                part,
                offset: 7,
                errno: libc::EIO,
            };
            let found = fault_text(&fault);
            assert!(found.contains(text), "{found}");
        }
        let odd = Fault {
            part: FaultPart::Stdin,
            offset: 0,
            errno: i32::MIN,
        };
        assert!(fault_text(&odd).contains("-2147483648"), "any number");
    }
}
