//! What a worker and whoever balances them tell each other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};
use rustix::param::clock_ticks_per_second;

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
    /// It is not known any more, and nobody goes anywhere.
    pub(super) fn close(&self) {
        self.load.store(0, Ordering::Relaxed);
        self.order.store(0, Ordering::Relaxed);
    }

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

/// Where the kernel tells how much of a processor's time a thread has had. Whoever wants to know looks there: a thread
/// that had to tell would have to be woken for it, and to arm a timer each time it goes to sleep.
#[derive(Debug)]
pub(super) struct Meter {
    file: File,
    unit: Unit,
}

/// What the kernel tells it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Nanoseconds, the first number of `schedstat`.
    Nanos,
    /// Ticks, of which there are so many in a second, as two numbers of `stat`.
    Ticks(u64),
}

impl Meter {
    /// Of this thread.
    pub(super) fn of_this_thread() -> io::Result<Self> {
        // Not every kernel has it, and some that have it do not count. What was used up to here is counted then.
        std::thread::yield_now();
        if let Ok(file) = File::open("/proc/thread-self/schedstat") {
            let meter = Self { file, unit: Unit::Nanos };
            if meter.used()? > Duration::ZERO {
                return Ok(meter);
            }
        }
        let file = File::open("/proc/thread-self/stat")?;
        Ok(Self { file, unit: Unit::Ticks(clock_ticks_per_second()) })
    }

    /// What it has had so far.
    fn used(&self) -> io::Result<Duration> {
        let mut told = [0; 1024];
        let count = self.file.read_at(&mut told, 0)?;
        let told = String::from_utf8_lossy(told.get(..count).unwrap_or_default());
        parse(&told, self.unit).ok_or_else(|| io::Error::other("it is told in another way than known"))
    }
}

fn parse(told: &str, unit: Unit) -> Option<Duration> {
    let number = |word: Option<&str>| word?.parse::<u64>().ok();
    match unit {
        Unit::Nanos => number(told.split_ascii_whitespace().next()).map(Duration::from_nanos),
        Unit::Ticks(per_second) => {
            // The name may have anything in it; those of user and kernel are the 14th and 15th field.
            let mut behind_name = told.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
            let ticks = number(behind_name.next())? + number(behind_name.next())?;
            Some(Duration::from_nanos(ticks.checked_mul(1_000_000_000)?.checked_div(per_second)?))
        }
    }
}

/// How much of a processor's time a thread takes.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    meter: &'a Meter,
    at: MonoTime,
    used: Duration,
}

impl<'a> Watch<'a> {
    pub(super) fn begin(meter: &'a Meter) -> io::Result<Self> {
        Ok(Self { meter, at: RealClock.now(), used: meter.used()? })
    }

    /// Notes the load since the last call.
    pub(super) fn note(&mut self, desk: &Desk) -> io::Result<()> {
        let now = Self::begin(self.meter)?;
        let (took, used) =
            (now.at.since(self.at).as_micros(), now.used.saturating_sub(self.used).as_micros());
        let load = (used * 1000).checked_div(took).unwrap_or(0);
        desk.load.store(u32::try_from(load).unwrap_or(u32::MAX), Ordering::Relaxed);
        *self = now;
        Ok(())
    }
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
        let (desk, meter) = (Desk::default(), Meter::of_this_thread().unwrap());
        let mut watch = Watch::begin(&meter).unwrap();
        let work = |meter: &Meter| {
            let begun = meter.used().unwrap();
            while meter.used().unwrap() - begun < Duration::from_millis(20) {}
        };
        work(&meter);
        std::thread::scope(|scope| scope.spawn(|| watch.note(&desk).unwrap()).join().unwrap());
        assert!(desk.load() > 0 && desk.load() <= 1100, "{}", desk.load());
        std::thread::spawn(move || work(&Meter::of_this_thread().unwrap())).join().unwrap();
        watch.note(&desk).unwrap();
        assert!(desk.load() < 500, "{}", desk.load());
    }

    #[test]
    fn both_ways_of_telling_are_understood() {
        let nanos = parse("20000000 123 4\n", Unit::Nanos);
        let ticks = parse("7 (a) b) R 1 2 3 4 5 6 7 8 9 10 1 1 20 21 22", Unit::Ticks(100));
        assert_eq!((nanos, ticks), (Some(Duration::from_millis(20)), Some(Duration::from_millis(20))));
        assert_eq!((parse("", Unit::Nanos), parse("7 (a) R 1", Unit::Ticks(100))), (None, None));
    }
}
