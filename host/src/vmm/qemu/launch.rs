//! QEMU's command line. No I/O.

use std::ffi::OsString;

use crate::vmm::launch::NIC_ID;
use crate::vmm::{API_SOCKET, MachineSpec, Start, drive_link};

/// The machine: no PCI, no display, devices on virtio-mmio that the guest finds through ACPI.
///
/// A stock kernel also boots without PIT and PIC, on KVM's clock, and seconds faster where
/// emulation is slow. The real-time clock gives a booting guest the time.
const MACHINE: &str = "microvm,acpi=on,rtc=on,pit=off,pic=off";

/// The kernel command line that a guest of this machine needs. It sets the console, ends the VMM
/// process when the guest reboots or panics (with `-no-reboot`), and skips the long search for a
/// PCI bus. The console is quiet because each byte on it is an exit from the guest.
const BOOT_ARGS: &str = "console=ttyS0 reboot=t panic=-1 pci=off quiet";

/// QEMU's message, on standard error, when another guest of this host has the CID.
const CID_CONFLICT: &str = "unable to set guest cid: Address already in use";

/// Arguments of a QEMU that runs in its VM directory. It stops before the guest's first
/// instruction, until a command over the API starts it.
pub(in crate::vmm) fn launch_args(name: &str, spec: &MachineSpec, start: Start) -> Vec<OsString> {
    let mut args = Vec::new();
    let mut add = |more: &[&str]| args.extend(more.iter().map(OsString::from));
    // A comma separates sub-options; two of them are a literal comma.
    add(&["-name", &name.replace(',', ",,")]);
    add(&["-M", MACHINE, "-accel", "kvm", "-cpu", "host"]);
    add(&[
        "-m",
        &format!("{}M", spec.memory_mib),
        "-smp",
        &spec.vcpu_count.to_string(),
    ]);
    add(&[
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]);
    add(&["-msg", "timestamp=on", "-serial", "stdio", "-S"]);
    add(&["-qmp", &format!("unix:{API_SOCKET},server=on,wait=off")]);
    // Without bus numbers the guest numbers its drives in this order; with ascending bus numbers it
    // would reverse them.
    for (index, drive) in spec.drives.iter().enumerate() {
        let name = drive_link(index);
        let mode = if drive.read_only { "on" } else { "off" };
        add(&[
            "-drive",
            &format!("id={name},file={name},format=raw,if=none,readonly={mode}"),
        ]);
        add(&["-device", &format!("virtio-blk-device,drive={name}")]);
    }
    if let Some(nic) = &spec.nic {
        // By default QEMU runs a script of the host for the device, at its start and at its end.
        let netdev = format!("tap,id={NIC_ID},ifname={},script=no,downscript=no", nic.tap);
        add(&["-netdev", &netdev]);
        let device = format!("virtio-net-device,netdev={NIC_ID},mac={}", nic.mac);
        add(&["-device", &device]);
    }
    let cid = spec.guest_cid;
    add(&["-device", &format!("vhost-vsock-device,guest-cid={cid}")]);
    match start {
        Start::Load => add(&["-incoming", "defer"]),
        Start::Boot => {
            let append = format!("{BOOT_ARGS} {}", spec.append);
            add(&["-append", append.trim_end()]);
            args.extend(["-kernel".into(), spec.kernel.clone().into_os_string()]);
            args.extend(["-initrd".into(), spec.initrd.clone().into_os_string()]);
        }
    }
    args
}

/// Whether the end of QEMU's log says that another guest has the CID. A start that fails for this
/// reason is worth another try, with another CID.
pub(crate) fn is_cid_conflict(log_tail: &str) -> bool {
    log_tail.contains(CID_CONFLICT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::testing::machine;
    use crate::vmm::{Drive, Nic};

    fn spec(drives: Vec<Drive>) -> MachineSpec {
        MachineSpec {
            drives,
            guest_cid: 42,
            ..machine()
        }
    }

    fn line(start: Start, drives: Vec<Drive>) -> String {
        let args = launch_args("web,1", &spec(drives), start);
        args.join(&OsString::from(" ")).into_string().unwrap()
    }

    const COMMON: &str = "-name web,,1 -M microvm,acpi=on,rtc=on,pit=off,pic=off -accel kvm \
        -cpu host -m 256M -smp 2 -no-user-config -nodefaults -display none -no-reboot \
        -msg timestamp=on -serial stdio -S -qmp unix:api.sock,server=on,wait=off";
    const VSOCK: &str = "-device vhost-vsock-device,guest-cid=42";

    #[test]
    fn a_boot_has_kernel_and_initramfs() {
        let expected = format!(
            "{COMMON} {VSOCK} -append console=ttyS0 reboot=t panic=-1 pci=off quiet agent.port=1 \
             -kernel /k -initrd /i"
        );
        assert_eq!(line(Start::Boot, Vec::new()), expected);
    }

    #[test]
    fn a_load_has_the_same_machine_and_no_kernel() {
        let expected = format!("{COMMON} {VSOCK} -incoming defer");
        assert_eq!(line(Start::Load, Vec::new()), expected);
    }

    #[test]
    fn drives_are_opened_by_their_links_and_keep_their_order() {
        let drives = vec![
            Drive {
                path: "/a,b".into(),
                read_only: true,
            },
            Drive {
                path: "/c".into(),
                read_only: false,
            },
        ];
        let expected = format!(
            "{COMMON} -drive id=drive0,file=drive0,format=raw,if=none,readonly=on \
             -device virtio-blk-device,drive=drive0 \
             -drive id=drive1,file=drive1,format=raw,if=none,readonly=off \
             -device virtio-blk-device,drive=drive1 \
             {VSOCK} -incoming defer"
        );
        assert_eq!(line(Start::Load, drives), expected);
    }

    #[test]
    fn an_interface_is_on_its_tap_device() {
        let nic = Nic {
            tap: "tap0".to_owned(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            has_mmds: false,
        };
        let spec = MachineSpec {
            nic: Some(nic),
            ..spec(Vec::new())
        };
        let args = launch_args("web,1", &spec, Start::Load).join(&OsString::from(" "));
        let expected = format!(
            "{COMMON} -netdev tap,id=nic0,ifname=tap0,script=no,downscript=no \
             -device virtio-net-device,netdev=nic0,mac=02:00:00:00:00:01 {VSOCK} -incoming defer"
        );
        assert_eq!(args.into_string().unwrap(), expected);
    }

    #[test]
    fn a_cid_conflict_is_recognised_among_other_lines() {
        let log = "2026-01-01T00:00:00Z qemu-system-x86_64: -device vhost-vsock-device,guest-cid=3: \
                   vhost-vsock: unable to set guest cid: Address already in use\n";
        assert!(is_cid_conflict(log));
        assert!(!is_cid_conflict(
            "qemu-system-x86_64: load of migration failed"
        ));
    }
}
