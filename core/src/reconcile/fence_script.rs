//! The operators' word on a promotion: a script that has to succeed first.

use super::{LocalAction, Reconciler, Situation};

impl Reconciler {
    /// The script, where there is one and it has not succeeded for this generation. Not for a primary that takes its own
    /// role up again: whom would it keep away?
    pub(super) fn fence_script(&self, s: &Situation<'_>) -> Option<LocalAction> {
        let generation = s.state.generation;
        if !self.rules.fence_script || self.fenced_for == Some(generation) {
            return None;
        }
        let change = s.state.change.as_ref()?;
        // Of one that never served nothing is left, and it may be the one before that still runs somewhere.
        let old = change.before.unwrap_or(change.from);
        let member = s.state.members.get(&old).filter(|_| old != s.me)?;
        Some(LocalAction::FenceScript { generation, old: member.descriptor.postgres.clone() })
    }
}
