//! `cargo xtask regress`: PostgreSQL's own suites, directly and through the proxy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pgherd_cluster_tests::regress::{self, Options, Suite};
use pgherd_cluster_tests::terminal::{say, stopped};

/// Runs PostgreSQL's regression suite against a primary and through the proxy of a cluster with two
/// standbys, and says which tests differ. Exit status 1 if any does.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask regress")]
struct Args {
    /// How often through the proxy.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// The isolation suite instead.
    #[arg(long)]
    isolation: bool,
    /// Only these tests, in this order. Most need what test_setup makes.
    #[arg(long, value_name = "TEST,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Only directly.
    #[arg(long, conflicts_with = "proxy")]
    direct: bool,
    /// Only through the proxy.
    #[arg(long)]
    proxy: bool,
    /// Commits wait for both standbys to replay them: then no read can be stale, and what differs has
    /// other reasons.
    #[arg(long)]
    remote_apply: bool,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// A run that takes longer is ended.
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    minutes: u64,
    /// Where results are kept.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/regress");
    let options = Options {
        suite: if args.isolation { Suite::Isolation } else { Suite::Regression },
        runs: args.runs,
        only: args.only,
        direct: !args.proxy,
        proxied: !args.direct,
        remote_apply: args.remote_apply,
        pg_bin: args.pg_bin,
        time_max: Duration::from_secs(args.minutes * 60),
        keep: args.keep.unwrap_or_else(|| target.clone()),
        sources: target.join("sources"),
    };
    let ended = tokio::select! {
        ended = regress::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("cannot run the suite: {error:?}"));
            ExitCode::FAILURE
        }
    }
}
