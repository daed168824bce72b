//! Two times that are never mixed: [`MonoTime`] decides, [`WallTime`] is printed.

mod real;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use real::RealClock;

/// Time since boot, suspended time included. Means something on this machine only, so it never
/// crosses the wire: durations do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct MonoTime(Duration);

impl MonoTime {
    /// A time this long after boot.
    pub const fn since_boot(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for MonoTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// Milliseconds since 1970, for logs, history, and what operators want done at a set time. Who may write rests on it
/// nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub u64);

impl WallTime {
    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for WallTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for WallTime {
    /// `2026-11-23 08:31:07.123Z`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, of_day) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let (year, month, day) = civil(days);
        let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
        let (second, milli) = (of_day / 1000 % 60, of_day % 1000);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

/// Days since 1970-01-01 as year, month, day (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Where a driver gets the time from. Pure code takes `now` as an argument instead.
pub trait Clock: Send + Sync {
    /// Now, for decisions.
    fn now(&self) -> MonoTime;
    /// Now, for people.
    fn wall(&self) -> WallTime;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_reads_like_a_date() {
        assert_eq!(WallTime(0).to_string(), "1970-01-01 00:00:00.000Z");
        assert_eq!(WallTime(951_782_400_001).to_string(), "2000-02-29 00:00:00.001Z");
        assert_eq!(WallTime(1_795_422_667_123).to_string(), "2026-11-23 08:31:07.123Z");
    }

    #[test]
    fn the_real_clock_does_not_step_back() {
        let clock = RealClock;
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(clock.wall().0 > 1_700_000_000_000);
    }
}
