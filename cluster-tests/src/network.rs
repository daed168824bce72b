//! Where servers live: all on loopback with ports of their own, or each in a network namespace of its
//! own on a common bridge, where a server can be cut off by taking its link down.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::process::Command;

use crate::process::{CommandError, run};
use crate::undertaker::Undertaker;

const IP_TIME_MAX: Duration = Duration::from_secs(10);
/// How far above the preferred port a free one is looked for.
const PORTS_TRIED: u16 = 400;
/// Tells the clusters of one process apart.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// What `setpriv` is to be told, before the program and its arguments.
pub(crate) const AS_POSTGRES: [&str; 4] = ["--reuid=postgres", "--regid=postgres", "--init-groups", "--"];

/// No place to live.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every port is taken.
    #[error("no free port on 127.0.0.1 between {first} and {last}")]
    NoFreePort {
        /// The first that was tried.
        first: u16,
        /// The last that was tried.
        last: u16,
    },
    /// Every subnet is taken.
    #[error("no free subnet: 10.213.0.0/24 to 10.213.255.0/24 are all in use on this machine")]
    NoFreeSubnet,
    /// `ip` refused.
    #[error("cannot set up the network namespaces (`--netns` needs root and CAP_NET_ADMIN)")]
    Ip(#[source] CommandError),
    /// `nft` refused.
    #[error("cannot filter packets with nftables")]
    Nft(#[source] CommandError),
    /// The undertaker is gone.
    #[error("cannot register the network for removal")]
    Register(#[source] std::io::Error),
}

/// Where one server lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its address.
    pub host: String,
    /// Its network namespace; `None` on loopback.
    pub netns: Option<String>,
    /// The host's end of its link; `None` on loopback.
    pub host_if: Option<String>,
}

impl Place {
    /// A command that will run here. What it wraps itself in replaces itself, so that the process of
    /// the command is the process of the program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.netns {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
                command
            }
        }
    }

    /// The same, as the operating system user `postgres`.
    pub fn postgres_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("setpriv");
        command.args(AS_POSTGRES).arg(program);
        // Whatever locale the caller has need not exist here.
        command.env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }
}

/// The ports of this machine that this process has claimed.
///
/// A claim is an abstract Unix socket, which no two processes can bind and which goes with its
/// process. So two clusters that start at the same moment do not pick the same port.
#[derive(Debug, Default)]
struct Ports {
    claimed: BTreeMap<u16, UnixListener>,
}

impl Ports {
    fn claim(&mut self, preferred: u16) -> Result<u16, NetworkError> {
        let last = preferred.saturating_add(PORTS_TRIED);
        for port in preferred..=last {
            if self.claimed.contains_key(&port) || TcpListener::bind(("0.0.0.0", port)).is_err() {
                continue;
            }
            let name = SocketAddr::from_abstract_name(format!("pgherd-port-{port}"));
            if let Ok(claim) = name.and_then(|name| UnixListener::bind_addr(&name)) {
                self.claimed.insert(port, claim);
                return Ok(port);
            }
        }
        Err(NetworkError::NoFreePort { first: preferred, last })
    }
}

/// The network of one cluster.
#[derive(Debug)]
pub struct Network {
    places: Vec<Place>,
    ports: Option<Ports>,
}

impl Network {
    /// All on 127.0.0.1.
    pub fn loopback(servers: usize) -> Self {
        let place = Place { host: "127.0.0.1".to_owned(), netns: None, host_if: None };
        Self { places: vec![place; servers], ports: Some(Ports::default()) }
    }

    /// A namespace for each server, 10.213.N.11 and so on; the host is 10.213.N.1 on their bridge.
    pub async fn namespaces(servers: usize, undertaker: &mut Undertaker) -> Result<Self, NetworkError> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{}x{serial}", std::process::id());
        let bridge = format!("ph{tag}br");
        undertaker.will_delete_link(&bridge).map_err(NetworkError::Register)?;
        ip(&["link", "add", &bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"]).await?;
        let subnet = claim_subnet(&bridge).await?;
        ip(&["link", "set", &bridge, "up"]).await?;
        let mut places = Vec::new();
        for number in 1..=servers {
            let netns = format!("pgherd-{tag}-server{number}");
            let (host_if, inner) = (format!("ph{tag}s{number}"), format!("ph{tag}i{number}"));
            let host = format!("10.213.{subnet}.{}", 10 + number);
            undertaker.will_delete_netns(&netns).map_err(NetworkError::Register)?;
            ip(&["netns", "add", &netns]).await?;
            // Deleted explicitly: a namespace whose processes have only just died may linger.
            undertaker.will_delete_link(&host_if).map_err(NetworkError::Register)?;
            ip(&["link", "add", &host_if, "type", "veth", "peer", "name", &inner]).await?;
            ip(&["link", "set", &inner, "netns", &netns, "name", "eth0"]).await?;
            ip(&["link", "set", &host_if, "master", &bridge, "up"]).await?;
            ip(&["-n", &netns, "link", "set", "lo", "up"]).await?;
            ip(&["-n", &netns, "addr", "add", &format!("{host}/24"), "dev", "eth0"]).await?;
            ip(&["-n", &netns, "link", "set", "eth0", "up"]).await?;
            places.push(Place { host, netns: Some(netns), host_if: Some(host_if) });
        }
        Ok(Self { places, ports: None })
    }

    /// Where each server lives.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// A port: in a namespace the usual one, on loopback the first free one from `preferred` up.
    pub fn port(&mut self, usual: u16, preferred: u16) -> Result<u16, NetworkError> {
        match &mut self.ports {
            None => Ok(usual),
            Some(ports) => ports.claim(preferred),
        }
    }
}

/// Takes a link of a server down or up.
pub async fn set_link(host_if: &str, up: bool) -> Result<(), NetworkError> {
    ip(&["link", "set", host_if, if up { "up" } else { "down" }]).await.map(drop)
}

/// Gives the bridge the first address that nobody has.
async fn claim_subnet(bridge: &str) -> Result<u8, NetworkError> {
    // Two clusters that start at once must not choose the same one.
    let lock = PathBuf::from("/run/netns");
    let lock = std::fs::create_dir_all(&lock).and_then(|()| std::fs::File::open(&lock));
    let lock = lock.map_err(NetworkError::Register)?;
    lock.lock().map_err(NetworkError::Register)?;
    let taken = [ip(&["-o", "-4", "addr"]).await?, ip(&["-4", "route"]).await?].concat();
    let free = (0..=u8::MAX).find(|subnet| !taken.contains(&format!("10.213.{subnet}.")));
    let subnet = free.ok_or(NetworkError::NoFreeSubnet)?;
    ip(&["addr", "add", &format!("10.213.{subnet}.1/24"), "dev", bridge]).await?;
    Ok(subnet)
}

async fn ip(arguments: &[&str]) -> Result<String, NetworkError> {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command, IP_TIME_MAX).await.map_err(NetworkError::Ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let mut ours = Network::loopback(1);
        let mut theirs = Network::loopback(1);
        let first = ours.port(5432, 24_600).unwrap();
        let second = ours.port(5432, 24_600).unwrap();
        let third = theirs.port(5432, 24_600).unwrap();
        assert!(first != second && second != third && first != third, "{first} {second} {third}");
        drop(ours);
        assert_eq!(theirs.port(5432, first).unwrap(), first, "a claim ends with its cluster");
    }
}
