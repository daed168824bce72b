//! Remembers what was told, and what was seen when it was.
//!
//! Every agent finds the same events in the log. The one that leads tells them; the others keep them until they hear
//! that they were told, so that one who begins to lead tells what the leader before it had no time for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::{MonoTime, NodeId, NodeName};

use super::local::OwnSeen;
use super::throttle::Throttle;
use super::{Call, Event, Kind, local, reported, scripts, states};
use crate::cluster::{ClusterState, Service};
use crate::coordinator::NotYet;
use crate::observation::PostgresObservation;

/// So many revisions' events are kept for a leader that may never tell them.
const UNTOLD_MAX: usize = 200;

/// For so long an agent may hear too few others before that is told.
const ISOLATED_AFTER: Duration = Duration::from_secs(5);

/// What an agent knows at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// This node.
    pub me: NodeId,
    /// Its name.
    pub name: &'a NodeName,
    /// The truth, as far as it is applied here.
    pub state: &'a Arc<ClusterState>,
    /// The own PostgreSQL.
    pub own: Option<&'a PostgresObservation>,
    /// This agent leads, and knows all there is.
    pub leads: bool,
    /// Why the coordinator does not act.
    pub waiting: &'a [NotYet],
    /// Up to which revision others say that events were told.
    pub told: u64,
    /// The highest revision that any other agent is heard to have applied; `None` when nobody is heard.
    pub heard: Option<u64>,
    /// Enough others are heard.
    pub backed: bool,
    /// Now.
    pub now: MonoTime,
}

/// What there is to tell and to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// To be told.
    pub events: Vec<Event>,
    /// To be run.
    pub calls: Vec<Call>,
    /// There may be more at this time.
    pub wake_at: Option<MonoTime>,
}

/// What one step of the log amounts to.
#[derive(Debug)]
struct Untold {
    revision: u64,
    events: Vec<Event>,
    calls: Vec<Call>,
}

/// See the module.
#[derive(Debug)]
pub struct Narrator {
    throttle: Throttle,
    state: Option<Arc<ClusterState>>,
    own: Option<OwnSeen>,
    /// This agent has caught up with the log once: what it applied until then had happened before it came.
    caught_up: bool,
    untold: VecDeque<Untold>,
    told: u64,
    /// This node had failed.
    was_out: bool,
    unbacked_since: Option<MonoTime>,
}

impl Narrator {
    /// Nothing has been seen yet. What lasts is told again every `repeat`; never, if that is zero.
    pub fn new(repeat: Duration) -> Self {
        Self {
            throttle: Throttle::new(repeat),
            state: None,
            own: None,
            caught_up: false,
            untold: VecDeque::new(),
            told: 0,
            was_out: false,
            unbacked_since: None,
        }
    }

    /// Up to which revision events are known to have been told.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// What is new.
    pub fn look(&mut self, look: &Look<'_>) -> Told {
        let mut told = Told::default();
        let mut happened = Vec::new();
        self.follow_log(look, &mut told);
        self.tell_for_all(look, &mut happened, &mut told);
        let mut lasting = Vec::new();
        if look.leads {
            let generation = look.state.generation;
            lasting.extend(look.waiting.iter().filter_map(|why| reported::of(why, generation)));
        }
        self.look_at_own(look, &mut happened, &mut lasting, &mut told);
        lasting.extend(self.isolation(look));
        let throttle = &mut self.throttle;
        told.events.extend(throttle.due(look.now));
        told.events.extend(happened.into_iter().filter_map(|event| throttle.happened(event, look.now)));
        told.events.extend(throttle.lasting(lasting, look.now));
        told.wake_at = throttle.wake_at();
        told
    }

    /// Compares the log with what it was.
    fn follow_log(&mut self, look: &Look<'_>, told: &mut Told) {
        let caught_up = look.leads || look.heard.is_some_and(|heard| look.state.revision >= heard);
        let before = match &self.state {
            Some(before) if Arc::ptr_eq(before, look.state) => {
                self.caught_up |= caught_up;
                return;
            }
            Some(before) => before.clone(),
            None => {
                self.caught_up = caught_up;
                self.state = Some(look.state.clone());
                return;
            }
        };
        self.state = Some(look.state.clone());
        if self.caught_up {
            let states = (&*before, &**look.state);
            told.calls.extend(scripts::own(look.me, states, look.own));
            let (events, calls) =
                (states::compare(states.0, states.1), scripts::balancer(states.0, states.1));
            if !events.is_empty() || !calls.is_empty() {
                self.untold.push_back(Untold { revision: look.state.revision, events, calls });
                let excess = self.untold.len().saturating_sub(UNTOLD_MAX);
                self.untold.drain(..excess);
            }
        }
        self.caught_up |= caught_up;
        self.resumed(look, told);
    }

    /// Whether this node has come back into service.
    fn resumed(&mut self, look: &Look<'_>, told: &mut Told) {
        let Some(member) = look.state.members.get(&look.me) else { return };
        match member.service {
            Service::Failed(_) => self.was_out = true,
            Service::Up if std::mem::take(&mut self.was_out) && member.is_database() => {
                told.calls.push(Call::Resumed(scripts::of_member(look.state, look.me)));
            }
            Service::Up | Service::Joining => {}
        }
    }

    /// The leader tells; the others wait until it has.
    fn tell_for_all(&mut self, look: &Look<'_>, happened: &mut Vec<Event>, told: &mut Told) {
        // A cluster that was formed anew counts from the beginning.
        self.told = self.told.max(look.told).min(look.state.revision);
        let known = self.told;
        self.untold.retain(|untold| untold.revision > known);
        if look.leads {
            for Untold { revision, events, calls } in self.untold.drain(..) {
                happened.extend(events);
                told.calls.extend(calls);
                self.told = revision;
            }
        }
    }

    fn look_at_own(
        &mut self,
        look: &Look<'_>,
        happened: &mut Vec<Event>,
        lasting: &mut Vec<Event>,
        told: &mut Told,
    ) {
        let Some(own) = look.own else { return };
        let generation = look.state.generation;
        lasting.extend(local::conditions(look.name, generation, own));
        let seen = OwnSeen::of(own);
        if self.own.as_ref() == Some(&seen) {
            return;
        }
        let before = self.own.replace(seen);
        let event = before.and_then(|before| local::compare((look.name, generation), &before, own));
        if event.as_ref().is_some_and(|event| event.kind == Kind::PrimaryIsolated) {
            told.calls.push(Call::PrimaryIsolated(scripts::of_member(look.state, look.me)));
        }
        happened.extend(event);
    }

    fn isolation(&mut self, look: &Look<'_>) -> Option<Event> {
        if look.backed || look.state.identity.is_none() {
            self.unbacked_since = None;
            return None;
        }
        let since = *self.unbacked_since.get_or_insert(look.now);
        let name = look.name;
        (look.now.since(since) >= ISOLATED_AFTER).then(|| {
            let text = format!(
                "the agent of {name} hears too few of the others to have a say in the cluster: check the network, and \
                 whether the other agents run"
            );
            Event::new(Kind::AgentIsolated, Some(name.clone()), look.state.generation, text)
        })
    }
}
