//! What a client did, counted by the client alone: an addition is a load and a store, no locked one.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one task adds to and anybody reads.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// For its owner only.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// For its owner only.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Of one client.
        #[derive(Debug, Default)]
        pub(crate) struct Counts {
            $($(#[$doc])* pub(crate) $name: Count,)*
        }

        /// The same as plain numbers, of one client or of many.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(crate) struct Tally {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        impl Counts {
            /// As of now.
            pub(crate) fn tally(&self) -> Tally {
                Tally { $($name: self.$name.get(),)* }
            }
        }

        impl Tally {
            /// Of others as well.
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    /// Statements: simple queries, and executions of the extended protocol.
    queries,
    /// Transactions that ended, each statement outside of one among them.
    transactions,
    /// Batches of reads that ran on standbys.
    standby_reads,
    /// Batches of reads that ran on the primary.
    primary_reads,
    /// Batches that had to run on the primary.
    writes,
    /// From clients.
    bytes_in,
    /// To clients.
    bytes_out,
    /// How often it was waited for a server connection.
    waits,
    /// For how long, in microseconds.
    waited_us,
    /// Errors that clients were told.
    errors,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up() {
        let counts = Counts::default();
        counts.queries.add(2);
        counts.bytes_in.set(7);
        let mut sum = counts.tally();
        sum.add(&counts.tally());
        assert_eq!(sum, Tally { queries: 4, bytes_in: 14, ..Tally::default() });
    }
}
