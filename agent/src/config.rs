//! The agent's configuration: from the text of `agent.toml` to a [`Config`] in which every relation
//! between values holds. Whoever has a [`Config`] need not check anything again.
//!
//! Pure: files are read in [`load`]. All mistakes are reported at once; an unknown key is a mistake,
//! since a typo in a failover timeout is worse than a refused start.

mod load;
mod members;
mod notifications;
mod postgres;
mod rejoin;
mod scripts;
mod tags;
mod virtual_ip;
mod watchdog;

use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::config::{ByteSize, ConfigValue, KnownKey, Millis, Problems, Reader, Section};
use pgherd_common::{ClusterName, HostPort, NodeId, NodeName};
use pgherd_core::cover::Durability;

pub use load::{LoadError, load, load_text};
pub use members::MemberEntry;
pub use notifications::{Notifications, Password, Smtp, SmtpTls, Url, Webhook};
pub use pgherd_core::timings::{Others, RULES, Rule, Timings};
pub use postgres::Postgres;
pub use rejoin::Rejoin;
pub use scripts::{Line, Monitor, Scripts};
pub use virtual_ip::{Conflict, VirtualIp};
pub use watchdog::{Mode as WatchdogMode, Watchdog};

use crate::cluster::{Descriptor, NodeKind, Tags};

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster this node belongs to.
    pub cluster: ClusterName,
    /// This node.
    pub node: Node,
    /// Every voter, this node included, in the order of their ids.
    pub members: Vec<MemberEntry>,
    /// This node's PostgreSQL; `None` exactly on a witness.
    pub postgres: Option<Postgres>,
    /// All periods and deadlines.
    pub timings: Timings,
    /// What may happen without being asked.
    pub failover: Failover,
    /// How the primary is changed when it is asked for.
    pub switchover: Switchover,
    /// The device that stands behind the guardian.
    pub watchdog: Watchdog,
    /// Programs of the operators.
    pub scripts: Scripts,
    /// Who is told of what.
    pub notifications: Notifications,
    /// The address that follows the primary; never on a witness.
    pub virtual_ip: Option<VirtualIp>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// With PostgreSQL or without.
    pub kind: NodeKind,
    /// What the agent's one port is bound to.
    pub listen: HostPort,
    /// Where other agents, proxies and operators reach it.
    pub advertise: HostPort,
    /// The raft store and the agent's own files.
    pub state_dir: PathBuf,
    /// Place in the promotion order: the lowest number first, 0 never.
    pub priority: u32,
    /// Share of reads, relative to the other nodes.
    pub weight: u32,
    /// What it is good for.
    pub tags: Tags,
    /// The standby that this one streams from while that is in service.
    pub upstream: Option<NodeName>,
}

/// What may happen without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// Whether a failed primary is replaced without being asked.
    pub auto: bool,
    /// A standby further behind than this is not promoted without being asked.
    pub max_lag: ByteSize,
    /// How long a failover waits for the WAL that only the disk of the old primary has; zero: not at all.
    pub salvage_wait: Duration,
    /// So many standbys have to be left behind a failover that nobody asked for.
    pub minimum_standbys: u32,
    /// On how many standbys a commit has to be.
    pub durability: Durability,
    /// What becomes of a failed primary.
    pub rejoin: Rejoin,
}

/// How the primary is changed when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switchover {
    /// What becomes of sessions that cannot move to another server.
    pub unmovable: Unmovable,
}

/// What becomes of sessions with temporary tables, cursors that outlive their transaction, advisory locks, or LISTEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmovable {
    /// They are waited for, up to `timings.drain_timeout`, then ended.
    Wait,
    /// They are ended.
    End,
    /// They are waited for, up to `timings.drain_timeout`; then the switchover is given up.
    Refuse,
}

impl ConfigValue for Unmovable {
    const KIND: &'static str = "\"wait\", \"end\" or \"refuse\"";

    fn from_value(value: &toml::Value) -> Result<Self, String> {
        match value.as_str() {
            Some("wait") => Ok(Self::Wait),
            Some("end") => Ok(Self::End),
            Some("refuse") => Ok(Self::Refuse),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

impl Config {
    /// Reads the text of an `agent.toml`.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let (mut reader, root) = Reader::parse(text);
        let config = read(&mut reader, root);
        reader.finish(config)
    }

    /// This node, as it introduces itself to the cluster.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            id: self.node.id,
            name: self.node.name.clone(),
            kind: self.node.kind,
            agent: self.node.advertise.clone(),
            postgres: self.postgres.as_ref().map(|postgres| postgres.address.clone()),
            priority: self.node.priority,
            weight: self.node.weight,
            tags: self.node.tags,
            upstream: self.node.upstream.clone(),
        }
    }
}

/// Every key an `agent.toml` can have, for the documentation's test.
pub fn known_keys() -> Vec<KnownKey> {
    let (mut reader, root) =
        Reader::parse("[postgres]\n[[members]]\n[notifications.smtp]\n[notifications.webhook]\n");
    // Nothing can come of it: required keys are missing. Asking for them is what counts.
    let _ = read(&mut reader, root);
    reader.known_keys().to_vec()
}

/// From raw to checked.
fn read(r: &mut Reader, mut root: Section) -> Option<Config> {
    let mut cluster = root.table(r, "cluster");
    let name = cluster.required::<ClusterName>(r, "name");
    cluster.finish(r);

    let node = root.table(r, "node");
    let node = OwnNode::read(r, node);
    let members = members::read(r, &mut root);
    members::check(r, &members, node.id, node.name.as_ref());
    let postgres = postgres(r, &mut root, node.kind);

    let watchdog = root.table(r, "watchdog");
    let watchdog = Watchdog::read(r, watchdog);

    let virtual_ip = root.table(r, "virtual_ip");
    let virtual_ip = VirtualIp::read(r, virtual_ip);
    if virtual_ip.is_some() && node.kind == Some(NodeKind::Witness) {
        r.problem(
            "virtual_ip",
            "a witness is never primary; remove [virtual_ip], or set node.kind = \"database\"",
        );
    }

    let timings = root.table(r, "timings");
    let timings = Timings::read(r, timings);
    if let Some(timings) = &timings {
        let others = Others {
            stop_timeout: postgres.as_ref().map(|postgres| postgres.stop_timeout).unwrap_or_default(),
            watchdog: watchdog.as_ref().map(Watchdog::span).unwrap_or_default(),
        };
        for broken in timings.broken_rules(others) {
            r.problem("timings", broken);
        }
    }

    let failover = root.table(r, "failover");
    let failover = failover_rules(r, failover);
    let mut switchover = root.table(r, "switchover");
    let unmovable = switchover.or(r, "unmovable", "\"wait\"");
    switchover.finish(r);
    let scripts = root.table(r, "scripts");
    let scripts = Scripts::read(r, scripts);
    let notifications = root.table(r, "notifications");
    let notifications = Notifications::read(r, notifications);
    root.finish(r);

    Some(Config {
        cluster: name?,
        node: node.checked(&members)?,
        members,
        postgres,
        timings: timings?,
        failover: failover?,
        switchover: Switchover { unmovable: unmovable? },
        watchdog: watchdog?,
        scripts: scripts?,
        notifications: notifications?,
        virtual_ip,
    })
}

fn failover_rules(r: &mut Reader, mut failover: Section) -> Option<Failover> {
    let auto = failover.or(r, "auto", "true");
    let max_lag = failover.or(r, "max_lag", "\"16MB\"");
    let salvage_wait: Option<Millis> = failover.or(r, "salvage_wait", "\"5s\"");
    let minimum_standbys: Option<u32> = failover.or(r, "minimum_standbys", "0");
    let durability = durability(r, &mut failover);
    let rejoin = Rejoin::read(r, &mut failover);
    failover.finish(r);
    Some(Failover {
        auto: auto?,
        max_lag: max_lag?,
        salvage_wait: salvage_wait?.0,
        minimum_standbys: minimum_standbys?,
        durability: durability?,
        rejoin: rejoin?,
    })
}

/// On how many standbys commits have to be.
fn durability(r: &mut Reader, failover: &mut Section) -> Option<Durability> {
    let replication = failover.or::<Replication>(r, "durability", "\"async\"");
    let standbys = failover.or::<u32>(r, "sync_standbys", "1");
    let degrade_after: Option<Millis> = failover.or(r, "sync_degrade_after", "\"0s\"");
    if standbys == Some(0) {
        let text =
            "commits that wait for no standby are asynchronous; set failover.durability = \"async\" for that";
        r.problem("failover.sync_standbys", text);
    }
    let degrade_after_ms = u64::try_from(degrade_after?.0.as_millis()).unwrap_or(u64::MAX);
    Some(match replication? {
        Replication::Async => Durability::default(),
        Replication::Sync => Durability { standbys: standbys?, degrade_after_ms },
    })
}

/// `failover.durability`.
enum Replication {
    Async,
    Sync,
}

impl ConfigValue for Replication {
    const KIND: &'static str = "\"async\" or \"sync\"";

    fn from_value(value: &toml::Value) -> Result<Self, String> {
        match value.as_str() {
            Some("async") => Ok(Self::Async),
            Some("sync") => Ok(Self::Sync),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

/// `[postgres]` belongs to database nodes, and to them only.
fn postgres(r: &mut Reader, root: &mut Section, kind: Option<NodeKind>) -> Option<Postgres> {
    let section = root.optional_table(r, "postgres");
    match (kind, section) {
        (Some(NodeKind::Witness), Some(_)) => {
            r.problem(
                "postgres",
                "a witness runs no PostgreSQL; remove [postgres], or set node.kind = \"database\"",
            );
            None
        }
        (Some(NodeKind::Witness), None) => None,
        (Some(NodeKind::Database), None) => {
            r.problem("postgres", "missing; a database node needs [postgres] with data_dir and address");
            None
        }
        (None, None) => None,
        (Some(NodeKind::Database) | None, Some(section)) => Postgres::read(r, section),
    }
}

/// `[node]` as far as it could be read.
struct OwnNode {
    id: Option<NodeId>,
    name: Option<NodeName>,
    kind: Option<NodeKind>,
    listen: Option<HostPort>,
    advertise: Option<HostPort>,
    state_dir: Option<PathBuf>,
    priority: Option<u32>,
    weight: Option<u32>,
    tags: Option<Tags>,
    upstream: Option<NodeName>,
}

impl OwnNode {
    fn read(r: &mut Reader, mut section: Section) -> Self {
        let tags = section.table(r, "tags");
        let priority = section.or(r, "priority", "100");
        let node = Self {
            id: section.required(r, "id"),
            name: section.required(r, "name"),
            kind: section.or(r, "kind", "\"database\""),
            listen: section.required(r, "listen"),
            advertise: section.optional(r, "advertise"),
            state_dir: section.or(r, "state_dir", "\"/var/lib/pgherd\""),
            priority,
            weight: section.or(r, "weight", "1"),
            tags: tags::read(r, tags, priority),
            upstream: section.optional(r, "upstream"),
        };
        if node.upstream.is_some() && node.upstream == node.name {
            r.problem(
                "node.upstream",
                "names this node itself; name the standby to stream from, or leave it out",
            );
        }
        if node.upstream.is_some() && node.kind == Some(NodeKind::Witness) {
            r.problem(
                "node.upstream",
                "a witness streams from nobody; remove it, or set node.kind = \"database\"",
            );
        }
        section.finish(r);
        node
    }

    /// `None` when a value is missing, which was reported where it was missed.
    fn checked(self, members: &[MemberEntry]) -> Option<Node> {
        let id = self.id?;
        let listed = || members.iter().find(|member| member.id == id).map(|member| member.agent.clone());
        Some(Node {
            id,
            name: self.name?,
            kind: self.kind?,
            listen: self.listen?,
            advertise: self.advertise.or_else(listed)?,
            state_dir: self.state_dir?,
            priority: self.priority?,
            weight: self.weight?,
            tags: self.tags?,
            upstream: self.upstream,
        })
    }
}

#[cfg(test)]
mod tests;
