//! A planned change of primary: prepare, stop the old one cleanly, hand over, or roll back.

use pgherd_common::topology::ChangeKind;
use pgherd_common::{NodeId, NodeName, WallTime};

use super::report::{NotYet, Report};
use super::view::View;
use crate::cluster::{Change, ChangePhase, Command, Member, Service};
use crate::waterfall::Step;

/// Why an operator's request for a change of primary is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwitchoverRefused {
    /// Nothing to change yet.
    #[error("the cluster has not formed yet")]
    NotFormed,
    /// One at a time.
    #[error("a {0} is already in flight")]
    ChangeInFlight(ChangeKind),
    /// One is enough.
    #[error("a switchover is scheduled already: {0}")]
    AlreadyScheduled(String),
    /// PostgreSQL is to be left alone.
    #[error("{what} is paused until {until}: the agents leave PostgreSQL as it is")]
    Paused {
        /// A node, or the cluster.
        what: String,
        /// When that ends.
        until: WallTime,
    },
    /// Nobody can begin anything then.
    #[error("{due} is past: the clock of the agent that leads says {now}")]
    InThePast {
        /// When it was to begin.
        due: WallTime,
        /// What time it is.
        now: WallTime,
    },
    /// More likely a slip than a plan.
    #[error("{0} is more than a year ahead")]
    TooFarAhead(WallTime),
    /// No such node.
    #[error("{0} is not a database node of this cluster")]
    NotADatabase(NodeName),
    /// Already there.
    #[error("{0} already is the primary")]
    AlreadyPrimary(NodeName),
    /// A switchover loses nothing, so it needs both sides whole.
    #[error("primary {0} is not in service: a switchover needs it to stop cleanly")]
    PrimaryNotInService(NodeName),
    /// Nobody could stop it.
    #[error("PostgreSQL on {0} is in service but its agent is silent, so nobody could stop it")]
    Unguarded(NodeName),
    /// Commits wait for standbys so that none is lost, and some would be.
    #[error("acknowledged commits could be lost: {}", .0.join("; "))]
    NotCovered(Vec<String>),
    /// The target, or every possible target, is unfit.
    #[error("no standby can take over: {}", .0.join("; "))]
    NoTarget(Vec<String>),
}

impl SwitchoverRefused {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotFormed => "pgherd cluster-status says what the cluster is waiting for",
            Self::ChangeInFlight(_) => "wait for it to end; pgherd cluster-status shows how far it is",
            Self::AlreadyScheduled(_) => "`pgherd promote --cancel-scheduled` takes it away",
            Self::Paused { .. } => "`pgherd unpause`, or `pgherd unpause --node NODE`, ends that",
            Self::InThePast { .. } => "`pgherd promote --switchover` without --at begins at once",
            Self::TooFarAhead(_) => "give a time within a year",
            Self::NotADatabase(_) => "pgherd cluster-status lists the nodes",
            Self::AlreadyPrimary(_) => "nothing has to be done",
            Self::PrimaryNotInService(_) => {
                "start its agent or its PostgreSQL again; if that node is lost for good, `pgherd promote` forces a \
                 failover (transactions may be lost)"
            }
            Self::Unguarded(_) => "start the agent on that node again, or stop PostgreSQL there first",
            Self::NotCovered(_) => {
                "bring those standbys back; `pgherd promote --allow-data-loss` gives up what only they or the old primary have"
            }
            Self::NoTarget(_) => {
                "bring a standby back with `pgherd resume NODE`, or wait until it has caught up"
            }
        }
    }
}

impl View<'_> {
    /// An operator asks for a switchover.
    pub fn plan_switchover(
        &self,
        to: Option<&NodeName>,
        end_transactions: bool,
    ) -> Result<Command, SwitchoverRefused> {
        if let Some(change) = &self.state.change {
            return Err(SwitchoverRefused::ChangeInFlight(change.kind));
        }
        let (from, to) = self.check_request(to)?;
        self.refuse_paused(from, to)?;
        if self.state.serving() != Some(from) || self.running(from).is_none_or(|running| running.in_recovery)
        {
            return Err(SwitchoverRefused::PrimaryNotInService(self.name(from)));
        }
        let (ranks, mut rejected) = self.ranks(from, to);
        let fit = ranks.iter().filter(|rank| match self.fit_for_switchover(rank.node(), from) {
            Ok(()) => true,
            Err(reason) => {
                rejected.push(reason);
                false
            }
        });
        // Whoever it is gets all the WAL before it is promoted, so that the operator's order is what counts.
        let Some(rank) = fit.min_by_key(|rank| rank.preference()) else { return Err(no_target(rejected)) };
        Ok(Command::Begin {
            generation: self.state.generation,
            kind: ChangeKind::Switchover,
            from,
            to: Some(rank.node()),
            reason: "an operator asked for a switchover".to_owned(),
            allow_data_loss: false,
            end_transactions,
            noticed_ms: 0,
            scheduled: None,
            at: self.wall,
        })
    }

    /// An operator asks for a restart of the primary: it stops as for a switchover, and starts again.
    pub fn plan_restart(&self, node: NodeId, end_transactions: bool) -> Result<Command, SwitchoverRefused> {
        if let Some(change) = &self.state.change {
            return Err(SwitchoverRefused::ChangeInFlight(change.kind));
        }
        let (from, _) = self.check_request(None)?;
        if from != node {
            return Err(SwitchoverRefused::PrimaryNotInService(self.name(node)));
        }
        self.refuse_paused(from, None)?;
        if self.state.serving() != Some(from) || self.running(from).is_none_or(|running| running.in_recovery)
        {
            return Err(SwitchoverRefused::PrimaryNotInService(self.name(from)));
        }
        Ok(Command::Begin {
            generation: self.state.generation,
            kind: ChangeKind::Switchover,
            from,
            to: Some(from),
            reason: "an operator asked for a restart".to_owned(),
            allow_data_loss: false,
            end_transactions,
            noticed_ms: 0,
            scheduled: None,
            at: self.wall,
        })
    }

    /// An operator asks what a switchover would do: who would become the primary, and how the others compare.
    pub fn explain_switchover(&self, to: Option<&NodeName>) -> Result<Vec<String>, SwitchoverRefused> {
        let chosen = match self.plan_switchover(to, false)? {
            Command::Begin { to: Some(to), .. } => to,
            ref other => unreachable!("a switchover has a target: {other:?}"),
        };
        let (from, _) = self.check_request(to)?;
        let (ranks, rejected) = self.ranks(from, None);
        let mut lines =
            vec![format!("{} would become the primary instead of {}", self.name(chosen), self.name(from))];
        for rank in ranks {
            let id = rank.node();
            let priority = self.state.members.get(&id).map_or(0, Member::priority);
            let behind = self.last_primary_position(from).map_or(0, |end| end.bytes_since(rank.received()));
            lines.push(match self.fit_for_switchover(id, from) {
                Ok(()) => format!("{}: {behind} bytes behind, priority {priority}", self.name(id)),
                Err(reason) => reason,
            });
        }
        lines.extend(rejected);
        Ok(lines)
    }

    /// An operator asks for a promotion come what may. Also the way out of a change that is stuck.
    /// `allow_data_loss`: also where it is known that acknowledged commits may be lost.
    pub fn plan_forced(
        &self,
        to: Option<&NodeName>,
        allow_data_loss: bool,
    ) -> Result<Command, SwitchoverRefused> {
        let (from, to) = self.check_request(to)?;
        self.refuse_paused(from, to)?;
        if !self.is_fresh(from) && self.is_in_service(from) {
            return Err(SwitchoverRefused::Unguarded(self.name(from)));
        }
        let (ranks, rejected) = self.ranks(from, to);
        if ranks.is_empty() {
            return Err(no_target(rejected));
        }
        // Without such a promise nobody knows, and whoever forces a promotion has been asked.
        let promised = !self.state.cover.promised.is_none();
        if promised && !allow_data_loss {
            let uncovered: Vec<_> =
                ranks.iter().filter_map(|rank| self.could_be_covered(*rank).err()).collect();
            if uncovered.len() == ranks.len() {
                return Err(SwitchoverRefused::NotCovered(uncovered));
            }
        }
        let loss =
            if allow_data_loss { ", and accepted the loss of commits that were acknowledged" } else { "" };
        Ok(Command::Begin {
            generation: self.state.generation,
            kind: ChangeKind::Failover,
            from,
            to,
            reason: format!("an operator forced a promotion{loss}"),
            allow_data_loss: allow_data_loss || !promised,
            end_transactions: false,
            noticed_ms: 0,
            scheduled: None,
            at: self.wall,
        })
    }

    pub(super) fn check_request(
        &self,
        to: Option<&NodeName>,
    ) -> Result<(NodeId, Option<NodeId>), SwitchoverRefused> {
        let primary = self.state.primary.ok_or(SwitchoverRefused::NotFormed)?;
        let Some(to) = to else { return Ok((primary.node, None)) };
        let member = self.state.by_name(to).filter(|member| member.is_database());
        let member: &Member = member.ok_or_else(|| SwitchoverRefused::NotADatabase(to.clone()))?;
        if member.descriptor.id == primary.node {
            return Err(SwitchoverRefused::AlreadyPrimary(to.clone()));
        }
        Ok((primary.node, Some(member.descriptor.id)))
    }

    fn fit_for_switchover(&self, id: NodeId, from: NodeId) -> Result<(), String> {
        let name = self.name(id);
        let up = self.state.members.get(&id).is_some_and(|member| member.service == Service::Up);
        let streaming = self.running(id).is_some_and(|running| running.is_streaming());
        if !up || !streaming {
            return Err(format!("{name} does not stream from the primary"));
        }
        // It would be replaced at once.
        let ill = self.postgres(id).filter(|postgres| !postgres.health.is_fit());
        if let Some(how) = ill.and_then(|postgres| postgres.health.complaint()) {
            return Err(format!("PostgreSQL on {name} {how}"));
        }
        let received = self.running(id).map(|running| running.received);
        let behind =
            received.and_then(|received| Some(self.last_primary_position(from)?.bytes_since(received)));
        match behind {
            Some(bytes) if self.policy.max_lag > 0 && bytes > self.policy.max_lag => Err(format!(
                "{name} is {bytes} bytes behind, more than failover.max_lag ({})",
                self.policy.max_lag
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Drives the change in flight, whatever it is.
    pub(super) fn advance_change(&self, report: &mut Report) -> Option<Command> {
        let Some(change) = &self.state.change else { return self.confirm(report) };
        match change.phase {
            ChangePhase::Preparing => self.prepare(change, report),
            ChangePhase::Stopping => self.hand_over(change, report),
            ChangePhase::Recruiting => self.advance_failover(change, report),
            ChangePhase::Granted => self.confirm(report),
        }
    }

    /// The old primary checkpoints; nobody notices yet, so it can simply be given up.
    fn prepare(&self, change: &Change, report: &mut Report) -> Option<Command> {
        let old = self.postgres(change.from);
        if old.is_some_and(|old| old.prepared == Some(change.generation)) {
            report.doing.push(format!("switchover: {} stops", self.name(change.from)));
            return Some(Command::Stop { generation: change.generation });
        }
        let give_up = |reason: String| Command::Abandon {
            generation: change.generation,
            stopping: false,
            reason,
            at: self.wall,
        };
        if let Some(old) = old.filter(|old| old.undrained == Some(change.begun)) {
            let why = old.trouble.clone().unwrap_or("it could not be prepared".to_owned());
            report.doing.push(format!("{}: given up: {why}", change.kind));
            return Some(give_up(why));
        }
        let writable = self.running(change.from).is_some_and(|running| !running.in_recovery);
        let overdue = self.step_age > self.policy.switchover_timeout;
        if writable && !overdue {
            let (node, since) = (self.name(change.from), self.step_age);
            report.waiting.push(NotYet::Step {
                kind: change.kind,
                node,
                what: "checkpoint, and its sessions that cannot move to end",
                since,
            });
            return None;
        }
        let reason =
            if writable { "the checkpoint took too long" } else { "the primary is no longer in service" };
        Some(give_up(format!("{}: {reason}", self.name(change.from))))
    }

    /// The old primary stops; once it has, whoever holds its last checkpoint record holds everything.
    fn hand_over(&self, change: &Change, report: &mut Report) -> Option<Command> {
        let overdue = self.step_age > self.policy.switchover_timeout;
        let Some(old) = self.postgres(change.from) else {
            return self.lost_while_stopping(change, report);
        };
        let step = |id: NodeId, what| NotYet::Step {
            kind: change.kind,
            node: self.name(id),
            what,
            since: self.step_age,
        };
        let Some(stopped) = old.stopped() else {
            report.waiting.push(step(change.from, "stop"));
            if old.undrained == Some(change.begun) {
                // Its agent does not stop it any more: whatever runs there goes on.
                let why = old.trouble.clone().unwrap_or("transactions did not end".to_owned());
                report.doing.push(format!("{}: given up: {why}", change.kind));
                let generation = change.generation;
                return Some(Command::Abandon { generation, stopping: true, reason: why, at: self.wall });
            }
            if !overdue {
                return None;
            }
            let why = format!("it did not stop within {:?}", self.policy.switchover_timeout);
            // It may be about to stop: it goes on under a new generation.
            return match old.running().filter(|running| !running.in_recovery) {
                Some(running) => Some(self.grant_back(change, running.position, Some(why), report)),
                None => self.lost_while_stopping(change, report),
            };
        };
        if !self.has_released(change.from) {
            report.waiting.push(step(change.from, "be gone"));
            return None;
        }
        report.passed.push(Step::Stop);
        if change.is_restart() {
            return Some(self.grant_back(change, stopped.checkpoint, None, report));
        }
        let why = if stopped.clean {
            let holds_all = |id: NodeId| {
                self.running(id)
                    .filter(|r| r.in_recovery && r.received > stopped.checkpoint)
                    .map(|r| r.received)
            };
            let wanted = change.to.and_then(|to| Some((to, holds_all(to)?)));
            if let Some((to, received)) = wanted {
                report.passed.push(Step::Receive);
                return Some(self.grant(change, to, received, report));
            }
            let alive = |to| self.postgres(to).is_some_and(|postgres| postgres.stopped().is_none());
            if !overdue && change.to.is_some_and(alive) {
                report.waiting.push(step(change.to.unwrap_or(change.from), "receive the last of the WAL"));
                return None;
            }
            let to = self.name(change.to.unwrap_or(change.from));
            format!("{to} did not receive the last of the WAL")
        } else {
            format!("{} did not stop cleanly", self.name(change.from))
        };
        // The target does not have everything: back to the old primary, which does.
        Some(self.grant_back(change, stopped.checkpoint, Some(why), report))
    }

    /// The old primary's node vanished on the way: from here on it is a failover.
    fn lost_while_stopping(&self, change: &Change, report: &mut Report) -> Option<Command> {
        let name = self.name(change.from);
        report.doing.push(format!("{name} did not stop in a switchover: failing over"));
        Some(Command::Begin {
            generation: self.state.generation,
            kind: ChangeKind::Failover,
            from: change.from,
            to: None,
            reason: format!("{name} was lost during a switchover"),
            allow_data_loss: false,
            end_transactions: false,
            noticed_ms: 0,
            scheduled: None,
            at: self.wall,
        })
    }
}

fn no_target(mut rejected: Vec<String>) -> SwitchoverRefused {
    if rejected.is_empty() {
        rejected.push("the cluster has no other database node".to_owned());
    }
    SwitchoverRefused::NoTarget(rejected)
}
