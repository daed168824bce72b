//! A server apart from the cluster that subscribes to it.

use std::net::TcpListener;
use std::path::Path;

use tokio_postgres::Client;

use crate::builder::{make_dir_for_postgres, write};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::postgres::{AGENT_PASSWORD, AGENT_USER, APP, PostgresServer};
use crate::process::CommandError;

/// It has a database like the application's, and is gone with the cluster.
#[derive(Debug)]
pub struct Subscriber(PostgresServer);

impl Subscriber {
    /// Of the cluster's major version.
    pub async fn start(cluster: &Cluster, bin_dir: &Path) -> Result<Self, Failure> {
        let place = cluster.nodes().last().map(|node| node.place.clone());
        let place = place.ok_or_else(|| Failure::new("a cluster without nodes"))?;
        let port = TcpListener::bind((place.host.as_str(), 0))?.local_addr()?.port();
        let dir = cluster.dir().join("subscriber");
        let server = PostgresServer::within(&dir, bin_dir, place, port);
        for dir in [&dir, &server.conf_dir, &server.socket_dir] {
            make_dir_for_postgres(dir)?;
        }
        write(&server.config_file(), &server.config())?;
        write(&server.conf_dir.join("pg_hba.conf"), &server.hba())?;
        write(&server.conf_dir.join("pg_ident.conf"), "")?;
        server.initdb().await?;
        server.start().await?;
        server.create_roles().await?;
        Ok(Self(server))
    }

    /// A superuser's session in its database.
    pub async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.0.socket_dir).port(self.0.port).user(AGENT_USER).dbname(APP);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// How it finds whichever server of the cluster is the primary.
    pub fn publisher(cluster: &Cluster) -> String {
        let servers: Vec<&PostgresServer> =
            cluster.nodes().iter().filter_map(|node| node.postgres.as_ref()).collect();
        let hosts: Vec<&str> = servers.iter().map(|server| server.place.host.as_str()).collect();
        let ports: Vec<String> = servers.iter().map(|server| server.port.to_string()).collect();
        format!(
            "host={} port={} user={AGENT_USER} password={AGENT_PASSWORD} dbname={APP} \
             target_session_attrs=read-write connect_timeout=2",
            hosts.join(","),
            ports.join(",")
        )
    }

    /// Ends it.
    pub async fn stop(self) -> Result<(), CommandError> {
        self.0.stop().await
    }
}
