//! How long each step of a change of primary took.
//!
//! Whoever leads measures on its own clock, each step from the end of the one before. A leader that takes over in the middle
//! knows only what came since.

use std::fmt;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, MonoTime, WallTime};
use serde::{Deserialize, Serialize};

/// A step of a change of primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Failover: from when the trouble was first seen until it was in the log.
    Detect,
    /// Switchover: the old primary checkpoints.
    Prepare,
    /// Switchover: new work is held, what runs ends, the old primary stops.
    Stop,
    /// Switchover: the target receives the last of the WAL.
    Receive,
    /// Failover: until the old primary is gone or its lease is over.
    Fence,
    /// Failover: until the standbys have said what they have.
    Recruit,
    /// Failover: until what only the old primary's disk had was fetched.
    Salvage,
    /// Until the choice was in the log.
    Commit,
    /// Until PostgreSQL accepted writes.
    Promote,
    /// Until all it has was on as many standbys as commits wait for.
    Cover,
    /// Until the proxies of the agent that leads knew it.
    Publish,
    /// From when a proxy knew it until it had answered a write there. Behind the end of the change, if ever.
    FirstWrite,
}

impl Step {
    /// All of them, in their order.
    pub const ALL: [Self; 12] = [
        Self::Detect,
        Self::Prepare,
        Self::Stop,
        Self::Receive,
        Self::Fence,
        Self::Recruit,
        Self::Salvage,
        Self::Commit,
        Self::Promote,
        Self::Cover,
        Self::Publish,
        Self::FirstWrite,
    ];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Prepare => "prepare",
            Self::Stop => "stop",
            Self::Receive => "receive",
            Self::Fence => "fence",
            Self::Recruit => "recruit",
            Self::Salvage => "salvage",
            Self::Commit => "commit",
            Self::Promote => "promote",
            Self::Cover => "cover",
            Self::Publish => "publish",
            Self::FirstWrite => "first_write",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A step that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// Which.
    pub step: Step,
    /// How long it took.
    pub ms: u64,
}

/// The steps of the change in flight, as far as this node has led them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waterfall {
    /// Which change: when it was begun, and what it is.
    change: Option<(WallTime, ChangeKind)>,
    /// The end of the last step.
    last: Option<MonoTime>,
    took: Vec<Took>,
    /// It is over.
    served: bool,
}

impl Waterfall {
    /// This change has begun; nothing new if it has before. `noticed`: for how long the trouble had been seen then.
    pub(crate) fn begin(&mut self, change: (WallTime, ChangeKind), noticed: Duration, now: MonoTime) {
        if self.change == Some(change) {
            return;
        }
        let detect = (change.1 == ChangeKind::Failover).then(|| took(Step::Detect, noticed));
        *self =
            Self { change: Some(change), last: Some(now), took: detect.into_iter().collect(), served: false };
    }

    /// A step has ended; nothing new if it has before.
    pub(crate) fn reach(&mut self, step: Step, now: MonoTime) {
        let Some(last) = self.last.filter(|_| !self.has(step)) else { return };
        self.took.push(took(step, now.since(last)));
        self.last = Some(now);
    }

    /// The new primary serves; nothing new if it has before.
    pub(crate) fn serve(&mut self, now: MonoTime) {
        if !std::mem::replace(&mut self.served, true) {
            self.reach(if self.has(Step::Promote) { Step::Cover } else { Step::Promote }, now);
        }
    }

    /// Whether a step has ended.
    pub(crate) fn has(&self, step: Step) -> bool {
        self.took.iter().any(|took| took.step == step)
    }

    /// All that have ended, and this one, which ends now.
    pub(crate) fn up_to(&self, step: Step, now: MonoTime) -> Vec<Took> {
        let mut waterfall = self.clone();
        waterfall.reach(step, now);
        waterfall.took
    }

    /// How long a step took, if it has ended.
    pub(crate) fn of(&self, step: Step) -> Option<Took> {
        self.took.iter().copied().find(|took| took.step == step)
    }
}

/// How soon the primary of a generation had answered a write, as far as proxies have told. Each counts for itself, from when
/// it knew that primary: the shortest is what nobody had to wait for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirstWrite {
    generation: Generation,
    after: Duration,
    /// When the first of them told.
    heard: MonoTime,
}

impl FirstWrite {
    /// After the first word the others have so long for theirs: the log takes one.
    pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(1);

    /// A proxy has told one more, which may be of a primary that nobody else has heard of yet.
    pub(crate) fn heard(known: Option<Self>, generation: Generation, after: Duration, now: MonoTime) -> Self {
        match known {
            Some(known) if known.generation > generation => known,
            Some(known) if known.generation == generation => Self { after: known.after.min(after), ..known },
            Some(_) | None => Self { generation, after, heard: now },
        }
    }

    /// What there is to record of this generation by now.
    pub(crate) fn of(self, generation: Generation, now: MonoTime) -> Option<Took> {
        let settled = self.generation == generation && now.since(self.heard) >= Self::SETTLED_AFTER;
        settled.then(|| took(Step::FirstWrite, self.after))
    }
}

fn took(step: Step, span: Duration) -> Took {
    Took { step, ms: u64::try_from(span.as_millis()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonoTime {
        MonoTime::since_boot(Duration::from_millis(ms))
    }

    #[test]
    fn each_step_counts_from_the_end_of_the_one_before() {
        let change = (WallTime(7), ChangeKind::Failover);
        let mut waterfall = Waterfall::default();
        waterfall.reach(Step::Fence, at(1));
        assert_eq!(waterfall.up_to(Step::Promote, at(2)), []);
        waterfall.begin(change, Duration::from_millis(30), at(100));
        waterfall.begin(change, Duration::ZERO, at(101));
        waterfall.reach(Step::Fence, at(104));
        waterfall.reach(Step::Fence, at(190));
        waterfall.reach(Step::Recruit, at(104));
        let expected = [(Step::Detect, 30), (Step::Fence, 4), (Step::Recruit, 0), (Step::Promote, 46)];
        let expected = expected.map(|(step, ms)| Took { step, ms });
        assert_eq!(waterfall.up_to(Step::Promote, at(150)), expected);
        assert_eq!(waterfall.of(Step::Promote), None);
        // The next one begins anew, and nobody has to have noticed a wish.
        waterfall.begin((WallTime(8), ChangeKind::Switchover), Duration::ZERO, at(300));
        assert_eq!(waterfall.up_to(Step::Prepare, at(310)), [Took { step: Step::Prepare, ms: 10 }]);
    }

    #[test]
    fn the_soonest_first_write_of_the_newest_primary_counts() {
        let (old, new) = (Generation::ZERO.next(), Generation::ZERO.next().next());
        let mut known = None;
        let mut hear = |generation, ms, now| {
            known = Some(FirstWrite::heard(known, generation, Duration::from_millis(ms), at(now)));
            known.unwrap()
        };
        assert_eq!(hear(old, 9, 100).of(new, at(9_000)), None);
        assert_eq!(hear(new, 7, 200).of(new, at(1_199)), None, "others may have a shorter one");
        hear(new, 5, 300);
        hear(new, 8, 400);
        let known = hear(old, 1, 500);
        assert_eq!(known.of(new, at(1_200)), Some(Took { step: Step::FirstWrite, ms: 5 }));
        assert_eq!(known.of(old, at(1_200)), None);
    }
}
