//! I6: a row that a client was told of is never lost, except that a failover may lose what the chosen
//! standby had never received. A switchover loses nothing, nor does a failover of a cluster whose commits wait for
//! standbys.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::i08_no_success_without_the_row::success;

/// Rows, by what became of them.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    written: BTreeSet<u64>,
    acknowledged: BTreeMap<u64, usize>,
    lost: BTreeSet<u64>,
}

impl Rows {
    /// A server has a row on its disk.
    pub(crate) fn written(&mut self, row: u64) {
        self.written.insert(row);
    }

    /// This row may be lost: its server was writable by an excuse.
    pub(crate) fn excuse(&mut self, row: u64) {
        self.lost.insert(row);
    }

    /// A client was told that its row is there.
    pub(crate) fn acknowledge(&mut self, node: usize, row: u64) -> Option<Violation> {
        self.acknowledged.insert(row, node);
        success(self.written.contains(&row), node, row)
    }

    /// A failover has chosen a server that has these rows, of those that exist anywhere now.
    pub(crate) fn failed_over(&mut self, has: &BTreeSet<u64>) {
        self.lost.extend(self.written.difference(has));
    }

    /// The primary of a healed cluster, or one that is chosen where enough standbys have every row, has these rows.
    pub(crate) fn survived(&self, has: &BTreeSet<u64>) -> Option<Violation> {
        let gone = self.acknowledged.iter().find(|(row, _)| !has.contains(row) && !self.lost.contains(row));
        gone.map(|(row, node)| Violation::RowLost { row: *row, node: *node })
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    pub(crate) fn excused(&self) -> usize {
        self.acknowledged.keys().filter(|row| self.lost.contains(row)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_row_needs_a_failover_for_an_excuse() {
        let mut rows = Rows::default();
        for row in 1..=3 {
            rows.written(row);
            assert_eq!(rows.acknowledge(0, row), None);
        }
        assert!(rows.survived(&[1, 2].into()).is_some());
        rows.failed_over(&[1, 2].into());
        assert_eq!(rows.survived(&[1, 2].into()), None);
        assert_eq!(rows.excused(), 1);
        assert!(rows.survived(&[1].into()).is_some(), "the chosen server had it");
    }
}
