//! How long applications cannot write when the primary changes, on this stack and on others.
//!
//! Each system gets three PostgreSQL servers and a fourth machine, which holds what applications connect to, in
//! network namespaces of their own. One system runs at a time, and has to be at full strength before each run.

pub mod case;
mod ground;
mod measure;
mod patroni;
mod pgherd;
mod pgpool;
mod picture;
pub mod report;
mod rivals;
mod stack;
pub mod system;
pub mod tally;

use std::path::PathBuf;

use case::Case;
use report::{Conditions, Report};
use stack::{Programs, Stack};
use system::System;
use tally::{Outcome, Row};

use super::machine::Machine;
use crate::failure::Failure;
use crate::install;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each case is done.
    pub runs: usize,
    /// Which.
    pub cases: Vec<Case>,
    /// Beside ours; all that are installed if not given.
    pub peers: Option<Vec<System>>,
    /// PostgreSQL's programs, if not the newest installed.
    pub pg_bin: Option<PathBuf>,
    /// Another Patroni than Debian's.
    pub patroni: Option<PathBuf>,
}

/// Measures, and tells every step, and each system's table, to `say`.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    let machine = Machine::here();
    say(&format!("load average: {}", machine.load));
    let bin_dir = install::postgres_programs(options.pg_bin.as_deref(), say).await?;
    install::tool(install::IP, say).await?;
    let programs = Programs::new(bin_dir, options.patroni.clone());
    let (systems, left_out) = systems(options.peers.as_deref(), &programs);
    left_out.iter().for_each(|line| say(line));
    let (mut rows, mut versions) = (Vec::new(), Vec::new());
    for system in systems {
        versions.extend(programs.versions(system).await);
        let outcomes = of_system(system, options, &programs, say).await;
        let of_this: Vec<Row> = options
            .cases
            .iter()
            .filter(|case| system.cannot(**case).is_none())
            .map(|case| {
                let of_case = outcomes.iter().filter(|(other, _)| other == case);
                Row::of(system, *case, of_case.map(|(_, outcome)| outcome))
            })
            .collect();
        say(&report::table(&of_this));
        rows.extend(of_this);
    }
    versions.sort();
    versions.dedup();
    let conditions = Conditions { machine, versions, runs: options.runs, left_out };
    Ok(Report { rows, conditions })
}

/// Ours and the peers that can be measured, and why others cannot.
fn systems(peers: Option<&[System]>, programs: &Programs) -> (Vec<System>, Vec<String>) {
    let wanted = peers.map_or_else(|| System::PEERS.to_vec(), <[System]>::to_vec);
    let (mut systems, mut left_out) = (vec![System::Pgherd], Vec::new());
    for peer in wanted.into_iter().filter(|peer| *peer != System::Pgherd) {
        match programs.missing(peer) {
            None if systems.contains(&peer) => (),
            None => systems.push(peer),
            Some(missing) => left_out.push(format!("{peer} is not measured: {missing}")),
        }
    }
    (systems, left_out)
}

/// All runs of one system. Its cases follow each other in every round; those with synchronous replication have
/// a cluster of their own.
async fn of_system(
    system: System,
    options: &Options,
    programs: &Programs,
    say: &dyn Fn(&str),
) -> Vec<(Case, Outcome)> {
    let mut outcomes = Vec::new();
    for synchronous in [false, true] {
        let of_this = |case: &Case| case.is_synchronous() == synchronous && system.cannot(*case).is_none();
        let cases: Vec<Case> = options.cases.iter().copied().filter(of_this).collect();
        let mut stack = None;
        for number in 1..=options.runs {
            for case in &cases {
                say(&format!("{system}, {case}: run {number} of {}", options.runs));
                let outcome = one(&mut stack, system, *case, programs, say).await;
                match &outcome {
                    Ok(sample) => say(&format!("  {sample}")),
                    // Whatever state it is in: the next run gets a new one.
                    Err(error) => {
                        say(&format!("  failed: {error}"));
                        stack = None;
                    }
                }
                outcomes.push((*case, outcome));
            }
        }
    }
    outcomes
}

/// One run, on the cluster there is or on a new one.
async fn one(
    stack: &mut Option<Stack>,
    system: System,
    case: Case,
    programs: &Programs,
    say: &dyn Fn(&str),
) -> Outcome {
    let told = |error: Failure| format!("{error:?}");
    let stack = match stack {
        Some(stack) => stack,
        None => {
            say(&format!("starting {system}"));
            stack.insert(Stack::start(system, case.is_synchronous(), programs).await.map_err(told)?)
        }
    };
    let measured = measure::run(stack, system, case).await;
    measured.map_err(|error| format!("{error:?}{}", stack.log_tails()))
}
