//! I10: every node applies the same entries in the same order, and ends in the same state.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgherd_core::cluster::ClusterState;

use super::Violation;
use crate::raft::Entry;

/// What was applied first at each place of the log.
#[derive(Debug, Default)]
pub(crate) struct Logs(BTreeMap<usize, (Arc<Entry>, Arc<ClusterState>)>);

impl Logs {
    /// The state after the entry before this one.
    pub(crate) fn before(&self, index: usize) -> Option<Arc<ClusterState>> {
        self.0.get(&index.checked_sub(1)?).map(|(_, state)| Arc::clone(state))
    }

    /// A node has applied an entry. Whether it was the first to do so.
    pub(crate) fn applied(
        &mut self,
        node: usize,
        index: usize,
        entry: &Arc<Entry>,
        state: &Arc<ClusterState>,
    ) -> (bool, Option<Violation>) {
        let Some((first, after)) = self.0.get(&index) else {
            self.0.insert(index, (Arc::clone(entry), Arc::clone(state)));
            return (true, None);
        };
        let same =
            (Arc::ptr_eq(first, entry) || first == entry) && (Arc::ptr_eq(after, state) || after == state);
        let why = || format!("{entry:?} instead of {first:?}");
        (false, (!same).then(|| Violation::LogsDiffer { index, node, why: why() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Payload;

    #[test]
    fn another_entry_at_the_same_place_is_found() {
        let entry = |term| Arc::new(Entry { term, payload: Payload::Blank });
        let (mut logs, state) = (Logs::default(), Arc::default());
        assert_eq!(logs.applied(0, 1, &entry(1), &state), (true, None));
        assert_eq!(logs.applied(1, 1, &entry(1), &state), (false, None));
        assert!(logs.applied(2, 1, &entry(2), &state).1.is_some());
    }
}
