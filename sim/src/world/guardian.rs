//! Drives a guardian: obeys its steps, keeps its time, tells it what happens.

use pgherd_core::defect::{Defect, planted};
use pgherd_core::guardian::{Ended, Fenced, Guardian, Rules};
use pgherd_core::reconcile::lease::{KILL_BUDGET, Terms};

use crate::clock::{MS, Micros, Time, micros};

use super::{Event, Guard, Work, World};

/// A guardian's process.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) life: u64,
    pub(crate) guardian: Guardian,
    /// A call that is on its way.
    wake: Option<Time>,
    fencing: bool,
}

impl World {
    /// Somebody (systemd) starts the agent of a machine.
    pub(crate) fn start_agent(&mut self, index: usize) {
        if !self.machines[index].up || self.machines[index].parent.is_some() {
            return;
        }
        let rules = Rules { terms: Terms::new(self.timings.lease), watchdog: None };
        let guardian = Guardian::new(rules, self.mono(index));
        let life = self.machines[index].new_life();
        self.machines[index].parent = Some(Parent { life, guardian, wake: None, fencing: false });
        self.step_guardian(index);
    }

    /// The whole agent is killed: a guardian takes its worker along.
    pub(crate) fn kill_agent(&mut self, index: usize) {
        let name = self.name(index);
        self.note(|| format!("{name}: guardian and worker are killed"));
        self.machines[index].parent = None;
        self.end_worker(index);
    }

    /// The worker alone is killed.
    pub(crate) fn kill_worker(&mut self, index: usize) {
        if self.machines[index].worker.is_none() {
            return;
        }
        let name = self.name(index);
        self.note(|| format!("{name}: the worker is killed"));
        self.end_worker(index);
        if let Some(parent) = &self.machines[index].parent {
            let life = parent.life;
            let span = self.rng.between(MS, 5 * MS);
            self.after(span, Event::Guard(index, life, Guard::WorkerEnded));
        }
    }

    /// How long it takes to kill every process of PostgreSQL: seldom anything near the budget.
    pub(crate) fn time_to_kill(&mut self) -> Micros {
        let most = micros(KILL_BUDGET) - 5 * MS;
        self.rng.tailed(self.kill, most).min(most)
    }

    pub(crate) fn guard(&mut self, index: usize, life: u64, what: &Guard) {
        let now = self.mono(index);
        let Some(parent) = &mut self.machines[index].parent else { return };
        if parent.life != life {
            return;
        }
        match what {
            Guard::Wake => parent.wake = None,
            Guard::WorkerEnded => parent.guardian.worker_ended(Ended::Crashed("killed".to_owned()), now),
            Guard::Fenced => {
                parent.fencing = false;
                self.kill_server(index);
                if let Some(parent) = &mut self.machines[index].parent {
                    parent.guardian.fenced(&Fenced::Gone, now);
                }
            }
        }
        self.step_guardian(index);
    }

    /// Lets the guardian decide, and obeys.
    pub(crate) fn step_guardian(&mut self, index: usize) {
        let now = self.mono(index);
        let Some(parent) = &mut self.machines[index].parent else { return };
        let life = parent.life;
        let step = parent.guardian.step(now);
        let name = self.name(index);
        for line in step.notes {
            self.note(|| format!("{name}: guardian: {line}"));
        }
        if step.kill_worker {
            self.kill_worker(index);
        }
        if let Some(reason) = step.fence {
            self.guardian_fences(index, &reason);
        }
        if let Some(adopted_until) = step.start_worker {
            let life = self.machines[index].new_life();
            let mut worker = super::Worker::new(life, adopted_until);
            let parent = self.machines[index].parent.as_ref();
            worker.memory.inherited = parent.is_some_and(|parent| parent.guardian.ran_before());
            self.machines[index].worker = Some(worker);
            if let Some(parent) = &mut self.machines[index].parent {
                parent.guardian.worker_started(now);
            }
            let span = self.rng.between(40 * MS, 250 * MS);
            self.after(span, Event::Work(index, Some(life), Work::Boot));
            self.step_guardian(index);
            return;
        }
        if let Some(at) = step.wake_at {
            self.wake_guardian(index, life, at);
        }
    }

    fn guardian_fences(&mut self, index: usize, reason: &str) {
        let trusts = planted(Defect::GuardianTrustsWorker) || planted(Defect::NoFenceAtLeaseEnd);
        let now = self.mono(index);
        let Some(parent) = self.machines[index].parent.as_mut().filter(|parent| !parent.fencing) else {
            return;
        };
        if trusts {
            parent.guardian.fenced(&Fenced::Survives, now);
            return;
        }
        let name = self.name(index);
        self.note(|| format!("{name}: the guardian fences PostgreSQL: {reason}"));
        self.guardian_releases(index);
        let span = self.time_to_kill();
        if let Some(parent) = &mut self.machines[index].parent {
            parent.fencing = true;
            let life = parent.life;
            self.after(span, Event::Guard(index, life, Guard::Fenced));
        }
    }

    fn wake_guardian(&mut self, index: usize, life: u64, at: pgherd_common::MonoTime) {
        let at = self.machines[index].clock.when(at).max(self.now + 1);
        let late = self.rng.tailed(200, 20 * MS);
        let Some(parent) = &mut self.machines[index].parent else { return };
        // While PostgreSQL is being killed, its end comes first.
        if !parent.fencing && parent.wake.is_none_or(|wake| wake > at) {
            parent.wake = Some(at);
            self.at(at + late, Event::Guard(index, life, Guard::Wake));
        }
    }
}
