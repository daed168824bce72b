//! The configurations that are shipped are valid, and describe one cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use pgherd_agent::cluster::NodeKind;
use pgherd_agent::config::{Config, load};

fn configs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

/// Every `agent.toml` under `configs/`, by folder.
fn agents() -> Vec<(String, Config)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(configs()).unwrap() {
        let folder = entry.unwrap();
        let file = folder.path().join("agent.toml");
        if file.exists() {
            let config = load(&file)
                .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
            found.push((folder.file_name().into_string().unwrap(), config));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn every_agent_configuration_is_valid_and_names_its_own_server() {
    let agents = agents();
    let folders: Vec<&str> = agents.iter().map(|(folder, _)| folder.as_str()).collect();
    assert_eq!(folders, ["server1", "server2", "server3", "server4"]);
    for (folder, config) in &agents {
        assert_eq!(config.node.name.as_str(), folder);
        assert_eq!(
            config.node.kind,
            if folder == "server4" { NodeKind::Witness } else { NodeKind::Database }
        );
    }
}

#[test]
fn all_nodes_agree_on_what_must_be_the_same() {
    let agents = agents();
    let first = &agents[0].1;
    for (folder, config) in &agents {
        assert_eq!(config.cluster, first.cluster, "{folder}");
        assert_eq!(config.members, first.members, "{folder}");
        assert_eq!(config.timings, first.timings, "{folder}");
        assert_eq!(config.failover, first.failover, "{folder}");
        let listed = config.members.iter().find(|member| member.id == config.node.id).unwrap();
        assert_eq!(listed.agent, config.node.listen, "{folder}");
    }
}

#[test]
fn postgresql_includes_what_the_agents_write() {
    let text = std::fs::read_to_string(configs().join("postgresql/postgresql.conf")).unwrap();
    let last = text.lines().last().unwrap();
    for (folder, config) in agents() {
        let Some(postgres) = config.postgres else { continue };
        let own = postgres.data_dir.join("pgherd.conf");
        assert_eq!(last, format!("include_if_exists = '{}'", own.display()), "{folder}");
    }
}
