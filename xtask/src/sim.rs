//! Builds the simulator, with the planted defects that only it knows, and becomes it.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use crate::program::becomes;
use crate::{built, cargo};

/// What builds it. Always the whole workspace: for one package the dependencies would be built anew.
pub(crate) const BUILD: [&str; 6] =
    ["build", "--workspace", "--bin", "pgherd-sim", "--features", "pgherd-sim/defects"];

/// Where it then is.
pub(crate) const PROGRAM: &str = "debug/pgherd-sim";

/// Runs the simulator with these options.
pub(crate) fn run(options: &[OsString]) -> ExitCode {
    match cargo().arg("--quiet").args(BUILD).status() {
        Ok(status) if status.success() => (),
        Ok(status) => {
            println!("the simulator cannot be built: cargo ended with {status}");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            println!("cargo cannot be run: {error}");
            return ExitCode::FAILURE;
        }
    }
    let mut simulator = Command::new(built(PROGRAM));
    simulator.args(options);
    becomes(simulator)
}
