//! `pgherd-agent`: arguments, logging, and the life of the process.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use pgherd_agent::config;
use pgherd_common::errors::Chain;
use tracing_subscriber::EnvFilter;

/// The raft library says at length what this agent says itself, and calls its own stop an error.
const FILTER: &str = "info,openraft=error,openraft::core::heartbeat=off";

/// Watches one PostgreSQL, agrees with the other agents on who is primary, and acts on it.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  pgherd-agent --config /etc/pgherd/agent.toml\n\nLogging: PGHERD_LOG=debug"
)]
struct Arguments {
    /// The agent's configuration file.
    #[arg(long, default_value = "/etc/pgherd/agent.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("PGHERD_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let config = match config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    match runtime.block_on(pgherd_agent::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!("{}", Chain(error));
    ExitCode::FAILURE
}
