//! A timer on the clock of decisions: it goes off at once when a suspended machine resumes after the
//! time it was set to, which the timeout of a poll would not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pgherd_common::MonoTime;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Timer(OwnedFd);

impl Timer {
    /// Not set.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Can be read from then on; never, for `None`.
    pub(super) fn set(&self, at: Option<MonoTime>) -> io::Result<()> {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = at.map(|at| at.since(MonoTime::default()));
        let it_value = at.map_or(never, |at| Timespec::try_from(at).unwrap_or(never));
        let time = Itimerspec { it_interval: never, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &time)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pgherd_common::{Clock, time::RealClock};
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn it_goes_off_at_its_time_even_if_that_has_passed() {
        let timer = Timer::new().unwrap();
        let began = RealClock.now();
        for wait in [Duration::ZERO, Duration::from_millis(30)] {
            timer.set(Some(began + wait)).unwrap();
            poll(&mut [PollFd::new(&timer, PollFlags::IN)], None).unwrap();
            assert!(RealClock.now().since(began) >= wait);
        }
        timer.set(None).unwrap();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&timer, PollFlags::IN)], Some(&at_once)), Ok(0));
    }
}
