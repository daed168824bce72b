//! I2: no actor's generation goes back, over crashes and restarts.

use std::collections::BTreeMap;

use pgherd_common::Generation;

use super::Violation;

/// The highest generation of every actor.
#[derive(Debug, Default)]
pub(crate) struct Generations(BTreeMap<(&'static str, usize), Generation>);

impl Generations {
    /// A server has lost its raft store: what it applies begins anew. Its memory does not.
    pub(crate) fn forget(&mut self, server: usize) {
        self.0.remove(&("server", server));
    }

    /// This actor (a kind and a number) acts under this generation.
    pub(crate) fn seen(
        &mut self,
        kind: &'static str,
        number: usize,
        generation: Generation,
    ) -> Option<Violation> {
        let highest = self.0.entry((kind, number)).or_default();
        let from = std::mem::replace(highest, (*highest).max(generation));
        let actor = || format!("{kind}{}", number + 1);
        (generation < from).then(|| Violation::GenerationWentBack { actor: actor(), from, to: generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_is_found() {
        let (mut checker, first) = (Generations::default(), Generation::ZERO.next());
        assert_eq!(checker.seen("server", 0, first.next()), None);
        assert_eq!(checker.seen("server", 1, first), None);
        assert_eq!(checker.seen("server", 0, first.next()), None);
        let found = checker.seen("server", 0, first).unwrap();
        assert_eq!(found.to_string(), "I2: the generation of server1 went back from 2 to 1");
    }
}
