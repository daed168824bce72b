//! The primary has failed: on what evidence, and how its successor is chosen.

use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Lsn, NodeId};

use super::report::{NotYet, Report};
use super::view::View;
use crate::cluster::{Change, ChangePhase, Command, PrimaryPhase};
use crate::observation::{PostgresState, RemoteDatabase};

/// A primary in trouble.
struct Trouble {
    reason: String,
    /// Its PostgreSQL was already down when its agent came up: nothing was lost from sight, and it
    /// has everything, so it is started again rather than replaced.
    start_in_place: bool,
}

impl View<'_> {
    /// Begins a failover if the primary has failed and something can be done about it.
    pub(super) fn begin_failover(&self, report: &mut Report) -> Option<Command> {
        if self.state.change.as_ref().is_some_and(|change| change.phase != ChangePhase::Granted) {
            return None;
        }
        let primary = self.state.primary?.node;
        let trouble = self.primary_trouble(primary, report)?;
        let agent_there = self.postgres(primary).is_some();
        let mut to = (trouble.start_in_place && agent_there).then_some(primary);
        if to.is_none() {
            if !self.policy.auto_failover {
                report.waiting.push(NotYet::AutoFailoverOff(self.name(primary)));
                return None;
            }
            let (ranks, mut rejected) = self.ranks(primary, None);
            let eligible = ranks.iter().any(|rank| match self.within_lag(*rank, primary) {
                Ok(()) => true,
                Err(reason) => {
                    rejected.push(reason);
                    false
                }
            });
            if !eligible {
                report.waiting.push(NotYet::NoCandidate { node: self.name(primary), rejected });
                if !agent_there {
                    return None;
                }
                // Nobody else can: the old primary is started where it is.
                to = Some(primary);
            }
        }
        report.doing.push(format!("failover from {}: {}", self.name(primary), trouble.reason));
        Some(Command::Begin {
            generation: self.state.generation,
            kind: ChangeKind::Failover,
            from: primary,
            to,
            reason: trouble.reason,
            allow_data_loss: false,
            at: self.wall,
        })
    }

    fn primary_trouble(&self, primary: NodeId, report: &mut Report) -> Option<Trouble> {
        let name = self.name(primary);
        let trouble = |reason: String| Some(Trouble { reason, start_in_place: false });
        if self.age(primary).is_none_or(|age| age >= self.policy.lease) {
            return self.verified_gone(primary, report).then(|| Trouble {
                reason: format!("{name} is gone: its agent is silent and its PostgreSQL answers nobody"),
                start_in_place: false,
            });
        }
        let postgres = self.postgres(primary)?;
        match self.state.primary?.phase {
            // It is coming up; that may take a while and be in several states on the way.
            PrimaryPhase::Promoting => {
                let stuck = self.step_age > self.policy.change_timeout;
                let failed = postgres.running().is_none().then_some(postgres.trouble.as_ref()).flatten();
                let reason = match (failed, stuck) {
                    (Some(error), _) => format!("{name} could not become primary: {error}"),
                    (None, true) => {
                        format!("{name} did not become primary in {:?}", self.policy.change_timeout)
                    }
                    (None, false) => return None,
                };
                trouble(reason)
            }
            PrimaryPhase::Serving { .. } => match &postgres.state {
                PostgresState::Down(stopped) => Some(Trouble {
                    reason: match (stopped.found_down, stopped.clean) {
                        (true, _) => format!("PostgreSQL on {name} was down when its agent started"),
                        (false, true) => format!("PostgreSQL on {name} was shut down"),
                        (false, false) => format!("PostgreSQL on {name} crashed"),
                    },
                    start_in_place: stopped.found_down,
                }),
                PostgresState::Running(running) if running.in_recovery => {
                    trouble(format!("PostgreSQL on {name} came up as a standby"))
                }
                PostgresState::Unusable(reason) => trouble(format!("{name}: {reason}")),
                PostgresState::Running(_)
                | PostgresState::Starting { .. }
                | PostgresState::Unresponsive { .. } => None,
            },
        }
    }

    /// The primary's agent is silent. Its database is given up only when other nodes have knocked on
    /// it and nobody found it in service: an agent alone may have died.
    fn verified_gone(&self, primary: NodeId, report: &mut Report) -> bool {
        let knocks: Vec<_> =
            self.all_fresh().filter_map(|observation| observation.remote.get(&primary)).collect();
        if knocks.iter().any(|knock| in_service(**knock)) {
            report.waiting.push(NotYet::Unguarded(self.name(primary)));
            return false;
        }
        if knocks.is_empty() {
            report.waiting.push(NotYet::Unverified(self.name(primary)));
        }
        !knocks.is_empty()
    }

    /// Drives a failover until the new primary is chosen.
    pub(super) fn advance_failover(&self, change: &Change, report: &mut Report) -> Option<Command> {
        let from = change.from;
        let released =
            self.postgres(from).is_some_and(|postgres| postgres.released == Some(self.state.generation));
        if !released && !self.promises_lapsed(change, report) {
            return None;
        }
        if !released && !self.is_fresh(from) && !self.verified_gone(from, report) {
            return None;
        }
        if change.to == Some(from) && released {
            return Some(self.grant(change, from, Lsn::default(), report));
        }
        let (ranks, mut rejected) = self.ranks(from, change.to.filter(|to| *to != from));
        let recruited: Vec<_> =
            ranks.iter().filter(|rank| self.is_recruited(rank.node(), change.generation)).copied().collect();
        // The best claim may belong to one who is still busy cutting its walreceiver.
        if recruited.len() < ranks.len() && self.step_age < self.policy.recruit_timeout {
            report.waiting.push(NotYet::Recruiting { done: recruited.len(), expected: ranks.len() });
            return None;
        }
        for rank in recruited {
            match self.within_lag(rank, from) {
                Err(reason) if !change.allow_data_loss => rejected.push(reason),
                Ok(()) | Err(_) => return Some(self.grant(change, rank.node(), rank.received(), report)),
            }
        }
        report.waiting.push(NotYet::NoCandidate { node: self.name(from), rejected });
        // Better the old primary, restarted with all it has, than nobody.
        let last_resort = released && self.step_age >= self.policy.recruit_timeout;
        last_resort.then(|| self.grant(change, from, Lsn::default(), report))
    }

    /// Whether a majority of voters have no promise left to the old primary and give it none anew.
    fn promises_lapsed(&self, change: &Change, report: &mut Report) -> bool {
        let needed = self.voters.len() / 2 + 1;
        let (mut lapsed, mut longest) = (0, Duration::ZERO);
        // The old primary counts itself among those that let it stay, so it has no say here.
        let others = self.seen.iter().filter(|(id, _)| self.voters.contains(id) && **id != change.from);
        for (id, seen) in others {
            if !self.is_fresh(*id) || seen.observation.intent != Some(change.generation) {
                continue;
            }
            let left = Duration::from_millis(seen.observation.promise_left_ms);
            let left = left.saturating_sub(self.now.since(seen.at));
            longest = longest.max(left);
            lapsed += usize::from(left.is_zero());
        }
        if lapsed < needed {
            let node = self.name(change.from);
            report.waiting.push(NotYet::LeaseRunning { node, lapsed, needed, left: longest });
        }
        lapsed >= needed
    }

    pub(super) fn grant(&self, change: &Change, node: NodeId, received: Lsn, report: &mut Report) -> Command {
        report.doing.push(format!("{}: {} becomes primary", change.kind, self.name(node)));
        Command::Grant { generation: change.generation, node, received, at: self.wall }
    }

    /// The chosen primary accepts writes: say so to everybody.
    pub(super) fn confirm(&self, report: &mut Report) -> Option<Command> {
        let primary = self.state.primary.filter(|primary| primary.phase == PrimaryPhase::Promoting)?;
        let observation = self.fresh(primary.node)?;
        let writable = self.running(primary.node).filter(|running| !running.in_recovery);
        match writable {
            Some(running) if observation.generation == self.state.generation => Some(Command::Serve {
                generation: self.state.generation,
                timeline: running.timeline,
                at: self.wall,
            }),
            Some(_) | None => {
                let kind = self.state.change.as_ref().map_or(ChangeKind::Failover, |change| change.kind);
                let (node, since) = (self.name(primary.node), self.step_age);
                report.waiting.push(NotYet::Step { kind, node, what: "accept writes", since });
                None
            }
        }
    }
}

fn in_service(knock: RemoteDatabase) -> bool {
    match knock {
        RemoteDatabase::Writable | RemoteDatabase::Answering => true,
        RemoteDatabase::InRecovery | RemoteDatabase::Refused | RemoteDatabase::Silent => false,
    }
}
