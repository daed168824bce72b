//! What a worker and whoever balances them tell each other.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};
use rustix::time::{ClockId, clock_gettime};

use super::balance::Move;

/// One worker's.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Thousandths of a processor's time that it had lately.
    load: AtomicU32,
    /// See [`Order`].
    order: AtomicU64,
}

/// Some of those that are served here are to go on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    /// Tells it from others before it.
    number: u32,
    to: u16,
    share: u16,
}

impl Order {
    fn packed(self) -> u64 {
        u64::from(self.number) << 32 | u64::from(self.to) << 16 | u64::from(self.share)
    }

    fn unpacked(packed: u64) -> Self {
        let [a, b, c, d, to_high, to_low, share_high, share_low] = packed.to_be_bytes();
        Self {
            number: u32::from_be_bytes([a, b, c, d]),
            to: u16::from_be_bytes([to_high, to_low]),
            share: u16::from_be_bytes([share_high, share_low]),
        }
    }

    /// Where a client goes that drew this number.
    pub(super) fn sends(packed: u64, draw: u32) -> Option<usize> {
        let order = Self::unpacked(packed);
        (draw % 1000 < u32::from(order.share)).then(|| usize::from(order.to))
    }
}

impl Desk {
    pub(super) fn load(&self) -> u32 {
        self.load.load(Ordering::Relaxed)
    }

    /// Clients that do something from now on look at this, once. `None`: all stay.
    pub(super) fn order(&self, number: u32, wanted: Option<Move>) {
        let to = wanted.and_then(|wanted| u16::try_from(wanted.to).ok());
        let share = wanted.and_then(|wanted| u16::try_from(wanted.share).ok());
        let order = to.zip(share).map(|(to, share)| Order { number, to, share }.packed());
        self.order.store(order.unwrap_or(0), Ordering::Relaxed);
    }

    /// The order in effect, another number for each; 0: there is none.
    pub(super) fn current(&self) -> u64 {
        self.order.load(Ordering::Relaxed)
    }
}

/// How much of a processor's time a thread takes.
#[derive(Debug)]
pub(super) struct Watch {
    at: MonoTime,
    used: Duration,
}

impl Watch {
    /// Over this thread.
    pub(super) fn begin() -> Self {
        Self { at: RealClock.now(), used: used() }
    }

    /// Notes the load since the last call.
    pub(super) fn note(&mut self, desk: &Desk) {
        let now = Self::begin();
        let (took, used) =
            (now.at.since(self.at).as_micros(), now.used.saturating_sub(self.used).as_micros());
        let load = (used * 1000).checked_div(took).unwrap_or(0);
        desk.load.store(u32::try_from(load).unwrap_or(u32::MAX), Ordering::Relaxed);
        *self = now;
    }
}

/// What this thread has used so far.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_told_from_the_one_before_and_moves_its_share() {
        let desk = Desk::default();
        let wanted = Move { from: 0, to: 3, share: 250 };
        desk.order(7, Some(wanted));
        let first = desk.current();
        let sent = (0..2000).filter(|draw| Order::sends(first, *draw) == Some(3)).count();
        assert_eq!(sent, 500);
        desk.order(8, Some(wanted));
        assert_ne!(desk.current(), first);
        desk.order(9, None);
        assert_eq!((desk.current(), Order::sends(0, 0)), (0, None));
    }

    #[test]
    fn a_load_is_what_the_thread_itself_did() {
        let (desk, mut watch) = (Desk::default(), Watch::begin());
        let work = || {
            let begun = used();
            while used() - begun < Duration::from_millis(20) {}
        };
        work();
        watch.note(&desk);
        assert!(desk.load() > 0 && desk.load() <= 1001, "{}", desk.load());
        std::thread::spawn(work).join().unwrap();
        watch.note(&desk);
        assert!(desk.load() < 500, "{}", desk.load());
    }
}
