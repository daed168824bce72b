//! Which fault comes next, drawn from the seed alone.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::kind::{Kind, RULES};

/// One fault, with all that is left to chance about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// What.
    pub(super) kind: Kind,
    /// Whether it meets the primary, if it may meet either that or another node.
    pub(super) meets_primary: bool,
    /// Chooses among those who can be met.
    pub(super) choice: usize,
    /// Chooses among those who are left.
    pub(super) second: usize,
    /// How long it lasts.
    pub(super) hold: Duration,
    /// A share of a hundred, for what has one.
    pub(super) percent: u32,
    /// Periods of a flapping link, or what else comes several times.
    pub(super) beats: Vec<Duration>,
    /// How long all is well afterwards.
    pub(super) pause: Duration,
}

/// An endless sequence of faults. Every kind comes once before one comes again. One that may meet the
/// primary or another node meets them in turn; with whom it begins is left to chance.
#[derive(Debug)]
pub(super) struct Plan {
    random: StdRng,
    kinds: Vec<Kind>,
    bag: Vec<Kind>,
    /// Whether a kind met the primary when it came last.
    met_primary: BTreeMap<Kind, bool>,
}

impl Plan {
    /// The sequence of this seed; of these kinds, or of all if none is named.
    pub(super) fn new(seed: u64, only: &[Kind]) -> Self {
        let all = || RULES.iter().map(|rule| rule.kind).collect();
        let kinds = if only.is_empty() { all() } else { only.to_vec() };
        Self { random: StdRng::seed_from_u64(seed), kinds, bag: Vec::new(), met_primary: BTreeMap::new() }
    }

    fn kind(&mut self) -> Kind {
        loop {
            if let Some(kind) = self.bag.pop() {
                return kind;
            }
            self.bag.clone_from(&self.kinds);
            self.bag.shuffle(&mut self.random);
        }
    }
}

impl Iterator for Plan {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        let kind = self.kind();
        let (least, most) = kind.rule().hold_ms;
        let random = &mut self.random;
        let met_primary = self.met_primary.entry(kind).or_insert_with(|| random.random_bool(0.5));
        *met_primary = !*met_primary;
        let meets_primary = *met_primary;
        // Short ones are the more telling ones: half of the draws come from the lower quarter.
        let upper = if random.random_bool(0.5) { least + (most - least) / 4 } else { most };
        let hold = Duration::from_millis(random.random_range(least..=upper));
        let beats = (0..40).map(|_| Duration::from_millis(random.random_range(100..=2_500))).collect();
        let (choice, second) = (random.random_range(0..1_000), random.random_range(0..1_000));
        let percent = random.random_range(1..=30);
        let pause = Duration::from_millis(random.random_range(300..=3_000));
        Some(Fault { kind, meets_primary, choice, second, hold, percent, beats, pause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let of = |seed| Plan::new(seed, &[]).take(100).collect::<Vec<_>>();
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let first: std::collections::BTreeSet<Kind> =
            of(7).into_iter().take(RULES.len()).map(|fault| fault.kind).collect();
        assert_eq!(first.len(), RULES.len(), "every kind comes before one comes twice");
    }

    #[test]
    fn a_kind_meets_the_primary_every_other_time() {
        for seed in 0..20 {
            let mut turns: BTreeMap<Kind, Vec<bool>> = BTreeMap::new();
            for fault in Plan::new(seed, &[]).take(5 * RULES.len()) {
                turns.entry(fault.kind).or_default().push(fault.meets_primary);
            }
            for (kind, turns) in turns {
                assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{kind:?}, seed {seed}: {turns:?}");
            }
        }
    }

    #[test]
    fn chance_decides_with_whom_a_kind_begins() {
        let begins =
            |seed| Plan::new(seed, &[Kind::LongGone]).next().is_some_and(|fault| fault.meets_primary);
        let first = (0..100).filter(|seed| begins(*seed)).count();
        assert!((30..=70).contains(&first), "{first} of 100 seeds begin with the primary");
    }

    #[test]
    fn kinds_can_be_chosen() {
        let kind = Kind::named("isolate").unwrap();
        assert!(Plan::new(1, &[kind]).take(10).all(|fault| fault.kind == Kind::Isolate));
        assert_eq!(Kind::named("earthquake"), None);
    }
}
