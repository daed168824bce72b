//! The kinds of faults: whom they meet, for how long, and what must come of them.

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9` of a postmaster.
    KillPostmaster,
    /// `kill -9` of one server process of a client, which makes PostgreSQL restart its others.
    KillBackend,
    /// SIGSTOP of the primary's postmaster: sessions go on, nobody new gets in.
    StopPostmaster,
    /// SIGSTOP of a server process of a client, then SIGCONT.
    StopBackend,
    /// SIGSTOP of a walsender, then SIGCONT.
    StopWalsender,
    /// SIGSTOP of the checkpointer, then SIGCONT.
    StopCheckpointer,
    /// `kill -9` of the agent's worker; whoever guards it starts it again.
    KillWorker,
    /// `kill -9` of everything of the agent, started again later.
    KillAgent,
    /// `kill -9` of the agent's worker and of the postmaster, together.
    KillBoth,
    /// SIGSTOP of the agent's worker, then SIGCONT.
    FreezeWorker,
    /// SIGSTOP of every process of a node, then SIGCONT, as when a virtual machine is paused.
    FreezeNode,
    /// The link of the primary's node is down, longer than any lease.
    Isolate,
    /// The link of a standby's node is down.
    IsolateStandby,
    /// The link of a node is down, for less than a lease.
    Blip,
    /// The machine is gone: link down, everything killed; it boots later.
    LoseNode,
    /// The same, for so long that everybody has got used to it.
    LongGone,
    /// A node can send but not receive.
    Deaf,
    /// A node can receive but not send.
    Mute,
    /// Two nodes do not reach each other; the others reach both.
    Partial,
    /// The primary with one standby, and the other two: no majority anywhere.
    TwoAndTwo,
    /// Every database node is alone.
    QuorumLost,
    /// A standby reaches no PostgreSQL but its own; agents hear each other.
    NoReplication,
    /// Proxies reach the agents but not the primary's PostgreSQL.
    NoClients,
    /// A link goes down and up again several times.
    Flapping,
    /// Packets are lost at random on their way into a node.
    PacketLoss,
    /// `pg_ctl promote` on a standby, past the agents.
    RoguePromote,
    /// Every connection slot of the primary is taken.
    ConnectionsFull,
    /// The witness is gone.
    LoseWitness,
    /// The raft store of one node is wiped while its agent is down.
    WipeStore,
    /// The primary's postmaster is killed and cannot start any more, until it is repaired.
    Unstartable,
    /// A switchover, and nothing else.
    Switchover,
    /// `kill -9` of an agent at some moment of a switchover.
    SwitchoverKill,
    /// The primary's postmaster is killed, and soon its successor's.
    Double,
}

/// Whom it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The primary of the moment.
    Primary,
    /// A standby.
    Standby,
    /// Any database node.
    Database,
    /// Any node.
    Any,
    /// The witness.
    Witness,
}

/// Whether the primary changes, when the victim is the primary. On any other victim it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It must: nothing else ends the outage.
    Change,
    /// It must not: that would be needless.
    Stay,
    /// It may, depending on how long it lasts.
    Either,
}

/// How the servers replicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// A commit is acknowledged once the primary has it.
    Asynchronous,
    /// A commit is acknowledged once a standby has it too, whichever.
    Synchronous,
}

/// Whether rows that were acknowledged may be gone, after another one took over from the primary that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All are there.
    Kept,
    /// What no standby had received is gone with the primary. With synchronous replication nothing like that
    /// was acknowledged.
    AsReplicated,
}

impl Rows {
    /// Whether those of the last moments may be gone.
    pub const fn may_be_lost(self, replication: Replication) -> bool {
        match (self, replication) {
            (Self::Kept, _) | (Self::AsReplicated, Replication::Synchronous) => false,
            (Self::AsReplicated, Replication::Asynchronous) => true,
        }
    }
}

/// All that is laid down about a kind.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The kind.
    pub kind: Kind,
    /// Its name on the command line.
    pub name: &'static str,
    /// Whom it meets.
    pub victim: Victim,
    /// How long it lasts, in milliseconds: at least and at most.
    pub hold_ms: (u64, u64),
    /// Whether the primary changes.
    pub expect: Expect,
    /// Whether rows may be lost.
    pub rows: Rows,
}

const fn rule(
    kind: Kind,
    name: &'static str,
    victim: Victim,
    hold_ms: (u64, u64),
    expect: Expect,
    rows: Rows,
) -> Rule {
    Rule { kind, name, victim, hold_ms, expect, rows }
}

/// Every kind.
pub const RULES: &[Rule] = {
    use Expect::{Change, Either, Stay};
    use Rows::{AsReplicated, Kept};
    use Victim::{Any, Database, Primary, Standby, Witness};
    &[
        rule(Kind::KillPostmaster, "kill-postmaster", Database, (0, 0), Change, AsReplicated),
        rule(Kind::KillBackend, "kill-backend", Database, (0, 0), Stay, Kept),
        rule(Kind::StopPostmaster, "stop-postmaster", Primary, (0, 0), Change, AsReplicated),
        // Whoever is stopped may hold a lock that all the others need.
        rule(Kind::StopBackend, "stop-backend", Primary, (500, 8_000), Either, AsReplicated),
        rule(Kind::StopWalsender, "stop-walsender", Primary, (1_000, 15_000), Stay, Kept),
        rule(Kind::StopCheckpointer, "stop-checkpointer", Primary, (1_000, 15_000), Either, AsReplicated),
        rule(Kind::KillWorker, "kill-worker", Any, (0, 300), Stay, Kept),
        rule(Kind::KillAgent, "kill-agent", Any, (1_000, 15_000), Stay, Kept),
        rule(Kind::KillBoth, "kill-both", Primary, (0, 300), Either, AsReplicated),
        rule(Kind::FreezeWorker, "freeze-worker", Any, (1_000, 60_000), Either, AsReplicated),
        rule(Kind::FreezeNode, "freeze-node", Database, (1_000, 30_000), Either, AsReplicated),
        rule(Kind::Isolate, "isolate", Primary, (5_000, 20_000), Change, AsReplicated),
        rule(Kind::IsolateStandby, "isolate-standby", Standby, (1_000, 20_000), Stay, Kept),
        rule(Kind::Blip, "blip", Any, (100, 800), Stay, Kept),
        rule(Kind::LoseNode, "lose-node", Database, (5_000, 15_000), Change, AsReplicated),
        rule(Kind::LongGone, "long-gone", Database, (40_000, 60_000), Change, AsReplicated),
        rule(Kind::Deaf, "deaf", Database, (5_000, 15_000), Change, AsReplicated),
        rule(Kind::Mute, "mute", Database, (5_000, 15_000), Change, AsReplicated),
        rule(Kind::Partial, "partial", Any, (2_000, 15_000), Stay, Kept),
        rule(Kind::TwoAndTwo, "two-and-two", Primary, (3_000, 12_000), Stay, Kept),
        rule(Kind::QuorumLost, "quorum-lost", Primary, (4_000, 12_000), Either, AsReplicated),
        rule(Kind::NoReplication, "no-replication", Standby, (2_000, 15_000), Stay, Kept),
        rule(Kind::NoClients, "no-clients", Primary, (1_000, 10_000), Stay, Kept),
        rule(Kind::Flapping, "flapping", Database, (5_000, 15_000), Either, AsReplicated),
        rule(Kind::PacketLoss, "packet-loss", Any, (5_000, 15_000), Either, AsReplicated),
        rule(Kind::RoguePromote, "rogue-promote", Standby, (0, 0), Stay, Kept),
        rule(Kind::ConnectionsFull, "connections-full", Primary, (2_000, 15_000), Stay, Kept),
        rule(Kind::LoseWitness, "lose-witness", Witness, (1_000, 20_000), Stay, Kept),
        // A primary whose agent has forgotten what it promised cannot renew its lease for a while.
        rule(Kind::WipeStore, "wipe-store", Any, (500, 5_000), Either, AsReplicated),
        rule(Kind::Unstartable, "unstartable", Primary, (5_000, 20_000), Change, AsReplicated),
        rule(Kind::Switchover, "switchover", Primary, (0, 0), Change, Kept),
        rule(Kind::SwitchoverKill, "switchover-kill", Any, (0, 800), Either, Kept),
        // The second successor may be the first primary.
        rule(Kind::Double, "double", Primary, (0, 3_000), Either, AsReplicated),
    ]
};

impl Kind {
    /// What is laid down about it.
    pub fn rule(self) -> &'static Rule {
        match RULES.iter().find(|rule| rule.kind == self) {
            Some(rule) => rule,
            None => unreachable!("every kind has a rule"),
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        RULES.iter().find(|rule| rule.name == name).map(|rule| rule.kind)
    }
}
