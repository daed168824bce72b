//! `cargo xtask demo`: a whole cluster to play with, until Ctrl-C.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pgherd_cluster_tests::Cluster;
use pgherd_cluster_tests::descriptor::Descriptor;
use pgherd_cluster_tests::install;
use pgherd_cluster_tests::terminal::{say, stopped};
use pgherd_common::errors::Chain;
use tokio::time::{Instant, sleep};

/// Three PostgreSQL servers with their agents, a witness and a proxy, on this machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo")]
struct Args {
    /// Where everything goes: a new or an empty directory, emptied again at the end.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// End after so many seconds instead of at Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// PostgreSQL's programs, if not the newest ones under /usr/lib/postgresql.
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Give each server a network namespace of its own, so that it can be cut off.
    #[arg(long)]
    netns: bool,
    /// Commits wait until a standby has them, so that no failover loses one (failover.durability = "sync").
    #[arg(long)]
    sync: bool,
    /// Write a description of the running cluster to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    descriptor: Option<PathBuf>,
    /// Install PostgreSQL and the tools that tests need where they are missing, and do nothing else.
    #[arg(long, hide = true)]
    install_only: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let ended = tokio::select! {
        ended = demo(&args) => ended,
        () = stopped() => {
            say("\nending everything");
            Ok(())
        }
    };
    if let Some(path) = &args.descriptor {
        let _never_written = std::fs::remove_file(path);
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&format!("cannot run the demo: {}", Chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

type Ended = Result<(), Box<dyn std::error::Error>>;

async fn demo(args: &Args) -> Ended {
    let begun = Instant::now();
    let progress = move |step: &str| say(&format!("[{:5.1} s] {step}", begun.elapsed().as_secs_f64()));
    if args.install_only {
        install::postgres_programs(args.pg_bin.as_deref(), &progress).await?;
        for tool in [install::IP, install::NFT, install::MKFS] {
            install::tool(tool, &progress).await?;
        }
        return Ok(());
    }
    let builder = Cluster::builder().dir(args.dir.clone()).pg_bin(args.pg_bin.clone()).netns(args.netns);
    let builder = builder.synchronous(args.sync);
    let cluster = builder.progress(progress).start().await?;
    if let Some(path) = &args.descriptor {
        Descriptor::of(&cluster).write(path)?;
    }
    say(&format!("[{:5.1} s] healthy", begun.elapsed().as_secs_f64()));
    say(&invitation(&cluster));
    match args.seconds {
        Some(seconds) => sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
    say("the time is over: ending everything");
    Ok(())
}

/// What to do with it.
fn invitation(cluster: &Cluster) -> String {
    let proxy = cluster.proxy(0);
    let (host, port, cli) = (&proxy.place.host, proxy.port, cluster.cli_prefix());
    let data_dir = cluster.dir().join("server1/data");
    format!(
        "
Connect through the proxy; it sends writes to the primary and reads to the standbys:
    PGPASSWORD=app psql -h {host} -p {port} -U app app
Then try:
    SHOW NODES;                                   in psql: who is what, and who served how many reads
    {cli} cluster-status
    kill -9 $(head -1 {data})       kill the primary and watch psql go on
    {cli} promote --switchover
Files and logs: {dir}
Ctrl-C ends everything and removes it.
",
        data = data_dir.join("postmaster.pid").display(),
        dir = cluster.dir().display()
    )
}

#[expect(clippy::print_stderr, reason = "this program talks to a person")]
fn say_error(text: &str) {
    eprintln!("{text}");
}
