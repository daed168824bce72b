//! Node level: what this agent does to its own PostgreSQL, so that it becomes what the log says it is.
//!
//! Decides from committed state, its own observation, what the primary's agent last said, and its
//! lease; never from a wish of its own. It may only name an action: the driver carries it out and
//! reports back. It must not know sockets, files or clocks.

mod action;
mod capacity;
mod comeback;
mod cover;
mod fence_script;
pub mod lease;
mod leave;
mod slots;
mod switch_over;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, Lsn, MonoTime, NodeId};

use crate::cluster::{ChangePhase, ClusterState, HistoryEntry, Member, Outcome, PrimaryPhase, Service};
use crate::defect::{Defect, planted};
use crate::observation::{PostgresObservation, PostgresState, Running, Stopped};
use crate::salvage::Offer;

use cover::{commits, cover_action, may_let_in};
use slots::{Slots, hold_back};
use switch_over::switch_over;
use upstream::{divergence, feeding, serving_upstream};

pub use action::{Commits, LocalAction, Upstream, Wait};
pub use comeback::{Comeback, RejoinRules};
pub use slots::held_back;

/// What there is to decide from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// This node.
    pub me: NodeId,
    /// The truth.
    pub state: &'a ClusterState,
    /// The local PostgreSQL.
    pub own: &'a PostgresObservation,
    /// How old that look is. While PostgreSQL hangs, so do looks, and deadlines do not wait for them.
    pub own_age: Duration,
    /// The serving primary's PostgreSQL, as its agent recently described it.
    pub primary: Option<&'a Running>,
    /// For how long that agent has not been heard, while there is a primary.
    pub unheard_for: Duration,
    /// What members have received that stream from another standby.
    pub cascaded: &'a BTreeMap<NodeId, Lsn>,
    /// What the primary that is being replaced has left on its disk.
    pub offer: Option<&'a Offer>,
    /// Whom this node can be copied from, the best one first.
    pub donors: &'a [Upstream],
    /// When fencing must begin; `None` when this node holds no lease.
    pub fence_at: Option<MonoTime>,
    /// Until when a primary that was found running when the agent started may do without a lease.
    pub adopted_until: MonoTime,
    /// The highest generation that this node has ever heard of.
    pub highest: Generation,
    /// Every proxy has put the topology in effect in which new work is held, or was given the time to.
    pub work_is_held: bool,
    /// PostgreSQL is down because this agent stopped or killed it.
    pub stopped_here: bool,
    /// Now.
    pub now: MonoTime,
}

/// What the configuration says about it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long PostgreSQL may answer nobody.
    pub local_timeout: Duration,
    /// How long a crashed standby rests before it is started again; zero means for ever.
    pub restart_standby_after: Duration,
    /// What a failed primary does.
    pub rejoin: RejoinRules,
    /// A script of the operators has to succeed before a promotion.
    pub fence_script: bool,
}

/// How the reason begins with which a primary is fenced that was cut off.
pub const LEASE_ENDED: &str = "the lease ended";

/// A start that was followed by another one sooner than this did not last.
const START_LASTS: Duration = Duration::from_secs(60);

/// A kind of action that failed the last time.
#[derive(Debug)]
struct Failed {
    kind: Discriminant<LocalAction>,
    /// In a row.
    times: u32,
    rests_until: MonoTime,
}

/// Remembers what failed and when, so that it is not tried in a tight loop.
#[derive(Debug)]
pub struct Reconciler {
    rules: Rules,
    /// The kinds of action that failed the last time. Others are not held up.
    failed: Vec<Failed>,
    /// How many starts as primary in a row did not last, and when the last one succeeded.
    starts: Option<(u32, MonoTime)>,
    slots: Slots,
    comeback: Comeback,
    /// The generation before whose promotion the operators' script has succeeded.
    fenced_for: Option<Generation>,
}

/// The outcome of one look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Reconciliation {
    /// What to do now.
    pub action: Option<LocalAction>,
    /// Look again then, even if nothing happens.
    pub wake_at: Option<MonoTime>,
    /// Why nothing is done, where an operator would ask.
    pub note: Option<String>,
}

impl Reconciliation {
    fn act(action: LocalAction) -> Self {
        Self { action: Some(action), ..Self::default() }
    }

    fn wait(note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..Self::default() }
    }

    fn at(self, wake_at: MonoTime) -> Self {
        Self { wake_at: Some(wake_at), ..self }
    }
}

impl Reconciler {
    /// Nothing has failed yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            failed: Vec::new(),
            starts: None,
            slots: Slots::default(),
            comeback: Comeback::default(),
            fenced_for: None,
        }
    }

    /// By what means this node comes back.
    pub fn comeback(&self) -> &Comeback {
        &self.comeback
    }

    /// The same, to be told of orders.
    pub fn comeback_mut(&mut self) -> &mut Comeback {
        &mut self.comeback
    }

    /// An action has ended.
    pub fn finished(&mut self, action: &LocalAction, succeeded: bool, now: MonoTime) {
        let kind = discriminant(action);
        let before = self.failed.iter().position(|failed| failed.kind == kind);
        let before = before.map(|at| self.failed.swap_remove(at));
        if succeeded {
            match action {
                LocalAction::AlignSlots { members, in_recovery, .. } => {
                    self.slots.aligned(members, *in_recovery, now);
                }
                LocalAction::FenceScript { generation, .. } => self.fenced_for = Some(*generation),
                LocalAction::StartPrimary(..) => {
                    let in_a_row = self.starts.filter(|(_, at)| now.since(*at) < START_LASTS);
                    self.starts = Some((in_a_row.map_or(0, |(times, _)| times + 1), now));
                }
                _ => {}
            }
        } else {
            let times = before.map_or(0, |failed| failed.times);
            self.failed.push(Failed { kind, times: times + 1, rests_until: now + pause_after(times) });
        }
    }

    /// Until when a primary that was started and did not last is left alone: only where no standby can
    /// take over is it started in place, and then not in a tight loop.
    fn storm_rest(&self, action: &LocalAction, now: MonoTime) -> Option<(u32, MonoTime)> {
        let (times, at) = self.starts.filter(|_| matches!(action, LocalAction::StartPrimary(..)))?;
        let until = at + pause_after(times);
        (times > 0 && now < until).then_some((times, until))
    }

    /// What to do next.
    pub fn decide(&self, s: &Situation<'_>) -> Reconciliation {
        self.paced(self.wanted(s), s)
    }

    /// What failed or did not last is not tried in a tight loop.
    fn paced(&self, wanted: Reconciliation, s: &Situation<'_>) -> Reconciliation {
        let urgent = matches!(wanted.action, Some(LocalAction::Fence { .. }));
        let rests_until = wanted.action.as_ref().and_then(|action| self.rests_until(action, s.now));
        if let Some((times, until)) = wanted.action.as_ref().and_then(|a| self.storm_rest(a, s.now)) {
            let note = format!(
                "PostgreSQL has ended {times} times soon after its start; resting before the next one"
            );
            return Reconciliation::wait(note).at(until);
        }
        match rests_until {
            Some(at) if !urgent => Reconciliation { action: None, ..wanted }.at(at),
            Some(_) | None => wanted,
        }
    }

    /// Until when an action of this kind is not tried again, if it failed a moment ago.
    fn rests_until(&self, action: &LocalAction, now: MonoTime) -> Option<MonoTime> {
        let failed = self.failed.iter().find(|failed| failed.kind == discriminant(action))?;
        (now < failed.rests_until).then_some(failed.rests_until)
    }

    fn wanted(&self, s: &Situation<'_>) -> Reconciliation {
        let Some(identity) = &s.state.identity else { return unknown_cluster(s) };
        if identity.system_identifier != s.own.system_identifier {
            return Reconciliation::wait(format!(
                "this data directory belongs to another database (system identifier {}, the cluster's is {}): \
                 it is left alone",
                s.own.system_identifier, identity.system_identifier
            ));
        }
        let Some(member) = s.state.members.get(&s.me) else {
            return Reconciliation::wait("this node is not a member yet");
        };
        if s.state.primary.is_some_and(|primary| primary.node == s.me) {
            self.as_primary(s)
        } else {
            self.as_standby(s, member)
        }
    }

    /// The log says this node is primary.
    fn as_primary(&self, s: &Situation<'_>) -> Reconciliation {
        let change = s.state.change.as_ref().filter(|change| change.phase != ChangePhase::Granted);
        if let Some(change) = change.filter(|change| change.kind == ChangeKind::Failover) {
            return give_up(s, format!("generation {} is to have another primary", change.generation));
        }
        if let Some(expired) = self.lease_expired(s) {
            return expired;
        }
        if let Some(left_alone) = leave_alone(s) {
            return left_alone;
        }
        if let PostgresState::Unresponsive { for_ms, reason } = &s.own.state {
            return self.unresponsive(s, *for_ms, reason);
        }
        if let Some(change) = change {
            return switch_over(s, change);
        }
        let promoting = s.state.primary.is_some_and(|primary| primary.phase == PrimaryPhase::Promoting);
        match &s.own.state {
            // A standby must leave recovery by a promotion: only that begins a timeline of its own.
            PostgresState::Down(stopped) if promoting && stopped.standby => {
                self.become_primary(s, LocalAction::StartStandby)
            }
            PostgresState::Down(_) if promoting => {
                self.become_primary(s, LocalAction::StartPrimary(s.state.generation, commits(s)))
            }
            PostgresState::Down(_) => give_up(s, "PostgreSQL is down".to_owned()),
            PostgresState::Running(running) if running.in_recovery && promoting => {
                let promote = || LocalAction::Promote(s.state.generation, commits(s));
                self.become_primary(s, self.fence_script(s).unwrap_or_else(promote))
            }
            PostgresState::Running(running) if running.in_recovery => {
                Reconciliation::wait("PostgreSQL came up as a standby; the cluster will choose a primary")
            }
            PostgresState::Running(running) => self.keep_primary(s, running, promoting),
            PostgresState::Unusable(reason) => Reconciliation::wait(reason.clone()),
            PostgresState::Starting { .. } | PostgresState::Unresponsive { .. } => Reconciliation::default(),
        }
    }

    /// Only with the lease of the new generation in hand.
    fn become_primary(&self, s: &Situation<'_>, action: LocalAction) -> Reconciliation {
        match s.fence_at.or(planted(Defect::PromoteWithoutLease).then_some(s.now + self.rules.local_timeout))
        {
            Some(_) if s.highest > s.state.generation => Reconciliation::wait(format!(
                "the cluster has reached generation {} already; waiting to learn who is primary of it",
                s.highest
            )),
            Some(at) if at > s.now => Reconciliation::act(action),
            Some(_) | None => Reconciliation::wait("waiting for the lease of this generation"),
        }
    }

    fn keep_primary(&self, s: &Situation<'_>, running: &Running, promoting: bool) -> Reconciliation {
        let wake = |r: Reconciliation| Reconciliation { wake_at: r.wake_at.or(s.fence_at), ..r };
        // Whatever cannot be had for now does not hold up what comes behind it.
        let possible = |action: &LocalAction| self.rests_until(action, s.now).is_none();
        let let_in = (running.gated && may_let_in(s, running)).then_some(LocalAction::LetIn);
        let cover = let_in.filter(possible).or_else(|| cover_action(s, running).filter(possible));
        if promoting {
            // As soon as it can: it is what clients will wait for.
            if let Some(cover) = cover {
                return wake(Reconciliation::act(cover));
            }
            return wake(Reconciliation::wait("PostgreSQL accepts writes; telling the cluster"));
        }
        // The checkpoint removes WAL, so the slots come first.
        let slots = self.slots.action(s, running).filter(possible);
        let hold_back = hold_back(s, running).filter(possible);
        let checkpoint = (running.checkpoint_timeline != running.timeline).then_some(LocalAction::Checkpoint);
        wake(Reconciliation {
            action: cover.or(hold_back).or(slots).or(checkpoint),
            ..Reconciliation::default()
        })
    }

    /// It hangs: killed once it has done so for `local_timeout`, in either role. A server that refuses
    /// the agent has answered, so it never gets there.
    fn unresponsive(&self, s: &Situation<'_>, for_ms: u64, reason: &str) -> Reconciliation {
        // A look that finds it refusing all the time has no age: it answers.
        let silent = if for_ms == 0 { Duration::ZERO } else { Duration::from_millis(for_ms) + s.own_age };
        let left = self.rules.local_timeout.saturating_sub(silent);
        if left.is_zero() {
            let silent_ms = silent.as_millis();
            return give_up(s, format!("PostgreSQL has answered nobody for {silent_ms} ms: {reason}"));
        }
        Reconciliation::wait(format!("PostgreSQL does not answer: {reason}")).at(s.now + left)
    }

    /// A primary without a lease must not be writable.
    fn lease_expired(&self, s: &Situation<'_>) -> Option<Reconciliation> {
        let recovering = s.own.running().is_some_and(|running| running.in_recovery);
        let deadline = match s.fence_at {
            _ if s.own.stopped().is_some() => return None,
            // A promotion may be under way; it must not end after the lease has.
            Some(at) => at,
            None if recovering || s.state.is_new() => return None,
            None => s.adopted_until,
        };
        (s.now >= deadline && !planted(Defect::NoFenceAtLeaseEnd)).then(|| {
            give_up(s, format!("{LEASE_ENDED}: too few agents answered, another primary may be chosen"))
        })
    }

    /// The log says another node is primary, or that nobody is.
    fn as_standby(&self, s: &Situation<'_>, member: &Member) -> Reconciliation {
        // What the agent itself has stopped it starts again.
        let unfinished = s.stopped_here && s.own.stopped().is_some();
        if let Some(left_alone) = leave_alone(s).filter(|_| !unfinished) {
            return left_alone;
        }
        match &s.own.state {
            PostgresState::Running(running) if !running.in_recovery => {
                Reconciliation::act(LocalAction::Fence {
                    reason: format!(
                        "it accepts writes but is not the primary of generation {}",
                        s.state.generation
                    ),
                })
            }
            PostgresState::Running(running) => self.run_standby(s, running),
            PostgresState::Down(stopped) => self.start_standby(s, member, stopped),
            // Not an agent's doing: a standby that the agents start has its signal before.
            PostgresState::Starting { standby: false, .. } => Reconciliation::act(LocalAction::Fence {
                reason: format!(
                    "it is coming up to accept writes but is not the primary of generation {}",
                    s.state.generation
                ),
            }),
            PostgresState::Starting { standby: true, .. } => Reconciliation::default(),
            // Killed and started anew it may stream again; as it is it cannot even be recruited.
            PostgresState::Unresponsive { for_ms, reason } => self.unresponsive(s, *for_ms, reason),
            PostgresState::Unusable(reason) => {
                let primary = s.primary.filter(|primary| !primary.in_recovery);
                let order = self.comeback.order().filter(|_| s.state.pauses.of(s.me).is_none());
                let ordered = order.and(serving_upstream(s)).zip(primary);
                let rebuild = ordered.and_then(|(upstream, running)| {
                    self.comeback.rebuild(&self.rules, &upstream, running, s.donors, s.now).ok()?
                });
                rebuild.map_or_else(|| Reconciliation::wait(reason.clone()), Reconciliation::act)
            }
        }
    }

    fn run_standby(&self, s: &Situation<'_>, running: &Running) -> Reconciliation {
        if let Some(change) = s.state.change.as_ref().filter(|_| s.state.upstream().is_none()) {
            let recruiting = change.phase == ChangePhase::Recruiting;
            // The promise to the new generation is in this node's log, on disk, before it is seen here:
            // only committed changes are, and a voter syncs what it answers for. The standby's own part
            // of it is `pgherd.conf`. Somebody may have pointed it at a primary again since.
            let cut = running.follows.is_none() && running.receiver.is_none();
            if recruiting && !(cut && s.own.recruited == Some(change.generation)) {
                return Reconciliation::act(LocalAction::Recruit(change.generation));
            }
            let wanted = s.offer.filter(|offer| recruiting && offer.wal.lacking(running) > 0);
            if let Some(offer) = wanted.filter(|_| s.own.salvaged != Some(change.generation)) {
                let (generation, offer) = (change.generation, offer.clone());
                return Reconciliation::act(LocalAction::Salvage { generation, offer });
            }
            return Reconciliation::default();
        }
        let paused = s.state.pauses.of(s.me);
        // A standby that nothing can be made of goes on as it is.
        let in_vain = self.comeback.order().is_some() && !self.can_be_rebuilt(s);
        if let Some(begun) = s.own.restarting.filter(|_| paused.is_none() && !in_vain) {
            let me = s.state.members.get(&s.me);
            if me.is_some_and(|member| member.service == Service::Up) {
                return Reconciliation::wait("it is stopped once proxies are told to send nothing here");
            }
            return Reconciliation::act(LocalAction::DrainAndStop { begun, end_transactions: true });
        }
        let slots = Reconciliation { action: self.slots.action(s, running), ..Reconciliation::default() };
        let Some(upstream) = serving_upstream(s) else { return slots };
        // It goes on as it is until there is something to make it anew from.
        if let (Some(primary), Some(_), None) = (s.primary, self.comeback.order(), paused) {
            match self.comeback.rebuild(&self.rules, &upstream, primary, s.donors, s.now) {
                Ok(Some(_)) => {
                    let reason = "an operator has it rebuilt".to_owned();
                    return Reconciliation::act(LocalAction::StopFast { reason });
                }
                Ok(None) => {}
                Err((note, _)) => return Reconciliation { note: Some(note), ..slots },
            }
        }
        // Without a word from the primary's agent a divergence cannot be told from a slow start.
        let Some(primary) = s.primary.filter(|primary| !primary.in_recovery) else { return slots };
        // What is replayed counts: the end of what was received is often half a record, and the new
        // primary's timeline begins at the end of a whole one.
        if let Some(reason) = divergence(primary, running, &upstream) {
            return match paused {
                None => Reconciliation::act(LocalAction::StopFast { reason }),
                Some(pause) => {
                    Reconciliation::wait(format!("{reason}; it is left alone: paused until {}", pause.until))
                }
            };
        }
        if let Some(held_up) = capacity::too_small(s, primary, running) {
            return held_up;
        }
        let source = feeding(s, upstream);
        let same = running.follows.as_ref() == Some(&source.address);
        if same && running.follows_in == source.generation && running.logical.copies == source.copy_slots {
            return slots;
        }
        Reconciliation::act(LocalAction::Follow(source))
    }

    /// Whether there is all that it takes to carry out an operator's order.
    fn can_be_rebuilt(&self, s: &Situation<'_>) -> bool {
        let known = serving_upstream(s).zip(s.primary.filter(|primary| !primary.in_recovery));
        known.is_some_and(|(upstream, running)| {
            matches!(self.comeback.rebuild(&self.rules, &upstream, running, s.donors, s.now), Ok(Some(_)))
        })
    }

    fn start_standby(&self, s: &Situation<'_>, member: &Member, stopped: &Stopped) -> Reconciliation {
        if !member.allowed {
            return Reconciliation::wait("this node is not allowed in the cluster: run `pgherd allow-node`");
        }
        if let Some(note) = self.comeback.stays_out(&self.rules, member) {
            return Reconciliation::wait(note);
        }
        if let Some(at) = match self.rest(s, member, stopped) {
            _ if self.comeback.order().is_some() => None,
            Ok(rest) => rest,
            Err(note) => return Reconciliation::wait(note),
        } {
            return Reconciliation::wait("PostgreSQL crashed; it is started again after a rest").at(at);
        }
        let upstream = serving_upstream(s);
        match (upstream, s.primary.filter(|primary| !primary.in_recovery)) {
            // Until its first checkpoint pg_rewind takes a new primary for the old one.
            (Some(upstream), Some(running))
                if !stopped.standby && !stopped.clean && running.checkpoint_timeline != running.timeline =>
            {
                Reconciliation::wait(format!(
                    "waiting for the first checkpoint of {} as primary",
                    upstream.node
                ))
            }
            (Some(upstream), Some(running)) => {
                match self.comeback.rebuild(&self.rules, &upstream, running, s.donors, s.now) {
                    Ok(Some(rebuild)) => Reconciliation::act(rebuild),
                    Ok(None) => Reconciliation::act(LocalAction::Rejoin {
                        upstream,
                        running: Box::new(running.clone()),
                    }),
                    Err((note, wake_at)) => Reconciliation { wake_at, ..Reconciliation::wait(note) },
                }
            }
            // A former primary waits for one it can be compared with.
            (_, _) if !stopped.standby => Reconciliation::wait("waiting for a primary to rejoin"),
            // Whom it may follow is decided once the primary's agent has said what there is to compare.
            (_, _) => Reconciliation::act(LocalAction::StartStandby),
        }
    }

    /// Whether this node was chosen as primary, failed before it served, and has not been a standby since:
    /// a clean stop is then what a switchover left, and nobody's wish.
    fn never_served(&self, s: &Situation<'_>, member: &Member, stopped: &Stopped) -> bool {
        let named =
            |entry: &&HistoryEntry| entry.to == member.descriptor.name && entry.outcome != Outcome::NotDone;
        let chosen = s.state.history.iter().rev().find(named);
        !stopped.standby && chosen.is_some_and(|entry| entry.outcome == Outcome::Superseded)
    }

    /// Until when a stopped standby is left alone; an error when it is for good, with the reason.
    fn rest(
        &self,
        s: &Situation<'_>,
        member: &Member,
        stopped: &Stopped,
    ) -> Result<Option<MonoTime>, String> {
        let was_primary = s.own.released.is_some_and(|released| released < s.state.generation);
        let wanted_back = member.service == Service::Joining || self.never_served(s, member, stopped);
        if wanted_back || s.stopped_here || stopped.found_down || (was_primary && !stopped.clean) {
            return Ok(None);
        }
        let name = &member.descriptor.name;
        if stopped.clean {
            return Err(format!("PostgreSQL was shut down by hand; `pgherd resume {name}` brings it back"));
        }
        if self.rules.restart_standby_after.is_zero() {
            return Err(format!("PostgreSQL crashed; `pgherd resume {name}` brings it back"));
        }
        let left = self.rules.restart_standby_after.saturating_sub(Duration::from_millis(stopped.for_ms));
        Ok((!left.is_zero()).then(|| s.now + left))
    }
}

/// The rest after something has failed `times` times before: half a second, doubled each time, at most
/// half a minute.
fn pause_after(times: u32) -> Duration {
    Duration::from_millis(500) * 2_u32.saturating_pow(times.min(6))
}

/// Nothing is known of the cluster: it has not formed, or this agent has lost its memory of it.
fn unknown_cluster(s: &Situation<'_>) -> Reconciliation {
    let writable = match &s.own.state {
        PostgresState::Running(running) => !running.in_recovery,
        PostgresState::Starting { standby, .. } => !standby,
        PostgresState::Down(_) | PostgresState::Unresponsive { .. } | PostgresState::Unusable(_) => false,
    };
    if s.highest == Generation::ZERO {
        return Reconciliation::wait("the cluster has not formed yet");
    }
    let lost =
        "the raft store of this agent is gone or was replaced: it waits for the others to tell it the state";
    if writable && s.now >= s.adopted_until {
        let reason = format!("{lost}; until then nobody can tell whether this server may be primary");
        return Reconciliation::act(LocalAction::Fence { reason });
    }
    Reconciliation::wait(lost).at(s.adopted_until)
}

/// While an operator has paused it, a PostgreSQL that does not run, or does not answer, is the operator's. One that runs
/// is led as ever, and killed where it must not be writable.
fn leave_alone(s: &Situation<'_>) -> Option<Reconciliation> {
    let pause = s.state.pauses.of(s.me)?;
    let how = match &s.own.state {
        PostgresState::Down(_) => "is down",
        PostgresState::Unresponsive { .. } => "does not answer",
        PostgresState::Running(_) | PostgresState::Starting { .. } | PostgresState::Unusable(_) => {
            return None;
        }
    };
    Some(Reconciliation::wait(format!("PostgreSQL {how} and is left alone: paused until {}", pause.until)))
}

/// Everything of the instance must be gone, leftovers of a dead postmaster included, before the role
/// counts as released.
fn give_up(s: &Situation<'_>, reason: String) -> Reconciliation {
    if s.own.stopped().is_some() && s.own.released == Some(s.state.generation) {
        return Reconciliation::wait(reason);
    }
    Reconciliation::act(LocalAction::Fence { reason })
}
