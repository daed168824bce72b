//! The server that the proxy is compared with: a PostgreSQL that stands alone, with the same settings and
//! the same roles as those of the cluster.

use std::path::Path;

use crate::builder::{StartError, make_dir_for_postgres, write};
use crate::network::{Network, NetworkError};
use crate::postgres::PostgresServer;
use crate::undertaker::Undertaker;

/// Runs until it is dropped.
pub(super) struct Alone {
    pub(super) postgres: PostgresServer,
    #[expect(dead_code, reason = "kept for its drop: it holds the claim on the port")]
    network: Network,
    #[expect(dead_code, reason = "kept for its drop: it ends the server and removes its files")]
    undertaker: Undertaker,
}

impl Alone {
    /// Makes it and starts it.
    pub(super) async fn start(bin_dir: &Path, settings: &str) -> Result<Self, StartError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Io { path, source }
        };
        let mut undertaker = Undertaker::start().map_err(io(Path::new("/bin/sh")))?;
        let made = tempfile::Builder::new().prefix("pgherd-alone-").tempdir();
        let dir = made.map_err(io(&std::env::temp_dir()))?.keep();
        undertaker.will_remove(&dir).map_err(io(&dir))?;
        make_dir_for_postgres(&dir)?;
        let mut network = Network::loopback(1);
        let place = network.places().first().cloned().ok_or(NetworkError::NoFreeSubnet)?;
        let inside = dir.join("server");
        let postgres = PostgresServer {
            bin_dir: bin_dir.to_owned(),
            place,
            port: network.port(5432, 5900)?,
            data_dir: inside.join("data"),
            conf_dir: inside.join("conf"),
            socket_dir: inside.join("socket"),
            log: inside.join("postgres.log"),
        };
        for dir in [&inside, &postgres.conf_dir, &postgres.socket_dir] {
            make_dir_for_postgres(dir)?;
        }
        write(&postgres.config_file(), &(postgres.config() + settings))?;
        write(&postgres.conf_dir.join("pg_hba.conf"), &postgres.hba())?;
        write(&postgres.conf_dir.join("pg_ident.conf"), "")?;
        let failed = |step: &str| {
            let step = format!("{step} the stand-alone server");
            move |source| StartError::Postgres { step, source }
        };
        postgres.initdb().await.map_err(failed("initdb"))?;
        postgres.start().await.map_err(failed("start"))?;
        postgres.create_roles().await.map_err(failed("create the roles on"))?;
        Ok(Self { postgres, network, undertaker })
    }
}
