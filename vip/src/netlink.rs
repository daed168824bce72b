//! Addresses of interfaces, through the kernel's routing socket. One question to a socket.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::spec::{Interface, Subnet};

/// The kernel answers at once, or never.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// As much as the kernel puts into one answer.
const ANSWER_BYTES: usize = 1 << 16;
/// `valid_lft` of an address that stays.
const FOREVER: u32 = u32::MAX;

/// The kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is none.
    #[error("there is no network interface {0}: check virtual_ip.interface against `ip link`")]
    NoInterface(Interface),
    /// It said no.
    #[error("the kernel refuses to {what}")]
    Refused {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said nothing, or nothing that can be read.
    #[error("cannot talk to the kernel about addresses")]
    Talk(#[from] io::Error),
}

/// An address somewhere on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Of the interface.
    pub(crate) index: u32,
    /// As it was added.
    pub(crate) prefix: u8,
}

/// The number of an interface.
pub(crate) fn index(interface: &Interface) -> Result<u32, NetlinkError> {
    nix::net::if_::if_nametoindex(interface.as_str())
        .map_err(|_| NetlinkError::NoInterface(interface.clone()))
}

/// Everywhere on this machine where the address is.
pub(crate) fn find(address: IpAddr) -> Result<Vec<Found>, NetlinkError> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    let answers = ask(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP, || "list addresses".to_owned())?;
    let found = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(found) => Some(found),
        _ => None,
    });
    let is_it = |found: &AddressMessage| {
        // Of a point-to-point link, `Address` is the other end.
        let local = found.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(local) => Some(*local),
            _ => None,
        });
        let own = local.or_else(|| {
            found.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(own) => Some(*own),
                _ => None,
            })
        });
        own == Some(address)
    };
    let found = found.filter(is_it);
    Ok(found.map(|found| Found { index: found.header.index, prefix: found.header.prefix_len }).collect())
}

/// Adds the address, or sets how long it stays.
pub(crate) fn add(index: u32, subnet: Subnet, lifetime: Option<Duration>) -> Result<(), NetlinkError> {
    let seconds =
        lifetime.map_or(FOREVER, |lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(FOREVER).max(1));
    let mut message = describe(index, subnet);
    let mut cache = CacheInfo::default();
    cache.ifa_valid = seconds;
    cache.ifa_preferred = seconds;
    if subnet.address.is_ipv6() {
        // Nobody else has it, which was asked before; and connections that this machine opens must not
        // come from an address that may leave it.
        cache.ifa_preferred = 0;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::CacheInfo(cache));
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    ask(RouteNetlinkMessage::NewAddress(message), flags, || format!("add {subnet}")).map(drop)
}

/// Removes the address. It is no error that it has gone meanwhile.
pub(crate) fn remove(index: u32, subnet: Subnet) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::DelAddress(describe(index, subnet));
    match ask(message, NLM_F_ACK, || format!("remove {subnet}")) {
        Err(NetlinkError::Refused { source, .. }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
            Ok(())
        }
        other => other.map(drop),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn describe(index: u32, subnet: Subnet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(subnet.address);
    message.header.prefix_len = subnet.prefix;
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(subnet.address), AddressAttribute::Address(subnet.address)];
    message
}

fn ask(
    question: RouteNetlinkMessage,
    flags: u16,
    what: impl Fn() -> String,
) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut fds, Some(&PATIENCE)) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut room = Vec::with_capacity(ANSWER_BYTES);
        socket.recv(&mut room, 0)?;
        if take(&room, &mut answers, &what)? {
            return Ok(answers);
        }
    }
}

/// Reads one packet of answers. Whether it was the last.
fn take(
    mut bytes: &[u8],
    answers: &mut Vec<RouteNetlinkMessage>,
    what: &impl Fn() -> String,
) -> Result<bool, NetlinkError> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        // Messages begin at multiples of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => {
                return Err(NetlinkError::Refused { what: what(), source: error.to_io() });
            }
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            _ => {}
        }
    }
    Ok(false)
}
