//! Builds the programs for real use and becomes one of those that put a whole cluster up.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::{built, cargo};

/// Runs the program with these options.
pub(crate) fn run(program: &str, options: &[OsString]) -> ExitCode {
    if options.iter().any(|option| option == "--help" || option == "-h") {
        let mut help = cargo();
        help.args(["run", "--quiet", "--package", "pgherd-cluster-tests", "--bin", program, "--"]);
        help.args(options);
        return becomes(help);
    }
    if let Some(refusal) = root_is_missing() {
        println!("{refusal}");
        return ExitCode::FAILURE;
    }
    println!("building the programs (this takes some minutes the first time)");
    match build().status() {
        Ok(status) if status.success() => (),
        Ok(status) => {
            println!("the programs cannot be built: cargo ended with {status}");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            println!("cargo cannot be run: {error}");
            return ExitCode::FAILURE;
        }
    }
    let mut program = Command::new(built("release").join(program));
    program.args(options);
    becomes(program)
}

/// Why nothing is started, if this is not root.
pub(crate) fn root_is_missing() -> Option<&'static str> {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() != 0).then_some(
        "This needs root: PostgreSQL must run as user `postgres`, and missing packages are installed.\n\
         Run it with sudo, or as root in a container.",
    )
}

/// What builds all programs for real use.
pub(crate) fn build() -> Command {
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--bins",
        "-p",
        "pgherd-agent",
        "-p",
        "pgherd-proxy",
        "-p",
        "pgherd-cluster-tests",
    ]);
    build
}

/// Replaces this process, so that a Ctrl-C or a `kill` meets the program itself.
pub(crate) fn becomes(mut command: Command) -> ExitCode {
    let error = command.exec();
    println!("{} cannot be run: {error}", command.get_program().display());
    ExitCode::FAILURE
}
