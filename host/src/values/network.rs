//! What options say about a network interface and its addresses.

use std::net::IpAddr;
use std::str::FromStr;

use shared::message::{InterfaceAddress, MacAddress, Network};

/// A network interface as `--nic` names it: `TAP` or `TAP,mac=MAC`.
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
            return Err(format!(
                "'{}' is not a network interface such as tap0 or tap0,mac=02:00:00:00:00:01",
                text.escape_debug()
            ));
        }
        let tap = tap.to_owned();
        Ok(Self { tap, mac })
    }
}

/// Reads a MAC address.
///
/// # Errors
///
/// A sentence for the user.
pub(crate) fn parse_mac(text: &str) -> Result<MacAddress, String> {
    text.parse().map_err(|_| {
        format!(
            "'{}' is not the MAC address of one machine such as 02:00:00:00:00:01",
            text.escape_debug()
        )
    })
}

/// Reads an address with its prefix.
///
/// # Errors
///
/// A sentence for the user.
pub(crate) fn parse_address(text: &str) -> Result<InterfaceAddress, String> {
    text.parse().map_err(|_| {
        format!(
            "'{}' is not an address with its prefix such as 10.0.0.2/24 or fd00::2/64",
            text.escape_debug()
        )
    })
}

/// Reads the address of a gateway.
///
/// # Errors
///
/// A sentence for the user.
pub(crate) fn parse_gateway(text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse().ok();
    let valid = parsed.filter(|gateway| Network::is_gateway(*gateway));
    valid.ok_or_else(|| {
        format!(
            "'{}' is not the address of one machine such as 10.0.0.1",
            text.escape_debug()
        )
    })
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
