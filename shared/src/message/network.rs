//! The network settings of a clone.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use serde_json::Value;

use crate::json::{JsonError, Object, ToJson, object, value_of};
use crate::limits::INTERFACE_LEN_MAX;

/// Settings of one network interface. The guest leaves missing parts unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Network {
    /// The interface's name in the guest; `None` is the guest's only hardware interface.
    pub interface: Option<String>,
    /// Its address. The guest removes all others of the same family.
    pub address: Option<InterfaceAddress>,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// The gateway of the default route of the same family as `address`.
    pub gateway: Option<IpAddr>,
}

impl Network {
    /// Whether `text` is a valid name of an interface. The kernel accepts more names; some tool or
    /// other misreads those.
    #[must_use]
    pub fn is_interface(text: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=INTERFACE_LEN_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && !matches!(text, "." | "..")
    }

    /// Whether the address is one that a gateway can have.
    #[must_use]
    pub fn is_gateway(gateway: IpAddr) -> bool {
        !gateway.is_unspecified() && !gateway.is_multicast() && !gateway.is_loopback()
    }

    /// Whether address and gateway, if both are given, are of one family.
    #[must_use]
    pub fn has_one_family(&self) -> bool {
        let families = self.address.zip(self.gateway);
        families.is_none_or(|(address, gateway)| address.ip().is_ipv4() == gateway.is_ipv4())
    }

    /// Reads what [`to_value`](Self::to_value) wrote.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
        let interface = object.opt_text("interface")?;
        if !interface.as_deref().is_none_or(Self::is_interface) {
            return Err(object.error("interface", "an interface's name"));
        }
        let gateway = object.opt_parsed("gateway", "an IP address")?;
        if !gateway.is_none_or(Self::is_gateway) {
            return Err(object.error("gateway", "the address of one machine"));
        }
        let network = Self {
            interface,
            address: object.opt_parsed("address", "an address with its prefix, as 10.0.0.2/24")?,
            mac: object.opt_parsed("mac", "a unicast MAC address")?,
            gateway,
        };
        if !network.has_one_family() {
            return Err(object.error("gateway", "of the address's family"));
        }
        Ok(network)
    }

    /// The JSON object as on the wire, for files.
    #[must_use]
    pub fn to_value(&self) -> Value {
        value_of(self)
    }
}

impl ToJson for Network {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "address": self.address.map(|address| address.to_string()),
            "gateway": self.gateway.map(|gateway| gateway.to_string()),
            "interface": self.interface,
            "mac": self.mac.map(|mac| mac.to_string()),
        });
    }
}

/// The address of an interface with the prefix length of its network, as in `10.0.0.2/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    ip: IpAddr,
    prefix_len: u8,
}

impl InterfaceAddress {
    /// `None` unless it is a unicast address outside of the loopback network, with a valid prefix.
    #[must_use]
    pub fn new(ip: IpAddr, prefix_len: u8) -> Option<Self> {
        let prefix_len_max = if ip.is_ipv4() { 32 } else { 128 };
        let is_valid = (1..=prefix_len_max).contains(&prefix_len)
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !ip.is_loopback();
        is_valid.then_some(Self { ip, prefix_len })
    }

    /// The address.
    #[must_use]
    pub const fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Length of the network's prefix in bits, from 1.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.prefix_len
    }
}

/// The text is not such an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParseAddressError;

impl FromStr for InterfaceAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let (ip, prefix_len) = text.split_once('/').ok_or(ParseAddressError)?;
        if prefix_len.starts_with('+') {
            return Err(ParseAddressError);
        }
        let ip = ip.parse().map_err(|_| ParseAddressError)?;
        let prefix_len = prefix_len.parse().map_err(|_| ParseAddressError)?;
        Self::new(ip, prefix_len).ok_or(ParseAddressError)
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

/// A unicast MAC address that is not all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// A locally administered address made of random bits.
    #[must_use]
    pub const fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & !0x01) | 0x02;
        Self(bytes)
    }

    /// The bytes in the order of the Ethernet header.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(ParseAddressError)?;
            let is_plain = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            if !is_plain {
                return Err(ParseAddressError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseAddressError)?;
        }
        let is_valid = parts.next().is_none() && bytes[0] & 0x01 == 0 && bytes != [0; 6];
        is_valid.then_some(Self(bytes)).ok_or(ParseAddressError)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["10.0.0.2/24", "10.0.0.2/32", "fd00::2/64", "fe80::1/128"] {
            let address: InterfaceAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for bad in [
            "",
            "10.0.0.2",
            "10.0.0.2/",
            "10.0.0.2/33",
            "10.0.0.2/0",
            "10.0.0.2/+8",
            "10.0.0.2/24/1",
            "10.0.0/24",
            "010.0.0.2/24",
            "::/64",
            "0.0.0.0/8",
            "127.0.0.1/8",
            "::1/128",
            "224.0.0.1/4",
            "ff02::1/64",
            "fd00::2/129",
            "fe80::1%eth0/64",
        ] {
            assert!(bad.parse::<InterfaceAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_are_of_one_machine() {
        let mac: MacAddress = "02:00:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:ab:cd:0f");
        assert_eq!(mac.bytes(), [2, 0, 0, 0xab, 0xcd, 0x0f]);
        for bad in [
            "",
            "02:00:00:ab:cd",
            "02:00:00:ab:cd:0f:1",
            "02:00:00:ab:cd:+f",
            "2:0:0:0:0:1",
            "02-00-00-ab-cd-0f",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
        for bytes in [[0; 6], [0xff; 6]] {
            let drawn = MacAddress::from_random(bytes);
            assert_eq!(drawn.to_string().parse(), Ok(drawn));
        }
    }

    #[test]
    fn interfaces_have_plain_names() {
        for good in ["eth0", "a", "wg-1.2_3", &"x".repeat(INTERFACE_LEN_MAX)] {
            assert!(Network::is_interface(good), "{good}");
        }
        let long = "x".repeat(INTERFACE_LEN_MAX + 1);
        for bad in ["", ".", "..", "a/b", "a b", "a,b", "é", "a\n", &long] {
            assert!(!Network::is_interface(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        let read = |text: &str| Network::from_object(&Object::parse(text.as_bytes()).unwrap());
        assert_eq!(read("{}").unwrap(), Network::default());
        let network =
            read(r#"{"interface":"eth0","address":"10.0.0.2/24","gateway":"10.0.0.1"}"#).unwrap();
        assert_eq!(network.interface.as_deref(), Some("eth0"));
        for bad in [
            r#"{"interface":""}"#,
            r#"{"interface":7}"#,
            r#"{"address":"10.0.0.2"}"#,
            r#"{"mac":"ff:ff:ff:ff:ff:ff"}"#,
            r#"{"gateway":"0.0.0.0"}"#,
            r#"{"gateway":"10.0.0.1/24"}"#,
            r#"{"address":"10.0.0.2/24","gateway":"fe80::1"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
