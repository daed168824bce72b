//! Cutting connections inside a node's network namespace, with nftables.

use std::time::Duration;

use crate::network::{NetworkError, Place};
use crate::process::run;

const NFT_TIME_MAX: Duration = Duration::from_secs(10);
const TABLE: &str = "inet campaign";

/// What a node drops. All of it goes with [`lift`].
#[derive(Debug, Clone)]
pub(crate) enum Drop {
    /// All that comes in.
    Incoming,
    /// All that goes out.
    Outgoing,
    /// All from and to an address.
    Peer(String),
    /// What comes in from an address, and goes out to it, with this destination port.
    PortWith(String, u16),
    /// What goes out to this port.
    OutgoingPort(u16),
    /// Of all that comes in, so many packets in a hundred.
    Share(u32),
}

impl Drop {
    fn rules(&self) -> Vec<String> {
        match self {
            Self::Incoming => vec!["incoming iif != lo drop".to_owned()],
            Self::Outgoing => vec!["outgoing oif != lo drop".to_owned()],
            Self::Peer(host) => {
                vec![format!("incoming ip saddr {host} drop"), format!("outgoing ip daddr {host} drop")]
            }
            Self::PortWith(host, port) => vec![
                format!("incoming ip saddr {host} tcp dport {port} drop"),
                format!("outgoing ip daddr {host} tcp dport {port} drop"),
            ],
            Self::OutgoingPort(port) => vec![format!("outgoing tcp dport {port} oif != lo drop")],
            Self::Share(percent) => {
                vec![format!("incoming iif != lo numgen random mod 100 < {percent} drop")]
            }
        }
    }
}

/// Makes the node drop these, in one step.
pub(crate) async fn drop_packets(place: &Place, drops: &[Drop]) -> Result<(), NetworkError> {
    let mut script = format!(
        "add table {TABLE}\n\
         add chain {TABLE} incoming {{ type filter hook input priority 0; }}\n\
         add chain {TABLE} outgoing {{ type filter hook output priority 0; }}\n"
    );
    for rule in drops.iter().flat_map(Drop::rules) {
        script.push_str(&format!("add rule {TABLE} {rule}\n"));
    }
    nft(place, &script).await
}

/// Lets everything through again.
pub(crate) async fn lift(place: &Place) -> Result<(), NetworkError> {
    nft(place, &format!("add table {TABLE}\ndelete table {TABLE}")).await
}

async fn nft(place: &Place, script: &str) -> Result<(), NetworkError> {
    let mut command = place.command("nft");
    command.arg(script);
    run(command, NFT_TIME_MAX).await.map(drop).map_err(NetworkError::Nft)
}
