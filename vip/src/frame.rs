//! The few frames that are sent and understood: ARP (RFC 826, RFC 5227) for IPv4, neighbour discovery
//! (RFC 4861) for IPv6. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const BROADCAST: Mac = Mac([0xff; 6]);
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;
/// Where a frame's content begins, and where in it a neighbour message does.
const ETHERNET_HEADER: usize = 14;
const IPV6_HEADER: usize = 40;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The address of a network card.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub(crate) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// "Who has this address?", asked by somebody who has none.
pub(crate) fn question(address: IpAddr, from: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(ARP_REQUEST, from, Ipv4Addr::UNSPECIFIED, Mac([0; 6]), address),
        IpAddr::V6(address) => {
            let to = solicited_node(address);
            let body = neighbour(NEIGHBOUR_SOLICITATION, 0, address);
            icmpv6(from, Ipv6Addr::UNSPECIFIED, to, &body)
        }
    }
}

/// "This address is here", for all on the link. ARP knows two forms, and some hosts heed only one of them.
pub(crate) fn announcements(address: IpAddr, from: Mac) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => vec![
            arp(ARP_REQUEST, from, address, Mac([0; 6]), address),
            arp(ARP_REPLY, from, address, BROADCAST, address),
        ],
        IpAddr::V6(address) => {
            /// What is known of it otherwise is out of date.
            const OVERRIDE: u8 = 0x20;
            let mut body = neighbour(NEIGHBOUR_ADVERTISEMENT, OVERRIDE, address);
            body.extend([2, 1]);
            body.extend(from.0);
            vec![icmpv6(from, address, ALL_NODES, &body)]
        }
    }
}

/// Who, as this frame shows, has the address.
pub(crate) fn holder(address: IpAddr, frame: &[u8]) -> Option<Mac> {
    let ethertype = frame.get(12..ETHERNET_HEADER)?;
    let content = frame.get(ETHERNET_HEADER..)?;
    match address {
        IpAddr::V4(address) => {
            let is_arp = ethertype == ETHERTYPE_ARP && content.starts_with(&ARP_START);
            let sender = content.get(14..18).filter(|_| is_arp)?;
            (sender == address.octets()).then(|| mac(content.get(8..14)))?
        }
        IpAddr::V6(address) => {
            let is_icmp = ethertype == ETHERTYPE_IPV6 && content.get(6) == Some(&ICMPV6);
            let body = content.get(IPV6_HEADER..).filter(|_| is_icmp)?;
            let advertised = body.first() == Some(&NEIGHBOUR_ADVERTISEMENT);
            let target = body.get(8..24).filter(|_| advertised)?;
            (target == address.octets()).then(|| mac(frame.get(6..12)))?
        }
    }
}

fn mac(bytes: Option<&[u8]>) -> Option<Mac> {
    bytes?.try_into().ok().map(Mac)
}

fn ethernet(to: Mac, from: Mac, ethertype: [u8; 2]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype].concat()
}

fn arp(operation: u8, from: Mac, sender: Ipv4Addr, to: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, from, ETHERTYPE_ARP);
    frame.extend(ARP_START);
    frame.extend([0, operation]);
    frame.extend(from.0);
    frame.extend(sender.octets());
    frame.extend(to.0);
    frame.extend(target.octets());
    frame
}

/// A neighbour message up to its options, with an empty checksum.
fn neighbour(kind: u8, flags: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(target.octets());
    body
}

/// The group in which whoever has this address listens for questions.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let last = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), last)
}

/// To a group.
fn icmpv6(from: Mac, source: Ipv6Addr, group: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let [.., a, b, c, d] = group.octets();
    let mut frame = ethernet(Mac([0x33, 0x33, a, b, c, d]), from, ETHERTYPE_IPV6);
    let length = u16::try_from(body.len()).unwrap_or_default().to_be_bytes();
    /// Nobody takes a neighbour message that a router has passed on.
    const HOPS: u8 = 255;
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length);
    frame.extend([ICMPV6, HOPS]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    let pseudo = [&source.octets()[..], &group.octets(), &[0, 0], &length, &[0, 0, 0, ICMPV6], body].concat();
    let [high, low] = checksum(&pseudo).to_be_bytes();
    let (kind, rest) = body.split_at_checked(4).unwrap_or((body, &[]));
    frame.extend(kind.iter().take(2).copied().chain([high, low]));
    frame.extend(rest);
    frame
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn addresses() -> [IpAddr; 2] {
        ["10.0.0.100".parse().unwrap(), "fd00::12:3456".parse().unwrap()]
    }

    #[test]
    fn an_announcement_names_its_holder_and_a_question_nobody() {
        for address in addresses() {
            assert_eq!(holder(address, &question(address, HERE)), None, "{address}");
            for frame in announcements(address, HERE) {
                assert_eq!(holder(address, &frame), Some(HERE), "{address}");
                let other = addresses().into_iter().find(|other| *other != address).unwrap();
                assert_eq!(holder(other, &frame), None, "{other}");
            }
        }
    }

    #[test]
    fn whatever_is_cut_short_or_garbled_names_nobody() {
        for address in addresses() {
            for frame in announcements(address, HERE) {
                // An option at the end may be missing.
                let enough = frame.len() - 10;
                for length in 0..enough {
                    assert_eq!(holder(address, &frame[..length.min(30)]), None);
                }
                let mut other_type = frame.clone();
                other_type[12] ^= 1;
                assert_eq!(holder(address, &other_type), None);
            }
        }
    }

    #[test]
    fn a_neighbour_message_adds_up() {
        let [_, IpAddr::V6(address)] = addresses() else { panic!() };
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ff12:3456");
        for frame in [question(address.into(), HERE), announcements(address.into(), HERE).remove(0)] {
            let (header, body) = frame[ETHERNET_HEADER..].split_at(IPV6_HEADER);
            let length = u8::try_from(body.len()).unwrap();
            // With the checksum in its place the sum is nought.
            let sum = checksum(&[&header[8..40], &[0, 0, 0, length, 0, 0, 0, ICMPV6], body].concat());
            assert_eq!(sum, 0);
            assert_eq!(&frame[..2], [0x33, 0x33]);
        }
    }
}
