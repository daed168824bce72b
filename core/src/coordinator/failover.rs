//! The primary has failed: on what evidence, and how its successor is chosen.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Lsn, NodeId, NodeName};

use super::candidate::Rank;
use super::report::{NotYet, Report};
use super::view::View;
use crate::cluster::{Change, ChangePhase, Command, OldEnd, PrimaryPhase, Service, majority};
use crate::defect::{Defect, planted};
use crate::observation::{PostgresObservation, PostgresState, RemoteDatabase};
use crate::salvage;
use crate::waterfall::Step;

/// A primary in trouble.
struct Trouble {
    reason: String,
    remedy: Remedy,
}

/// What may be done about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// Its PostgreSQL was already down when its agent came up: nothing was lost from sight, and it has
    /// everything, so it is started again rather than replaced.
    StartInPlace,
    /// Another node takes over; if none can, it is started again.
    ReplaceOrStart,
    /// Only another node helps: it is gone, or being started already.
    Replace,
    /// It is sick rather than gone: only a node that is not sick itself helps. Without one it stays; a
    /// disk that is full everywhere must not end in no database at all.
    ReplaceByFit,
}

impl View<'_> {
    /// Begins a failover if the primary has failed and something can be done about it.
    pub(super) fn begin_failover(&self, report: &mut Report) -> Option<Command> {
        if self.state.change.as_ref().is_some_and(|change| change.phase != ChangePhase::Granted) {
            return None;
        }
        let primary = self.state.primary?.node;
        let trouble = self.primary_trouble(primary, report)?;
        if self.leaves_alone(primary, &trouble.reason, report) {
            return None;
        }
        let to = match trouble.remedy {
            Remedy::StartInPlace => Some(primary),
            Remedy::ReplaceOrStart | Remedy::Replace | Remedy::ReplaceByFit if !self.policy.auto_failover => {
                report.waiting.push(NotYet::AutoFailoverOff(self.name(primary)));
                return None;
            }
            // What has begun has to end with a primary.
            Remedy::ReplaceOrStart | Remedy::Replace | Remedy::ReplaceByFit
                if self.state.change.is_none()
                    && self.standbys_behind(primary) < self.policy.minimum_standbys =>
            {
                let (left, wanted) = (self.standbys_behind(primary), self.policy.minimum_standbys);
                report.waiting.push(NotYet::TooFewLeft { node: self.name(primary), left, wanted });
                if trouble.remedy != Remedy::ReplaceOrStart {
                    return None;
                }
                Some(primary)
            }
            Remedy::ReplaceOrStart | Remedy::Replace | Remedy::ReplaceByFit => {
                match self.somebody_can_take_over(primary, trouble.remedy == Remedy::ReplaceByFit) {
                    Ok(()) => None,
                    Err(rejected) => {
                        if trouble.remedy == Remedy::ReplaceByFit {
                            report.waiting.push(NotYet::Sick(trouble.reason.clone()));
                        }
                        report.waiting.push(NotYet::NoCandidate { node: self.name(primary), rejected });
                        if trouble.remedy != Remedy::ReplaceOrStart {
                            return None;
                        }
                        Some(primary)
                    }
                }
            }
        };
        report.doing.push(format!("failover from {}: {}", self.name(primary), trouble.reason));
        Some(Command::Begin {
            generation: self.state.generation,
            kind: ChangeKind::Failover,
            from: primary,
            to,
            reason: trouble.reason,
            allow_data_loss: false,
            end_transactions: false,
            noticed_ms: self.noticed(primary),
            scheduled: None,
            at: self.wall,
        })
    }

    /// How many standbys would be left, were one of them promoted now.
    fn standbys_behind(&self, primary: NodeId) -> u32 {
        let up = |id: NodeId| self.running(id).is_some_and(|running| running.in_recovery);
        let standbys = self.state.databases().filter(|member| {
            let id = member.descriptor.id;
            id != primary && member.may_serve() && member.service == Service::Up && up(id)
        });
        u32::try_from(standbys.count()).unwrap_or(u32::MAX).saturating_sub(1)
    }

    /// For how many milliseconds the trouble with the primary has been seen.
    fn noticed(&self, primary: NodeId) -> u64 {
        let age = self.age(primary).unwrap_or_default();
        let seen = match self.postgres(primary).map(|postgres| &postgres.state) {
            Some(PostgresState::Down(stopped)) => Duration::from_millis(stopped.for_ms),
            Some(PostgresState::Starting { for_ms, .. }) => Duration::from_millis(*for_ms),
            _ => Duration::ZERO,
        };
        u64::try_from((age + seen).as_millis()).unwrap_or(u64::MAX)
    }

    fn somebody_can_take_over(&self, primary: NodeId, fit: bool) -> Result<(), Vec<String>> {
        let predecessor = self.state.change.as_ref().filter(|change| change.before.is_none());
        if predecessor.is_some_and(|change| change.from != primary && self.can_return(change.from)) {
            return Ok(());
        }
        let (ranks, mut rejected) = self.ranks(primary, None);
        for rank in ranks {
            let sick = self.postgres(rank.node()).filter(|postgres| fit && !postgres.health.is_fit());
            let may = self.within_lag(rank, primary).and_then(|()| self.could_be_covered(rank));
            match (sick, may) {
                (Some(sick), _) => rejected.push(format!("{} {}", self.name(rank.node()), sick.health)),
                (None, Ok(())) => return Ok(()),
                (None, Err(reason)) => rejected.push(reason),
            }
        }
        Err(rejected)
    }

    /// Whether a former primary whose successor never served can be primary again: stopped, with all it
    /// had, under the eyes of its agent.
    fn can_return(&self, id: NodeId) -> bool {
        let allowed = self.state.members.get(&id).is_some_and(|member| member.may_serve());
        allowed
            && !self.has_forgotten(id)
            && self
                .postgres(id)
                .is_some_and(|postgres| postgres.stopped().is_some_and(|stopped| !stopped.standby))
    }

    fn primary_trouble(&self, primary: NodeId, report: &mut Report) -> Option<Trouble> {
        let name = self.name(primary);
        if self.age(primary).is_none_or(|age| age >= self.policy.lease) {
            if self.state.is_new() {
                report.waiting.push(NotYet::NeverConfirmed(name));
                return None;
            }
            // Whoever begins to lead may have been cut off itself until now: the primary's next beat may be
            // on its way.
            if self.led_for < self.policy.lease / 2 {
                report.waiting.push(NotYet::Listening(name));
                return None;
            }
            let reason = format!("{name} is gone: its agent is silent and its PostgreSQL answers nobody");
            return self
                .verified_gone(primary, report)
                .then_some(Trouble { reason, remedy: Remedy::Replace });
        }
        let postgres = self.postgres(primary)?;
        match self.state.primary?.phase {
            PrimaryPhase::Promoting => self.promotion_trouble(primary, postgres),
            PrimaryPhase::Covering { .. } => {
                let serving = self.serving_trouble(primary, postgres);
                serving.or_else(|| self.covering_trouble(primary, postgres))
            }
            PrimaryPhase::Serving { .. } => self.serving_trouble(primary, postgres),
        }
    }

    /// It is coming up; that may take a while and be in several states on the way.
    fn promotion_trouble(&self, primary: NodeId, postgres: &PostgresObservation) -> Option<Trouble> {
        let name = self.name(primary);
        let failed = postgres.running().is_none().then_some(postgres.trouble.as_ref()).flatten();
        let stuck = self.step_age > self.policy.change_timeout;
        let reason = match failed {
            Some(error) => format!("{name} could not become primary: {error}"),
            None if stuck => format!("{name} did not become primary in {:?}", self.policy.change_timeout),
            None => return None,
        };
        Some(Trouble { reason, remedy: Remedy::Replace })
    }

    /// It cannot have commits wait, or not let clients in: so nobody will ever be.
    fn covering_trouble(&self, primary: NodeId, postgres: &PostgresObservation) -> Option<Trouble> {
        let running = postgres.running();
        let cover = running.and_then(|running| running.cover).map(|seen| seen.number);
        let waits = cover == Some(self.state.cover.number);
        let shut = running.is_some_and(|running| running.gated && self.is_met(running));
        let error = postgres.trouble.as_ref().filter(|_| self.step_age > self.policy.change_timeout)?;
        let name = self.name(primary);
        let reason = match (waits, shut) {
            (false, _) => format!("{name} cannot have commits wait for standbys: {error}"),
            (true, true) => format!("{name} cannot let clients in: {error}"),
            (true, false) => return None,
        };
        Some(Trouble { reason, remedy: Remedy::Replace })
    }

    fn serving_trouble(&self, primary: NodeId, postgres: &PostgresObservation) -> Option<Trouble> {
        let name = self.name(primary);
        let (reason, remedy) = match &postgres.state {
            // It could not win the lease again before it has its vote back.
            PostgresState::Down(_) if self.has_forgotten(primary) => {
                (format!("{name} is down and its agent's raft store was lost"), Remedy::Replace)
            }
            PostgresState::Down(stopped) if stopped.found_down => {
                (format!("PostgreSQL on {name} was down when its agent started"), Remedy::StartInPlace)
            }
            PostgresState::Down(stopped) if stopped.clean => {
                (format!("PostgreSQL on {name} was shut down"), Remedy::ReplaceOrStart)
            }
            PostgresState::Down(_) => match &postgres.fenced {
                Some(why) => (format!("PostgreSQL on {name} was fenced: {why}"), Remedy::ReplaceOrStart),
                None => (format!("PostgreSQL on {name} crashed"), Remedy::ReplaceOrStart),
            },
            PostgresState::Running(running) if running.in_recovery => {
                (format!("PostgreSQL on {name} came up as a standby"), Remedy::ReplaceOrStart)
            }
            PostgresState::Starting { for_ms, .. }
                if Duration::from_millis(*for_ms) > self.policy.change_timeout =>
            {
                let bound = self.policy.change_timeout;
                (format!("PostgreSQL on {name} has let nobody in for {bound:?}"), Remedy::Replace)
            }
            PostgresState::Unusable(reason) => (format!("{name}: {reason}"), Remedy::Replace),
            PostgresState::Running(_) | PostgresState::Starting { .. } => {
                let sick = postgres.health.failure(self.policy.local_timeout)?;
                (format!("PostgreSQL on {name} {sick}"), Remedy::ReplaceByFit)
            }
            // Its own agent fences it in time, candidate or not: it is of no use as it is.
            PostgresState::Unresponsive { .. } => return None,
        };
        Some(Trouble { reason, remedy })
    }

    /// The primary's agent is silent. Its database is given up only when every other agent has knocked
    /// on it and nobody found it in service: an agent alone may have died, and one that still hears it
    /// does not knock. There must be enough of them: whoever is heard by a minority only may be well.
    fn verified_gone(&self, primary: NodeId, report: &mut Report) -> bool {
        let voters = &self.state.voters;
        let heard: BTreeSet<NodeId> = self.seen.keys().copied().filter(|id| self.is_fresh(*id)).collect();
        if !voters.allow_successor(&heard) {
            let needed = voters.sets().map(|set| majority(set.len())).max().unwrap_or(0);
            let heard = heard.iter().filter(|id| voters.mentions(**id)).count();
            report.waiting.push(NotYet::Minority { node: self.name(primary), heard, needed });
            return false;
        }
        if self.is_in_service(primary) {
            report.waiting.push(NotYet::Unguarded(self.name(primary)));
            return false;
        }
        let others = self.all_fresh().filter(|other| {
            other.descriptor.id != primary
                && self.state.voters.mentions(other.descriptor.id)
                && other.probation.is_none()
        });
        let missing: Vec<_> = others
            .filter(|other| !other.remote.contains_key(&primary))
            .map(|other| other.descriptor.name.clone())
            .collect();
        let all_knocked = missing.is_empty();
        if !all_knocked {
            report.waiting.push(NotYet::Unverified { node: self.name(primary), missing });
        }
        all_knocked
    }

    /// Whether anybody who knocked on this node's PostgreSQL found it accepting writes. A witness only
    /// sees that something answers, which counts unless somebody with a login saw that it is a standby.
    pub(super) fn is_in_service(&self, id: NodeId) -> bool {
        let saw = |what| self.all_fresh().any(|other| other.remote.get(&id) == Some(&what));
        saw(RemoteDatabase::Writable) || (saw(RemoteDatabase::Answering) && !saw(RemoteDatabase::InRecovery))
    }

    /// Drives a failover until the new primary is chosen.
    pub(super) fn advance_failover(&self, change: &Change, report: &mut Report) -> Option<Command> {
        let from = change.from;
        // An agent that has not yet applied the change may start its server again.
        let knows = self.fresh(from).is_some_and(|said| said.intent == Some(change.generation));
        let released = knows && self.has_released(from);
        if !released && !self.promises_lapsed(change, report) {
            return None;
        }
        if !released && !self.is_fresh(from) && !self.verified_gone(from, report) {
            return None;
        }
        // Its own agent sees it accept writes: whatever the promises say, it has not been fenced.
        if !released && self.running(from).is_some_and(|running| !running.in_recovery) {
            let (node, since) = (self.name(from), self.step_age);
            report.waiting.push(NotYet::Step { kind: change.kind, node, what: "be fenced", since });
            return None;
        }
        report.passed.push(Step::Fence);
        if change.to == Some(from) && released {
            return Some(self.grant_back(change, Lsn::default(), None, report));
        }
        if let Some(before) = change.before.filter(|before| self.can_return(*before)) {
            return Some(self.grant(change, before, Lsn::default(), report));
        }
        let (ranks, mut rejected) = self.ranks(from, change.to.filter(|to| *to != from));
        let all = ranks.len();
        let (recruited, busy): (Vec<_>, Vec<_>) = ranks.into_iter().partition(|rank| {
            planted(Defect::SkipRecruit) || self.is_recruited(rank.node(), change.generation)
        });
        // The best claim may belong to one who is still busy cutting its walreceiver.
        let expected = if change.to.is_some() { all } else { self.expected_recruits(from).max(all) };
        if recruited.len() < expected && self.step_age < self.policy.recruit_timeout {
            report.waiting.push(NotYet::Recruiting { done: recruited.len(), expected });
            return None;
        }
        report.passed.push(Step::Recruit);
        // An operator who promotes by force wants another primary.
        let free = released && change.to.is_none() && !change.allow_data_loss;
        if let Some(why) = free.then(|| self.is_sooner_in_place(from, &recruited)).flatten() {
            return Some(self.grant_back(change, Lsn::default(), Some(why), report));
        }
        if let Some((rank, bytes)) =
            recruited.first().and_then(|rank| Some((rank, self.yet_to_fetch(*rank, change)?)))
        {
            let (node, from) = (self.name(rank.node()), self.name(from));
            report.waiting.push(NotYet::Salvaging { node, from, bytes, since: self.step_age });
            return None;
        }
        report.passed.push(Step::Salvage);
        for rank in recruited {
            match self.within_lag(rank, from).and_then(|()| self.covers(rank, change)) {
                Err(reason) if !change.allow_data_loss => rejected.push(reason),
                Ok(()) | Err(_) => return Some(self.grant(change, rank.node(), rank.received(), report)),
            }
        }
        rejected.extend(
            busy.iter().map(|rank| format!("{} has not cut its walreceiver yet", self.name(rank.node()))),
        );
        report.waiting.push(NotYet::NoCandidate { node: self.name(from), rejected });
        // Better the old primary, restarted with all it has, than nobody.
        let last_resort = released && self.step_age >= self.policy.recruit_timeout;
        last_resort.then(|| {
            let why = "no standby can take over".to_owned();
            self.grant_back(change, Lsn::default(), Some(why), report)
        })
    }

    /// How many bytes a recruited standby is about to fetch from the disk of the old primary.
    fn yet_to_fetch(&self, rank: Rank, change: &Change) -> Option<u64> {
        let postgres = self.postgres(rank.node())?;
        let offer = self.fresh(change.from).and_then(|said| salvage::offer(self.state, said))?;
        let bytes = offer.wal.lacking(postgres.running()?);
        let due = postgres.salvaged != Some(change.generation) && self.step_age < self.policy.salvage_wait;
        (due && bytes > 0).then_some(bytes)
    }

    /// Standbys that were in service and whose agents are there, whatever their PostgreSQL does now.
    fn expected_recruits(&self, from: NodeId) -> usize {
        let candidates = self.state.databases().filter(|member| {
            let id = member.descriptor.id;
            id != from
                && member.may_serve()
                && member.priority() > 0
                && member.service == Service::Up
                && !self.state.pauses.nodes.contains_key(&id)
                && self.is_fresh(id)
        });
        candidates.count()
    }

    /// Whether a majority of voters have no promise left to the old primary and give it none anew; while
    /// the voters change, a majority of the old and of the new ones.
    fn promises_lapsed(&self, change: &Change, report: &mut Report) -> bool {
        let voters = &self.state.voters;
        let (mut lapsed, mut longest) = (BTreeSet::new(), Duration::ZERO);
        // The old primary counts itself among those that let it stay, so it has no say here.
        let others = self.seen.iter().filter(|(id, _)| voters.mentions(**id) && **id != change.from);
        for (id, seen) in others {
            if !self.is_fresh(*id) || seen.observation.intent != Some(change.generation) {
                continue;
            }
            let left = Duration::from_millis(seen.observation.promise_left_ms);
            let left = left.saturating_sub(self.now.since(seen.at));
            longest = longest.max(left);
            if left.is_zero() {
                lapsed.insert(*id);
            }
        }
        if voters.allow_successor(&lapsed) || planted(Defect::NoPromiseWait) {
            return true;
        }
        let needed = voters.sets().map(|set| majority(set.len())).max().unwrap_or(0);
        let is_silent = |id: &NodeId| *id != change.from && !self.is_fresh(*id);
        let silent: BTreeSet<NodeId> = voters.sets().flatten().copied().filter(is_silent).collect();
        let unheard = silent.iter().map(|id| self.name(*id)).collect();
        let (node, lapsed) = (self.name(change.from), lapsed.len());
        report.waiting.push(NotYet::LeaseRunning { node, lapsed, needed, left: longest, unheard });
        false
    }

    pub(super) fn grant(&self, change: &Change, node: NodeId, received: Lsn, report: &mut Report) -> Command {
        report.doing.push(format!("{}: {} becomes primary", change.kind, self.name(node)));
        let replaced = change.kind == ChangeKind::Failover && change.from != node;
        // One that never served had nothing that anybody was told of.
        let served = replaced && self.state.serving() == Some(change.from);
        let old_end = served.then(|| self.old_end(change, node)).flatten();
        Command::Grant {
            generation: change.generation,
            node,
            received,
            old_end,
            cover: self.cover_of(node),
            rolled_back: None,
            at: self.wall,
        }
    }

    /// The old primary stays what it is: it is started again.
    pub(super) fn grant_back(
        &self,
        change: &Change,
        position: Lsn,
        why: Option<String>,
        report: &mut Report,
    ) -> Command {
        let how = match change.kind {
            ChangeKind::Switchover if change.is_restart() => {
                format!("{} is started again", self.name(change.from))
            }
            ChangeKind::Switchover => "rolled back".to_owned(),
            ChangeKind::Failover => format!("{} is started in place", self.name(change.from)),
        };
        let because = why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        report.doing.push(format!("{}: {how}{because}", change.kind));
        Command::Grant {
            generation: change.generation,
            node: change.from,
            received: position,
            old_end: None,
            cover: self.cover_of(change.from),
            rolled_back: why,
            at: self.wall,
        }
    }

    /// How far the WAL of a primary that is replaced goes, for the record.
    fn old_end(&self, change: &Change, to: NodeId) -> Option<OldEnd> {
        let from = change.from;
        let covered = self.is_covered(to, change);
        let timeline = self.running(to).map(|running| running.timeline);
        let read = self.postgres(from).and_then(|postgres| postgres.stopped()?.left);
        let read = read.filter(|left| Some(left.timeline) == timeline);
        match read {
            Some(left) => Some(OldEnd { at: left.end, exact: true, covered }),
            None => self.last_primary_position(from).map(|at| OldEnd { at, exact: false, covered }),
        }
    }

    /// How long it took until the proxies knew, and until a write was answered, for the record. Nothing waits for it.
    pub(super) fn tell_published(&self) -> Option<Command> {
        self.state.serving().filter(|_| self.state.change.is_none())?;
        let generation = self.state.generation;
        let entry = self.state.present_entry().filter(|entry| !entry.took.is_empty())?;
        let first_write = self.first_write.and_then(|first| first.of(generation, self.now));
        let mut ended = self.waterfall.of(Step::Publish).into_iter().chain(first_write);
        let took = ended.find(|took| entry.took.iter().all(|known| known.step != took.step))?;
        Some(Command::Published { generation, took })
    }

    /// The chosen primary accepts writes: say so to everybody. Where commits wait for standbys, those are told first.
    pub(super) fn confirm(&self, report: &mut Report) -> Option<Command> {
        let serves = |phase| matches!(phase, PrimaryPhase::Serving { .. });
        let primary = self.state.primary.filter(|primary| !serves(primary.phase))?;
        let observation = self.fresh(primary.node)?;
        let writable = self.running(primary.node).filter(|running| !running.in_recovery);
        match writable {
            // With its first lease, so that a failover has something to wait for.
            Some(running)
                if observation.generation == self.state.generation && observation.lease_left_ms.is_some() =>
            {
                let (generation, timeline) = (self.state.generation, running.timeline);
                let waits = !self.state.cover.wanted.is_none();
                let (node, since) = (self.name(primary.node), self.step_age);
                if waits && primary.phase == PrimaryPhase::Promoting && self.state.change.is_some() {
                    return Some(Command::Promoted { generation, timeline });
                }
                if primary.phase != PrimaryPhase::Promoting && !self.is_met(running) {
                    let by = self.spell(&self.state.cover.wanted);
                    report.waiting.push(NotYet::Covering { node, by, since });
                    return None;
                }
                if running.gated {
                    report.waiting.push(self.step_of_change(node, "let clients in"));
                    return None;
                }
                let last = if self.waterfall.has(Step::Promote) { Step::Cover } else { Step::Promote };
                let took = self.waterfall.up_to(last, self.now);
                let first_xid = running.first_xid;
                Some(Command::Serve { generation, timeline, first_xid, took, at: self.wall })
            }
            Some(_) | None => {
                report.waiting.push(self.step_of_change(self.name(primary.node), "accept writes"));
                None
            }
        }
    }

    /// What the change in flight waits for.
    fn step_of_change(&self, node: NodeName, what: &'static str) -> NotYet {
        let kind = self.state.change.as_ref().map_or(ChangeKind::Failover, |change| change.kind);
        NotYet::Step { kind, node, what, since: self.step_age }
    }
}
