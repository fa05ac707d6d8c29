//! A VM's network interface: its tap device, and the settings for the guest.
//!
//! The user creates, addresses and connects the tap device. The guest gets its address, MAC address
//! and default route in REBIND, so that they are set before the guest is ready.

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

/// The first Firecracker that can load a snapshot with another tap device than the recorded one.
const OVERRIDE_VERSION_MIN: (u32, u32) = (1, 12);

/// The guest's network settings from the options.
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
    let text = "--net-address and --net-gateway must both be IPv4 or both be IPv6";
    Err(Failure::usage(text))
}

/// Fails if there are settings and the machine has no network interface.
pub(crate) fn require_nic(network: &Network, machine: &MachineSpec) -> Result<(), Failure> {
    if *network == Network::default() || machine.nic.is_some() {
        return Ok(());
    }
    let text = "--net-address, --net-mac and --net-gateway need a VM that was booted with a \
                network interface ('host-tool boot --nic TAP')";
    Err(Failure::usage(text))
}

/// The interface of a VM that boots. Without a MAC address in `argument`, a random one is drawn.
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

/// Moves the interface of a VM that is restored to the tap device in `argument`. Returns the
/// device's name if it is not the snapshot's.
pub(crate) fn move_nic(
    machine: &mut MachineSpec,
    argument: Option<&NicArgument>,
) -> Result<Option<String>, Failure> {
    let Some(argument) = argument else {
        return Ok(None);
    };
    if argument.mac.is_some() {
        let text = "a restored guest has the MAC address of its snapshot; set another with \
                    --net-mac";
        return Err(Failure::usage(text));
    }
    let Some(nic) = &mut machine.nic else {
        let text = "the snapshot's manifest has no network interface, and --nic cannot add one";
        return Err(Failure::usage(text));
    };
    if nic.tap == argument.tap {
        return Ok(None);
    }
    nic.tap.clone_from(&argument.tap);
    Ok(Some(argument.tap.clone()))
}

/// Fails if the VMM cannot load a snapshot with another tap device than the recorded one.
pub(crate) fn check_move(
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
                "{kind} {version} can load this snapshot only with the tap device that it was made \
                 with, not with '{tap}'; use that device, or Firecracker 1.12 or newer"
            );
            Err(Failure::new(Exit::Version, text))
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks that a VMM can use the tap device, before one is started and fails late.
pub(crate) fn check_tap(nic: &Nic) -> Result<(), Failure> {
    let tap = &nic.tap;
    let device = Path::new("/sys/class/net").join(tap);
    let refuse = |text: String| Err(Failure::new(Exit::Start, text));
    if !device.exists() {
        return refuse(format!(
            "there is no tap device '{tap}'; create one with 'ip tuntap add {tap} mode tap'"
        ));
    }
    if !device.join("tun_flags").exists() {
        return refuse(format!("the network interface '{tap}' is not a tap device"));
    }
    match tap::attach(tap) {
        Ok(_) => Ok(()),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::ResourceBusy => "another VM uses it; choose another with --nic",
                io::ErrorKind::PermissionDenied => "run as root, or as the user that owns it",
                io::ErrorKind::NotFound => "load the kernel module 'tun'",
                _ => "it must be a tap device with a single queue",
            };
            let text = format!("cannot use the tap device '{tap}' ({remedy})");
            Err(error).or_fail(Exit::Start, || text)
        }
    }
}

/// As it stands in files.
pub(crate) fn nic_to_value(nic: &Nic) -> Value {
    json!({ "tap": nic.tap, "mac": nic.mac.to_string(), "mmds": nic.has_mmds })
}

/// Reads what [`nic_to_value`] wrote. An older version wrote no such field.
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
            ..crate::vmm::testing::machine()
        }
    }

    fn on(tap: &str) -> Nic {
        nic(&tap.parse().unwrap(), false).unwrap()
    }

    #[test]
    fn a_restore_moves_an_interface_but_adds_none() {
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

        let can_move = |kind, version: &str| {
            check_move(Some("tap1"), kind, &VmmVersion::parse(version).unwrap()).is_ok()
        };
        assert!(can_move(VmmKind::Firecracker, "1.12.0") && can_move(VmmKind::Qemu, "7.2.0"));
        assert!(!can_move(VmmKind::Firecracker, "1.11.0"));
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
    fn an_interface_that_is_not_a_tap_device_is_refused() {
        let text = |tap: &str| check_tap(&on(tap)).unwrap_err().to_string();
        assert!(text("no-such-tap").contains("ip tuntap add no-such-tap mode tap"));
        assert!(text("lo").contains("is not a tap device"));
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
