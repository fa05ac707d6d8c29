//! A VM's network interface: the tap device it is on, and what its guest is told about it.
//!
//! The tap device is made, addressed and connected by somebody else. The guest's address, MAC and
//! default route travel in the REBIND that names it, so that they hold before it is ready.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};
use shared::json::{JsonError, Object};
use shared::message::{InterfaceAddress, MacAddress, Network};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::random;
use crate::sys::tap;
use crate::values::network::NicArgument;
use crate::vmm::{MachineSpec, Nic, VmmKind, VmmVersion};

/// The first Firecracker that can load a snapshot with another tap device than its own.
const OVERRIDE_VERSION_MIN: (u32, u32) = (1, 12);

/// What the options say about the guest's network.
pub(crate) fn settings(
    address: Option<InterfaceAddress>,
    mac: Option<MacAddress>,
    gateway: Option<IpAddr>,
) -> Result<Network, Failure> {
    let network = Network {
        interface: None,
        address,
        mac,
        gateway,
    };
    if network.has_one_family() {
        return Ok(network);
    }
    let text = "--net-address and --net-gateway are of two families of addresses";
    Err(Failure::usage(text))
}

/// Fails where there is something to set, and nothing to set it on.
pub(crate) fn require_nic(network: &Network, machine: &MachineSpec) -> Result<(), Failure> {
    if *network == Network::default() || machine.nic.is_some() {
        return Ok(());
    }
    let text = "--net-address, --net-mac and --net-gateway need a VM with a network interface, \
                which it gets from 'host-tool boot --nic TAP'";
    Err(Failure::usage(text))
}

/// The interface of a VM that boots. VMs that were given no MAC address do not share one.
pub(crate) fn nic(argument: &NicArgument, has_mmds: bool) -> Result<Nic, Failure> {
    let mac = match argument.mac {
        Some(mac) => mac,
        None => {
            let drawn = random::bytes();
            let drawn = drawn.or_fail(Exit::Internal, || "cannot draw a MAC address".to_owned())?;
            MacAddress::from_random(drawn)
        }
    };
    let tap = argument.tap.clone();
    Ok(Nic { tap, mac, has_mmds })
}

/// Puts the interface of a VM that is restored on another tap device. Gives that device's name if
/// it is another one.
pub(crate) fn move_nic(
    machine: &mut MachineSpec,
    argument: Option<&NicArgument>,
) -> Result<Option<String>, Failure> {
    let Some(argument) = argument else {
        return Ok(None);
    };
    if argument.mac.is_some() {
        let text = "a restored guest has the MAC address of its snapshot; --net-mac gives it \
                    another";
        return Err(Failure::usage(text));
    }
    let Some(nic) = &mut machine.nic else {
        let text = "the snapshot's manifest has no network interface, and --nic can add none to it";
        return Err(Failure::usage(text));
    };
    if nic.tap == argument.tap {
        return Ok(None);
    }
    nic.tap.clone_from(&argument.tap);
    Ok(Some(argument.tap.clone()))
}

/// Fails where the VMM cannot load a snapshot with another tap device than its own.
pub(crate) fn judge_move(
    tap: Option<&str>,
    kind: VmmKind,
    version: &VmmVersion,
) -> Result<(), Failure> {
    let can_move = match kind {
        VmmKind::Firecracker => (version.major, version.minor) >= OVERRIDE_VERSION_MIN,
        VmmKind::Qemu => true,
    };
    match tap {
        Some(tap) if !can_move => {
            let text = format!(
                "{kind} {version} cannot load a snapshot with another tap device ('{tap}') than it \
                 was made with; use Firecracker 1.12 or newer, or that device"
            );
            Err(Failure::new(Exit::Version, text))
        }
        Some(_) | None => Ok(()),
    }
}

/// Sees to it that a VMM can use the tap device, before one is started and fails late.
pub(crate) fn check_tap(nic: &Nic) -> Result<(), Failure> {
    let tap = &nic.tap;
    let device = Path::new("/sys/class/net").join(tap);
    let refuse = |text: String| Err(Failure::new(Exit::Start, text));
    if !device.exists() {
        return refuse(format!(
            "there is no tap device '{tap}'; make one with 'ip tuntap add {tap} mode tap'"
        ));
    }
    if !device.join("tun_flags").exists() {
        return refuse(format!("the network interface '{tap}' is no tap device"));
    }
    match tap::attach(tap) {
        Ok(_) => Ok(()),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::ResourceBusy => "another VM uses it; give this one its own, --nic",
                io::ErrorKind::PermissionDenied => "be root, or the user that the device is for",
                io::ErrorKind::NotFound => "load the kernel module 'tun'",
                _ => "is it a tap device of one queue?",
            };
            let text = format!("cannot use the tap device '{tap}' ({remedy})");
            Err(error).or_fail(Exit::Start, || text)
        }
    }
}

/// A network interface, for files.
#[must_use]
pub(crate) fn nic_to_value(nic: &Nic) -> Value {
    json!({ "tap": nic.tap, "mac": nic.mac.to_string(), "mmds": nic.has_mmds })
}

/// Reads what [`nic_to_value`] wrote; none where an older version wrote nothing.
pub(crate) fn nic_from_object(
    object: &Object,
    field: &'static str,
) -> Result<Option<Nic>, JsonError> {
    let Some(object) = object.opt_object(field)? else {
        return Ok(None);
    };
    let tap = object.text("tap")?;
    if !Network::is_interface(&tap) {
        return Err(object.error("tap", "an interface's name"));
    }
    let mac = object.parsed("mac", "a MAC address")?;
    let has_mmds = object.flag("mmds")?;
    Ok(Some(Nic { tap, mac, has_mmds }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::network::{parse_address, parse_gateway, parse_mac};

    fn machine(nic: Option<Nic>) -> MachineSpec {
        MachineSpec {
            nic,
            ..crate::vmdir::state::tests::state().machine
        }
    }

    fn on(tap: &str) -> Nic {
        nic(&tap.parse().unwrap(), false).unwrap()
    }

    #[test]
    fn a_restore_moves_the_interface_it_has() {
        let mut with = machine(Some(on("tap0")));
        let moved = |machine: &mut MachineSpec, tap: &str| {
            move_nic(machine, Some(&tap.parse().unwrap())).map_err(|failure| failure.exit())
        };
        assert_eq!(moved(&mut with, "tap0"), Ok(None));
        assert_eq!(moved(&mut with, "tap1"), Ok(Some("tap1".to_owned())));
        assert_eq!(with.nic.as_ref().unwrap().tap, "tap1");
        assert_ne!(on("tap0").mac, on("tap0").mac, "each VM draws its own");
        let with_mac = moved(&mut with, "tap1,mac=02:00:00:00:00:01");
        assert_eq!(with_mac, Err(Exit::Usage));
        assert_eq!(moved(&mut machine(None), "tap1"), Err(Exit::Usage));

        let judged = |kind, version: &str| {
            judge_move(Some("tap1"), kind, &VmmVersion::parse(version).unwrap()).is_ok()
        };
        assert!(judged(VmmKind::Firecracker, "1.12.0") && judged(VmmKind::Qemu, "7.2.0"));
        assert!(!judged(VmmKind::Firecracker, "1.11.0"));
    }

    #[test]
    fn settings_need_an_interface_and_one_family() {
        let address = parse_address("10.0.0.2/24").ok();
        let gateway = |text| parse_gateway(text).ok();
        let network = settings(address, None, gateway("10.0.0.1")).unwrap();
        assert!(settings(address, None, gateway("fe80::1")).is_err());
        assert!(require_nic(&network, &machine(None)).is_err());
        require_nic(&network, &machine(Some(on("tap0")))).unwrap();
        require_nic(&Network::default(), &machine(None)).unwrap();
        assert!(parse_gateway("0.0.0.0").is_err() && parse_gateway("10.0.0.1/24").is_err());
    }

    #[test]
    fn what_is_no_tap_device_is_refused_in_words() {
        let text = |tap: &str| check_tap(&on(tap)).unwrap_err().to_string();
        assert!(text("no-such-tap").contains("ip tuntap add no-such-tap mode tap"));
        assert!(text("lo").contains("is no tap device"));
    }

    #[test]
    fn networks_survive_their_file() {
        let network = settings(
            parse_address("fd00::2/64").ok(),
            parse_mac("02:00:00:00:00:01").ok(),
            parse_gateway("fd00::1").ok(),
        );
        let network = network.unwrap();
        let text = network.to_value().to_string();
        let object = Object::parse(text.as_bytes()).unwrap();
        assert_eq!(Network::from_object(&object).unwrap(), network);
        assert_eq!(
            Network::from_object(&Object::parse(b"{}").unwrap()).unwrap(),
            Network::default()
        );
        let bad = Object::parse(br#"{"mac":"x"}"#).unwrap();
        assert!(Network::from_object(&bad).is_err());
    }
}
