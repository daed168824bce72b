//! The other proxies' programs: Debian's packages, installed where they are missing, and their versions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::target::Target;
use crate::failure::Failure;
use crate::install;
use crate::process::run;

const SERVICE_TIME_MAX: Duration = Duration::from_secs(60);
const VERSION_TIME_MAX: Duration = Duration::from_secs(10);

/// The program of a target that is somebody else's, and its package.
fn of(target: Target) -> Option<(&'static str, &'static str)> {
    match target {
        Target::PgBouncer | Target::PgBouncerSession => Some(("/usr/sbin/pgbouncer", "pgbouncer")),
        Target::Pgpool => Some(("/usr/sbin/pgpool", "pgpool2")),
        Target::HaProxy => Some(("/usr/sbin/haproxy", "haproxy")),
        Target::Direct | Target::Pgherd | Target::Relay => None,
    }
}

/// Where the target's program is; `None` if it is one of ours. Installs it if it is missing.
pub(super) async fn program(target: Target, say: &dyn Fn(&str)) -> Result<Option<PathBuf>, Failure> {
    let Some((path, package)) = of(target) else { return Ok(None) };
    let path = Path::new(path);
    if !path.exists() {
        install::package(path, package, say).await?;
        // Debian starts what it installs, on the usual ports and again at every boot.
        let commands = [["invoke-rc.d", package, "stop"], ["update-rc.d", package, "disable"]];
        for [program, first, second] in commands {
            let mut command = Command::new(program);
            command.args([first, second]);
            if let Err(error) = run(command, SERVICE_TIME_MAX).await {
                say(&format!("the service {package} that was just installed may run: {error}"));
            }
        }
    }
    Ok(Some(path.to_owned()))
}

/// What a program calls itself, in one line.
pub(super) async fn version(program: &Path) -> String {
    // HAProxy knows the short one only, PostgreSQL's programs either, the others the long one.
    let option = if program.ends_with("haproxy") { "-v" } else { "--version" };
    let mut command = Command::new(program);
    command.arg(option).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_TIME_MAX, command.output()).await;
    let Ok(Ok(output)) = output else { return "unknown".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    said.lines().next().unwrap_or("unknown").trim().to_owned()
}

/// The same of one of ours, with which build it is: `cargo xtask release` makes another one than cargo alone.
pub(super) async fn our_version(program: &Path) -> String {
    let build = program.parent().and_then(Path::file_name).unwrap_or_default().display();
    format!("{} ({build})", version(program).await)
}

/// Whether PgBouncer of this version carries prepared statements in transaction mode, as it does from 1.21 on.
pub(super) fn carries_prepared(version: &str) -> bool {
    let numbers = version.split_whitespace().last().unwrap_or_default();
    let mut numbers = numbers.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 21)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_statements_came_with_1_21() {
        assert!(!carries_prepared("PgBouncer 1.18.0"));
        assert!(carries_prepared("PgBouncer 1.21.0"));
        assert!(carries_prepared("PgBouncer 2.0.1"));
        assert!(!carries_prepared("unknown"));
    }
}
