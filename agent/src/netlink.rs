//! The messages of rtnetlink that configure one network interface. No I/O.
//!
//! A request has a fixed header, which depends on its kind, and attributes. The kernel answers a
//! dump with one message for each object and a last one, and any other request with an
//! acknowledgement. The request that removes an object is built from the message that showed it.
//!
//! The kernel's messages are not trusted to be well-formed: truncated, overlong and unknown parts
//! are skipped or refused, and nothing here panics.

use std::net::IpAddr;

use libc::c_int;
use shared::message::InterfaceAddress;

/// Lengths and attributes are padded to a multiple of this.
const ALIGN_TO: usize = 4;

/// `struct nlmsghdr`: length, kind, flags, serial, port.
const MESSAGE_HEADER_LEN: usize = 16;

/// `struct nlattr`: length, kind.
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// `struct ifinfomsg`: family, pad, type u16, index i32, flags u32, change u32.
const LINK_HEADER_LEN: usize = 16;

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index u32.
const ADDRESS_HEADER_LEN: usize = 8;

/// `struct rtmsg`: family, destination length, source length, tos, table, protocol, scope, type,
/// flags u32.
const ROUTE_HEADER_LEN: usize = 12;

/// `struct ndmsg`: family, pad, pad u16, index i32, state u16, flags, type.
const NEIGHBOUR_HEADER_LEN: usize = 12;

/// The two bits of an attribute's kind field that are flags.
const ATTRIBUTE_FLAGS: u16 = 0xc000;

/// An Ethernet device, in a link's type (`ARPHRD_ETHER`).
const ETHERNET: u16 = 1;

/// A request, complete except for its serial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: c_int, header: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.resize(MESSAGE_HEADER_LEN, 0);
        bytes.extend(header);
        Self { bytes }
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // Always fits: values are numbers and addresses.
        let len = u16::try_from(ATTRIBUTE_HEADER_LEN + value.len()).unwrap_or_default();
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    fn with_ip(self, kind: u16, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => self.with(kind, &ip.octets()),
            IpAddr::V6(ip) => self.with(kind, &ip.octets()),
        }
    }

    pub(crate) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let len = u32::try_from(bytes.len()).unwrap_or_default();
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[8..12].copy_from_slice(&serial.to_ne_bytes());
        bytes
    }
}

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN_TO)
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    u8::try_from(family).unwrap_or_default()
}

/// Asks for all links.
pub(crate) fn list_links() -> Request {
    Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; LINK_HEADER_LEN])
}

/// Asks for all addresses of the family of `ip`.
pub(crate) fn list_addresses(ip: IpAddr) -> Request {
    let mut header = [0; ADDRESS_HEADER_LEN];
    header[0] = family(ip);
    Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &header)
}

/// Asks for all routes of the family of `ip`.
pub(crate) fn list_routes(ip: IpAddr) -> Request {
    let mut header = [0; ROUTE_HEADER_LEN];
    header[0] = family(ip);
    Request::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &header)
}

/// Asks for all neighbours, of every family.
pub(crate) fn list_neighbours() -> Request {
    let header = [0; NEIGHBOUR_HEADER_LEN];
    Request::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &header)
}

/// Changes a link's hardware address and nothing else.
pub(crate) fn set_mac(index: u32, mac: [u8; 6]) -> Request {
    set_link(index, 0).with(libc::IFLA_ADDRESS, &mac)
}

pub(crate) fn set_up(index: u32) -> Request {
    set_link(index, libc::IFF_UP)
}

/// Sets `flags` and changes no others.
fn set_link(index: u32, flags: c_int) -> Request {
    let flags = u32::try_from(flags).unwrap_or_default().to_ne_bytes();
    let mut header = [0; LINK_HEADER_LEN];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags);
    header[12..].copy_from_slice(&flags);
    Request::new(libc::RTM_SETLINK, libc::NLM_F_ACK, &header)
}

/// Adds an address unless it exists. An IPv6 address is usable at once: the host assigned it, so
/// the second for duplicate address detection is saved.
pub(crate) fn add_address(index: u32, address: InterfaceAddress) -> Request {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    about_address(libc::RTM_NEWADDR, flags, index, address)
}

pub(crate) fn drop_address(index: u32, address: InterfaceAddress) -> Request {
    about_address(libc::RTM_DELADDR, 0, index, address)
}

fn about_address(kind: u16, flags: c_int, index: u32, address: InterfaceAddress) -> Request {
    let mut header = [0; ADDRESS_HEADER_LEN];
    header[0] = family(address.ip());
    header[1] = address.prefix_len();
    if address.ip().is_ipv6() {
        header[2] = u8::try_from(libc::IFA_F_NODAD).unwrap_or_default();
    }
    header[4..].copy_from_slice(&index.to_ne_bytes());
    Request::new(kind, libc::NLM_F_ACK | flags, &header)
        .with_ip(libc::IFA_LOCAL, address.ip())
        .with_ip(libc::IFA_ADDRESS, address.ip())
}

/// The IPv6 link-local address that the kernel derives from a MAC address (RFC 4291, appendix A).
pub(crate) fn link_local_address(mac: [u8; 6]) -> Option<InterfaceAddress> {
    let [a, b, c, d, e, f] = mac;
    let octets = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 0x02,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    InterfaceAddress::new(IpAddr::from(octets), 64)
}

pub(crate) fn add_default_route(index: u32, gateway: IpAddr) -> Request {
    let mut header = [0; ROUTE_HEADER_LEN];
    header[0] = family(gateway);
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = libc::RTPROT_STATIC;
    header[6] = libc::RT_SCOPE_UNIVERSE;
    header[7] = libc::RTN_UNICAST;
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE;
    Request::new(libc::RTM_NEWROUTE, flags, &header)
        .with_ip(libc::RTA_GATEWAY, gateway)
        .with(libc::RTA_OIF, &index.to_ne_bytes())
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Whether it is an Ethernet device, and not a virtual one such as a bridge.
    pub(crate) is_hardware: bool,
    pub(crate) is_up: bool,
    /// Its hardware address, if that is as long as Ethernet's.
    pub(crate) mac: Option<[u8; 6]>,
}

impl Link {
    /// Reads a message of [`list_links`].
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (header, attributes) = payload.split_at_checked(LINK_HEADER_LEN)?;
        let name = attribute(attributes, libc::IFLA_IFNAME)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let flags = u32_at(header, 8)?;
        let up = u32::try_from(libc::IFF_UP).ok()?;
        let is_virtual = attribute(attributes, libc::IFLA_LINKINFO).is_some();
        Some(Self {
            index: u32_at(header, 4)?,
            name: String::from_utf8_lossy(name).into_owned(),
            is_hardware: u16_at(header, 2)? == ETHERNET && !is_virtual,
            is_up: flags & up != 0,
            mac: attribute(attributes, libc::IFLA_ADDRESS).and_then(|bytes| bytes.try_into().ok()),
        })
    }
}

/// Removes the address in a message of [`list_addresses`], if it is one of the interface and not
/// `kept`. IPv6 link-local addresses stay: the kernel manages them.
pub(crate) fn remove_address(
    payload: &[u8],
    index: u32,
    kept: InterfaceAddress,
) -> Option<Request> {
    let (header, attributes) = payload.split_at_checked(ADDRESS_HEADER_LEN)?;
    let whole = attribute(attributes, libc::IFA_ADDRESS)?;
    let local = attribute(attributes, libc::IFA_LOCAL).unwrap_or(whole);
    let is_kept = header[1] == kept.prefix_len() && is_ip(local, kept.ip());
    let is_link_local = kept.ip().is_ipv6() && header[3] == libc::RT_SCOPE_LINK;
    let is_ours = header[0] == family(kept.ip()) && u32_at(header, 4)? == index;
    if !is_ours || is_kept || is_link_local {
        return None;
    }
    let request = Request::new(libc::RTM_DELADDR, libc::NLM_F_ACK, header);
    let request = request.with(libc::IFA_LOCAL, local);
    Some(request.with(libc::IFA_ADDRESS, whole))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteChange {
    Remove,
    /// Add it again after it was lost with its address.
    Restore,
}

/// Changes the route in a message of [`list_routes`], if it is a default route over the interface.
pub(crate) fn change_default_route(
    payload: &[u8],
    index: u32,
    change: RouteChange,
) -> Option<Request> {
    let (header, attributes) = payload.split_at_checked(ROUTE_HEADER_LEN)?;
    let is_default =
        header[1] == 0 && header[4] == libc::RT_TABLE_MAIN && header[7] == libc::RTN_UNICAST;
    let interface = attribute(attributes, libc::RTA_OIF)?;
    if !is_default || u32_at(interface, 0)? != index {
        return None;
    }
    let (kind, flags) = match change {
        RouteChange::Remove => (libc::RTM_DELROUTE, 0),
        RouteChange::Restore => (libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
    };
    // A request must not contain some of the flags that the kernel shows.
    let mut header: [u8; ROUTE_HEADER_LEN] = header.try_into().ok()?;
    header[8..].fill(0);
    let mut request = Request::new(kind, libc::NLM_F_ACK | flags, &header);
    for kind in [libc::RTA_OIF, libc::RTA_GATEWAY, libc::RTA_PRIORITY] {
        if let Some(value) = attribute(attributes, kind) {
            request = request.with(kind, value);
        }
    }
    Some(request)
}

/// Removes the neighbour in a message of [`list_neighbours`], if the kernel has learned it on the
/// interface.
pub(crate) fn remove_neighbour(payload: &[u8], index: u32) -> Option<Request> {
    let (header, attributes) = payload.split_at_checked(NEIGHBOUR_HEADER_LEN)?;
    let given = libc::NUD_PERMANENT | libc::NUD_NOARP;
    let is_learned = u16_at(header, 8)? & given == 0;
    let destination = attribute(attributes, libc::NDA_DST)?;
    if !is_learned || u32_at(header, 4)? != index {
        return None;
    }
    let request = Request::new(libc::RTM_DELNEIGH, libc::NLM_F_ACK, header);
    Some(request.with(libc::NDA_DST, destination))
}

/// What a datagram means for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// More datagrams follow.
    More,
    /// The request succeeded, and its answer is complete.
    Done,
    /// The kernel refused the request with this error number.
    Refused(i32),
    /// The datagram is not a valid one of the kernel.
    Malformed,
}

/// Reads a datagram. Calls `each` with the payload of every message that shows an object in answer
/// to request `serial`.
pub(crate) fn read(datagram: &[u8], serial: u32, each: &mut dyn FnMut(&[u8])) -> Answer {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Some((kind, of, payload)) = split_message(&mut rest) else {
            return Answer::Malformed;
        };
        if of != serial {
            continue;
        }
        match c_int::from(kind) {
            libc::NLMSG_NOOP => {}
            // Older kernels send no result in the last message of a dump.
            libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                let result = u32_at(payload, 0).map_or(0, u32::cast_signed);
                return match result {
                    0 => Answer::Done,
                    error => Answer::Refused(error.saturating_neg()),
                };
            }
            _ => each(payload),
        }
    }
    Answer::More
}

/// Takes the next message: its kind, the serial of the request that it answers, and its payload.
fn split_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, u32, &'a [u8])> {
    let whole = *rest;
    let len = usize::try_from(u32_at(whole, 0)?).ok()?;
    let payload = whole.get(MESSAGE_HEADER_LEN..len)?;
    *rest = whole.get(aligned(len)..).unwrap_or_default();
    Some((u16_at(whole, 4)?, u32_at(whole, 8)?, payload))
}

/// The value of the first attribute of this kind before any truncation.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE_HEADER_LEN..len)?;
        if u16_at(attributes, 2)? & !ATTRIBUTE_FLAGS == kind {
            return Some(value);
        }
        attributes = attributes.get(aligned(len)..)?;
    }
}

fn is_ip(bytes: &[u8], ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => bytes == ip.octets(),
        IpAddr::V6(ip) => bytes == ip.octets(),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests;
