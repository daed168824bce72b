//! A socket that sends and receives whole frames on one interface.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::LinkAddr;
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, recv, send, socket_with,
};

use crate::frame::Mac;
use crate::spec::Interface;

/// Longer than anything that is understood.
const FRAME_BYTES_MAX: usize = 256;

/// Nothing can be said or heard on the link.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// There is none.
    #[error("there is no network interface {0}: check virtual_ip.interface against `ip link`")]
    NoInterface(Interface),
    /// No neighbours, no addresses of cards.
    #[error("{0} is not an Ethernet interface, so no address can be announced on it")]
    NotEthernet(Interface),
    /// The interface is down, or nothing is plugged in.
    #[error("the interface {0} has no link: check `ip link`, the cable, and the switch")]
    NoLink(Interface),
    /// The system.
    #[error("cannot {what} on {interface}")]
    System {
        /// Where.
        interface: Interface,
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Wire {
    interface: Interface,
    socket: OwnedFd,
    mac: Mac,
    has_link: bool,
}

impl Wire {
    /// Hears what concerns addresses of this kind.
    pub(crate) fn open(interface: &Interface, address: IpAddr) -> Result<Self, WireError> {
        let failed = |what| {
            let interface = interface.clone();
            move |source: io::Error| WireError::System { interface, what, source }
        };
        let (link, has_link) = link(interface).map_err(failed("look at the interfaces"))??;
        let mac = link.addr().map(Mac).filter(|mac| mac.0 != [0; 6]);
        let mac = mac.ok_or_else(|| WireError::NotEthernet(interface.clone()))?;
        let protocol = if address.is_ipv4() { eth::ARP } else { eth::IPV6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol))
            .map_err(|error| failed("open a packet socket")(error.into()))?;
        // The link's address names no protocol: the kernel keeps the socket's own.
        nix::sys::socket::bind(socket.as_raw_fd(), &link)
            .map_err(|error| failed("bind a packet socket")(error.into()))?;
        Ok(Self { interface: interface.clone(), socket, mac, has_link })
    }

    /// Of the interface.
    pub(crate) fn mac(&self) -> Mac {
        self.mac
    }

    /// Whole or not at all.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), WireError> {
        if !self.has_link {
            return Err(WireError::NoLink(self.interface.clone()));
        }
        let sent = send(&self.socket, frame, SendFlags::empty());
        sent.map(drop).map_err(|error| self.failed("send a frame", error.into()))
    }

    /// The next frame; `None` when the time is over.
    pub(crate) fn receive(&self, until: MonoTime) -> Result<Option<Vec<u8>>, WireError> {
        loop {
            let left = until.since(RealClock.now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            let mut frame = vec![0; FRAME_BYTES_MAX];
            match recv(&self.socket, &mut *frame, RecvFlags::empty()) {
                Ok((_, length)) => {
                    frame.truncate(length);
                    // A busy link must not make the wait longer.
                    return Ok((!left.is_zero()).then_some(frame));
                }
                Err(rustix::io::Errno::AGAIN) if left.is_zero() => return Ok(None),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.failed("receive a frame", error.into())),
            }
            let waited = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout));
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
            {
                return Err(self.failed("wait for a frame", error.into()));
            }
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> WireError {
        WireError::System { interface: self.interface.clone(), what, source }
    }
}

/// The interface's own address, and whether it has a link.
fn link(interface: &Interface) -> io::Result<Result<(LinkAddr, bool), WireError>> {
    let found = getifaddrs()?.find_map(|found| {
        let link = found.address.filter(|_| found.interface_name == interface.as_str())?;
        Some((*link.as_link_addr()?, found.flags.contains(InterfaceFlags::IFF_RUNNING)))
    });
    Ok(found.ok_or_else(|| WireError::NoInterface(interface.clone())))
}
