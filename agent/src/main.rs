//! `pgherd-agent`: arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

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
    /// Be the worker of the guardian that started this process.
    #[arg(long, hide = true)]
    worker: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.worker {
        pgherd_agent::worker::run()
    } else {
        pgherd_agent::guardian::run(&arguments.config)
    }
}
