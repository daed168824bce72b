//! The `pgherd-proxy` binary: arguments, configuration, logging, run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use pgherd_common::errors::Chain;
use pgherd_proxy::Config;
use tracing_subscriber::EnvFilter;

/// The PostgreSQL endpoint of a pgherd cluster.
#[derive(Debug, Parser)]
#[command(name = "pgherd-proxy", version, about)]
struct Arguments {
    /// Run with this configuration
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "check_config",
        conflicts_with = "check_config"
    )]
    config: Option<PathBuf>,

    /// Report everything that is wrong with a configuration, and exit
    #[arg(long, value_name = "FILE")]
    check_config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("PGHERD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let checked = match (&arguments.config, &arguments.check_config) {
        (Some(path), _) => read(path).and_then(|config| {
            pgherd_proxy::run(config).map_err(|error| format!("pgherd-proxy: {}", Chain(&error)))
        }),
        (None, Some(path)) => read(path).map(|_| say(&mut std::io::stdout(), "ok")),
        (None, None) => Err("pgherd-proxy: no configuration was named".to_owned()),
    };
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            say(&mut std::io::stderr(), &text);
            ExitCode::FAILURE
        }
    }
}

fn read(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let config = Config::parse(&text).map_err(|problems| format!("{}: {problems}", path.display()))?;
    // As seen from wherever the process is when it reads it again.
    let file = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(Config { file: Some(file), ..config })
}

fn say(out: &mut dyn Write, text: &str) {
    // Nobody listens: there is nowhere left to say so.
    drop(writeln!(out, "{text}"));
}
