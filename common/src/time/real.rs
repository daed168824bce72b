//! The machine's clocks: the one impure file of this crate.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::{Clock, MonoTime, WallTime};

/// `CLOCK_BOOTTIME` for decisions, since `CLOCK_MONOTONIC` stands still while a machine is
/// suspended and a lease must not.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> MonoTime {
        MonoTime::since_boot(read(ClockId::Boottime))
    }

    fn wall(&self) -> WallTime {
        WallTime(u64::try_from(read(ClockId::Realtime).as_millis()).unwrap_or(u64::MAX))
    }
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
