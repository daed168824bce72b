//! For which standbys commits wait, and who may take over then.

use pgherd_common::NodeId;

use super::candidate::{Rank, Rejection};
use super::report::{NotYet, Report};
use super::view::View;
use crate::cluster::{Change, Command, Member, PrimaryPhase, Service};
use crate::cover::{Durability, SyncSet};
use crate::defect::{Defect, planted};
use crate::observation::Running;

/// A standby that lacks more is not waited for yet: commits would stand still until it has caught up.
const NEAR: u64 = 16 << 20;

impl View<'_> {
    /// What is asked of commits: the most that any agent's configuration asks for, so that a file which was forgotten
    /// on one node takes nothing away.
    pub(super) fn durability(&self) -> Durability {
        // Who is only invited has no say yet.
        let members = self.all_fresh().filter(|said| self.state.members.contains_key(&said.descriptor.id));
        members.map(|said| said.durability).fold(self.policy.durability, Durability::and)
    }

    /// For how many standbys commits are to wait. Whoever asks for it may only be silent.
    pub(super) fn asked(&self, durability: Durability) -> u32 {
        let all_fresh = self.state.members.keys().all(|id| self.is_fresh(*id));
        if durability.standbys == 0 && !all_fresh {
            self.state.cover.wanted.standbys
        } else {
            durability.standbys
        }
    }

    /// Members that commits on this primary may wait for: those that could be promoted and are not kept out of it. What
    /// streams from another standby acknowledges nothing to the primary.
    pub(super) fn sync_members(&self, primary: NodeId) -> impl Iterator<Item = &Member> {
        let counts = move |member: &Member| member.priority() > 0 && self.kept_out(member, primary).is_none();
        self.state
            .databases()
            .filter(move |member| member.descriptor.id != primary && member.may_serve() && counts(member))
    }

    /// What its configuration has to say against waiting for it.
    fn kept_out(&self, member: &Member, primary: NodeId) -> Option<&'static str> {
        if !member.descriptor.tags.sync {
            return Some("sync = false");
        }
        (!self.state.is_direct(member, primary)).then_some("node.upstream")
    }

    /// Members that no commit on this primary waits for, by their own configuration, and what in it says so.
    fn never_waited_for(&self, primary: NodeId) -> Vec<String> {
        let others =
            self.state.databases().filter(|member| member.descriptor.id != primary && member.may_serve());
        others
            .filter_map(|member| {
                Some(format!("{} ({})", member.descriptor.name, self.kept_out(member, primary)?))
            })
            .collect()
    }

    /// Those of them that do their work.
    pub(super) fn sync_standbys(&self, primary: NodeId) -> Vec<NodeId> {
        let end = self.last_primary_position(primary);
        let near = |id: NodeId| {
            self.running(id).zip(end).is_some_and(|(running, end)| end.bytes_since(running.received) <= NEAR)
        };
        let is_up = |member: &&Member| {
            let id = member.descriptor.id;
            // Without a vote it could not be chosen, and would hold up whoever has less.
            let up = member.service == Service::Up && self.state.voters.contains(id);
            // Nor is one that is paused promoted.
            let up = up && !self.state.pauses.nodes.contains_key(&id);
            up && (self.state.cover.wanted.of.contains(&id) || near(id))
        };
        self.sync_members(primary).filter(is_up).map(|member| member.descriptor.id).collect()
    }

    /// What commits on this primary are to wait for.
    pub(super) fn cover_of(&self, primary: NodeId) -> SyncSet {
        let durability = self.durability();
        let asked = self.asked(durability);
        let up = self.sync_standbys(primary);
        let count = u32::try_from(up.len()).unwrap_or(u32::MAX);
        if count >= asked {
            return SyncSet {
                standbys: asked,
                of: if asked == 0 { [].into() } else { up.into_iter().collect() },
            };
        }
        // Nothing is promised yet, and nobody is to wait for what has never been there.
        if self.state.cover.wanted.is_none() {
            return SyncSet::default();
        }
        if durability.degrades(self.short_for) {
            return SyncSet { standbys: count, of: up.into_iter().collect() };
        }
        let all = self.sync_members(primary).map(|member| member.descriptor.id);
        SyncSet { standbys: asked, of: all.collect() }
    }

    /// Whether fewer standbys do their work than commits are to wait for.
    pub(super) fn is_short_of_standbys(&self) -> bool {
        let Some(primary) = self.state.primary else { return false };
        let up = self.sync_standbys(primary.node).len();
        u32::try_from(up).is_ok_and(|up| up < self.durability().standbys)
    }

    /// Has commits wait for what they are to wait for, and takes note when they do.
    pub(super) fn tend_cover(&self, report: &mut Report) -> Option<Command> {
        let primary = self.state.primary?;
        let covering = matches!(primary.phase, PrimaryPhase::Covering { .. });
        let steady = self.state.change.is_none() && self.state.serving().is_some();
        if !steady && !covering {
            return None;
        }
        // It could not be told.
        self.fresh(primary.node)?;
        let (generation, cover) = (self.state.generation, &self.state.cover);
        let set = self.cover_of(primary.node);
        self.tell_shortage(primary.node, &set, report);
        if set != cover.wanted {
            let name = self.name(primary.node);
            report.doing.push(format!("commits on {name} are to wait for {}", self.spell(&set)));
            return Some(Command::WantCover { generation, set });
        }
        let met = self.running(primary.node).is_some_and(|running| self.is_met(running))
            || planted(Defect::SettleUnmet);
        (met && !cover.is_settled()).then_some(Command::SettleCover { generation, number: cover.number })
    }

    fn tell_shortage(&self, primary: NodeId, set: &SyncSet, report: &mut Report) {
        if !self.is_short_of_standbys() {
            return;
        }
        let asked = self.durability().standbys;
        let so = match set.standbys {
            0 => "commits wait for none",
            standbys if standbys < asked => "commits wait for those that are left",
            _ => "commits wait until there are more",
        };
        let up = self.sync_standbys(primary).into_iter().map(|id| self.name(id)).collect();
        let never = self.never_waited_for(primary);
        report.waiting.push(NotYet::TooFewStandbys { asked, up, never, so });
    }

    /// Whether the primary waits for what is wanted, and all that came before is on as many standbys.
    pub(super) fn is_met(&self, primary: &Running) -> bool {
        primary.cover.is_some_and(|seen| seen.met && seen.number == self.state.cover.number)
    }

    /// Whether enough standbys are there for one to be known to have all that was acknowledged, should this one turn out
    /// to have the most.
    pub(super) fn could_be_covered(&self, rank: Rank) -> Result<(), Rejection> {
        let promised = &self.state.cover.promised;
        let there = |id: &&NodeId| self.running(**id).is_some_and(|running| running.in_recovery);
        let count = promised.of.iter().filter(there).count();
        if promised.is_none() || count >= promised.needed() || planted(Defect::IgnoreCover) {
            return Ok(());
        }
        Err(self.uncovered(rank, count))
    }

    /// Whether a recruited standby has all that was ever acknowledged.
    pub(super) fn covers(&self, rank: Rank, change: &Change) -> Result<(), Rejection> {
        let promised = &self.state.cover.promised;
        let known = promised.is_none() || self.has_all_of(rank.node(), change.from);
        if known || planted(Defect::IgnoreCover) {
            return Ok(());
        }
        let told = |id: &&NodeId| {
            let recruited = self.is_recruited(**id, change.generation);
            let no_more = |running: &Running| {
                running.in_recovery
                    && (running.timeline, running.received) <= (rank.timeline(), rank.received())
            };
            recruited && self.running(**id).is_some_and(no_more)
        };
        let count = promised.of.iter().filter(told).count();
        if count >= promised.needed() { Ok(()) } else { Err(self.uncovered(rank, count)) }
    }

    /// Whether the choice of this node rests on a promise that holds.
    pub(super) fn is_covered(&self, id: NodeId, change: &Change) -> bool {
        let member = self.state.members.get(&id);
        let rank = member.and_then(|member| self.rank(member, true).ok());
        !self.state.cover.promised.is_none() && rank.is_some_and(|rank| self.covers(rank, change).is_ok())
    }

    /// Whether a standby has the WAL of a stopped primary to its end.
    fn has_all_of(&self, id: NodeId, primary: NodeId) -> bool {
        let left = self.postgres(primary).and_then(|postgres| postgres.stopped()?.left);
        let whole = |running: &Running| {
            left.is_some_and(|left| running.timeline == left.timeline && left.lacking(running) == 0)
        };
        self.has_released(primary) && self.running(id).is_some_and(whole)
    }

    fn uncovered(&self, rank: Rank, count: usize) -> Rejection {
        let promised = &self.state.cover.promised;
        format!(
            "{} may lack commits that were acknowledged: they are on {}, so {} of those have to say what they have, and {count} {}",
            self.name(rank.node()),
            self.spell(promised),
            promised.needed(),
            if count == 1 { "does" } else { "do" },
        )
    }

    /// For people: "any 1 of server2, server3".
    pub(super) fn spell(&self, set: &SyncSet) -> String {
        if set.is_none() {
            return "no standby".to_owned();
        }
        let names: Vec<String> = set.of.iter().map(|id| self.name(*id).to_string()).collect();
        format!("any {} of {}", set.standbys, names.join(", "))
    }
}
