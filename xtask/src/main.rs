//! The one door for people: `cargo xtask demo | test | sim | campaign | regress | stale | difffuzz | bench | release |
//! fix`. CI goes through the same door.
//!
//! Only calls cargo; it knows nothing of clusters, so that it is compiled in seconds.

#![expect(clippy::print_stdout, reason = "this program talks to a person")]

mod program;
mod release;
mod sim;
mod stages;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything one does with this repository")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a whole cluster on this machine and keep it until Ctrl-C; `demo --help` tells its options.
    #[command(disable_help_flag = true)]
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Inflict random faults on a real cluster under load; `campaign --help` tells its options.
    #[command(disable_help_flag = true)]
    Campaign {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Run whole clusters in the simulator, from seeds; `sim --help` tells its options.
    #[command(disable_help_flag = true)]
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Run PostgreSQL's own suites through the proxy; `regress --help` tells its options.
    #[command(disable_help_flag = true)]
    Regress {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Write and read in pairs while replay is held back; `stale --help` tells its options.
    #[command(disable_help_flag = true)]
    Stale {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Compare the proxy with a stand-alone server, message by message; `difffuzz --help` tells its options.
    #[command(disable_help_flag = true)]
    Difffuzz {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Measure beside others; `bench --help` lists what, and `bench proxy --help` and so on tell the options.
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Check everything, change nothing: format, lints, documentation, tests, simulation, clusters.
    Test,
    /// Build the programs as they are installed, into `target/dist`: the proxy is compiled with what it does under load.
    Release,
    /// Format, and apply what clippy can mend by itself.
    Fix,
}

fn main() -> ExitCode {
    match Args::parse().task {
        Task::Demo { options } => program::run("pgherd-demo", &options),
        Task::Campaign { options } => program::run("pgherd-campaign", &options),
        Task::Regress { options } => program::run("pgherd-regress", &options),
        Task::Stale { options } => program::run("pgherd-stale", &options),
        Task::Difffuzz { options } => program::run("pgherd-difffuzz", &options),
        Task::Bench { options } => program::run("pgherd-bench", &options),
        Task::Sim { options } => sim::run(&options),
        Task::Release => release::run(),
        Task::Test => stages::run_all(stages::test_stages()),
        Task::Fix => stages::run_all(stages::fix_stages()),
    }
}

/// The cargo that runs us, in the workspace's root.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // Build scripts look at these: with those of this package everything behind them would be compiled again.
    let of_ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_ours)) {
        command.env_remove(name);
    }
    command
}

/// A program in cargo's target directory, which is where this one is.
fn built(path: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    here.ancestors().nth(2).unwrap_or(Path::new("target")).join(path)
}
