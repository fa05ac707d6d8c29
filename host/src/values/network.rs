//! Options for a network interface and its addresses.

use std::net::IpAddr;
use std::str::FromStr;

use shared::message::{InterfaceAddress, MacAddress, Network};

use super::is_not;

/// The argument of `--nic`: `TAP` or `TAP,mac=MAC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicArgument {
    /// Name of the tap device.
    pub(crate) tap: String,
    /// The MAC address to boot with.
    pub(crate) mac: Option<MacAddress>,
}

impl FromStr for NicArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tap, mac) = match text.split_once(",mac=") {
            Some((tap, mac)) => (tap, Some(parse_mac(mac)?)),
            None => (text, None),
        };
        if !Network::is_interface(tap) {
            return Err(is_not(
                text,
                "a network interface such as tap0 or tap0,mac=02:00:00:00:00:01",
            ));
        }
        let tap = tap.to_owned();
        Ok(Self { tap, mac })
    }
}

pub(crate) fn parse_mac(text: &str) -> Result<MacAddress, String> {
    let what = "a unicast MAC address such as 02:00:00:00:00:01";
    text.parse().map_err(|_| is_not(text, what))
}

pub(crate) fn parse_address(text: &str) -> Result<InterfaceAddress, String> {
    let what = "an address with its prefix such as 10.0.0.2/24 or fd00::2/64";
    text.parse().map_err(|_| is_not(text, what))
}

pub(crate) fn parse_gateway(text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse().ok();
    parsed
        .filter(|gateway| Network::is_gateway(*gateway))
        .ok_or_else(|| is_not(text, "a unicast address such as 10.0.0.1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_a_tap_device_with_or_without_a_mac() {
        let argument: NicArgument = "tap0".parse().unwrap();
        assert_eq!((argument.tap.as_str(), argument.mac), ("tap0", None));
        let argument: NicArgument = "tap0,mac=02:00:00:00:00:01".parse().unwrap();
        assert_eq!(argument.mac.unwrap().to_string(), "02:00:00:00:00:01");
        for bad in ["", "a/b", "a b", "tap0,", "tap0,mac=1", "tap0,mac", ",mac="] {
            assert!(bad.parse::<NicArgument>().is_err(), "{bad}");
        }
    }
}
