//! What there is to tell people.

use pgherd_common::MonoTime;

use super::{Node, Turn};
use crate::events::Look;
use crate::observation::NodeObservation;

impl Node {
    /// Comes last in a turn: it tells what has become so.
    pub(super) fn narrate(&mut self, observation: &NodeObservation, now: MonoTime, turn: &mut Turn) {
        let lease = self.setup.timings.lease;
        let others = self
            .coordinator
            .seen()
            .iter()
            .filter(|(id, seen)| **id != self.setup.descriptor.id && now.since(seen.at) < lease);
        let said = others.map(|(_, seen)| (seen.observation.revision, seen.observation.told));
        let (heard, told) = said.fold((None, 0), |(heard, told), (revision, others)| {
            (heard.max(Some(revision)), told.max(others))
        });
        let look = Look {
            me: self.id(),
            name: &self.setup.descriptor.name,
            state: &self.state,
            own: observation.postgres.as_ref(),
            leads: self.quorum.leads,
            waiting: &self.waiting,
            told,
            heard,
            backed: !self.backed_for(now).is_zero(),
            now,
        };
        let told = self.narrator.look(&look);
        self.sleep_until(told.wake_at);
        (turn.events, turn.calls) = (told.events, told.calls);
    }
}
