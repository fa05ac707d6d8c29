//! The setting of the watch of the metadata service. No I/O.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The default address of Firecracker's metadata service.
const ADDRESS_DEFAULT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);

/// The values that [`parse`] accepts.
pub(crate) const EXPECTED: &str = "0, 1 or ADDRESS:PORT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mmds {
    Off,
    /// Watch the service at this address.
    At(SocketAddrV4),
}

impl Mmds {
    pub(crate) fn address(self) -> Option<SocketAddrV4> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

pub(crate) fn parse(text: &str) -> Option<Mmds> {
    match text {
        "0" => Some(Mmds::Off),
        "1" => Some(Mmds::At(ADDRESS_DEFAULT)),
        address => address.parse().ok().map(Mmds::At),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_off_or_another_address() {
        let address = |text| parse(text).map(Mmds::address);
        assert_eq!(address("0"), Some(None));
        assert_eq!(address("1"), Some(Some(ADDRESS_DEFAULT)));
        let other = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080);
        assert_eq!(address("127.0.0.1:8080"), Some(Some(other)));
        for bad in ["", "2", "yes", "127.0.0.1", "[::1]:80", "localhost:80"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
