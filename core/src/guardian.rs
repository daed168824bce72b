//! What a guardian decides: the parent of the worker, which does everything else an agent does.
//!
//! A guardian knows one thing about PostgreSQL: when it has to be killed unless somebody moves that
//! time. The worker tells it (see [`Guard`]), and is not trusted: it cannot move the time further than
//! a lease reaches, nor speak for a generation that is over, and whatever becomes of it, the time stays.
//! The guardian also keeps a worker running: one that ended is started again at once, one that hangs is
//! killed and replaced.
//!
//! A driver feeds what happens and then calls [`Guardian::step`], whose [`Step`] it obeys in the order of
//! its fields. The guardian of a real agent and the simulator's run the same code.

#[cfg(test)]
mod tests;

use std::time::Duration;

use pgherd_common::{Generation, MonoTime};

use crate::node::Guard;
use crate::reconcile::lease::{GUARDIAN_SLACK, KILL_BUDGET, Terms, WORKER_HEAD_START};

/// Between attempts to kill what survived.
const FENCE_PAUSE: Duration = Duration::from_millis(100);
/// How long a worker may take to end in order.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take until it says something, in times of what later counts as hanging: its store
/// may need repair.
const START_PATIENCE: u32 = 6;
/// A worker that lived for so long has not failed to start.
const STEADY: Duration = Duration::from_secs(5);
/// Between starts of a worker that dies again and again: this, doubled each time...
const RESTART_PAUSE: Duration = Duration::from_millis(50);
/// ...up to this...
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// ...but only to this while a deadline is near.
const RESTART_PAUSE_ARMED_MAX: Duration = Duration::from_millis(100);

/// What the configuration says about it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Of the lease.
    pub terms: Terms,
    /// After how long without being petted the watchdog resets this machine, where there is one.
    pub watchdog: Option<Duration>,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It had been told to stop, by a signal or by an operator.
    InOrder,
    /// It cannot work here, and has said why: its configuration, its store.
    Refused,
    /// Anything else, in words.
    Crashed(String),
}

/// How an attempt to kill PostgreSQL went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fenced {
    /// Nothing of it is left.
    Gone,
    /// Something may be.
    Survives,
}

/// How a guardian ends. PostgreSQL is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// Its worker cannot work here.
    Refused,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Step {
    /// For the log.
    pub notes: Vec<String>,
    /// Kill the worker; its end is reported as any other.
    pub kill_worker: bool,
    /// Kill every process of PostgreSQL, for this reason, and report with [`Guardian::fenced`].
    pub fence: Option<String>,
    /// Ask the worker to end.
    pub stop_worker: bool,
    /// Start a worker; it is told until when a running primary may be kept without a lease.
    pub start_worker: Option<MonoTime>,
    /// Pet the watchdog.
    pub pet: bool,
    /// End.
    pub end: Option<End>,
    /// Step again then, even if nothing happens.
    pub wake_at: Option<MonoTime>,
}

/// The worker, as its parent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    /// None; one is started then.
    Absent(MonoTime),
    /// Started at `since`. When it last said anything, and when it began the last turn it completed.
    Running { since: MonoTime, heard: Option<MonoTime>, decided: Option<MonoTime> },
    /// Killed by its guardian, and not known to have ended.
    Killed,
}

/// PostgreSQL is being killed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fencing {
    reason: String,
    again_at: MonoTime,
}

/// The time at which PostgreSQL has to be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deadline {
    generation: Generation,
    fence_at: MonoTime,
}

impl Deadline {
    fn passed(self, now: MonoTime) -> bool {
        now >= self.fence_at + WORKER_HEAD_START
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Guardian {
    rules: Rules,
    started: MonoTime,
    worker: Worker,
    deadline: Option<Deadline>,
    /// Whether any worker has said what there is to guard.
    told: bool,
    /// The last thing it said was that there is something to guard.
    ran: bool,
    /// The highest generation a worker has spoken for.
    highest: Generation,
    fencing: Option<Fencing>,
    /// Workers in a row that died young.
    died_young: u32,
    /// The last worker refused to work.
    refused: bool,
    /// Since when everything comes to its end.
    stopping: Option<MonoTime>,
    /// The worker has yet to be asked to end.
    ask_to_stop: bool,
    pet_at: MonoTime,
    notes: Vec<String>,
}

impl Guardian {
    /// A guardian that has just started, without a worker.
    pub fn new(rules: Rules, now: MonoTime) -> Self {
        Self {
            rules,
            started: now,
            worker: Worker::Absent(now),
            deadline: None,
            told: false,
            ran: false,
            highest: Generation::ZERO,
            fencing: None,
            died_young: 0,
            refused: false,
            stopping: None,
            ask_to_stop: false,
            pet_at: now,
            notes: Vec::new(),
        }
    }

    /// When PostgreSQL will be killed unless somebody moves that time.
    pub fn fences_at(&self) -> Option<MonoTime> {
        self.deadline.map(|deadline| deadline.fence_at + WORKER_HEAD_START)
    }

    /// Whether PostgreSQL ran, and could write, when a worker was last heard of it: a new worker that
    /// finds it down finds a primary that has just failed, not one that was never started.
    pub fn ran_before(&self) -> bool {
        self.ran
    }

    /// The worker has said what there is to guard. A word that arrives after the deadline has passed
    /// comes in time as long as no step was taken.
    pub fn told(&mut self, guard: Guard, now: MonoTime) {
        let Worker::Running { .. } = self.worker else { return };
        self.heard(now);
        if self.stopping.is_some() {
            return;
        }
        match guard {
            Guard::Off => (self.deadline, self.ran) = (None, false),
            Guard::Until { generation, .. } if generation < self.highest => {
                self.notes.push(format!(
                    "the worker speaks for generation {generation}, but has spoken for {} before: not believed",
                    self.highest
                ));
                return;
            }
            Guard::Until { generation, fence_at } => {
                // A new worker may repeat the time it was told itself.
                let standing = self.deadline.map_or(now, |deadline| deadline.fence_at);
                let adopting = if self.told { now } else { self.started + self.rules.terms.adoption() };
                let latest = (now + self.rules.terms.hold()).max(standing).max(adopting);
                (self.highest, self.ran) = (generation, true);
                self.deadline = Some(Deadline { generation, fence_at: fence_at.min(latest) });
            }
        }
        self.told = true;
    }

    /// The worker has completed a turn that it had begun at `begun`: what it decided then is under way,
    /// and nothing older.
    pub fn alive(&mut self, begun: MonoTime, now: MonoTime) {
        self.heard(now);
        if let Worker::Running { decided, .. } = &mut self.worker {
            *decided = Some(begun.min(now));
        }
    }

    /// As [`Step::start_worker`] demanded.
    pub fn worker_started(&mut self, now: MonoTime) {
        self.worker = Worker::Running { since: now, heard: None, decided: None };
    }

    /// The worker has ended, or could not even be started.
    pub fn worker_ended(&mut self, how: Ended, now: MonoTime) {
        let before = std::mem::replace(&mut self.worker, Worker::Absent(now));
        let lived = match before {
            Worker::Absent(_) => Duration::ZERO,
            Worker::Running { since, .. } => now.since(since),
            // That was this guardian's doing, and a new worker is a remedy.
            Worker::Killed => return,
        };
        self.refused = how == Ended::Refused;
        match how {
            Ended::InOrder => self.hand_back(now),
            Ended::Refused => {}
            // In the middle of its start it may end by the signal.
            Ended::Crashed(_) if self.stopping.is_some() => {}
            Ended::Crashed(how) => self.notes.push(match self.deadline {
                Some(deadline) => format!(
                    "the worker has ended ({how}); a new one has {} ms to take over from it",
                    deadline.fence_at.since(now).as_millis()
                ),
                None => format!("the worker has ended ({how})"),
            }),
        }
        self.died_young = if lived >= STEADY { 0 } else { self.died_young + 1 };
        self.worker = Worker::Absent(now + self.restart_pause());
    }

    /// An attempt to kill PostgreSQL, as [`Step::fence`] demanded, has ended.
    pub fn fenced(&mut self, result: &Fenced, now: MonoTime) {
        let Some(fencing) = &mut self.fencing else { return };
        // A worker that is not surely gone may have been starting something.
        if *result == Fenced::Survives || self.worker == Worker::Killed {
            fencing.again_at = now + FENCE_PAUSE;
            return;
        }
        self.fencing = None;
        self.deadline = self.deadline.filter(|deadline| !deadline.passed(now));
        // The watchdog has been waiting for this.
        self.pet_at = now;
        self.notes.push("every process of PostgreSQL is gone".to_owned());
    }

    /// Somebody wants the agent to end, or the worker has announced its end. PostgreSQL is nobody's
    /// charge from now on.
    pub fn asked_to_stop(&mut self, now: MonoTime) {
        self.ask_to_stop |= self.stopping.is_none();
        self.hand_back(now);
    }

    /// Decides.
    pub fn step(&mut self, now: MonoTime) -> Step {
        let mut step = Step::default();
        self.watch_deadline(now, &mut step);
        self.watch_worker(now, &mut step);
        self.pet(now, &mut step);
        step.notes = std::mem::take(&mut self.notes);
        step.wake_at = self.wake_at();
        step
    }

    fn heard(&mut self, now: MonoTime) {
        if let Worker::Running { heard, .. } = &mut self.worker {
            *heard = Some(now);
        }
    }

    fn hand_back(&mut self, now: MonoTime) {
        self.stopping.get_or_insert(now);
        self.deadline = None;
    }

    fn restart_pause(&self) -> Duration {
        let pause = match self.died_young {
            0 | 1 => Duration::ZERO,
            times => RESTART_PAUSE * 2_u32.saturating_pow((times - 2).min(16)),
        };
        pause.min(if self.deadline.is_some() { RESTART_PAUSE_ARMED_MAX } else { RESTART_PAUSE_MAX })
    }

    fn watch_deadline(&mut self, now: MonoTime, step: &mut Step) {
        if let Some(deadline) =
            self.deadline.filter(|deadline| self.fencing.is_none() && deadline.passed(now))
        {
            let reason = format!(
                "nobody has renewed the lease of generation {}, which ended {} ms ago",
                deadline.generation,
                now.since(deadline.fence_at).as_millis()
            );
            self.fencing = Some(Fencing { reason, again_at: now });
            // A worker that has not noticed could still carry out what it had begun under the lease.
            if let Worker::Running { decided: Some(decided), .. } = self.worker
                && decided < deadline.fence_at
            {
                self.kill_worker("it does nothing about the end of the lease", step);
            }
        }
        if let Some(fencing) = self.fencing.as_ref().filter(|fencing| now >= fencing.again_at) {
            step.fence = Some(fencing.reason.clone());
        }
    }

    fn kill_worker(&mut self, reason: &str, step: &mut Step) {
        self.notes.push(format!("killing the worker: {reason}"));
        self.worker = Worker::Killed;
        step.kill_worker = true;
    }

    fn watch_worker(&mut self, now: MonoTime, step: &mut Step) {
        if let (Worker::Running { .. }, Some(at)) = (self.worker, self.patience_ends()) {
            if now >= at {
                self.kill_worker("it hangs", step);
            } else if std::mem::take(&mut self.ask_to_stop) {
                step.stop_worker = true;
            }
        }
        let Worker::Absent(start_at) = self.worker else { return };
        let gives_up = self.gives_up();
        match (self.stopping, self.fencing.is_some()) {
            (Some(_), false) => step.end = Some(End::Stopped),
            (None, false) if gives_up => step.end = Some(End::Refused),
            (None, _) if now >= start_at && !gives_up => step.start_worker = Some(self.adopted_until(now)),
            (Some(_) | None, _) => {}
        }
    }

    /// A worker that cannot work here is tried again while there is something to lose.
    fn gives_up(&self) -> bool {
        self.refused && self.deadline.is_none()
    }

    /// When a worker that says nothing more, or does not end, is killed.
    fn patience_ends(&self) -> Option<MonoTime> {
        let Worker::Running { since, heard, .. } = self.worker else { return None };
        let frozen_after = self.rules.terms.frozen_after();
        let silent = heard.map_or(since + frozen_after * START_PATIENCE, |heard| heard + frozen_after);
        Some(self.stopping.map_or(silent, |since| since + STOP_PATIENCE))
    }

    /// Until when a new worker may keep a running primary without a lease.
    fn adopted_until(&self, now: MonoTime) -> MonoTime {
        match self.deadline {
            Some(deadline) => deadline.fence_at,
            None if self.told => now,
            None => self.started + self.rules.terms.adoption(),
        }
    }

    /// The watchdog is petted only if the machine may still run when it would go off: not past the end
    /// of the lease, unless PostgreSQL is known to be gone.
    fn pet(&mut self, now: MonoTime, step: &mut Step) {
        let Some(timeout) = self.rules.watchdog.filter(|_| now >= self.pet_at) else { return };
        self.pet_at = now + timeout / 8;
        let lease_ends = self.deadline.map(|deadline| deadline.fence_at + GUARDIAN_SLACK + KILL_BUDGET);
        step.pet = self.fencing.is_none() && lease_ends.is_none_or(|end| now + timeout <= end);
    }

    fn wake_at(&self) -> Option<MonoTime> {
        let start = match self.worker {
            Worker::Absent(at) => Some(at).filter(|_| self.stopping.is_none() && !self.gives_up()),
            Worker::Running { .. } | Worker::Killed => None,
        };
        let fence = match &self.fencing {
            Some(fencing) => Some(fencing.again_at),
            None => self.fences_at(),
        };
        let pet = self.rules.watchdog.map(|_| self.pet_at);
        [start, fence, pet, self.patience_ends()].into_iter().flatten().min()
    }
}
