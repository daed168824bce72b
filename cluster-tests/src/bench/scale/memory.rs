//! The memory of a proxy while something happens to it.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::bench::usage::pss_mb;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Proportional set sizes in megabytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// Before it began.
    pub before: f64,
    /// The most that was seen while it went on.
    pub peak: f64,
    /// When it was over.
    pub after: f64,
}

impl Memory {
    /// How much it grew at most.
    pub fn growth(&self) -> f64 {
        self.peak - self.before
    }
}

/// Does the work and looks at the process meanwhile. `None` if there is no process, or it has ended.
pub(super) async fn watched<T>(pid: Option<u32>, work: impl Future<Output = T>) -> (T, Option<Memory>) {
    let look = || pid.and_then(pss_mb);
    let before = look();
    let mut peak = before;
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut work = pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            _ = ticks.tick() => peak = greater(peak, look()),
        }
    };
    let after = look();
    let peak = greater(peak, after);
    let memory = before.zip(peak).zip(after).map(|((before, peak), after)| Memory { before, peak, after });
    (done, memory)
}

fn greater(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn growth_is_seen_while_it_lasts() {
        let work = async {
            let held = vec![1u8; 32 << 20];
            tokio::time::sleep(LOOK_EVERY * 3).await;
            held.len()
        };
        let (length, memory) = watched(Some(std::process::id()), work).await;
        let memory = memory.unwrap();
        assert_eq!(length, 32 << 20);
        assert!(memory.growth() > 20.0 && memory.after < memory.peak - 20.0, "{memory:?}");
        assert_eq!(watched(None, async { 1 }).await, (1, None));
    }
}
