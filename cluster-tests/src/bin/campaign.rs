//! `cargo xtask campaign`: random faults on a real cluster under load, and a verdict.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pgherd_cluster_tests::campaign::kind::{Kind, RULES, Replication};
use pgherd_cluster_tests::campaign::{self, Options};
use pgherd_cluster_tests::terminal::{say, stopped};

/// Inflicts random faults on a real cluster and checks that it never has two primaries, loses nothing
/// it should not, and heals by itself. Exit status 1 if anything was wrong.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask campaign")]
struct Args {
    /// No fault begins after so many minutes.
    #[arg(long, default_value_t = 3)]
    minutes: u64,
    /// Decides which faults come, to whom, and for how long.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these kinds of faults.
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = kind)]
    only: Vec<Kind>,
    /// End after so many faults.
    #[arg(long)]
    count: Option<usize>,
    /// No fault lasts longer than so many seconds; kinds that must are left out.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    hold_max: u64,
    /// Synchronous replication: no acknowledged row may be lost with its primary.
    #[arg(long)]
    sync: bool,
    /// Where the logs are kept if anything was wrong.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

fn kind(name: &str) -> Result<Kind, String> {
    let names = || RULES.iter().map(|rule| rule.name).collect::<Vec<_>>().join(", ");
    Kind::named(name).ok_or_else(|| format!("the kinds are {}", names()))
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let logs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-logs");
    let options = Options {
        length: Duration::from_secs(args.minutes * 60),
        seed: args.seed,
        only: args.only,
        count: args.count,
        hold_max: Duration::from_secs(args.hold_max),
        replication: if args.sync { Replication::Synchronous } else { Replication::Asynchronous },
        logs: args.logs.unwrap_or_else(|| logs.join(format!("campaign-{}", args.seed))),
    };
    let ended = tokio::select! {
        ended = campaign::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    match ended {
        Ok(outcome) => {
            say(&campaign::summary(&options, &outcome));
            if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            say(&format!("cannot run the campaign: {error:?}\nagain: {}", campaign::reproduction(&options)));
            ExitCode::FAILURE
        }
    }
}
