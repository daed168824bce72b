//! What agents see. Facts and ages only: what they mean is decided in `coordinator` and `reconcile`.
//!
//! An agent sends its own [`NodeObservation`] to every other agent with each beat, so that whoever
//! becomes raft leader already knows the cluster. Nothing here is a point in time: durations cross
//! the wire, times do not.

use std::collections::BTreeMap;

use pgherd_common::wal::TimelineHistory;
use pgherd_common::{ClusterName, Generation, HostPort, Lsn, NodeId, Timeline, WallTime};
use serde::{Deserialize, Serialize};

use crate::capacity::Capacity;
use crate::cluster::Descriptor;
use crate::cover::{CoverSeen, Durability};
use crate::proxy_address::{Candidate, ProxyId};
use crate::salvage::LeftWal;

pub use crate::health::{Disk, Health, WriteFailure, WriteProbe};

/// Everything one agent says about itself and its PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObservation {
    /// Who speaks, as its own configuration describes it.
    pub descriptor: Descriptor,
    /// The cluster this agent is configured for.
    pub cluster: ClusterName,
    /// Drawn at random when the agent starts: tells two processes with one identity apart.
    pub incarnation: u64,
    /// Rises with everything this process says, so that what was overtaken on its way is known as old.
    pub serial: u64,
    /// The highest generation this agent has applied from the log.
    pub generation: Generation,
    /// The revision of the cluster's state that this agent has applied from the log.
    pub revision: u64,
    /// Up to which revision this agent knows that people were told of what has happened.
    #[serde(default)]
    pub told: u64,
    /// The number of its raft store, while this agent takes no part because the store before was lost.
    pub probation: Option<u64>,
    /// The generation of the change of primary this agent has applied and takes part in. From then on
    /// it acknowledges no beat of an older primary.
    pub intent: Option<Generation>,
    /// What is left, in milliseconds, of this agent's promise to the primary of an older generation
    /// than `intent`. 0 when no promise is left.
    pub promise_left_ms: u64,
    /// What this agent's configuration asks of commits.
    #[serde(default)]
    pub durability: Durability,
    /// Milliseconds until this agent fences its primary if nothing renews the lease; `None` when it
    /// holds none.
    pub lease_left_ms: Option<u64>,
    /// `None` on a witness.
    pub postgres: Option<PostgresObservation>,
    /// What this agent sees when it knocks on the PostgreSQL of a node whose agent is silent.
    pub remote: BTreeMap<NodeId, RemoteDatabase>,
    /// The virtual IP, where this node is configured to have it when it is primary.
    #[serde(default)]
    pub address: Option<AddressTold>,
    /// Proxies that would take the proxies' virtual IP, as they told this agent.
    #[serde(default)]
    pub proxies: Vec<Candidate>,
    /// Which of them is to have it; told by the raft leader only.
    #[serde(default)]
    pub picked_proxy: Option<ProxyId>,
}

/// A virtual IP as its node tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressTold {
    /// Which, with its prefix.
    pub address: String,
    /// The node has it.
    pub held: bool,
    /// Why it does not, where it should.
    pub trouble: Option<String>,
}

/// A PostgreSQL server seen over the network by another node's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteDatabase {
    /// It answered, and accepts writes.
    Writable,
    /// It answered, and is in recovery.
    InRecovery,
    /// It answered, but let us not in (wrong password, too many connections, starting up).
    Answering,
    /// The host answered that nobody listens.
    Refused,
    /// No answer in time.
    Silent,
}

/// One look at the local PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresObservation {
    /// From `pg_control`; 0 when there is no readable data directory.
    pub system_identifier: u64,
    /// Major version of the data directory.
    pub major: u32,
    /// The postmaster, while there is one.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: PostgresState,
    /// The generation this server was recruited for: its walreceiver is gone and stays away until a
    /// primary of that generation serves. Set together with a position read afterwards.
    pub recruited: Option<Generation>,
    /// The generation for which this server has fetched what the old primary had left on its disk, as far as it could be
    /// replayed. Set together with a position read afterwards.
    pub salvaged: Option<Generation>,
    /// When the switchover was begun for which this primary could not be prepared, or its transactions did not end in
    /// time; `trouble` says why.
    pub undrained: Option<WallTime>,
    /// The switchover this primary has checkpointed for.
    pub prepared: Option<Generation>,
    /// The newest generation of which this node gave up the primary role: every process of the
    /// instance was gone.
    pub released: Option<Generation>,
    /// When an operator asked for a restart of this standby, until it is stopped: it is to get no new work.
    #[serde(default)]
    pub restarting: Option<WallTime>,
    /// Why the agent killed it when it was last up, until it is started again.
    pub fenced: Option<String>,
    /// Why the last action failed, until one succeeds.
    pub trouble: Option<String>,
    /// Whether it can do its work, beyond answering.
    pub health: Health,
}

/// What the local PostgreSQL is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostgresState {
    /// No postmaster.
    Down(Stopped),
    /// A postmaster runs, but lets nobody in yet: crash recovery, or a standby short of consistency.
    Starting {
        /// Milliseconds since this was first seen.
        for_ms: u64,
        /// Whether `standby.signal` is there: without it, it will accept writes.
        standby: bool,
    },
    /// It answers queries.
    Running(Running),
    /// A postmaster runs but does not answer a new connection.
    Unresponsive {
        /// Milliseconds since the last answer.
        for_ms: u64,
        /// The error of the last attempt.
        reason: String,
    },
    /// The agent must not touch this data directory; the text says why and what to do.
    Unusable(String),
}

/// A server that is not running, as `pg_control` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// `shut down` or `shut down in recovery`.
    pub clean: bool,
    /// Whether `standby.signal` is there: it would come up as a standby.
    pub standby: bool,
    /// Timeline of the last checkpoint.
    pub timeline: Timeline,
    /// Where the last checkpoint record starts. After a clean stop of a primary nothing but that
    /// record follows.
    pub checkpoint: Lsn,
    /// Where a start would begin to replay, if it was not stopped in order.
    #[serde(default)]
    pub redo: Lsn,
    /// It was already down when this agent first looked, so nobody saw it die.
    pub found_down: bool,
    /// Milliseconds since this was first seen.
    pub for_ms: u64,
    /// How far the WAL goes that a primary which did not end in order has left here; `None` where it cannot be read.
    pub left: Option<LeftWal>,
}

/// A server that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// The timeline it writes or has received to.
    pub timeline: Timeline,
    /// A primary's current (flushed) position, a standby's replayed position.
    pub position: Lsn,
    /// The end of what is safely on disk: a standby's flushed receive position (never below
    /// `position`), a primary's `position`.
    pub received: Lsn,
    /// Timeline of the last checkpoint. pg_rewind may be believed only once this has followed
    /// `timeline` on the server it rewinds to.
    pub checkpoint_timeline: Timeline,
    /// The forks behind `timeline`.
    pub history: TimelineHistory,
    /// Where `primary_conninfo` points; `None` when it is empty.
    pub follows: Option<HostPort>,
    /// The generation whose primary that is, as the walreceiver calls itself.
    pub follows_in: Option<Generation>,
    /// `pg_stat_wal_receiver.status`, when there is a walreceiver.
    pub receiver: Option<String>,
    /// Servers streaming from here.
    pub standbys: Vec<Downstream>,
    /// Where a start would begin to replay: WAL from there on is kept in any case.
    #[serde(default)]
    pub redo: Lsn,
    /// Physical slots of members that exist here.
    pub slots: Vec<SlotSeen>,
    /// Logical slots, and what is done for them.
    #[serde(default)]
    pub logical: Box<LogicalSeen>,
    /// For which standbys commits wait here, if this agent has seen to it.
    pub cover: Option<CoverSeen>,
    /// Only agents and standbys are let in: it was started in place, and what it has is not yet on as many standbys as
    /// commits wait for.
    #[serde(default)]
    pub gated: bool,
    /// Of a primary that was promoted: all transactions that it has from before have lower numbers, its own have this one
    /// or higher ones. `None` where that is not known for certain.
    #[serde(default)]
    pub first_xid: Option<u64>,
    /// How much it has of what a standby of it must have as much of.
    #[serde(default)]
    pub capacity: Option<Capacity>,
}

impl Running {
    /// Whether WAL is flowing in.
    pub fn is_streaming(&self) -> bool {
        self.receiver.as_deref() == Some("streaming")
    }
}

/// A physical slot of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSeen {
    /// Its name.
    pub name: String,
    /// Somebody streams through it.
    pub active: bool,
    /// From where on it keeps WAL, if it keeps any.
    pub restart: Option<Lsn>,
    /// What it kept is gone: it had come to more than `max_slot_wal_keep_size`.
    pub lost: bool,
    /// It keeps old rows from being vacuumed away.
    pub pinned: bool,
}

/// What there is of logical replication that is to survive a failover.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogicalSeen {
    /// Slots made with `failover`: a primary's own, or on a standby the copies that are ready for a promotion.
    pub slots: Vec<String>,
    /// On a standby: slots from when it was a primary, in the way of the copies.
    #[serde(default)]
    pub leftover: Vec<String>,
    /// A standby is configured by its agent to keep such copies.
    pub copies: bool,
    /// `synchronized_standby_slots`, where the agent has set it.
    pub waits_for: Option<String>,
}

/// A row of `pg_stat_replication` that is a member's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downstream {
    /// Which member: part of `application_name`.
    pub name: String,
    /// `state`.
    pub state: String,
    /// `sync_state`.
    pub sync_state: String,
}

impl NodeObservation {
    /// This observation without what changes all the time (positions, ages): when two differ in this,
    /// the others should hear of it at once.
    pub fn essence(&self) -> Self {
        let mut essence = self.clone();
        essence.serial = 0;
        // The next beat is soon enough.
        essence.told = 0;
        essence.lease_left_ms = self.lease_left_ms.map(|_| 0);
        essence.promise_left_ms = u64::from(self.promise_left_ms > 0);
        if let Some(postgres) = &mut essence.postgres {
            postgres.health = postgres.health.ageless();
            match &mut postgres.state {
                PostgresState::Down(stopped) => stopped.for_ms = 0,
                PostgresState::Starting { for_ms, .. } => *for_ms = 0,
                PostgresState::Unresponsive { for_ms, .. } => *for_ms = 0,
                PostgresState::Running(running) => {
                    running.position = Lsn::default();
                    running.received = Lsn::default();
                    running.redo = Lsn::default();
                    for slot in &mut running.slots {
                        slot.restart = slot.restart.map(|_| Lsn::default());
                    }
                }
                PostgresState::Unusable(_) => {}
            }
        }
        essence
    }
}

impl PostgresObservation {
    /// The server, if it answers.
    pub fn running(&self) -> Option<&Running> {
        match &self.state {
            PostgresState::Running(running) => Some(running),
            PostgresState::Down(_)
            | PostgresState::Starting { .. }
            | PostgresState::Unresponsive { .. }
            | PostgresState::Unusable(_) => None,
        }
    }

    /// The data directory, if nothing runs on it.
    pub fn stopped(&self) -> Option<&Stopped> {
        match &self.state {
            PostgresState::Down(stopped) => Some(stopped),
            PostgresState::Running(_)
            | PostgresState::Starting { .. }
            | PostgresState::Unresponsive { .. }
            | PostgresState::Unusable(_) => None,
        }
    }
}
