//! Who comes and who goes: an invited node is brought into raft's group, one that leaves is seen off, step by step.
//!
//! Whoever leaves does so in this order: no commit waits for it, its PostgreSQL is stopped, its vote is taken as a lost
//! node's is (see [`super::voters`]), raft feeds it no longer, and then the log forgets it. Each step shows in the log or
//! in raft's group, so that a new leader goes on where the old one stopped.

use std::collections::BTreeSet;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{NodeId, NodeName};

use super::Action;
use super::report::{NotYet, Report, VotersStay};
use super::view::View;
use crate::cluster::{ClusterState, Command, Leaving, Member};
use crate::observation::PostgresState;

/// Why a node cannot be removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveRefused {
    /// Nobody has this name.
    #[error("there is no node {name}; the nodes are {known}")]
    Unknown {
        /// Asked for.
        name: NodeName,
        /// All there are.
        known: String,
    },
    /// There is nothing to be removed from.
    #[error("the cluster has not formed yet: its members are those in [[members]]")]
    NotFormed,
    /// The primary stays.
    #[error("{0} is the primary")]
    Primary(NodeName),
    /// One thing at a time.
    #[error("a {0} is in flight")]
    ChangeInFlight(ChangeKind),
    /// The primary alone would be left to decide.
    #[error(
        "without {leaving} only {left} would have a vote: one voter alone decides nothing, so that nobody could replace \
         a primary that fails or tell it to stop"
    )]
    TooFewVoters {
        /// Who would go.
        leaving: String,
        /// Who would be left.
        left: String,
    },
    /// The others are silent too.
    #[error(
        "{silent} cannot be heard or cannot vote now, and a node that is to be removed meanwhile may leave fewer than a \
         majority"
    )]
    OthersSilent {
        /// Other voters.
        silent: String,
    },
    /// Those that are left could not decide.
    #[error(
        "without {leaving} the voters are {left}, and {needed} of those have to be heard, but only {heard} are: nobody \
         could decide anything any more"
    )]
    NoMajority {
        /// Who would go.
        leaving: String,
        /// Who would be left.
        left: String,
        /// How many of those are heard.
        heard: usize,
        /// A majority.
        needed: usize,
    },
    /// Commits would wait for nobody.
    #[error(
        "commits are to wait for {asked} standbys (failover.sync_standbys), and without {leaving} only {left} that can be \
         promoted and run would be left"
    )]
    TooFewStandbys {
        /// Who would go.
        leaving: String,
        /// As many as are asked for.
        asked: u32,
        /// How many would be left.
        left: usize,
    },
    /// All is well.
    #[error("no member's agent is silent: there is nothing to forget")]
    NobodySilent,
}

impl RemoveRefused {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "pgherd cluster-status lists the nodes",
            Self::NotFormed => "edit [[members]] on all nodes, and start their agents",
            Self::Primary(_) => "pgherd promote --switchover makes another node the primary first",
            Self::ChangeInFlight(_) => "pgherd cluster-status shows how far it is; try again afterwards",
            Self::TooFewVoters { .. } => {
                "add another node or a witness first (pgherd add-node); to give the cluster up, stop its agents (pgherd \
                 stop-cluster)"
            }
            Self::OthersSilent { .. } => {
                "start those agents first; --force goes on without them where the rest is a majority"
            }
            Self::NoMajority { .. } => "start the agents that are silent first",
            Self::TooFewStandbys { .. } => {
                "add a standby first, or bring one back; nodes with sync = false or node.upstream do not count. Or lower \
                 failover.sync_standbys on all nodes and restart their agents"
            }
            Self::NobodySilent => "pgherd remove-node NODE removes one that runs",
        }
    }
}

impl View<'_> {
    /// The next step towards the members that the cluster should have. `me` leads.
    pub(super) fn tend_members(&self, me: NodeId, report: &mut Report) -> Option<Action> {
        let busy = self.changes_primary() || self.state.voters.plan.is_some() || !self.quorum.settled;
        if busy {
            return None;
        }
        self.drop_stranger(report).or_else(|| self.bring_in(report)).or_else(|| self.see_off(me, report))
    }

    /// Raft feeds nobody who does not belong: one whose invitation was taken back.
    fn drop_stranger(&self, report: &mut Report) -> Option<Action> {
        let stranger = self.quorum.learners.iter().copied().find(|id| !self.state.belongs(*id))?;
        report.doing.push(format!("node {stranger} does not belong to the cluster: raft feeds it no longer"));
        Some(Action::DropNode(stranger))
    }

    /// An invited node that speaks is fed the log, and a store that is new is let in by its number, as a lost one's is.
    fn bring_in(&self, report: &mut Report) -> Option<Action> {
        for (id, invited) in &self.state.invited {
            let Some(said) = self.fresh(*id) else { continue };
            if !self.is_in_group(*id) {
                report.doing.push(format!("{} has come: it is fed the log", invited.name));
                return Some(Action::AddLearner(*id, invited.agent.clone()));
            }
            if let Some(token) = said.probation.filter(|token| self.state.readmitted.get(id) != Some(token)) {
                report.doing.push(format!("{} is let in", invited.name));
                return Some(Action::Propose(Command::Readmit { node: *id, token }));
            }
        }
        None
    }

    /// The next step of the first that can take one.
    fn see_off(&self, me: NodeId, report: &mut Report) -> Option<Action> {
        let mut leave = self.state.members.values().filter_map(|member| Some((member, member.leaving?)));
        leave.find_map(|(member, leaving)| self.see_one_off(me, member, leaving, report))
    }

    fn see_one_off(
        &self,
        me: NodeId,
        member: &Member,
        leaving: Leaving,
        report: &mut Report,
    ) -> Option<Action> {
        let id = member.descriptor.id;
        let wait = |report: &mut Report, what: String| {
            report.waiting.push(NotYet::Leaving { node: member.descriptor.name.clone(), what });
            None
        };
        if id == me {
            return wait(report, "another agent to lead".to_owned());
        }
        let primary = self.state.upstream()?;
        self.fresh(primary)?.lease_left_ms?;
        let cover = &self.state.cover;
        if cover.wanted.of.contains(&id) || cover.promised.of.contains(&id) {
            return wait(report, "commits to rest on other standbys".to_owned());
        }
        let rests =
            |state: &PostgresState| matches!(state, PostgresState::Down(_) | PostgresState::Unusable(_));
        let runs = self.postgres(id).is_some_and(|postgres| !rests(&postgres.state));
        if runs && !leaving.force {
            return wait(report, "its agent to stop PostgreSQL there".to_owned());
        }
        if self.state.voters.current.contains(&id) {
            return self.take_vote(id, leaving, report).map(Action::Propose);
        }
        if self.quorum.learners.contains(&id) {
            report.doing.push(format!("{} leaves: raft feeds it no longer", member.descriptor.name));
            return Some(Action::DropNode(id));
        }
        if self.quorum.voters.contains(&id) {
            return None;
        }
        report.doing.push(format!("{} has left the cluster", member.descriptor.name));
        Some(Action::Propose(Command::Removed { node: id, number: leaving.number, at: self.wall }))
    }

    /// As with a lost node, but at once.
    fn take_vote(&self, node: NodeId, leaving: Leaving, report: &mut Report) -> Option<Command> {
        let current = &self.state.voters.current;
        let next: BTreeSet<NodeId> = current.iter().copied().filter(|id| *id != node).collect();
        if next.len() < ClusterState::VOTERS_MIN {
            report.stay(VotersStay::LastVoters(self.name(node)));
            return None;
        }
        let unsound: Vec<NodeId> = next.iter().copied().filter(|id| !self.is_sound(*id)).collect();
        if !(unsound.is_empty() || (leaving.force && self.can_decide(&next))) {
            report.stay(VotersStay::SeveralLost(
                unsound.into_iter().chain([node]).map(|id| self.name(id)).collect(),
            ));
            return None;
        }
        report.doing.push(format!("{} leaves the voters: it is removed", self.name(node)));
        Some(Command::PlanVoters { generation: self.state.generation, next })
    }

    /// An operator wants a node removed: what would be proposed for it.
    pub fn plan_remove(&self, name: &NodeName, force: bool) -> Result<Command, RemoveRefused> {
        if self.state.identity.is_none() {
            return Err(RemoveRefused::NotFormed);
        }
        let invited = self.state.invited.iter().find(|(_, invited)| invited.name == *name);
        if let Some((node, _)) = invited {
            return Ok(Command::Remove { node: *node, force, at: self.wall });
        }
        let Some(member) = self.state.by_name(name) else {
            let members = self.state.members.values().map(|member| &member.descriptor.name);
            let known = members.chain(self.state.invited.values().map(|invited| &invited.name));
            let known = known.map(NodeName::as_str).collect::<Vec<_>>().join(", ");
            return Err(RemoveRefused::Unknown { name: name.clone(), known });
        };
        let node = member.descriptor.id;
        self.check_removal(&[node].into(), force)?;
        Ok(Command::Remove { node, force, at: self.wall })
    }

    /// An operator wants forgotten whoever is silent now: who that would be.
    pub fn plan_reset(&self) -> Result<Vec<Command>, RemoveRefused> {
        if self.state.identity.is_none() {
            return Err(RemoveRefused::NotFormed);
        }
        let primary = self.state.primary.map(|primary| primary.node);
        let others = self.state.members.keys().copied().filter(|id| Some(*id) != primary);
        let silent: BTreeSet<NodeId> = others.filter(|id| self.is_silent(*id)).collect();
        if silent.is_empty() {
            return Err(RemoveRefused::NobodySilent);
        }
        self.check_removal(&silent, true)?;
        let remove = |node: NodeId| Command::Remove { node, force: true, at: self.wall };
        Ok(silent.into_iter().map(remove).collect())
    }

    /// Silent for long enough, or never heard by a leader that has listened for as long.
    fn is_silent(&self, id: NodeId) -> bool {
        self.age(id).unwrap_or(self.led_for) >= self.policy.node_timeout
    }

    /// Whether the cluster could go on without these, and with those that leave already gone.
    fn check_removal(&self, nodes: &BTreeSet<NodeId>, force: bool) -> Result<(), RemoveRefused> {
        if let Some(primary) = self.state.primary.filter(|primary| nodes.contains(&primary.node)) {
            return Err(RemoveRefused::Primary(self.name(primary.node)));
        }
        if let Some(change) = &self.state.change {
            return Err(RemoveRefused::ChangeInFlight(change.kind));
        }
        let gone = |id: &NodeId| nodes.contains(id) || self.state.is_leaving(*id);
        let spell = |ids: &BTreeSet<NodeId>| {
            ids.iter().map(|id| self.name(*id).to_string()).collect::<Vec<_>>().join(", ")
        };
        let leaving = spell(nodes);
        let voters = self.state.voters.target();
        let left: BTreeSet<NodeId> = voters.iter().copied().filter(|id| !gone(id)).collect();
        if nodes.iter().any(|id| voters.contains(id)) {
            if left.len() < ClusterState::VOTERS_MIN {
                return Err(RemoveRefused::TooFewVoters { leaving, left: spell(&left) });
            }
            let unsound: BTreeSet<NodeId> = left.iter().copied().filter(|id| !self.is_sound(*id)).collect();
            if !self.can_decide(&left) {
                let (heard, needed) = (left.len() - unsound.len(), crate::cluster::majority(left.len()));
                return Err(RemoveRefused::NoMajority { leaving, left: spell(&left), heard, needed });
            }
            if !unsound.is_empty() && !force {
                return Err(RemoveRefused::OthersSilent { silent: spell(&unsound) });
            }
        }
        self.check_cover(nodes, leaving)
    }

    fn check_cover(&self, nodes: &BTreeSet<NodeId>, leaving: String) -> Result<(), RemoveRefused> {
        let Some(primary) = self.state.primary else { return Ok(()) };
        let asked = self.asked(self.durability());
        let up = self.sync_standbys(primary.node).into_iter();
        let left = up.filter(|id| !nodes.contains(id)).count();
        let database = nodes.iter().any(|id| self.state.members.get(id).is_some_and(|m| m.is_database()));
        if database && usize::try_from(asked).is_ok_and(|asked| left < asked) {
            return Err(RemoveRefused::TooFewStandbys { leaving, asked, left });
        }
        Ok(())
    }
}
