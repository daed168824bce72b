//! Checks in a row, each with a line that says how it ended and how long it took.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::{built, cargo, sim};

/// One command.
pub(crate) struct Stage {
    name: &'static str,
    command: Command,
}

/// A stage that is a cargo command.
fn stage(name: &'static str, arguments: &[&str]) -> Stage {
    let mut command = cargo();
    command.args(arguments);
    Stage { name, command }
}

/// What `cargo xtask test` does.
pub(crate) fn test_stages() -> Vec<Stage> {
    const CLUSTERS: &str = "pgherd-cluster-tests";
    let nextest = is_installed("nextest");
    let mut documentation = stage("documentation", &["doc", "--workspace", "--no-deps"]);
    documentation.command.env("RUSTDOCFLAGS", "-D warnings");
    let (units, tidy, clusters) = if nextest {
        (
            // Always the whole workspace: for fewer packages the dependencies would be built anew.
            stage(
                "unit and integration tests",
                &["nextest", "run", "--workspace", "-E", "not package(pgherd-cluster-tests)"],
            ),
            stage("tidy", &["nextest", "run", "--workspace", "-E", "binary(tidy)"]),
            stage(
                "real clusters",
                &[
                    "nextest",
                    "run",
                    "--workspace",
                    "-E",
                    "package(pgherd-cluster-tests) and not binary(tidy)",
                ],
            ),
        )
    } else {
        (
            stage("unit and integration tests", &["test", "--workspace", "--exclude", CLUSTERS]),
            stage("tidy", &["test", "-p", CLUSTERS, "--test", "tidy"]),
            // Side by side, clusters would only disturb each other's timing.
            stage("real clusters", &["test", "-p", CLUSTERS, "--no-fail-fast", "--", "--test-threads=1"]),
        )
    };
    let mut install = Command::new(built("debug/pgherd-demo"));
    install.arg("--install-only");
    let installed = Stage { name: "PostgreSQL and tools", command: install };
    let simulator = |name, arguments: &[&str]| {
        let mut command = Command::new(built(sim::PROGRAM));
        command.args(arguments);
        Stage { name, command }
    };
    vec![
        stage("format", &["fmt", "--all", "--check"]),
        stage("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        documentation,
        stage("programs", &["build", "--workspace", "--bins"]),
        // Some of the agent's own tests need PostgreSQL too.
        installed,
        units,
        tidy,
        stage("simulator", &sim::BUILD),
        simulator("simulated clusters", &["--seeds", "0..300"]),
        simulator("planted defects", &["defects", "--times", "1", "--quick"]),
        clusters,
    ]
}

/// What `cargo xtask fix` does.
pub(crate) fn fix_stages() -> Vec<Stage> {
    vec![
        stage(
            "clippy --fix",
            &["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"],
        ),
        stage("format", &["fmt", "--all"]),
    ]
}

/// Runs them all, also after a failure, and sums up.
pub(crate) fn run_all(mut stages: Vec<Stage>) -> ExitCode {
    let mut summary = Vec::new();
    let mut all_well = true;
    let count = stages.len();
    for (stage, number) in stages.iter_mut().zip(1..) {
        println!("==> [{number}/{count}] {}", stage.name);
        let begun = now();
        let failure = run(stage);
        let line = told(stage.name, begun.elapsed(), failure.as_deref());
        println!("<== {line}");
        all_well &= failure.is_none();
        summary.push(line);
    }
    println!("\n{}", summary.join("\n"));
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(stage: &mut Stage) -> Option<String> {
    match stage.command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(status.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn told(name: &str, took: Duration, failure: Option<&str>) -> String {
    let seconds = took.as_secs_f64();
    match failure {
        None => format!("ok      {seconds:6.1} s  {name}"),
        Some(reason) => format!("FAILED  {seconds:6.1} s  {name} ({reason})"),
    }
}

fn is_installed(subcommand: &str) -> bool {
    let mut command = Command::new(format!("cargo-{subcommand}"));
    let quiet = command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok()
}

#[expect(clippy::disallowed_methods, reason = "measures a stage for people; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}
