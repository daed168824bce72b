//! `cargo xtask stale`: writes and reads in pairs while replay is held back, and how many reads were stale.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use pgherd_cluster_tests::stale::{self, Consistency, Options};
use pgherd_cluster_tests::terminal::{say, stopped};

/// Writes and reads in pairs through the proxy of a cluster with two standbys whose replay is held back at
/// random, and counts the reads that missed what was just written. Exit status 1 if any did.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask stale")]
struct Args {
    /// How many pairs.
    #[arg(long, default_value_t = 100_000)]
    pairs: u64,
    /// What reads are promised. `eventual` is the counter-check: it has to show stale reads.
    #[arg(long, value_enum, default_value_t = Promise::Session)]
    consistency: Promise,
    /// Decides what is done when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Where the logs are kept if anything was wrong.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Promise {
    Eventual,
    Session,
    Global,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let logs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-logs/stale");
    let consistency = match args.consistency {
        Promise::Eventual => Consistency::Eventual,
        Promise::Session => Consistency::Session,
        Promise::Global => Consistency::Global,
    };
    let options = Options {
        pairs: args.pairs,
        consistency,
        seed: args.seed,
        pg_bin: args.pg_bin,
        logs: args.logs.unwrap_or(logs),
    };
    let ended = tokio::select! {
        ended = stale::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    match ended {
        Ok(tally) => {
            say(&tally.told());
            if tally.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            say(&format!("cannot run the pairs: {error:?}"));
            ExitCode::FAILURE
        }
    }
}
