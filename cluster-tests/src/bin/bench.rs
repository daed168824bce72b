//! `cargo xtask bench`: what our proxy costs beside other proxies, and how long a change of primary takes beside
//! other stacks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Parser, Subcommand};
use pgherd_cluster_tests::bench::failover::case::Case;
use pgherd_cluster_tests::bench::failover::system::{NoSuchPeer, System};
use pgherd_cluster_tests::bench::scale::part::Part;
use pgherd_cluster_tests::bench::target::Target;
use pgherd_cluster_tests::bench::workload::Workload;
use pgherd_cluster_tests::bench::{self, Options, failover, rejoin, relay, scale};
use pgherd_cluster_tests::terminal::{say, stopped};

/// Measures on this machine, with real servers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Proxy(ProxyArgs),
    Scale(ScaleArgs),
    Failover(FailoverArgs),
    Rejoin(RejoinArgs),
    /// Carries bytes for `proxy`, in a process of its own.
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: SocketAddr,
    },
}

/// pgherd-proxy beside PgBouncer, Pgpool-II, HAProxy, a bare relay and no proxy at all, in front of the same
/// primary and two standbys.
#[derive(Debug, clap::Args)]
struct ProxyArgs {
    /// How long each run is.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// How often each target is visited.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only these.
    #[arg(long, value_name = "WORKLOAD,...", value_delimiter = ',', default_values_t = Workload::ALL)]
    workloads: Vec<Workload>,
    /// Only these.
    #[arg(long, value_name = "TARGET,...", value_delimiter = ',', default_values_t = Target::ALL)]
    targets: Vec<Target>,
    /// pgbench's scale: 100,000 rows each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Another PgBouncer than Debian's.
    #[arg(long, value_name = "PROGRAM")]
    pgbouncer: Option<PathBuf>,
    /// Write the proxy's part of docs/benchmarks.md, and its plot.
    #[arg(long)]
    write: bool,
}

/// pgherd-proxy with very many clients, very long answers and very many logins, beside PgBouncer and no proxy at all.
#[derive(Debug, clap::Args)]
struct ScaleArgs {
    /// Only these.
    #[arg(long, value_name = "PART,...", value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Only these.
    #[arg(long, value_name = "TARGET,...", value_delimiter = ',', default_values_t = scale::TARGETS)]
    targets: Vec<Target>,
    /// `idle`: so many clients.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// `active`: so many clients.
    #[arg(long, default_value_t = 5000)]
    active: usize,
    /// `active`: so many of them ask at the same time.
    #[arg(long, default_value_t = 200)]
    at_once: usize,
    /// `active`, `logins`, `pipelines`: how long each goes on.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// `rows`: millions of bytes.
    #[arg(long, default_value_t = 1000)]
    rows_megabytes: u64,
    /// `copy`: millions of bytes.
    #[arg(long, default_value_t = 500)]
    copy_megabytes: u64,
    /// `latency`: how often each target is visited, for a second in each protocol; `reads`: the same, for four seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// pgbench's scale: 100,000 rows each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    scale: u32,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Another PgBouncer than Debian's.
    #[arg(long, value_name = "PROGRAM")]
    pgbouncer: Option<PathBuf>,
}

/// How long applications cannot write while the primary changes, on pgherd, Patroni with HAProxy, and Pgpool-II.
#[derive(Debug, clap::Args)]
struct FailoverArgs {
    /// How often each case is done.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Only these.
    #[arg(long, value_name = "CASE,...", value_delimiter = ',', default_values_t = Case::ALL)]
    cases: Vec<Case>,
    /// Only these beside pgherd, or `none`; all that are installed if not given (patroni, patroni-tuned, pgpool).
    #[arg(long, value_name = "PEER,...", value_delimiter = ',')]
    peers: Option<Vec<Peer>>,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Another Patroni than Debian's.
    #[arg(long, value_name = "PROGRAM")]
    patroni: Option<PathBuf>,
    /// Write the section "Failover and switchover" of docs/benchmarks.md, and its plot.
    #[arg(long)]
    write: bool,
}

/// How long it takes until the cluster is at full strength again by itself, and `create-standby` beside `pg_basebackup`.
#[derive(Debug, clap::Args)]
struct RejoinArgs {
    /// How often each event is inflicted.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How many megabytes `create-standby` copies; 0 leaves it out.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    megabytes: u64,
    /// How often it does.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    copies: u16,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
}

/// Somebody to measure beside ours, or nobody.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<System>);

impl FromStr for Peer {
    type Err = NoSuchPeer;

    fn from_str(name: &str) -> Result<Self, NoSuchPeer> {
        if name == "none" { Ok(Self(None)) } else { name.parse().map(Some).map(Self) }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Args::parse().what {
        What::Proxy(args) => proxy(args).await,
        What::Scale(args) => scale(args).await,
        What::Failover(args) => failover(args).await,
        What::Rejoin(args) => rejoin(args).await,
        What::Relay { listen, to } => match relay::serve(listen, to).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&format!("cannot listen on {listen}: {error}"));
                ExitCode::FAILURE
            }
        },
    }
}

async fn proxy(args: ProxyArgs) -> ExitCode {
    let options = Options {
        seconds: args.seconds,
        rounds: args.rounds.into(),
        scale: args.scale,
        workloads: args.workloads,
        targets: args.targets,
        pg_bin: args.pg_bin,
        pgbouncer: args.pgbouncer,
    };
    let ended = tokio::select! {
        ended = bench::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    let report = match ended {
        Ok(report) => report,
        Err(error) => {
            say(&format!("cannot measure: {error:?}"));
            return ExitCode::FAILURE;
        }
    };
    written(args.write, |docs| report.write(docs))
}

/// Writes what is to be written into docs/.
fn written(wanted: bool, write: impl FnOnce(&Path) -> std::io::Result<()>) -> ExitCode {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    match wanted.then(|| write(&docs)) {
        None | Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            say(&format!("cannot write {}: {error}", docs.display()));
            ExitCode::FAILURE
        }
    }
}

async fn failover(args: FailoverArgs) -> ExitCode {
    let options = failover::Options {
        runs: args.runs.into(),
        cases: args.cases,
        peers: args.peers.map(|peers| peers.into_iter().filter_map(|peer| peer.0).collect()),
        pg_bin: args.pg_bin,
        patroni: args.patroni,
    };
    let ended = tokio::select! {
        ended = failover::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    match ended {
        Ok(report) => {
            say(&report.told());
            written(args.write, |docs| report.write(docs))
        }
        Err(error) => {
            say(&format!("cannot measure: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

async fn rejoin(args: RejoinArgs) -> ExitCode {
    let options = rejoin::Options {
        runs: args.runs.into(),
        megabytes: args.megabytes,
        copies: args.copies.into(),
        pg_bin: args.pg_bin,
    };
    let ended = tokio::select! {
        ended = rejoin::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("cannot measure: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

/// Fails when an answer was wrong or did not come, whatever the figures are.
async fn scale(args: ScaleArgs) -> ExitCode {
    let options = scale::Options {
        parts: args.parts,
        targets: args.targets,
        idle: args.idle,
        active: args.active,
        at_once: args.at_once,
        seconds: args.seconds,
        rows_megabytes: args.rows_megabytes,
        copy_megabytes: args.copy_megabytes,
        rounds: args.rounds.into(),
        scale: args.scale,
        pg_bin: args.pg_bin,
        pgbouncer: args.pgbouncer,
    };
    let ended = tokio::select! {
        ended = scale::run(&options, &say) => ended,
        () = stopped() => {
            say("stopped: ending everything");
            return ExitCode::FAILURE;
        }
    };
    match ended {
        Ok(report) if report.errors() == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("cannot measure: {error:?}"));
            ExitCode::FAILURE
        }
    }
}
