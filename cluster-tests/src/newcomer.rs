//! A machine that comes later: its files are there, and nobody in the cluster knows of it.

use crate::builder::{StartError, node, prepare_postgres, write};
use crate::cluster::Cluster;
use crate::config_files;
use crate::network::Place;
use crate::node::Node;

/// What kind of machine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With an empty data directory.
    Database,
    /// Without one.
    Witness,
}

impl Cluster {
    /// Adds a machine to a cluster on loopback, with the next number. Its configuration lists itself, these members, and
    /// `settings` besides.
    pub fn equip(&mut self, kind: Kind, members: &[&str], settings: &str) -> Result<&mut Node, StartError> {
        let id = self.nodes().iter().map(|node| node.id).max().unwrap_or(0) + 1;
        let place = Place { host: "127.0.0.1".to_owned(), netns: None, host_if: None };
        let bin_dir = self.nodes().iter().find_map(|node| Some(node.postgres.as_ref()?.bin_dir.clone()));
        let (bin_dir, name) = (bin_dir.unwrap_or_default(), self.name().to_owned());
        let parts = self.parts_mut();
        let new = node(
            id,
            place,
            kind == Kind::Database,
            &parts.dir,
            &bin_dir,
            &parts.binaries,
            &mut parts.network,
        )?;
        prepare_postgres(&new, "")?;
        let file = new.dir.join("agent.toml");
        let known = |node: &Node| node.id == id || members.contains(&node.name.as_str());
        parts.nodes.push(new);
        let listed: Vec<&Node> = parts.nodes.iter().filter(|node| known(node)).collect();
        if let Some(new) = parts.nodes.last() {
            let state_dir = new.dir.join("state");
            write(&file, &config_files::agent(&name, new, &listed, &state_dir, ("", settings)))?;
        }
        Ok(self.node_mut(&format!("server{id}")))
    }
}
