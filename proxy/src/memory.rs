//! What takes memory, counted by those that have it: for people to see, and for bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many things, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub number: usize,
    /// What they take together.
    pub bytes: usize,
}

impl Usage {
    /// Of both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { number: self.number + other.number, bytes: self.bytes + other.bytes }
    }
}

/// Counts things of one kind for as long as they live.
#[derive(Debug, Default)]
pub struct Gauge {
    number: AtomicUsize,
    bytes: AtomicUsize,
}

impl Gauge {
    /// As of now.
    pub fn usage(&self) -> Usage {
        Usage { number: self.number.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// One more, of so many bytes.
    pub(crate) fn count(self: &Arc<Self>, bytes: usize) -> Counted {
        self.number.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Counted { gauge: self.clone(), bytes }
    }
}

/// Goes with what is counted.
#[derive(Debug)]
pub(crate) struct Counted {
    gauge: Arc<Gauge>,
    bytes: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.number.fetch_sub(1, Ordering::Relaxed);
        self.gauge.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What of this process is in main memory, shared libraries included; `None` where the system does not tell.
pub(crate) fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_not_counted() {
        let gauge = Arc::new(Gauge::default());
        let (one, other) = (gauge.count(10), gauge.count(5));
        assert_eq!(gauge.usage(), Usage { number: 2, bytes: 15 });
        drop(one);
        assert_eq!(gauge.usage(), Usage { number: 1, bytes: 5 });
        drop(other);
        assert_eq!(gauge.usage(), Usage::default());
    }

    #[test]
    fn a_process_takes_some_memory() {
        assert!(resident().unwrap() > 1 << 20);
    }
}
