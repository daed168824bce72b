//! Seeds: those that found something once, and some for a first impression. `cargo xtask sim` runs more.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgherd_sim::run::{Options, run};

/// Runs them on all processors.
fn all_well(seeds: &[u64]) {
    let (next, failed) = (AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(*seed, &Options::default());
                    if let Some((at, violation)) = outcome.violation {
                        let line =
                            format!("seed {seed}, {at} s: {violation}\nagain: cargo xtask sim --seed {seed}");
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

#[test]
fn what_was_found_once_stays_mended() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds.txt");
    let text = fs::read_to_string(path).unwrap();
    let seed = |line: &str| line.split_whitespace().next().and_then(|word| word.parse().ok());
    let seeds: Vec<u64> = text.lines().filter(|line| !line.starts_with('#')).filter_map(seed).collect();
    assert!(seeds.len() >= 10, "the seeds were not found");
    all_well(&seeds);
}

#[test]
fn the_first_seeds_are_well() {
    all_well(&(0..60).collect::<Vec<_>>());
}

#[test]
fn a_run_can_be_repeated() {
    let again = || {
        let outcome = run(5, &Options { log: true, ..Options::default() });
        let lines: Vec<String> = outcome.log.lines().map(|(at, line)| format!("{at} {line}")).collect();
        (outcome.events, lines)
    };
    assert_eq!(again(), again());
}
