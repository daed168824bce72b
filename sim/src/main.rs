//! `pgherd-sim`: runs seeds, says what they found.

#![expect(clippy::print_stdout, reason = "this program talks to a person")]

mod defects;
mod many;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pgherd_sim::clock::SECOND;
use pgherd_sim::run::{Options, Outcome, run};

#[derive(Parser)]
#[command(name = "pgherd-sim", about = "Runs whole clusters in a model world, from seeds")]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    seeds: Seeds,
}

#[derive(Subcommand)]
enum What {
    /// Plant each defect in turn and count the seeds until it is found.
    Defects {
        /// Only this one.
        #[arg(long)]
        only: Option<String>,
        /// How many times each, from different first seeds.
        #[arg(long, default_value_t = 3)]
        times: u64,
        /// Not found after so many seeds: not found.
        #[arg(long, default_value_t = 2000)]
        within: u64,
        /// Leave out those that take more than some hundred seeds.
        #[arg(long)]
        quick: bool,
    },
}

#[derive(Args, Clone)]
struct Seeds {
    /// One seed, with its log if it fails.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A to B, B excluded, as A..B.
    #[arg(long, value_parser = range, default_value = "0..1000")]
    seeds: (u64, u64),
    /// Cluster time with faults, for each seed.
    #[arg(long, default_value_t = 120.0 / 3600.0)]
    hours: f64,
    /// Plant this defect.
    #[arg(long)]
    defect: Option<String>,
    /// Print the log of the one seed even if all is well.
    #[arg(long)]
    log: bool,
    /// End after so many seconds of real time.
    #[arg(long)]
    for_seconds: Option<u64>,
}

impl Seeds {
    fn options(&self) -> Options {
        let seconds = std::time::Duration::try_from_secs_f64(self.hours * 3600.0).unwrap_or_default();
        Options { faults_for: pgherd_sim::clock::micros(seconds).max(SECOND), ..Options::default() }
    }
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("{text:?} is not of the form A..B");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.replace('_', "").parse().map_err(|_| wrong());
    Ok((number(from)?, number(to)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = arguments.seeds.options();
    if let Some(What::Defects { only, times, within, quick }) = arguments.what {
        return defects::table(only.as_deref(), (times, within, quick), &options);
    }
    let defect = match arguments.seeds.defect.as_deref().map(defects::by_name).transpose() {
        Ok(defect) => defect,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut how = String::new();
    if let Some(name) = &arguments.seeds.defect {
        how.push_str(&format!(" --defect {name}"));
    }
    if options.faults_for != Options::default().faults_for {
        how.push_str(&format!(" --hours {}", arguments.seeds.hours));
    }
    match arguments.seeds.seed {
        Some(seed) => one(seed, defect, &options, arguments.seeds.log, &how),
        None => many::run(arguments.seeds.seeds, arguments.seeds.for_seconds, defect, &options, &how),
    }
}

fn one(
    seed: u64,
    defect: Option<pgherd_core::defect::Defect>,
    options: &Options,
    log: bool,
    how: &str,
) -> ExitCode {
    defects::plant(defect);
    let outcome = run(seed, &Options { log: true, ..*options });
    if log || outcome.violation.is_some() {
        for (at, line) in outcome.log.lines() {
            println!("{at:>9} {line}");
        }
    }
    println!("{}", outcome.plan);
    tell(&outcome, how)
}

fn tell(outcome: &Outcome, how: &str) -> ExitCode {
    println!("{outcome}");
    let Some((at, violation)) = &outcome.violation else { return ExitCode::SUCCESS };
    println!("violation at {at} s: {violation}");
    println!("again: cargo xtask sim --seed {}{how}", outcome.seed);
    ExitCode::FAILURE
}
