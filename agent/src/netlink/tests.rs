//! Goal: requests are what the kernel expects, and answers are understood or refused. Method:
//! requests are compared with bytes written by hand; answers are built as the kernel does, and
//! damaged.

use super::*;

const SERIAL: u32 = 7;

/// A message of the kernel.
fn message(kind: u16, serial: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(MESSAGE_HEADER_LEN + payload.len()).unwrap();
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(serial.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// A payload: a header and attributes.
fn payload(header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let request = Request::new(0, 0, header);
    let request = attributes
        .iter()
        .fold(request, |request, (kind, value)| request.with(*kind, value));
    request.bytes[MESSAGE_HEADER_LEN..].to_vec()
}

fn link_header(kind: u16, index: u32, flags: u32) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend(kind.to_ne_bytes());
    header.extend(index.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header.extend([0; 4]);
    header
}

fn address(text: &str) -> InterfaceAddress {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
#[cfg(target_endian = "little")]
fn requests_are_the_bytes_that_the_kernel_reads() {
    assert_eq!(
        add_address(2, address("10.0.0.2/24")).encode(SERIAL),
        [
            [40, 0, 0, 0, 20, 0, 5, 5, 7, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            &[2, 24, 0, 0, 2, 0, 0, 0],
            &[8, 0, 2, 0, 10, 0, 0, 2],
            &[8, 0, 1, 0, 10, 0, 0, 2],
        ]
        .concat()
    );
    assert_eq!(
        set_mac(3, [2, 0, 0, 0, 0, 9]).encode(SERIAL),
        [
            [44, 0, 0, 0, 19, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            &[0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // Padded to a multiple of four. The length does not count the padding.
            &[10, 0, 1, 0, 2, 0, 0, 0, 0, 9, 0, 0],
        ]
        .concat()
    );
    assert_eq!(
        set_up(3).encode(SERIAL)[MESSAGE_HEADER_LEN..],
        [0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    );
    assert_eq!(
        add_default_route(2, ip("10.0.0.1")).encode(SERIAL),
        [
            [44, 0, 0, 0, 24, 0, 5, 4, 7, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            &[2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0],
            &[8, 0, 5, 0, 10, 0, 0, 1],
            &[8, 0, 4, 0, 2, 0, 0, 0],
        ]
        .concat()
    );
    let dump = list_neighbours().encode(SERIAL);
    assert_eq!((dump.len(), &dump[4..8]), (28, &[30, 0, 1, 3][..]));
}

#[test]
fn an_ipv6_address_is_used_without_duplicate_detection() {
    let request = add_address(2, address("fd00::2/64")).encode(SERIAL);
    let header = &request[MESSAGE_HEADER_LEN..];
    assert_eq!(
        (i32::from(header[0]), header[1], header[2]),
        (libc::AF_INET6, 64, 0x02)
    );
}

#[test]
fn link_local_addresses_are_derived_from_the_mac() {
    let made = link_local_address([0x02, 0, 0, 0, 0x77, 0x04]).unwrap();
    assert_eq!(made, address("fe80::ff:fe00:7704/64"));
    let request = drop_address(2, made).encode(SERIAL);
    assert_eq!(request[4..6], libc::RTM_DELADDR.to_ne_bytes());
}

#[test]
fn links_are_read() {
    let mac: &[u8] = &[2, 0, 0, 0, 0, 1];
    let up = payload(
        &link_header(ETHERNET, 2, 0x1043),
        &[(libc::IFLA_IFNAME, b"eth0\0"), (libc::IFLA_ADDRESS, mac)],
    );
    let link = Link::parse(&up).unwrap();
    assert_eq!((link.index, link.name.as_str()), (2, "eth0"));
    assert!(link.is_hardware && link.is_up);
    assert_eq!(link.mac, Some([2, 0, 0, 0, 0, 1]));

    let bridge = payload(
        &link_header(ETHERNET, 3, 0),
        &[(libc::IFLA_IFNAME, b"br0\0"), (libc::IFLA_LINKINFO, b"")],
    );
    let link = Link::parse(&bridge).unwrap();
    assert!(!link.is_hardware && !link.is_up && link.mac.is_none());

    let loopback = payload(&link_header(772, 1, 9), &[(libc::IFLA_IFNAME, b"lo\0")]);
    assert!(!Link::parse(&loopback).unwrap().is_hardware);
    let nameless = payload(&link_header(ETHERNET, 4, 0), &[]);
    assert_eq!(Link::parse(&nameless), None);
}

#[test]
fn only_other_addresses_of_the_interface_are_removed() {
    let kept = address("10.0.0.2/24");
    let shown = |prefix_len: u8, index: u8, ip: [u8; 4]| {
        let mut header = [2, prefix_len, 0x80, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&u32::from(index).to_ne_bytes());
        payload(&header, &[(libc::IFA_ADDRESS, &ip), (libc::IFA_LOCAL, &ip)])
    };
    let removal = |payload: &[u8]| remove_address(payload, 2, kept);
    assert_eq!(removal(&shown(24, 2, [10, 0, 0, 2])), None, "the new one");
    assert_eq!(removal(&shown(24, 3, [10, 0, 0, 9])), None, "another's");
    assert!(removal(&shown(16, 2, [10, 0, 0, 2])).is_some());
    let old = shown(24, 2, [10, 0, 0, 9]);
    let request = removal(&old).unwrap().encode(SERIAL);
    assert_eq!(request[4..6], libc::RTM_DELADDR.to_ne_bytes());
    assert_eq!(
        request[MESSAGE_HEADER_LEN..MESSAGE_HEADER_LEN + 8],
        old[..8]
    );

    let ipv6 = |scope: u8| {
        let mut header = [10, 64, 0, scope, 0, 0, 0, 0];
        header[4..].copy_from_slice(&2u32.to_ne_bytes());
        payload(&header, &[(libc::IFA_ADDRESS, &[0xfe; 16])])
    };
    let removal = |payload: &[u8]| remove_address(payload, 2, address("fd00::2/64"));
    assert_eq!(removal(&ipv6(libc::RT_SCOPE_LINK)), None, "link-local");
    assert!(removal(&ipv6(libc::RT_SCOPE_UNIVERSE)).is_some());
    assert_eq!(removal(&old), None, "the other family");
}

#[test]
fn only_default_routes_of_the_interface_are_changed() {
    let shown = |dst_len: u8, table: u8, index: u32| {
        let flags = 16;
        let header = [2, dst_len, 0, 0, table, 3, 0, 1, flags, 0, 0, 0];
        let index = index.to_ne_bytes();
        let metric = 100u32.to_ne_bytes();
        payload(
            &header,
            &[
                (libc::RTA_GATEWAY, &[10, 0, 0, 1]),
                (libc::RTA_OIF, &index),
                (libc::RTA_PRIORITY, &metric),
            ],
        )
    };
    for (dst_len, table, index) in [(24, 254, 2), (0, 255, 2), (0, 254, 3)] {
        let shown = shown(dst_len, table, index);
        assert_eq!(change_default_route(&shown, 2, RouteChange::Remove), None);
    }
    let changed = |change| {
        let request = change_default_route(&shown(0, 254, 2), 2, change);
        request.unwrap().encode(SERIAL)
    };
    let restored = changed(RouteChange::Restore);
    let request = changed(RouteChange::Remove);
    assert_eq!(restored[4..6], libc::RTM_NEWROUTE.to_ne_bytes());
    assert_eq!(request[4..6], libc::RTM_DELROUTE.to_ne_bytes());
    assert_eq!(
        restored[MESSAGE_HEADER_LEN..],
        request[MESSAGE_HEADER_LEN..]
    );
    let (header, attributes) = request[MESSAGE_HEADER_LEN..].split_at(ROUTE_HEADER_LEN);
    assert_eq!(header, [2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
    let metric = attribute(attributes, libc::RTA_PRIORITY);
    assert_eq!(metric, Some(&100u32.to_ne_bytes()[..]));
    let gateway = attribute(attributes, libc::RTA_GATEWAY);
    assert_eq!(gateway, Some(&[10, 0, 0, 1][..]));
}

#[test]
fn only_learned_neighbours_of_the_interface_are_removed() {
    let shown = |index: u32, state: u16| {
        let mut header = vec![2, 0, 0, 0];
        header.extend(index.to_ne_bytes());
        header.extend(state.to_ne_bytes());
        header.extend([0, 0]);
        payload(&header, &[(libc::NDA_DST, &[10, 0, 0, 1])])
    };
    for (index, state) in [(3, 2), (2, libc::NUD_PERMANENT), (2, libc::NUD_NOARP)] {
        assert_eq!(remove_neighbour(&shown(index, state), 2), None);
    }
    let reachable = remove_neighbour(&shown(2, 2), 2).unwrap().encode(SERIAL);
    assert_eq!(reachable[4..6], libc::RTM_DELNEIGH.to_ne_bytes());
}

/// Reads a datagram. Returns the first byte of each payload too.
fn read_all(datagram: &[u8]) -> (Answer, Vec<u8>) {
    let mut found = Vec::new();
    let answer = read(datagram, SERIAL, &mut |payload| {
        found.extend(payload.first())
    });
    (answer, found)
}

#[test]
fn answers_end_a_request_and_belong_to_one() {
    let thing = |serial, byte| message(libc::RTM_NEWLINK, serial, &[byte; 4]);
    let result = |kind: c_int, number: i32| {
        let kind = u16::try_from(kind).unwrap();
        message(kind, SERIAL, &number.to_ne_bytes())
    };
    let of_another = [thing(SERIAL - 1, 1), thing(SERIAL, 2)].concat();
    assert_eq!(read_all(&of_another), (Answer::More, vec![2]));
    let last = [thing(SERIAL, 3), result(libc::NLMSG_DONE, 0)].concat();
    assert_eq!(read_all(&last), (Answer::Done, vec![3]));
    assert_eq!(read_all(&result(libc::NLMSG_ERROR, 0)).0, Answer::Done);
    let refused = read_all(&result(libc::NLMSG_ERROR, -libc::EBUSY)).0;
    assert_eq!(refused, Answer::Refused(libc::EBUSY));
    let odd = read_all(&result(libc::NLMSG_ERROR, i32::MIN)).0;
    assert_eq!(odd, Answer::Refused(i32::MAX));
    assert_eq!(read_all(&[]).0, Answer::More);
}

#[test]
fn wrong_lengths_are_refused_or_skipped() {
    let whole = message(libc::RTM_NEWLINK, SERIAL, &[1; 4]);
    for len in 1..whole.len() {
        assert_eq!(read_all(&whole[..len]).0, Answer::Malformed, "{len}");
    }
    for lie in [0, 15, 21, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[..4].copy_from_slice(&u32::to_ne_bytes(lie));
        assert_eq!(read_all(&bytes).0, Answer::Malformed, "{lie}");
    }
    let attributes = payload(&[], &[(1, b"abcd"), (2, b"efgh")]);
    assert_eq!(attribute(&attributes, 2), Some(&b"efgh"[..]));
    for lie in [0, 3, 9, u16::MAX] {
        let mut bytes = attributes.clone();
        bytes[..2].copy_from_slice(&u16::to_ne_bytes(lie));
        assert_ne!(attribute(&bytes, 2), Some(&b"efgh"[..]), "{lie}");
    }
}

#[test]
fn damaged_messages_never_panic() {
    let shown = payload(
        &link_header(ETHERNET, 2, 1),
        &[(libc::IFLA_IFNAME, b"eth0\0"), (libc::NDA_DST, &[10; 16])],
    );
    for index in 0..shown.len() {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            let mut damaged = shown.clone();
            damaged[index] ^= flip;
            for cut in [&damaged[..], &damaged[..index]] {
                drop(Link::parse(cut));
                drop(remove_address(cut, 2, address("10.0.0.2/24")));
                drop(remove_address(cut, 2, address("fd00::2/64")));
                drop(change_default_route(cut, 2, RouteChange::Restore));
                drop(remove_neighbour(cut, 2));
                read_all(cut);
            }
        }
    }
}
