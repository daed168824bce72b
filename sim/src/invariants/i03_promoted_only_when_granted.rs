//! I3: a node becomes primary only of a generation that the log gave to it.

use std::collections::BTreeMap;

use pgherd_common::Generation;
use pgherd_common::topology::ChangeKind;

use super::Violation;
use super::i14_one_grant_per_generation::second_grant;

/// What the log gave to whom, and in which kind of change.
#[derive(Debug, Default)]
pub(crate) struct Grants(BTreeMap<Generation, (usize, Option<ChangeKind>)>);

impl Grants {
    /// The log gives a generation to a node.
    pub(crate) fn granted(
        &mut self,
        generation: Generation,
        node: usize,
        kind: Option<ChangeKind>,
    ) -> Option<Violation> {
        let (first, _) = *self.0.entry(generation).or_insert((node, kind));
        second_grant(generation, first, node)
    }

    /// In which kind of change a generation was given away.
    pub(crate) fn kind(&self, generation: Generation) -> Option<ChangeKind> {
        self.0.get(&generation).and_then(|(_, kind)| *kind)
    }

    /// The newest generation there is.
    pub(crate) fn newest(&self) -> Generation {
        self.0.keys().next_back().copied().unwrap_or_default()
    }

    /// A node becomes primary of a generation.
    pub(crate) fn used(&self, generation: Generation, node: usize) -> Option<Violation> {
        let granted = self.0.get(&generation).map(|(node, _)| *node);
        (granted != Some(node)).then_some(Violation::NotGranted { node, generation, granted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_node_may_use_a_grant() {
        let (mut checker, first) = (Grants::default(), Generation::ZERO.next());
        assert_eq!(checker.granted(first, 2, None), None);
        assert_eq!(checker.used(first, 2), None);
        assert!(checker.used(first, 1).is_some());
        assert!(checker.used(first.next(), 2).is_some(), "nobody has it yet");
    }
}
