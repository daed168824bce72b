//! The description of a running cluster for other programs.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::cluster::Cluster;
use crate::node::{Node, Proxy};
use crate::postgres::APP;

/// The whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    cluster: String,
    dir: String,
    /// The beginning of a command line that reaches this cluster.
    cli: String,
    proxy: Option<ProxyDescriptor>,
    /// Proxies beyond the first.
    proxies: Vec<ProxyDescriptor>,
    nodes: Vec<NodeDescriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ProxyDescriptor {
    host: String,
    port: u16,
    pid: Option<u32>,
    user: &'static str,
    password: &'static str,
    dbname: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct NodeDescriptor {
    name: String,
    kind: &'static str,
    netns: Option<String>,
    host_if: Option<String>,
    agent: AgentDescriptor,
    postgres: Option<PostgresDescriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct AgentDescriptor {
    url: String,
    pid: Option<u32>,
    worker_pid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PostgresDescriptor {
    host: String,
    port: u16,
    data_dir: String,
    pid: Option<u32>,
}

impl Descriptor {
    /// The cluster as it is now.
    pub fn of(cluster: &Cluster) -> Self {
        let mut proxies: Vec<_> = cluster.proxies().iter().map(proxy).collect();
        let first = (!proxies.is_empty()).then(|| proxies.remove(0));
        Self {
            cluster: cluster.name().to_owned(),
            dir: cluster.dir().display().to_string(),
            cli: cluster.cli_prefix(),
            proxy: first,
            proxies,
            nodes: cluster.nodes().iter().map(node).collect(),
        }
    }

    /// Writes it as JSON; a reader sees the whole file or none.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(parent)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(path)?;
        Ok(())
    }
}

fn proxy(proxy: &Proxy) -> ProxyDescriptor {
    let (host, pid) = (proxy.place.host.clone(), proxy.process.pid());
    ProxyDescriptor { host, port: proxy.port, pid, user: APP, password: APP, dbname: APP }
}

fn node(node: &Node) -> NodeDescriptor {
    let pid = node.agent.pid();
    let postgres = node.postgres.as_ref().map(|postgres| PostgresDescriptor {
        host: postgres.place.host.clone(),
        port: postgres.port,
        data_dir: postgres.data_dir.display().to_string(),
        pid: node.postmaster(),
    });
    NodeDescriptor {
        name: node.name.clone(),
        kind: node.kind(),
        netns: node.place.netns.clone(),
        host_if: node.place.host_if.clone(),
        agent: AgentDescriptor { url: node.agent_url(), pid, worker_pid: node.worker() },
        postgres,
    }
}
