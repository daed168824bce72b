//! Who has the virtual IP, as the kernels of all servers tell in the moment it changes, and whether it
//! answers.
//!
//! One thread reads the news of every network namespace, so their order is that of the events but for what
//! comes within the same few microseconds, where the worse order is believed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::node::Node;
use crate::process::Signal;
use crate::wait::wait_until;

/// The group of sockets that is told of IPv4 addresses.
const IPV4_ADDRESSES: u32 = 5;
/// How often threads look whether they are to end.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// Between pings.
const PING_EVERY: Duration = Duration::from_millis(5);

/// The virtual IP of a cluster whose servers have namespaces: the hundredth of their subnet.
fn of(nodes: &[Node]) -> Ipv4Addr {
    let host = nodes.first().and_then(|node| node.place.host.parse::<Ipv4Addr>().ok());
    let [a, b, c, _] = host.unwrap_or(Ipv4Addr::LOCALHOST).octets();
    Ipv4Addr::new(a, b, c, 100)
}

/// What an `agent.toml` says of it.
pub(crate) fn section(nodes: &[Node], lines: &str) -> String {
    format!("[virtual_ip]\naddress = \"{}/24\"\ninterface = \"eth0\"\n{lines}\n", of(nodes))
}

/// The virtual IP of the proxies: the one after the primary's.
fn of_proxies(nodes: &[Node]) -> Ipv4Addr {
    let [a, b, c, d] = of(nodes).octets();
    Ipv4Addr::new(a, b, c, d + 1)
}

/// What the `proxy.toml` of `proxy1` and so on says of it: the first one is preferred.
pub(crate) fn proxy_section(nodes: &[Node], name: &str) -> String {
    let number = name.trim_start_matches("proxy");
    let address = of_proxies(nodes);
    format!("[virtual_ip]\naddress = \"{address}/24\"\ninterface = \"eth0\"\npriority = {number}0\n")
}

/// How long an address may take to be where it belongs.
const SOON: Duration = Duration::from_secs(30);

/// The virtual IP of this cluster's proxies.
pub fn proxy_address(cluster: &Cluster) -> Ipv4Addr {
    of_proxies(cluster.nodes())
}

/// The virtual IP of this cluster.
pub fn address(cluster: &Cluster) -> Ipv4Addr {
    of(cluster.nodes())
}

/// Waits until this node has the address and nobody else has.
pub async fn until_held(watch: &Watch, node: &str) -> Result<(), Failure> {
    let held = wait_until("the address is where it belongs", SOON, async || {
        let holders = watch.seen().holders;
        if holders.iter().eq([node]) { Ok(()) } else { Err(format!("{holders:?} have it, not {node}")) }
    });
    Ok(held.await?)
}

/// Sees to it that of two proxies, beside server4 and server3, the first has their address: whichever was ready first
/// has taken it.
pub async fn give_to_first_proxy(cluster: &mut Cluster, watch: &Watch) -> Result<(), Failure> {
    let held = wait_until("a proxy has the address", SOON, async || {
        let holders = watch.seen().holders;
        holders.first().filter(|_| holders.len() == 1).cloned().ok_or_else(|| format!("{holders:?}"))
    });
    if held.await? != "server4" {
        cluster.proxy_mut(1).process.stop(Signal::TERM, SOON).await?;
        until_held(watch, "server4").await?;
        cluster.proxy_mut(1).process.start()?;
        cluster.until_proxy_serves(1, SOON).await?;
    }
    until_held(watch, "server4").await
}

/// Takes the address from a server, if it is there.
pub(crate) async fn drop_from(netns: &str, address: Ipv4Addr) {
    let mut command = tokio::process::Command::new("ip");
    command.args(["-n", netns, "addr", "del", &format!("{address}/24"), "dev", "eth0"]);
    let _there_or_not = command.stdin(std::process::Stdio::null()).output().await;
}

/// A change of who has the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When it was heard of.
    pub at: MonoTime,
    /// Who.
    pub node: String,
    /// Has it from now on, or no more.
    pub taken: bool,
}

/// What was seen of an address.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All changes, in order.
    pub changes: Vec<Change>,
    /// Who has it.
    pub holders: BTreeSet<String>,
    /// Each moment at which a second one took it.
    pub doubles: Vec<String>,
}

impl Seen {
    fn taken(&mut self, node: &str, at: MonoTime) {
        if !self.holders.insert(node.to_owned()) {
            // A renewal.
            return;
        }
        if self.holders.len() > 1 {
            self.doubles.push(format!("{node} took it, so that {:?} have it", self.holders));
        }
        self.changes.push(Change { at, node: node.to_owned(), taken: true });
    }

    fn released(&mut self, node: &str, at: MonoTime) {
        if self.holders.remove(node) {
            self.changes.push(Change { at, node: node.to_owned(), taken: false });
        }
    }
}

/// Watches the address on all servers.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    thread: Ended,
}

/// A thread that ends with its owner.
struct Ended {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ended {
    fn start(run: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = stop.clone();
        Self { stop, thread: Some(std::thread::spawn(move || run(&theirs))) }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _panicked_or_not = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

impl Watch {
    /// Of the primary's address, from now on.
    pub fn start(cluster: &Cluster) -> io::Result<Self> {
        Self::of(cluster, address(cluster))
    }

    /// From now on. Who has the address already is known before anything else.
    pub fn of(cluster: &Cluster, address: Ipv4Addr) -> io::Result<Self> {
        let mut sockets = Vec::new();
        let mut seen = Seen::default();
        for node in cluster.nodes() {
            let Some(netns) = &node.place.netns else { continue };
            let (socket, held) = inside(netns, move || listen(address))??;
            if held {
                seen.taken(&node.name, RealClock.now());
            }
            sockets.push((node.name.clone(), socket));
        }
        let seen = Arc::new(Mutex::new(seen));
        let theirs = seen.clone();
        let thread = Ended::start(move |stop| watch(&sockets, address, &theirs, stop));
        Ok(Self { seen, thread })
    }

    /// What was seen until now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All that was seen.
    pub fn finish(mut self) -> Seen {
        self.thread.end();
        self.seen()
    }
}

/// Does something in a namespace.
fn inside<T: Send + 'static>(netns: &str, act: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let netns = File::open(format!("/run/netns/{netns}"))?;
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(act())
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
}

/// A socket that is told of changes, and whether the address is there.
fn listen(address: Ipv4Addr) -> io::Result<(Socket, bool)> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 1 << (IPV4_ADDRESSES - 1)))?;
    let shown = std::process::Command::new("ip").args(["-o", "-4", "addr"]).output()?.stdout;
    let held = String::from_utf8_lossy(&shown).contains(&format!(" {address}/"));
    Ok((socket, held))
}

fn watch(sockets: &[(String, Socket)], address: Ipv4Addr, seen: &Mutex<Seen>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut fds: Vec<PollFd<'_>> =
            sockets.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::IN)).collect();
        if !matches!(poll(&mut fds, Some(&TICK)), Ok(ready) if ready > 0) {
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
        let at = RealClock.now();
        let mut news = Vec::new();
        for ((node, socket), _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut bytes = Vec::with_capacity(1 << 16);
            if socket.recv(&mut bytes, 0).is_ok() {
                news.extend(changes(&bytes, address).into_iter().map(|taken| (node, taken)));
            }
        }
        // Of what came at once, the worse order is believed.
        news.sort_by_key(|(_, taken)| !taken);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, taken) in news {
            if taken { seen.taken(node, at) } else { seen.released(node, at) }
        }
    }
}

/// Whether the address was taken or released, for each piece of news that is of it.
fn changes(mut bytes: &[u8], address: Ipv4Addr) -> Vec<bool> {
    let mut changes = Vec::new();
    let is_it =
        |message: &AddressMessage| message.attributes.contains(&AddressAttribute::Local(IpAddr::V4(address)));
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(4);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(new)) if is_it(&new) => {
                changes.push(true);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(old)) if is_it(&old) => {
                changes.push(false);
            }
            _ => {}
        }
        if bytes.is_empty() {
            break;
        }
    }
    changes
}

/// Pings the address from the host on the bridge.
pub struct Pings {
    answers: Arc<Mutex<Vec<MonoTime>>>,
    thread: Ended,
}

impl Pings {
    /// From now on.
    pub fn start(address: Ipv4Addr) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
        let answers = Arc::new(Mutex::new(Vec::new()));
        let theirs = answers.clone();
        let thread = Ended::start(move |stop| ping(&socket, address, &theirs, stop));
        Ok(Self { answers, thread })
    }

    /// How many answers there were.
    pub fn answers(&self) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The longest time without an answer between two of them.
    pub fn finish(mut self) -> Duration {
        self.thread.end();
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let gaps = answers.windows(2).map(|pair| match pair {
            [one, next] => next.since(*one),
            _ => Duration::ZERO,
        });
        gaps.max().unwrap_or_default()
    }
}

fn ping(socket: &OwnedFd, address: Ipv4Addr, answers: &Mutex<Vec<MonoTime>>, stop: &AtomicBool) {
    /// Echo request 0x0707, and its checksum.
    const QUESTION: [u8; 8] = [8, 0, 0xf0, 0xf8, 7, 7, 0, 0];
    let to = SocketAddrV4::new(address, 0);
    while !stop.load(Ordering::Relaxed) {
        // Without a neighbour there is no way there.
        let _sent_or_not = sendto(socket, &QUESTION, SendFlags::empty(), &to);
        let until = RealClock.now() + PING_EVERY;
        while let Some(left) = Some(until.since(RealClock.now())).filter(|left| !left.is_zero()) {
            let timeout = Timespec::try_from(left).unwrap_or(TICK);
            let _some_or_none = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout));
            let mut packet = [0; 64];
            while let Ok((_, length)) = recv(socket, &mut packet[..], RecvFlags::empty()) {
                let packet = packet.get(..length).unwrap_or_default();
                let from_it = packet.get(12..16) == Some(&address.octets());
                if from_it && packet.get(20) == Some(&0) && packet.get(24..26) == Some(&[7, 7]) {
                    answers.lock().unwrap_or_else(PoisonError::into_inner).push(RealClock.now());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_noticed_and_a_renewal_is_none() {
        let (mut seen, now) = (Seen::default(), RealClock.now());
        seen.taken("server1", now);
        seen.taken("server1", now);
        seen.released("server1", now);
        seen.taken("server2", now);
        assert!(seen.doubles.is_empty(), "{seen:?}");
        seen.taken("server1", now);
        assert_eq!(seen.doubles.len(), 1, "{seen:?}");
        assert_eq!(seen.changes.len(), 4);
    }
}
