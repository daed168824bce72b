//! One round: a fault, the way back to health, and the questions asked afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::logs::CLIENT_LOST;

use super::direct_load::DirectLoad;
use super::inflict::{Cast, Deed, inflict};
use super::judge::{self, Measured};
use super::kind::{Expect, Kind, Replication};
use super::plan::Fault;
use super::proxy_load::{Ack, ProxyLoad};
use super::tell::Round;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::postgres::APP;
use crate::vip::Watch;
use crate::wait::wait_until;

/// A cluster that takes longer to heal needs a human.
const HEAL_TIME_MAX: Duration = Duration::from_secs(60);
/// A primary that must be replaced is, within this time.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(45);
/// Healthy for so long is healed: news of a failure may still be on its way.
const HEALTHY_FOR: Duration = Duration::from_millis(1_200);
/// A primary that serves has the virtual IP within this time: longer than the kernel takes to end another's.
const ADDRESS_TIME_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What faults bring into the logs.
pub(super) const EXPECTED: &[&str] = &[
    "too many clients already",
    "remaining connection slots are reserved",
    "could not accept SSL connection",
    "unrecognized configuration parameter \"no_such_setting\"",
    "contains errors",
    CLIENT_LOST,
    // A standby that has yet to hear of it when the load begins.
    "role \"campaign_direct\" does not exist",
];

/// What a kind brings beyond that: a node that cannot start says so, and so does one whose upstream is
/// killed while it rewinds.
const fn expected(kind: Kind) -> &'static [&'static str] {
    match kind {
        // The second, if the new primary has all its WAL, so that there is nothing to rewind.
        Kind::Unstartable => &[
            "cannot rewind this node: crash recovery before the rewind failed",
            "the node was made a standby, but did not start: PostgreSQL ended during its start",
        ],
        Kind::Double => &[
            "cannot rewind this node: pg_rewind failed",
            "cannot fetch the WAL that the old primary has left",
            // A walreceiver whose primary is killed while it stops.
            "error reading result of streaming command",
        ],
        // The network goes while pg_rewind asks the new primary.
        Kind::Flapping => &["cannot rewind this node: pg_rewind failed"],
        Kind::WipeStore => &["the raft store of this node is new, but the cluster is not"],
        _ => &[],
    }
}

/// A cluster under load.
pub(super) struct Campaign<'a> {
    cluster: &'a mut Cluster,
    direct: DirectLoad,
    proxied: ProxyLoad,
    epoch: Instant,
    replication: Replication,
    watch: Watch,
    /// Moments with two holders of the virtual IP that were told.
    doubles: usize,
    /// Log lines that were told.
    alarms: BTreeSet<String>,
}

impl<'a> Campaign<'a> {
    pub(super) fn new(
        cluster: &'a mut Cluster,
        direct: DirectLoad,
        proxied: ProxyLoad,
        epoch: Instant,
        replication: Replication,
        watch: Watch,
    ) -> Self {
        let alarms = BTreeSet::new();
        Self { cluster, direct, proxied, epoch, replication, watch, doubles: 0, alarms }
    }

    /// Inflicts a fault and sees what comes of it.
    pub(super) async fn round(&mut self, number: usize, fault: &Fault) -> Result<Round, Failure> {
        let before = self.cluster.status().await?;
        let primary = self.cluster.primary().await?;
        let cast = Cast::choose(self.cluster, fault, &primary)
            .ok_or_else(|| Failure::new("the cluster has no node for this fault"))?;
        let deed = inflict(self.cluster, fault, &cast).await?;
        let mut wrong: Vec<String> = deed.wrong.iter().cloned().collect();
        if judge::expectation(fault.kind, cast.meets_primary()) == Expect::Change {
            // Whoever must be replaced may look healthy until somebody notices.
            let changed = self.cluster.until("another primary", CHANGE_TIME_MAX, |status| {
                status.primary().filter(|name| *name != primary).map(|_| ())
            });
            wrong.extend(changed.await.err().map(|missed| missed.to_string()));
        }
        let repaired = Instant::now();
        let healed = match self.healed().await {
            Ok(at) => Some(at),
            Err(missing) => {
                wrong.push(format!("not healed within {HEAL_TIME_MAX:?}: {missing}"));
                None
            }
        };
        let mut seen = self.measure(fault, &cast, &deed, healed).await?;
        if let Ok(after) = self.cluster.status().await {
            seen.generations = after.generation - before.generation;
            seen.primaries = (primary, after.primary().unwrap_or("nobody").to_owned());
        }
        self.measure_terms(&deed, &mut seen);
        let mut note = deed.note;
        let overlaps = self.direct.with_terms(|terms| terms.overlaps(self.epoch));
        for overlap in overlaps {
            match judge::overlap(&cast.victim, deed.woken, &overlap) {
                Ok(told) => note.push_str(&told),
                Err(violation) => wrong.push(violation),
            }
        }
        let alarms = self.cluster.alarms(EXPECTED).into_iter();
        let new = alarms.filter(|line| self.alarms.insert(line.clone()));
        let of_kind = expected(fault.kind);
        seen.alarms = new.filter(|line| !of_kind.iter().any(|known| line.contains(known))).collect();
        wrong.extend(judge::violations(fault.kind, self.replication, &seen));
        wrong.extend(self.strays(healed.is_some()).await);
        Ok(Round {
            number,
            kind: fault.kind,
            victim: cast.victim,
            hold: fault.hold,
            note,
            seen,
            healed: healed.map(|at| at.saturating_duration_since(repaired)),
            violations: wrong,
        })
    }

    /// Whether two nodes ever had the virtual IP, and whether it is where it belongs once all is well.
    async fn strays(&mut self, healed: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        if healed {
            let primary = self.cluster.status().await.ok();
            let primary = primary.and_then(|status| status.primary().map(str::to_owned));
            let settled = wait_until("the primary has the virtual IP", ADDRESS_TIME_MAX, async || {
                let holders = self.watch.seen().holders;
                if holders.iter().eq(&primary) { Ok(()) } else { Err(format!("{holders:?} have it")) }
            });
            wrong.extend(settled.await.err().map(|missed| missed.to_string()));
        }
        let doubles = self.watch.seen().doubles;
        let new = doubles.iter().skip(self.doubles);
        wrong.extend(new.map(|double| format!("two nodes had the virtual IP: {double}")));
        self.doubles = doubles.len();
        wrong
    }

    /// Waits until every agent says that all is well, of the same primary, for a while, and commits go
    /// on; when that began.
    async fn healed(&self) -> Result<Instant, String> {
        let deadline = Instant::now() + HEAL_TIME_MAX;
        let mut since: Option<Instant> = None;
        let mut missing = String::new();
        while Instant::now() < deadline {
            match self.all_well().await {
                Err(reason) => {
                    since = None;
                    missing = reason;
                }
                Ok(()) => {
                    let begun = *since.get_or_insert_with(Instant::now);
                    let written = self.proxied.last_ack().is_some_and(|last| last > begun);
                    if begun.elapsed() >= HEALTHY_FOR && written {
                        return Ok(begun);
                    }
                    missing = "no commit comes through the proxy".to_owned();
                }
            }
            sleep(LOOK_EVERY).await;
        }
        Err(missing)
    }

    async fn all_well(&self) -> Result<(), String> {
        let mut generations = BTreeSet::new();
        for node in self.cluster.nodes() {
            let status = self.cluster.status_of(&node.name).await;
            let status = status.map_err(|error| pgherd_common::errors::Chain(&error).to_string())?;
            if !status.healthy {
                return Err(format!("{} says: {}", node.name, status.summary()));
            }
            generations.insert(status.generation);
        }
        if generations.len() == 1 { Ok(()) } else { Err(format!("the agents disagree: {generations:?}")) }
    }

    /// What the applications saw of it.
    async fn measure(
        &mut self,
        fault: &Fault,
        cast: &Cast,
        deed: &Deed,
        healed: Option<Instant>,
    ) -> Result<Measured, Failure> {
        let load = self.proxied.take();
        let mut seen = Measured {
            meets_primary: cast.meets_primary(),
            outage: outage(&load.acks, deed.begun, healed.unwrap_or_else(Instant::now)),
            errors: load.errors,
            sessions_lost: load.sessions_lost,
            unanswered: load.unanswered,
            ..Measured::default()
        };
        if fault.kind == Kind::RoguePromote {
            seen.rogue = self.direct.with_terms(|terms| terms.mark_rogue(&cast.victim, deed.begun));
        }
        if healed.is_none() {
            return Ok(seen);
        }
        let primary = self.cluster.primary().await?;
        let client = self.cluster.connect_server(&primary, APP).await?;
        let rows = self.proxied.look_up(&client, &load.acks).await?;
        seen.lost = rows.lost.len();
        seen.lost_before =
            rows.lost.first().map_or(Duration::ZERO, |ack| deed.begun.saturating_duration_since(ack.at));
        seen.duplicated = rows.duplicated;
        Ok(seen)
    }

    /// When the old primary stopped accepting writes, and when the new one began.
    fn measure_terms(&self, deed: &Deed, seen: &mut Measured) {
        if !seen.changed() {
            return;
        }
        let (old, new) = &seen.primaries;
        self.direct.with_terms(|terms| {
            let since = |at: Instant| at.saturating_duration_since(deed.begun);
            seen.old_last = terms.of_before(old, deed.begun).map(|term| since(term.last_acked));
            seen.new_first = terms.of_after(new, deed.begun).map(|term| since(term.first_acked));
        });
    }

    /// Ends the load; what is wrong after all.
    pub(super) async fn finish(mut self) -> Vec<String> {
        self.proxied.stop().await;
        self.direct.stop();
        match self.vanished().await {
            Ok(0) => Vec::new(),
            Ok(count) => vec![format!(
                "{count} of {} rows that had been found after their fault are gone at the end",
                self.proxied.kept()
            )],
            Err(error) => vec![format!("the rows cannot be counted at the end: {error:?}")],
        }
    }

    async fn vanished(&self) -> Result<usize, Failure> {
        let primary = self.cluster.primary().await?;
        let client = self.cluster.connect_server(&primary, APP).await?;
        self.proxied.vanished(&client).await
    }
}

/// The longest time without an acknowledged commit between `begun` and `ended`.
fn outage(acks: &[Ack], begun: Instant, ended: Instant) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last = begun;
    for ack in acks {
        if ack.at > begun {
            longest = longest.max(ack.at.saturating_duration_since(last));
        }
        last = last.max(ack.at);
    }
    longest.max(ended.saturating_duration_since(last))
}
