//! `cargo xtask difffuzz`: random sessions through the proxy and on a stand-alone server, side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use pgherd_cluster_tests::difffuzz::{self, Options};
use pgherd_cluster_tests::terminal::{say, stopped};

/// Says the same to the proxy of a cluster with two standbys and to a PostgreSQL that stands alone, session
/// after session, and compares the answers message by message. Exit status 1 if any differs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask difffuzz")]
struct Args {
    /// How many sessions.
    #[arg(long, default_value_t = 1000)]
    sessions: u64,
    /// What the sessions are made of; another one each time if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The number of the first session; each is the same whatever runs beside it.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many at the same time; they share half as many connections to each server.
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// After so many differences the run ends.
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    differences: u64,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Where logs are kept if something differs.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        seed: args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
        first: args.first,
        sessions: args.sessions,
        parallel: args.parallel.max(1),
        differences_max: args.differences.max(1),
        pg_bin: args.pg_bin,
        keep: args.keep.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/difffuzz")),
    };
    let ended = tokio::select! {
        ended = difffuzz::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    match ended {
        Ok(tally) if tally.differences == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("cannot run the sessions of seed {}: {error:?}", options.seed));
            ExitCode::FAILURE
        }
    }
}
