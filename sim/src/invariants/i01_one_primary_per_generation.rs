//! I1: in one generation at most one node is ever writable.

use std::collections::BTreeMap;

use pgherd_common::Generation;

use super::Violation;

/// Who was writable in which generation.
#[derive(Debug, Default)]
pub(crate) struct OnePrimary(BTreeMap<Generation, usize>);

impl OnePrimary {
    /// A server of this generation accepts writes.
    pub(crate) fn writable(&mut self, generation: Generation, node: usize) -> Option<Violation> {
        let first = *self.0.entry(generation).or_insert(node);
        (first != node).then_some(Violation::TwoPrimariesOfOneGeneration { generation, first, second: node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_in_one_generation_is_found() {
        let (mut checker, first) = (OnePrimary::default(), Generation::ZERO.next());
        assert_eq!(checker.writable(first, 0), None);
        assert_eq!(checker.writable(first, 0), None, "it may stop and start");
        assert_eq!(checker.writable(first.next(), 1), None);
        assert!(matches!(
            checker.writable(first, 1),
            Some(Violation::TwoPrimariesOfOneGeneration { first: 0, second: 1, .. })
        ));
    }
}
