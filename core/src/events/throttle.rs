//! So that nobody is told the same thing over and over: what lasts is told again every `repeat`, what happens again and
//! again is collected for a while and told with its count.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::{Generation, MonoTime, NodeName};

use super::{Event, Kind};

/// What happens again within this time is collected.
const COLLECT: Duration = Duration::from_secs(60);

type Key = (Kind, Option<NodeName>);

/// See the module.
#[derive(Debug)]
pub(super) struct Throttle {
    repeat: Duration,
    happened: BTreeMap<(Key, Generation), Collected>,
    lasting: BTreeMap<Key, MonoTime>,
}

#[derive(Debug)]
struct Collected {
    told: MonoTime,
    /// The last one that was held back, and how many were.
    held: Option<Event>,
}

impl Throttle {
    pub(super) fn new(repeat: Duration) -> Self {
        Self { repeat, happened: BTreeMap::new(), lasting: BTreeMap::new() }
    }

    /// It has happened. Told at once, unless the same has just been told.
    pub(super) fn happened(&mut self, event: Event, now: MonoTime) -> Option<Event> {
        let key = ((event.kind, event.node.clone()), event.generation);
        match self.happened.get_mut(&key) {
            Some(collected) => {
                let times = collected.held.as_ref().map_or(0, |held| held.times) + 1;
                collected.held = Some(Event { times, ..event });
                None
            }
            None => {
                self.happened.insert(key, Collected { told: now, held: None });
                Some(event)
            }
        }
    }

    /// What was held back for long enough.
    pub(super) fn due(&mut self, now: MonoTime) -> Vec<Event> {
        let mut due = Vec::new();
        self.happened.retain(|_, collected| {
            if now.since(collected.told) < COLLECT {
                return true;
            }
            match collected.held.take() {
                Some(event) => {
                    due.push(event);
                    collected.told = now;
                    true
                }
                None => false,
            }
        });
        due
    }

    /// Which of the things that are so now are to be told. One that has come and gone is new when it comes again, but not
    /// within [`COLLECT`].
    pub(super) fn lasting(&mut self, events: Vec<Event>, now: MonoTime) -> Vec<Event> {
        let keys: Vec<Key> = events.iter().map(|event| (event.kind, event.node.clone())).collect();
        self.lasting.retain(|key, told| keys.contains(key) || now.since(*told) < COLLECT);
        let repeat = self.repeat;
        let mut tell = Vec::new();
        for (event, key) in events.into_iter().zip(keys) {
            let told = self.lasting.get(&key);
            if told.is_none_or(|told| !repeat.is_zero() && now.since(*told) >= repeat) {
                self.lasting.insert(key, now);
                tell.push(event);
            }
        }
        tell
    }

    /// When there may be something to tell though nothing happens.
    pub(super) fn wake_at(&self) -> Option<MonoTime> {
        self.happened.values().filter(|c| c.held.is_some()).map(|c| c.told + COLLECT).min()
    }
}
