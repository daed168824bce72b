//! Who votes: a lost node leaves the voters, and comes back when it returns, one at a time.
//!
//! Each change is planned in the log, carried out in raft, and settled in the log once the primary is
//! known to have applied the plan (see [`crate::cluster::LeaseVoters`] for why). Nobody leaves while a
//! second voter is silent: that may be a cut in the network rather than two losses, and whoever is on
//! the other side of it must not find that its vote is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgherd_common::{MonoTime, NodeId};

use super::Action;
use super::report::{Report, VotersStay};
use super::view::View;
use crate::cluster::{ClusterState, Command, Member, VoterPlan, majority};
use crate::defect::{Defect, planted};

/// Since when each agent has been heard without a break, and since when this one has listened.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    listening: Option<(MonoTime, MonoTime)>,
    heard: BTreeMap<NodeId, Heard>,
    /// Agents that speak, but have applied less of the log than this one: up to which revision, and
    /// since when no more.
    behind: BTreeMap<NodeId, (u64, MonoTime)>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    incarnation: u64,
    since: MonoTime,
    last: MonoTime,
}

impl Hearing {
    /// This agent is awake. A pause of `gap` was one of its own: silence in it says nothing of others.
    pub(super) fn listen(&mut self, now: MonoTime, gap: Duration) {
        let since = match self.listening {
            Some((since, last)) if now.since(last) < gap => since,
            Some(_) | None => now,
        };
        self.listening = Some((since, now));
    }

    /// An agent has spoken. A pause of `gap`, or another process, begins anew.
    pub(super) fn hear(&mut self, node: NodeId, incarnation: u64, now: MonoTime, gap: Duration) {
        let before = self
            .heard
            .get(&node)
            .filter(|before| before.incarnation == incarnation && now.since(before.last) < gap);
        let since = before.map_or(now, |before| before.since);
        if since == now {
            self.behind.remove(&node);
        }
        self.heard.insert(node, Heard { incarnation, since, last: now });
    }

    /// An agent has applied the log up to this revision, this one up to `newest`.
    pub(super) fn applied(&mut self, node: NodeId, revision: u64, newest: u64, now: MonoTime) {
        if revision >= newest {
            self.behind.remove(&node);
        } else if self.behind.get(&node).is_none_or(|(before, _)| *before != revision) {
            self.behind.insert(node, (revision, now));
        }
    }

    /// For how long an agent has spoken without following the log: its disk may hang.
    fn stuck(&self, node: NodeId) -> Duration {
        let (behind, heard) = (self.behind.get(&node), self.heard.get(&node));
        behind.zip(heard).map_or(Duration::ZERO, |((_, since), heard)| heard.last.since(*since))
    }

    /// How long an agent has been silent while this one listened.
    fn silence(&self, node: NodeId, now: MonoTime) -> Duration {
        let Some((listening, _)) = self.listening else { return Duration::ZERO };
        let last = self.heard.get(&node).map_or(listening, |heard| heard.last.max(listening));
        now.since(last)
    }

    /// How long an agent has been heard without a break.
    fn steady(&self, node: NodeId) -> Duration {
        self.heard.get(&node).map_or(Duration::ZERO, |heard| heard.last.since(heard.since))
    }
}

impl View<'_> {
    /// The next step towards the voters that the cluster should have.
    pub(super) fn tend_voters(&self, report: &mut Report) -> Option<Action> {
        if let Some(plan) = &self.state.voters.plan {
            return self.carry_out(plan, report);
        }
        if self.changes_primary() {
            return None;
        }
        if !self.quorum.is(&self.state.voters.current) {
            // Left over from an attempt that seemed to have failed.
            return Some(self.ask_raft(&self.state.voters.current, report));
        }
        let primary = self.state.upstream()?;
        self.fresh(primary)?.lease_left_ms?;
        let back = self.let_in(report);
        back.or_else(|| self.let_go(primary, report)).map(Action::Propose)
    }

    /// Whether a change of primary has yet to bring up the new one. One that only waits for standbys may have to wait for
    /// one that has lost its vote.
    pub(super) fn changes_primary(&self) -> bool {
        self.state.change.is_some() && self.state.upstream().is_none()
    }

    fn carry_out(&self, plan: &VoterPlan, report: &mut Report) -> Option<Action> {
        if !self.quorum.is(&plan.next) {
            // A change of voters that does not come through holds up the log for everything after it.
            return (!self.changes_primary()).then(|| self.ask_raft(&plan.next, report));
        }
        let primary = self.state.primary?.node;
        // An old word will do: no agent forgets a state that it has applied and goes on as primary.
        let applied = self.seen.get(&primary).map_or(0, |seen| seen.observation.revision);
        if applied < plan.revision {
            report.stay(VotersStay::PlanUnknown(self.name(primary)));
            return None;
        }
        report.doing.push(format!("voters are now {}", self.names(&plan.next)));
        let (generation, planned) = (self.state.generation, plan.revision);
        Some(Action::Propose(Command::SettleVoters { generation, planned }))
    }

    fn ask_raft(&self, voters: &BTreeSet<NodeId>, report: &mut Report) -> Action {
        report.doing.push(format!("raft's voters become {}", self.names(voters)));
        Action::ChangeVoters(voters.clone())
    }

    fn names(&self, nodes: &BTreeSet<NodeId>) -> String {
        let names: Vec<String> = nodes.iter().map(|id| self.name(*id).to_string()).collect();
        names.join(", ")
    }

    /// The first member without a vote that can have it (back).
    fn let_in(&self, report: &mut Report) -> Option<Command> {
        let current = &self.state.voters.current;
        let outside = self
            .state
            .members
            .values()
            .filter(|m| m.leaving.is_none() && !current.contains(&m.descriptor.id));
        for member in outside {
            let id = member.descriptor.id;
            let Some(said) = self.fresh(id).filter(|_| self.quorum.learners.contains(&id)) else { continue };
            if let Some(token) = said.probation {
                if self.state.readmitted.get(&id) == Some(&token) {
                    continue;
                }
                report.doing.push(format!("{} has a new raft store and is let in again", self.name(id)));
                return Some(Command::Readmit { node: id, token });
            }
            let steady = self.hearing.steady(id);
            let left = (self.policy.node_lost_after / 2).saturating_sub(steady);
            if !left.is_zero() || said.revision < self.state.revision {
                report.stay(VotersStay::Returning { node: self.name(id), left });
                continue;
            }
            let next: BTreeSet<NodeId> = current.iter().copied().chain([id]).collect();
            if !self.can_decide(current) || !self.can_decide(&next) {
                continue;
            }
            report.doing.push(format!("{} is back and gets its vote again", self.name(id)));
            return Some(Command::PlanVoters { generation: self.state.generation, next });
        }
        None
    }

    /// Whether a majority of these voters is there.
    pub(super) fn can_decide(&self, voters: &BTreeSet<NodeId>) -> bool {
        voters.iter().filter(|id| self.is_sound(**id)).count() >= majority(voters.len())
    }

    /// Heard, with its memory, and following the log.
    pub(super) fn is_sound(&self, id: NodeId) -> bool {
        self.fresh(id).is_some_and(|said| said.probation.is_none())
            && self.hearing.stuck(id) < self.policy.lease
    }

    /// The one voter that is lost, if it is only one.
    fn let_go(&self, primary: NodeId, report: &mut Report) -> Option<Command> {
        let current = &self.state.voters.current;
        let unsound: Vec<NodeId> = current.iter().copied().filter(|id| !self.is_sound(*id)).collect();
        let lost = unsound.iter().copied().filter(|id| *id != primary && self.is_lost(*id));
        let lost: Vec<NodeId> = lost.collect();
        let node = *lost.first()?;
        let name = self.name(node);
        if unsound.len() > 1 && !planted(Defect::ShrinkTogether) {
            let names = unsound.iter().map(|id| self.name(*id)).collect();
            report.stay(VotersStay::SeveralLost(names));
            return None;
        }
        let forgot = self.has_forgotten(node);
        if current.len() <= ClusterState::VOTERS_MIN {
            report.stay(if forgot { VotersStay::NobodyReadmits(name) } else { VotersStay::LastVoters(name) });
            return None;
        }
        let next: BTreeSet<NodeId> = current.iter().copied().filter(|id| *id != node).collect();
        let (silent, stuck) = (self.hearing.silence(node, self.now), self.hearing.stuck(node));
        let why = if forgot {
            "its raft store was lost".to_owned()
        } else if stuck > silent {
            format!(
                "it has not followed the log for {} s; look at the disk of its state_dir",
                stuck.as_secs()
            )
        } else {
            format!("silent for {} s", silent.as_secs())
        };
        report.doing.push(format!("{name} leaves the voters: {why}"));
        Some(Command::PlanVoters { generation: self.state.generation, next })
    }

    fn is_lost(&self, id: NodeId) -> bool {
        let useless = self.hearing.silence(id, self.now).max(self.hearing.stuck(id));
        self.has_forgotten(id) || useless >= self.policy.node_lost_after
    }

    /// Whether the lead could be handed to this node.
    pub(super) fn could_lead(&self, id: NodeId) -> bool {
        self.is_fresh(id) && !self.has_forgotten(id) && !self.state.is_leaving(id)
    }

    /// Whether an agent says that it has lost its raft store.
    pub(super) fn has_forgotten(&self, id: NodeId) -> bool {
        self.fresh(id).is_some_and(|said| said.probation.is_some())
    }

    /// Why a member cannot be primary for want of a vote.
    pub(super) fn check_vote(&self, member: &Member) -> Result<(), String> {
        let name = &member.descriptor.name;
        if self.state.voters.contains(member.descriptor.id) {
            return Ok(());
        }
        Err(format!("{name} has no vote in the cluster at present, so it could not hold the lease"))
    }
}
