//! What a seed makes of a cluster, and what befalls it.
//!
//! Each seed allows only some kinds of faults, in its own density: a fault that is drowned in others is
//! never seen at work.

use std::fmt;

use pgherd_core::cover::Durability;

use crate::clock::{MS, Micros, SECOND};
use crate::rng::Rng;
use crate::world::{Fault, Plan};

use super::Options;

/// A cluster and its faults: when each begins, after the cluster is up, and for how long.
#[derive(Debug, Clone)]
pub struct Misfortunes {
    /// The cluster.
    pub plan: Plan,
    /// In the order in which they begin.
    pub faults: Vec<(Micros, Fault, Micros)>,
    databases: usize,
    witnesses: usize,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Partition,
    OneWay,
    Pair,
    PostgresPort,
    AgentPort,
    Flapping,
    Bad,
    Power,
    Freeze,
    FreezeWorker,
    KillWorker,
    KillAgent,
    KillPostmaster,
    HangPostmaster,
    StallDisk,
    PromoteByHand,
    Switchover,
    Force,
    Checkpoint,
    Wipe,
    LosePrimary,
    LateThenAlone,
    Overtaken,
    Forgotten,
}

const KINDS: [Kind; 21] = [
    Kind::Force,
    Kind::Wipe,
    Kind::LosePrimary,
    Kind::LateThenAlone,
    Kind::Overtaken,
    Kind::Partition,
    Kind::OneWay,
    Kind::Pair,
    Kind::PostgresPort,
    Kind::AgentPort,
    Kind::Flapping,
    Kind::Bad,
    Kind::Power,
    Kind::Freeze,
    Kind::FreezeWorker,
    Kind::KillWorker,
    Kind::KillPostmaster,
    Kind::HangPostmaster,
    Kind::StallDisk,
    Kind::Switchover,
    Kind::Checkpoint,
];

/// What a seed means.
pub fn misfortunes(seed: u64, options: &Options) -> Misfortunes {
    let mut rng = Rng::new(seed ^ 0x00D1_5EA5_E000);
    let databases = usize::try_from(rng.between(2, 4)).unwrap_or(2);
    let witnesses = if databases == 2 || rng.chance(500) { 1 } else { 0 };
    let mut plan = Plan::of(databases, witnesses);
    plan.proxies = usize::try_from(rng.between(1, 2)).unwrap_or(1);
    plan.drift_ppm = if rng.chance(500) { 5000 } else { 100 };
    plan.write_pause = rng.between(100 * MS, 500 * MS);
    plan.kill = if rng.chance(300) { 330 * MS } else { 100 * MS };
    plan.log = options.log;
    plan.durability = durability(seed, databases, options.synchronous);
    // Drawn apart for the same reason as durability.
    plan.fence_script = Rng::new(seed ^ 0xFE7C_E5C1).chance(200);
    // Apart, so that what the other seeds meant before still holds.
    plan.address = seed % 3 == 1;
    let kinds = kinds(&mut rng);
    // Where more standbys are asked for than ever count, commits wait for good.
    let enough = databases > 2 && plan.durability.standbys < 2;
    // What streams from a standby that is promoted by hand follows it, and nobody can tell that of it later.
    let by_hand = kinds.contains(&Kind::PromoteByHand);
    plan.cascade = enough && !by_hand && Rng::new(seed ^ 0xCA5C_ADE0).chance(300);
    let pause = rng.between(2 * SECOND, 15 * SECOND);
    let mut faults = Vec::new();
    let mut at = 0;
    while at < options.faults_for {
        if let Some(kind) = rng.pick(&kinds).copied() {
            let together = story(kind, databases, witnesses, &mut rng);
            faults.extend(together.into_iter().map(|(after, fault, span)| (at + after, fault, span)));
        }
        // Some faults come together.
        at += if rng.chance(250) { rng.below(300 * MS) } else { rng.tailed(pause, pause * 4) };
    }
    schedule(seed, &mut faults);
    pauses(seed, options.faults_for, databases, &mut faults);
    leavings(seed, options.faults_for, databases + witnesses, &mut faults);
    Misfortunes { plan, faults, databases, witnesses }
}

/// Some operators say beforehand when they want a switchover. Drawn apart for the same reason as durability.
fn schedule(seed: u64, faults: &mut [(Micros, Fault, Micros)]) {
    let mut rng = Rng::new(seed ^ 0x0A1A_4D00);
    if rng.chance(600) {
        return;
    }
    for (_, fault, _) in faults {
        if let Fault::Switchover(to) = fault
            && rng.chance(500)
        {
            *fault = Fault::Schedule(*to, rng.between(SECOND, 15 * SECOND));
        }
    }
}

/// Some operators have PostgreSQL left alone for a while, in the middle of it all. Drawn apart for the same reason.
fn pauses(seed: u64, faults_for: Micros, databases: usize, faults: &mut Vec<(Micros, Fault, Micros)>) {
    let mut rng = Rng::new(seed ^ 0x0F_F1CE_7EA5);
    if rng.chance(850) {
        return;
    }
    for _ in 0..rng.between(1, 3) {
        let node = rng.below(u64::try_from(databases + 1).unwrap_or(1));
        let node = usize::try_from(node).ok().filter(|node| *node < databases);
        let fault = Fault::Pause(node, rng.between(2 * SECOND, 30 * SECOND));
        faults.push((rng.below(faults_for.max(1)), fault, 0));
    }
    faults.sort_by_key(|(at, ..)| *at);
}

/// Every sixth operator removes nodes and adds them again, in the middle of it all. Drawn apart for the same reason, and for
/// no seed that has found something once.
fn leavings(seed: u64, faults_for: Micros, machines: usize, faults: &mut Vec<(Micros, Fault, Micros)>) {
    let mut rng = Rng::new(seed ^ 0x1EA_7E50);
    if seed % 6 != 5 {
        return;
    }
    for _ in 0..rng.between(1, 3) {
        let node = usize::try_from(rng.below(u64::try_from(machines).unwrap_or(1))).unwrap_or(0);
        let at = rng.below(faults_for.max(1));
        faults.push((at, Fault::Leave(node), rng.between(SECOND, 20 * SECOND)));
        // It may come back with nothing.
        if rng.chance(300) {
            faults.push((at + rng.between(SECOND, 6 * SECOND), Fault::Wipe(node), 0));
        }
    }
    faults.sort_by_key(|(at, ..)| *at);
}

/// Every other cluster is synchronous, some of those until there is nobody left to wait for. Drawn apart, so that what a
/// seed of an asynchronous cluster meant before still holds.
fn durability(seed: u64, databases: usize, always: bool) -> Durability {
    let mut rng = Rng::new(seed ^ 0x5EED_C0DE);
    if rng.chance(500) && !always {
        return Durability::default();
    }
    let standbys = if databases > 2 && rng.chance(300) { 2 } else { 1 };
    let degrade_after_ms = if rng.chance(400) { rng.between(500, 8000) } else { 0 };
    Durability { standbys, degrade_after_ms }
}

fn kinds(rng: &mut Rng) -> Vec<Kind> {
    match rng.below(20) {
        // A double fault by design: only alone can it be told from one.
        0 => vec![Kind::KillAgent, Kind::Checkpoint],
        1 => vec![Kind::PromoteByHand, Kind::KillPostmaster, Kind::Switchover],
        2 => vec![Kind::Forgotten],
        _ => {
            let count = rng.between(1, 5);
            (0..count).filter_map(|_| rng.pick(&KINDS).copied()).collect()
        }
    }
}

/// One fault, or several that only together tell something.
fn story(kind: Kind, databases: usize, witnesses: usize, rng: &mut Rng) -> Vec<(Micros, Fault, Micros)> {
    let place = |bound: usize, rng: &mut Rng| {
        usize::try_from(rng.below(u64::try_from(bound).unwrap_or(1))).unwrap_or(0)
    };
    let one = place(databases, rng);
    let other = (one + 1 + place(databases - 1, rng)) % databases;
    match kind {
        // Answers take nearly as long as they may, then none come at all.
        Kind::LateThenAlone => {
            let slow = rng.between(600, 980) * MS;
            let late = rng.between(2 * SECOND, 5 * SECOND);
            let alone = rng.between(4 * SECOND, 9 * SECOND);
            vec![(0, Fault::Late(one, slow), late), (late, Fault::Partition(vec![one]), alone)]
        }
        // A standby that lags is chosen while a better one is away; that one is back when the choice fails.
        Kind::Overtaken => {
            let lag = rng.between(SECOND, 4 * SECOND);
            let away = rng.between(4 * SECOND, 8 * SECOND);
            let again = lag + away + rng.below(900 * MS);
            let gone = rng.between(500 * MS, 3 * SECOND);
            vec![
                (0, Fault::PostgresPort(one), lag + SECOND),
                (lag, Fault::Partition(vec![other]), away),
                (lag + rng.below(100 * MS), Fault::LosePrimary, gone),
                (again, Fault::LosePrimary, rng.between(5 * SECOND, 9 * SECOND)),
            ]
        }
        Kind::Wipe => {
            let machines = databases + witnesses;
            let node = place(machines, rng);
            let second = (node + 1 + place(machines - 1, rng)) % machines;
            let soon = rng.below(400 * MS);
            vec![
                (soon, Fault::Wipe(node), 0),
                (0, Fault::Partition(vec![second]), rng.between(MS, 4 * SECOND)),
            ]
        }
        Kind::Forgotten => forgotten(databases + witnesses, rng),
        _ => {
            let (fault, span) = fault(kind, databases, witnesses, rng);
            vec![(0, fault, span)]
        }
    }
}

/// One node misses what is agreed on, another loses its store, and when the first is back a third is
/// away: whoever then votes from an empty memory may agree to forget.
fn forgotten(machines: usize, rng: &mut Rng) -> Vec<(Micros, Fault, Micros)> {
    let count = u64::try_from(machines).unwrap_or(1);
    let misses = rng.below(count);
    let loses = (misses + 1 + rng.below(count - 1)) % count;
    let leaves = (0..count).find(|node| *node != misses && *node != loses).unwrap_or(misses);
    let index = |node: u64| usize::try_from(node).unwrap_or(0);
    let away = rng.between(4 * SECOND, 8 * SECOND);
    vec![
        (0, Fault::Partition(vec![index(misses)]), away),
        (away - rng.below(200 * MS), Fault::Wipe(index(loses)), 0),
        (away, Fault::Partition(vec![index(leaves)]), rng.between(4 * SECOND, 8 * SECOND)),
    ]
}

fn fault(kind: Kind, databases: usize, witnesses: usize, rng: &mut Rng) -> (Fault, Micros) {
    let draw = |bound: usize, rng: &mut Rng| {
        usize::try_from(rng.below(u64::try_from(bound).unwrap_or(1))).unwrap_or(0)
    };
    let machines = databases + witnesses;
    let (any, database) = (draw(machines, rng), draw(databases, rng));
    let other = (any + 1 + draw(machines - 1, rng)) % machines;
    // Around the lease and the timeouts, and now and then long.
    let span = match rng.below(10) {
        0..=2 => rng.between(20 * MS, SECOND),
        3..=7 => rng.between(SECOND, 6 * SECOND),
        _ => rng.between(6 * SECOND, 25 * SECOND),
    };
    let fault = match kind {
        Kind::Partition => {
            let mut side: Vec<usize> = (0..machines).filter(|_| rng.chance(400)).collect();
            if side.is_empty() || side.len() == machines {
                side = vec![any];
            }
            Fault::Partition(side)
        }
        Kind::OneWay => Fault::OneWay(any, other),
        Kind::Pair => Fault::Pair(any, other),
        Kind::PostgresPort => Fault::PostgresPort(database),
        Kind::AgentPort => Fault::AgentPort(any),
        Kind::Flapping => Fault::Flapping(any, other, u32::try_from(rng.between(2, 6)).unwrap_or(2)),
        Kind::Bad => Fault::Bad(rng.between(10, 300), rng.between(1, 900) * MS),
        Kind::Power => Fault::Power(any),
        Kind::Freeze => Fault::Freeze(any),
        Kind::FreezeWorker => Fault::FreezeWorker(any),
        Kind::KillWorker => Fault::KillWorker(any),
        Kind::KillAgent => Fault::KillAgent(any),
        Kind::KillPostmaster => Fault::KillPostmaster(database),
        Kind::HangPostmaster => Fault::HangPostmaster(database),
        Kind::StallDisk => Fault::StallDisk(any),
        Kind::PromoteByHand => Fault::PromoteByHand(database),
        Kind::Switchover => Fault::Switchover(rng.chance(300).then_some(database)),
        Kind::Force => Fault::Force,
        Kind::Checkpoint => Fault::Checkpoint(database),
        Kind::Wipe => Fault::Wipe(any),
        Kind::LosePrimary | Kind::LateThenAlone | Kind::Overtaken | Kind::Forgotten => Fault::LosePrimary,
    };
    (fault, span)
}

impl fmt::Display for Misfortunes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} databases, {} witnesses, {} proxies, commits wait for {} standbys, clocks off by up to {} ppm, {} faults",
            self.databases,
            self.witnesses,
            self.plan.proxies,
            self.plan.durability.standbys,
            self.plan.drift_ppm,
            self.faults.len()
        )
    }
}
