//! What came of the pairs.

use std::collections::BTreeMap;
use std::time::Duration;

/// Reads are counted by how long they took, in classes: the first one ends here, each other one at twice
/// the end of the one before it.
const FIRST_CLASS_US: u64 = 125;
const CLASSES: usize = 18;

/// How many examples are kept.
const EXAMPLES: usize = 20;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Pairs of an acknowledged write and a read that was answered.
    pub pairs: u64,
    /// Reads that missed what was written.
    pub stale: u64,
    /// Some of them, for people.
    pub examples: Vec<String>,
    /// Reads that a standby served.
    pub on_standbys: u64,
    /// Statements that failed, by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// How long all of it took.
    pub took: Duration,
    reads_us: [u64; CLASSES],
}

impl Tally {
    /// One pair more: in which way its read was stale, whether a standby served it, and how long it took.
    pub(super) fn note(&mut self, stale: Option<String>, on_standby: bool, took: Duration) {
        self.pairs += 1;
        self.on_standbys += u64::from(on_standby);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = (0..CLASSES).find(|class| us <= FIRST_CLASS_US << class).unwrap_or(CLASSES - 1);
        if let Some(count) = self.reads_us.get_mut(class) {
            *count += 1;
        }
        if let Some(what) = stale {
            self.stale += 1;
            if self.examples.len() < EXAMPLES {
                self.examples.push(what);
            }
        }
    }

    /// A statement failed.
    pub(super) fn failed(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }

    /// Those of another client.
    pub(super) fn add(&mut self, other: Self) {
        self.pairs += other.pairs;
        self.stale += other.stale;
        self.on_standbys += other.on_standbys;
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
        for (what, count) in other.errors {
            *self.errors.entry(what).or_default() += count;
        }
        for (count, more) in self.reads_us.iter_mut().zip(other.reads_us) {
            *count += more;
        }
    }

    /// Whether nothing was stale, and nothing failed.
    pub fn is_clean(&self) -> bool {
        self.stale == 0 && self.errors.is_empty()
    }

    /// So many of a thousand reads took no longer than this.
    fn read_within(&self, per_mille: u64) -> Duration {
        let (wanted, mut seen) = (self.pairs.saturating_mul(per_mille).div_ceil(1_000), 0);
        let class = self.reads_us.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_micros(FIRST_CLASS_US << class.unwrap_or(CLASSES - 1))
    }

    /// The lines for people.
    pub fn told(&self) -> String {
        let share = self.on_standbys * 1_000 / self.pairs.max(1);
        let mut text = format!(
            "{} pairs in {:.0} s, {} stale reads; {}.{} % of the reads were served by standbys\n\
             reads took at most {:?} (half of them), {:?} (99 %), {:?} (99.9 %)",
            self.pairs,
            self.took.as_secs_f64(),
            self.stale,
            share / 10,
            share % 10,
            self.read_within(500),
            self.read_within(990),
            self.read_within(999),
        );
        for example in &self.examples {
            text += &format!("\n  stale: {example}");
        }
        for (what, count) in &self.errors {
            text += &format!("\n  failed {count} times: {what}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_times_are_told() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        for _ in 0..99 {
            one.note(None, true, Duration::from_micros(100));
        }
        other.note(Some("here".to_owned()), false, Duration::from_millis(3));
        one.add(other);
        assert_eq!((one.pairs, one.stale, one.is_clean()), (100, 1, false));
        let told = one.told();
        assert!(
            told.contains("1 stale") && told.contains("99.0 %") && told.contains("stale: here"),
            "{told}"
        );
        assert!(told.contains("125µs (half of them), 125µs (99 %), 4ms (99.9 %)"), "{told}");
    }
}
