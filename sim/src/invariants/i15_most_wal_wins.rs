//! I15: a failover chooses, among the standbys that are recruited and heard, one whose WAL was written by
//! the newest primary, and the most of it.

use pgherd_common::Generation;

use super::Violation;

/// What a standby has: the generation that wrote its last record, and how many records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) node: usize,
    pub(crate) generation: Generation,
    pub(crate) records: usize,
}

/// A node was chosen out of these.
pub(crate) fn most_wins(chosen: usize, claims: &[Claim]) -> Option<Violation> {
    let own = claims.iter().find(|claim| claim.node == chosen)?;
    let rank = |claim: &Claim| (claim.generation, claim.records);
    let better = claims.iter().find(|claim| rank(claim) > rank(own))?;
    Some(Violation::LessWalChosen { chosen, better: better.node })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_short_history_beats_an_older_long_one() {
        let first = Generation::ZERO.next();
        let claim = |node, generation, records| Claim { node, generation, records };
        let claims = [claim(0, first, 100), claim(1, first.next(), 90), claim(2, first.next(), 80)];
        assert_eq!(most_wins(1, &claims), None);
        assert!(matches!(most_wins(0, &claims), Some(Violation::LessWalChosen { better: 1, .. })));
        assert!(matches!(most_wins(2, &claims), Some(Violation::LessWalChosen { better: 1, .. })));
    }
}
