//! True time, which only the simulator knows, and the clocks of the machines, which drift.

use std::fmt;
use std::time::Duration;

use pgherd_common::MonoTime;

/// True time: microseconds since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(pub u64);

/// A span of true time in microseconds.
pub type Micros = u64;

/// Microseconds in a millisecond.
pub const MS: Micros = 1000;
/// Microseconds in a second.
pub const SECOND: Micros = 1_000_000;

impl Time {
    /// How long ago `earlier` was; 0 when it lies ahead.
    pub fn since(self, earlier: Self) -> Micros {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Micros> for Time {
    type Output = Self;

    fn add(self, span: Micros) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:03}", self.0 / SECOND, self.0 % SECOND / MS))
    }
}

/// A duration in true microseconds.
pub fn micros(span: Duration) -> Micros {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

const MILLION: u64 = 1_000_000;

/// CLOCK_BOOTTIME of one machine.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    booted: Time,
    /// What it showed when the simulation met it: a machine may have been up for long.
    offset: Micros,
    /// By how many millionths it runs fast; negative for slow.
    drift_ppm: i64,
}

impl Clock {
    /// A machine that boots at `booted`.
    pub fn new(booted: Time, offset: Micros, drift_ppm: i64) -> Self {
        Self { booted, offset, drift_ppm }
    }

    /// The same machine after another boot.
    pub fn reboot(self, booted: Time) -> Self {
        Self { booted, offset: 20 * SECOND, ..self }
    }

    /// What it shows at a true time.
    pub fn at(self, time: Time) -> MonoTime {
        let shown = self.offset + self.stretched(time.since(self.booted));
        MonoTime::since_boot(Duration::from_micros(shown))
    }

    /// The first true time at which it shows `mono` or later.
    pub fn when(self, mono: MonoTime) -> Time {
        let shown = micros(mono.since(MonoTime::default())).saturating_sub(self.offset);
        let rate = MILLION.saturating_add_signed(self.drift_ppm);
        let span = (u128::from(shown) * u128::from(MILLION)).div_ceil(u128::from(rate));
        let mut time = self.booted + u64::try_from(span).unwrap_or(u64::MAX);
        while self.at(time) < mono {
            time = time + 1;
        }
        time
    }

    /// How long a span on this clock takes in truth.
    pub fn true_span(self, span: Duration) -> Micros {
        let rate = MILLION.saturating_add_signed(self.drift_ppm);
        u64::try_from(u128::from(micros(span)) * u128::from(MILLION) / u128::from(rate)).unwrap_or(u64::MAX)
    }

    fn stretched(self, span: Micros) -> Micros {
        let rate = MILLION.saturating_add_signed(self.drift_ppm);
        u64::try_from(u128::from(span) * u128::from(rate) / u128::from(MILLION)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_runs_fast_or_slow_and_back_again() {
        let booted = Time(5 * SECOND);
        for drift in [-5000, -1, 0, 1, 5000] {
            let clock = Clock::new(booted, 3 * SECOND, drift);
            for later in [0, 1, 999, 1_234_567, 3_600 * SECOND] {
                let time = booted + later;
                assert!(clock.when(clock.at(time)) <= time);
                assert!(clock.at(clock.when(clock.at(time))) >= clock.at(time));
            }
        }
        let fast = Clock::new(Time(0), 0, 5000);
        assert_eq!(fast.at(Time(SECOND)).since(MonoTime::default()), Duration::from_micros(1_005_000));
    }
}
