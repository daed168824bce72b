//! When a majority last answered this leader, on the clock that leases are counted on.

use std::collections::VecDeque;
use std::time::Duration;

use openraft::TokioInstant as Instant;
use pgherd_common::MonoTime;

/// Turns the library's instants, whose clock stands still while a machine is suspended, into
/// [`MonoTime`], whose clock does not. Errs to the early side only: an acknowledgement never looks
/// younger than it is.
#[derive(Debug, Default)]
pub(super) struct AckClock {
    samples: VecDeque<(Instant, MonoTime)>,
    acked: Option<(Instant, MonoTime)>,
}

impl AckClock {
    /// With the spacing, reaches further back than any message may take.
    const SAMPLES: usize = 256;
    const SPACING: Duration = Duration::from_millis(10);

    /// Notes both clocks. `mono` must be read before `instant`.
    pub(super) fn sample(&mut self, instant: Instant, mono: MonoTime) {
        if self.samples.back().is_some_and(|(last, _)| instant < *last + Self::SPACING) {
            return;
        }
        if self.samples.len() == Self::SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((instant, mono));
    }

    /// The acknowledgement that the library knows of, `None` while this node does not lead.
    pub(super) fn observe(&mut self, acked: Option<Instant>) -> Option<MonoTime> {
        self.acked = match (acked, self.acked) {
            (None, _) => None,
            (Some(instant), Some(known)) if known.0 == instant => Some(known),
            // One that cannot be placed is passed over: the one before it is earlier.
            (Some(instant), known) => self.convert(instant).map(|mono| (instant, mono)).or(known),
        };
        self.acked.map(|(_, mono)| mono)
    }

    /// Counts from the newest sample that is not after `acked`: a suspension in between is then
    /// missing from the result, which makes it too early, never too late.
    fn convert(&self, acked: Instant) -> Option<MonoTime> {
        let (instant, mono) = self.samples.iter().rev().find(|(instant, _)| *instant <= acked)?;
        Some(*mono + (acked - *instant))
    }
}

#[cfg(test)]
mod tests {
    use openraft::Instant as _;

    use super::*;

    #[test]
    fn a_suspension_never_makes_an_acknowledgement_younger() {
        let second = Duration::from_secs(1);
        let (start, boot) = (Instant::now(), MonoTime::since_boot(second * 100));
        let mut clock = AckClock::default();
        assert_eq!(clock.observe(Some(start)), None);
        clock.sample(start, boot);
        assert_eq!(clock.observe(Some(start + second)), Some(boot + second));
        // Suspended for 60 s, some time before the second sample; sent before or after it: unknown.
        clock.sample(start + second * 3, boot + second * 63);
        assert_eq!(clock.observe(Some(start + second * 2)), Some(boot + second * 2));
        assert_eq!(clock.observe(Some(start + second * 4)), Some(boot + second * 64));
    }

    #[test]
    fn an_old_acknowledgement_is_kept_until_the_leadership_ends() {
        let (start, boot) = (Instant::now(), MonoTime::since_boot(Duration::from_secs(100)));
        let mut clock = AckClock::default();
        clock.sample(start, boot);
        assert_eq!(clock.observe(Some(start)), Some(boot));
        for step in 1..1000 {
            let passed = AckClock::SPACING * step;
            clock.sample(start + passed, boot + passed);
        }
        assert_eq!(clock.observe(Some(start)), Some(boot));
        assert_eq!(clock.observe(None), None);
        assert_eq!(clock.observe(Some(start)), None, "too old to be placed");
    }
}
