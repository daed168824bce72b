//! One run: a cluster and its misfortunes out of a seed. First a time of faults, in which nothing unsafe may
//! happen, then a time without, in which the cluster has to become whole.

mod plan;

use std::fmt;

use crate::clock::{Micros, SECOND, Time};
use crate::invariants::{HEAL_BUDGET, STEADY, Steady, Violation};
use crate::log::EventLog;
use crate::world::World;

pub use plan::{Misfortunes, misfortunes};

/// How a run is made.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// True time with faults.
    pub faults_for: Micros,
    /// Only clusters whose commits wait for standbys.
    pub synchronous: bool,
    /// Keep the log of events.
    pub log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { faults_for: 120 * SECOND, synchronous: false, log: false }
    }
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What must never happen, if it did, and when.
    pub violation: Option<(Time, Violation)>,
    /// True time that went by.
    pub took: Time,
    /// Events handled.
    pub events: u64,
    /// Changes of primary.
    pub changes: u64,
    /// How long the cluster took to become whole again.
    pub healed_in: Option<Micros>,
    /// Rows acknowledged, rows lost by a failover, overlaps that were excused.
    pub counts: (usize, usize, usize),
    /// Nodes that have to be cloned anew.
    pub to_clone: usize,
    /// Two servers began timelines that PostgreSQL cannot tell apart.
    pub twins: bool,
    /// What happened, where it was kept.
    pub log: EventLog,
    /// What the seed made of the cluster.
    pub plan: String,
}

/// Runs a seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let misfortunes = misfortunes(seed, options);
    let mut world = World::new(&misfortunes.plan, seed);
    let begin = 5 * SECOND;
    for (at, fault, span) in &misfortunes.faults {
        world.strike(begin + at, fault.clone(), *span);
    }
    world.run(begin + options.faults_for);
    world.heal();
    let healed_at = world.now;
    let healed_in = become_whole(&mut world);
    let to_clone = world.health().to_clone.len();
    if healed_in.is_some() {
        let steady = Steady { generation: world.generation() };
        world.run(STEADY);
        if let Some(found) = steady.compare(world.generation(), &world.health()) {
            world.convict(found);
        }
        world.check_survival();
    } else if let Some(sick) = world.health().trouble().cloned() {
        world.convict(Violation::NotHealed { after: world.now.since(healed_at), sick });
    }
    Outcome {
        seed,
        violation: world.checks.violation().cloned(),
        took: world.now,
        events: world.events,
        changes: world.generation().number(),
        healed_in,
        counts: world.checks.counts(),
        to_clone,
        twins: world.twins,
        log: std::mem::take(&mut world.log),
        plan: misfortunes.to_string(),
    }
}

/// How long it took, if it did.
fn become_whole(world: &mut World) -> Option<Micros> {
    let begun = world.now;
    while world.checks.violation().is_none() && world.now.since(begun) < HEAL_BUDGET {
        world.run(SECOND / 2);
        if world.health().trouble().is_some() {
            continue;
        }
        // What was under way when the faults ended may still come to its end.
        let healed_in = world.now.since(begun);
        world.run(3 * SECOND);
        if world.health().trouble().is_none() {
            return Some(healed_in);
        }
    }
    None
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, lost, excused) = self.counts;
        write!(
            f,
            "seed {}: {} s, {} events, {} changes of primary, {rows} rows acknowledged, {lost} of them lost by \
             failovers, {excused} excused overlaps",
            self.seed,
            self.took.0 / SECOND,
            self.events,
            self.changes
        )
    }
}
