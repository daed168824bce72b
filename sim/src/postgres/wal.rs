//! WAL as a list of records, each with a sum over all before it.

use pgherd_common::{Generation, Lsn};

/// Bytes of every record.
pub(super) const RECORD: u64 = 100;
const BASE: u64 = 0x300_0000;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client's row, by its number.
    Row(u64),
    /// A checkpoint.
    Checkpoint,
    /// The first record of a timeline.
    EndOfRecovery,
}

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it holds.
    pub kind: Kind,
    /// The timeline it was written on.
    pub timeline: u32,
    /// The generation of the primary that wrote it.
    pub generation: Generation,
    /// Equal on two servers only if all records up to this one are.
    pub chain: u64,
}

/// All that a server has flushed.
#[derive(Debug, Clone, Default)]
pub struct Wal(Vec<Record>);

/// The position after so many records.
pub fn lsn(records: usize) -> Lsn {
    Lsn(BASE + RECORD * u64::try_from(records).unwrap_or(u64::MAX))
}

impl Wal {
    /// Records.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The position after the last record.
    pub fn end(&self) -> Lsn {
        lsn(self.len())
    }

    /// All of them.
    pub fn records(&self) -> &[Record] {
        &self.0
    }

    /// The last one.
    pub fn last(&self) -> Option<&Record> {
        self.0.last()
    }

    /// Adds a record; the position where it starts.
    pub fn append(&mut self, kind: Kind, timeline: u32, generation: Generation) -> Lsn {
        let start = self.end();
        let seed = match kind {
            Kind::Row(id) => id.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            Kind::Checkpoint => 1,
            Kind::EndOfRecovery => 2,
        };
        let before = self.0.last().map_or(7, |record| record.chain);
        let mixed = (before.rotate_left(17) ^ seed ^ u64::from(timeline) << 48)
            .wrapping_add(generation.number() << 32)
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.0.push(Record { kind, timeline, generation, chain: mixed ^ (mixed >> 29) });
        start
    }

    /// The records that both have.
    pub fn common(&self, other: &Self) -> usize {
        let bound = self.len().min(other.len());
        // Chains: once two differ, all later ones do.
        self.0
            .iter()
            .zip(&other.0)
            .take(bound)
            .collect::<Vec<_>>()
            .partition_point(|(a, b)| a.chain == b.chain)
    }

    /// Whether the first `count` records of both are the same.
    pub fn agrees(&self, other: &Self, count: usize) -> bool {
        match count.checked_sub(1) {
            None => true,
            Some(last) => match (self.0.get(last), other.0.get(last)) {
                (Some(a), Some(b)) => a.chain == b.chain,
                (_, _) => false,
            },
        }
    }

    /// Takes over what `from` has beyond what is here, up to `count` records.
    pub fn extend_from(&mut self, from: &Self, count: usize) {
        let have = self.len();
        if let Some(news) = from.0.get(have..count.min(from.len())) {
            self.0.extend_from_slice(news);
        }
    }

    /// Forgets all but the first `count` records.
    pub fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    /// How many records end at or before a position.
    pub fn count_until(position: Lsn) -> usize {
        usize::try_from(position.0.saturating_sub(BASE) / RECORD).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_tell_branches_apart() {
        let mut a = Wal::default();
        for id in 0..5 {
            a.append(Kind::Row(id), 1, Generation::ZERO);
        }
        let mut b = a.clone();
        assert_eq!(a.common(&b), 5);
        a.append(Kind::Row(5), 1, Generation::ZERO);
        b.append(Kind::Row(6), 1, Generation::ZERO);
        b.append(Kind::Row(7), 1, Generation::ZERO);
        assert_eq!(a.common(&b), 5);
        assert!(a.agrees(&b, 5) && !a.agrees(&b, 6) && a.agrees(&b, 0));
        b.truncate(5);
        b.extend_from(&a, 6);
        assert!(a.agrees(&b, 6));
        assert_eq!(Wal::count_until(lsn(6)), 6);
    }
}
