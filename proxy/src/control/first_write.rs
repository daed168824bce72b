//! How soon a new primary answers its first write, for the agents' record. It costs a write that is not
//! the first one look at a number.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pgherd_common::push::{FIRST_WRITE_MAX, ToAgent};
use pgherd_common::{Generation, MonoTime, Topology};
use tokio::sync::watch;

use crate::routing::writable;

use super::cluster::lock;

/// See the module.
#[derive(Debug)]
pub(crate) struct FirstWrite {
    /// The generation whose first write is outstanding; 0: none.
    awaited: AtomicU64,
    known: Mutex<Known>,
    told: watch::Sender<Option<ToAgent>>,
}

/// The newest primary.
#[derive(Debug, Default)]
struct Known {
    generation: Generation,
    since: MonoTime,
}

impl FirstWrite {
    /// No primary is known yet.
    pub(crate) fn new() -> Self {
        Self { awaited: AtomicU64::new(0), known: Mutex::default(), told: watch::Sender::new(None) }
    }

    /// Another topology comes into effect. Of the first primary that a proxy hears of it does not know for how long
    /// others have.
    pub(crate) fn follow(&self, before: Option<&Topology>, topology: &Topology, now: MonoTime) {
        let generation = topology.version().generation;
        let mut known = lock(&self.known);
        if writable(topology).is_none() || generation <= known.generation {
            return;
        }
        *known = Known { generation, since: now };
        self.awaited.store(before.map_or(0, |_| generation.number()), Ordering::Relaxed);
    }

    /// Whether the primary of this generation has yet to answer a write. Asked after every batch there.
    pub(crate) fn is_awaited(&self, generation: Generation) -> bool {
        self.awaited.load(Ordering::Relaxed) == generation.number()
    }

    /// The primary of this generation has answered a write.
    pub(crate) fn answered(&self, generation: Generation, now: MonoTime) {
        let known = lock(&self.known);
        let after = now.since(known.since);
        let first = known.generation == generation && self.awaited.swap(0, Ordering::Relaxed) != 0;
        if first && after <= FIRST_WRITE_MAX {
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.told.send_replace(Some(ToAgent::FirstWrite { generation, after_ms }));
        }
    }

    /// What agents are to be told, an agent that is new here of what was before, too.
    pub(crate) fn told(&self) -> watch::Receiver<Option<ToAgent>> {
        let mut told = self.told.subscribe();
        told.mark_changed();
        told
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::routing::tests::{topology, up};

    fn at(ms: u64) -> MonoTime {
        MonoTime::since_boot(Duration::from_millis(ms))
    }

    fn generation(number: u64) -> Generation {
        number.to_string().parse().unwrap()
    }

    #[test]
    fn the_first_write_of_each_new_primary_is_told_once() {
        let first_write = FirstWrite::new();
        let primary = |number| topology(number, Some(1), vec![up(1)]);
        let none = |number| topology(number, None, vec![up(1)]);
        let told = || first_write.told.borrow().clone();
        // Of the primary there was when the proxy started, nothing is told.
        first_write.follow(None, &primary(3), at(100));
        first_write.follow(Some(&primary(3)), &none(3), at(150));
        first_write.follow(Some(&none(3)), &primary(3), at(200));
        assert!(!first_write.is_awaited(generation(3)));
        first_write.answered(generation(3), at(250));
        assert_eq!(told(), None);

        first_write.follow(Some(&primary(3)), &none(4), at(300));
        assert!(!first_write.is_awaited(generation(4)), "there is no primary yet");
        first_write.follow(Some(&none(4)), &primary(4), at(400));
        // It may come again, with news of a standby.
        first_write.follow(Some(&primary(4)), &primary(4), at(410));
        assert!(first_write.is_awaited(generation(4)));
        first_write.answered(generation(3), at(411));
        assert!(first_write.is_awaited(generation(4)) && told().is_none(), "that was another primary");
        first_write.answered(generation(4), at(412));
        let expected = Some(ToAgent::FirstWrite { generation: generation(4), after_ms: 12 });
        assert_eq!(told(), expected);
        assert!(!first_write.is_awaited(generation(4)));
        first_write.answered(generation(4), at(500));
        assert_eq!(told(), expected);
        // An agent that is connected to later is told, too.
        assert!(first_write.told().has_changed().unwrap());

        first_write.follow(Some(&primary(4)), &primary(5), at(1_000));
        first_write.answered(generation(5), at(1_001) + FIRST_WRITE_MAX);
        assert_eq!(told(), expected, "nobody had anything to write");
        assert!(!first_write.is_awaited(generation(5)));
    }
}
