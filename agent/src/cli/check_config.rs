//! `pgherd check-config`: an agent's configuration is checked here, a proxy's by the proxy itself,
//! since each program knows its own keys.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::Table;

use super::error::CliError;
use crate::cluster::NodeKind;
use crate::config::Config;

/// What is right with the file. For a proxy's configuration this returns only when `pgherd-proxy`
/// cannot be run: it takes the place of this program.
pub(super) fn run(file: &Path) -> Result<String, CliError> {
    let text =
        std::fs::read_to_string(file).map_err(|cause| CliError::Read { path: file.to_owned(), cause })?;
    if is_proxy(&text) {
        return Err(become_proxy(file));
    }
    match Config::parse(&text) {
        Ok(config) => Ok(summary(file, &config)),
        Err(problems) => Err(CliError::Invalid { path: file.to_owned(), problems }),
    }
}

/// A proxy's configuration is known by its `[proxy]`. Where the text is not even TOML, the header is
/// looked for.
fn is_proxy(text: &str) -> bool {
    match text.parse::<Table>() {
        Ok(table) => table.contains_key("proxy"),
        Err(_) => text.lines().any(|line| line.trim() == "[proxy]"),
    }
}

fn become_proxy(file: &Path) -> CliError {
    let program = match std::env::current_exe() {
        Ok(own) => own.with_file_name("pgherd-proxy"),
        Err(_) => PathBuf::from("pgherd-proxy"),
    };
    let cause: io::Error = Command::new(&program).arg("--check-config").arg(file).exec();
    CliError::NoProxy { file: file.to_owned(), program, cause }
}

fn summary(file: &Path, config: &Config) -> String {
    let kind = match config.node.kind {
        NodeKind::Database => "database",
        NodeKind::Witness => "witness",
    };
    let members: Vec<&str> = config.members.iter().map(|member| member.name.as_str()).collect();
    let tags = config.node.tags.spelled();
    let tags = if tags.is_empty() { String::new() } else { format!("its tags: {}\n", tags.join(", ")) };
    let upstream = config.node.upstream.as_ref();
    let upstream = upstream.map_or(String::new(), |name| {
        format!(
            "it streams from {name} while that is a standby in service, and commits never wait for it then\n"
        )
    });
    format!(
        "{} is valid: {kind} node {} (id {}) of cluster {}, whose {} {}: {}\n{tags}{upstream}",
        file.display(),
        config.node.name,
        config.node.id,
        config.cluster,
        members.len(),
        if members.len() == 1 { "member is" } else { "members are" },
        members.join(", ")
    )
}
