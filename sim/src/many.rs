//! Many seeds, on all processors.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pgherd_core::defect::Defect;
use pgherd_sim::clock::SECOND;
use pgherd_sim::run::{Options, Outcome, run as run_seed};

/// Violations after which there is no point in going on.
const ENOUGH: usize = 10;

/// As many as there are processors.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A lock whose holder cannot have left things half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    cluster_micros: u64,
    events: u64,
    changes: u64,
    rows: usize,
    lost: usize,
    excused: usize,
    to_clone: usize,
    twins: u64,
    slowest: u64,
    failed: Vec<Outcome>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.cluster_micros += outcome.took.0;
        self.events += outcome.events;
        self.changes += outcome.changes;
        let (rows, lost, excused) = outcome.counts;
        (self.rows, self.lost, self.excused) = (self.rows + rows, self.lost + lost, self.excused + excused);
        self.to_clone += usize::from(outcome.to_clone > 0);
        self.twins += u64::from(outcome.twins);
        self.slowest = self.slowest.max(outcome.healed_in.unwrap_or(0));
        if outcome.violation.is_some() {
            self.failed.push(outcome);
        }
    }
}

/// Runs them all and sums up.
pub(crate) fn run(
    (from, to): (u64, u64),
    bound: Option<u64>,
    defect: Option<Defect>,
    options: &Options,
    how: &str,
) -> ExitCode {
    let (next, sum, begun) = (AtomicU64::new(from), Mutex::new(Sum::default()), now());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                super::defects::plant(defect);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = bound.is_some_and(|bound| begun.elapsed() >= Duration::from_secs(bound));
                    if seed >= to || late || lock(&sum).failed.len() >= ENOUGH {
                        return;
                    }
                    let outcome = run_seed(seed, options);
                    if let Some((at, violation)) = &outcome.violation {
                        println!(
                            "seed {seed}, {at} s: {violation}\n  again: cargo xtask sim --seed {seed}{how}"
                        );
                    }
                    lock(&sum).add(outcome);
                }
            });
        }
    });
    let sum = lock(&sum);
    let (took, hours) = (begun.elapsed(), sum.cluster_micros / SECOND / 3600);
    let per_minute = u128::from(sum.cluster_micros / SECOND) * 60_000 / 3600 / took.as_millis().max(1);
    println!(
        "{} seeds, {hours} cluster-hours in {:.1} s ({per_minute} cluster-hours a minute), {} million events",
        sum.seeds,
        took.as_secs_f64(),
        sum.events / 1_000_000
    );
    println!(
        "{} changes of primary; {} rows acknowledged, {} of them lost by failovers; {} excused overlaps; {} runs \
         with a node to be cloned anew, {} with timelines that cannot be told apart; slowest healing {:.1} s",
        sum.changes,
        sum.rows,
        sum.lost,
        sum.excused,
        sum.to_clone,
        sum.twins,
        Duration::from_micros(sum.slowest).as_secs_f64()
    );
    println!("{} violations", sum.failed.len());
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::disallowed_methods, reason = "measures the simulator itself; nothing in a run rests on it")]
fn now() -> Instant {
    Instant::now()
}
