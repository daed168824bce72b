//! The configuration files of a cluster's agents and proxies.

use std::fmt::Write;
use std::path::Path;

use crate::node::Node;
use crate::postgres::{
    AGENT_PASSWORD, AGENT_USER, APP, AUTH_PASSWORD, AUTH_USER, REPLICATION_PASSWORD, REPLICATION_USER,
};

/// The text of a node's `agent.toml`. `own` belongs to its section `[node]`; `extra` is appended as it is, for timings and
/// the like.
pub fn agent(
    cluster: &str,
    node: &Node,
    members: &[&Node],
    state_dir: &Path,
    (own, extra): (&str, &str),
) -> String {
    let mut text = format!(
        "[cluster]\nname = \"{cluster}\"\n\n[node]\nid = {}\nname = \"{}\"\nkind = \"{}\"\nlisten = \"{}\"\n\
         state_dir = \"{}\"\n",
        node.id,
        node.name,
        node.kind(),
        node.agent_address(),
        state_dir.display(),
    );
    if node.postgres.is_some() {
        let _infallible = writeln!(text, "priority = {}", node.id);
    }
    text += own;
    for member in members {
        let _infallible = write!(
            text,
            "\n[[members]]\nid = {}\nname = \"{}\"\nagent = \"{}\"\n",
            member.id,
            member.name,
            member.agent_address()
        );
    }
    if let Some(postgres) = &node.postgres {
        let _infallible = write!(
            text,
            "\n[postgres]\ndata_dir = \"{}\"\nbin_dir = \"{}\"\nconfig_file = \"{}\"\naddress = \"{}\"\n\
             socket_dir = \"{}\"\nuser = \"{AGENT_USER}\"\npassword = \"{AGENT_PASSWORD}\"\n\
             replication_user = \"{REPLICATION_USER}\"\nreplication_password = \"{REPLICATION_PASSWORD}\"\n\
             log_file = \"{}\"\n",
            postgres.data_dir.display(),
            postgres.bin_dir.display(),
            postgres.config_file().display(),
            postgres.address(),
            postgres.socket_dir.display(),
            postgres.log.display(),
        );
    }
    if !extra.is_empty() {
        let _infallible = write!(text, "\n{extra}\n");
    }
    text
}

/// What a proxy is towards its clients.
#[derive(Debug, Clone, Copy)]
pub struct Front<'a> {
    /// Its name.
    pub name: &'a str,
    /// `host:port`.
    pub listen: &'a str,
    /// How many it lets in, if not as many as by default.
    pub clients_max: Option<usize>,
}

/// The text of a proxy's `proxy.toml`; `extra` is appended as it is.
pub fn proxy(cluster: &str, front: &Front<'_>, members: &[Node], extra: &str) -> String {
    let Front { name, listen, clients_max } = front;
    let clients_max =
        clients_max.map(|clients| format!("max_client_connections = {clients}\n")).unwrap_or_default();
    let agents: Vec<String> =
        members.iter().map(|member| format!("\"{}\"", member.agent_address())).collect();
    format!(
        "[cluster]\nname = \"{cluster}\"\n\n[proxy]\nname = \"{name}\"\nlisten = [\"{listen}\"]\nadmins = [\"{APP}\"]\n\
         {clients_max}\n[agents]\naddresses = [{}]\n\n[auth]\nuser = \"{AUTH_USER}\"\npassword = \"{AUTH_PASSWORD}\"\n\n{extra}\n",
        agents.join(", ")
    )
}
