//! One connection of the agent to a PostgreSQL.

use std::time::Duration;

use pgherd_common::HostPort;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row};

use super::own_address::OwnAddress;
use super::settings::Settings;

/// Why a connection or a query of the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No answer in time.
    #[error("PostgreSQL at {at} did not answer within {} ms", after.as_millis())]
    Silent {
        /// Which server.
        at: String,
        /// How long was waited.
        after: Duration,
    },
    /// No connection.
    #[error("cannot connect to PostgreSQL at {at}")]
    Connect {
        /// Which server.
        at: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A query failed.
    #[error("a query on PostgreSQL at {at} failed")]
    Query {
        /// Which server.
        at: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
}

impl SessionError {
    fn driver(&self) -> Option<&tokio_postgres::Error> {
        match self {
            Self::Silent { .. } => None,
            Self::Connect { source, .. } | Self::Query { source, .. } => Some(source),
        }
    }

    /// The SQLSTATE, when the server itself refused.
    pub(super) fn code(&self) -> Option<&SqlState> {
        self.driver().and_then(tokio_postgres::Error::code)
    }

    /// The error of the operating system, when there was one.
    pub(super) fn io(&self) -> Option<std::io::ErrorKind> {
        let mut cause = self.driver().and_then(std::error::Error::source);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                return Some(io.kind());
            }
            cause = error.source();
        }
        None
    }
}

/// A live connection.
pub(super) struct Session {
    client: Client,
    at: String,
    patience: Duration,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({})", self.at)
    }
}

impl Session {
    /// Connects to the agent's own PostgreSQL.
    pub(super) async fn local(settings: &Settings, own: &OwnAddress) -> Result<Self, SessionError> {
        let mut config = login(settings);
        let at = match &settings.socket_dir {
            Some(dir) => {
                config.host_path(dir).port(settings.address.port);
                format!("{}/.s.PGSQL.{}", dir.display(), settings.address.port)
            }
            None => {
                let found = own.resolve(&settings.address, settings.connect_timeout / 2).await;
                // Without any the driver tells what is wrong with the name.
                config.host(&settings.address.host).port(settings.address.port);
                for (number, address) in found.into_iter().enumerate() {
                    if number > 0 {
                        config.host(&settings.address.host);
                    }
                    config.hostaddr(address);
                }
                settings.address.to_string()
            }
        };
        Self::connect(&config, at, settings.connect_timeout).await
    }

    /// Connects to another node's PostgreSQL.
    pub(super) async fn remote(settings: &Settings, other: &HostPort) -> Result<Self, SessionError> {
        let mut config = login(settings);
        config.host(&other.host).port(other.port);
        Self::connect(&config, other.to_string(), settings.connect_timeout).await
    }

    async fn connect(config: &Config, at: String, patience: Duration) -> Result<Self, SessionError> {
        match timeout(patience, config.connect(NoTls)).await {
            Err(_) => Err(SessionError::Silent { at, after: patience }),
            Ok(Err(source)) => Err(SessionError::Connect { at, source }),
            Ok(Ok((client, connection))) => {
                // Ends by itself with the client or with the server; its error shows up in queries.
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection to PostgreSQL ended");
                    }
                });
                Ok(Self { client, at, patience })
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The rows of a query.
    pub(super) async fn rows(
        &self,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SessionError> {
        let answer = timeout(self.patience, self.client.query(sql, arguments)).await;
        answer.map_err(|_| self.silent(self.patience))?.map_err(|source| self.query(source))
    }

    /// The one row of a query.
    pub(super) async fn row(
        &self,
        sql: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, SessionError> {
        let answer = timeout(self.patience, self.client.query_one(sql, arguments)).await;
        answer.map_err(|_| self.silent(self.patience))?.map_err(|source| self.query(source))
    }

    /// The one value of a query.
    pub(super) async fn value<T>(&self, sql: &str) -> Result<T, SessionError>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        self.take(&self.row(sql, &[]).await?, 0)
    }

    /// A column; a type we did not expect is an error of the query.
    pub(super) fn take<'r, T>(&self, row: &'r Row, column: usize) -> Result<T, SessionError>
    where
        T: tokio_postgres::types::FromSql<'r>,
    {
        row.try_get(column).map_err(|source| self.query(source))
    }

    /// Runs statements that return nothing, within `deadline`.
    pub(super) async fn run(&self, sql: &str, deadline: Duration) -> Result<(), SessionError> {
        let answer = timeout(deadline, self.client.batch_execute(sql)).await;
        answer.map_err(|_| self.silent(deadline))?.map_err(|source| self.query(source))
    }

    fn silent(&self, after: Duration) -> SessionError {
        SessionError::Silent { at: self.at.clone(), after }
    }

    fn query(&self, source: tokio_postgres::Error) -> SessionError {
        SessionError::Query { at: self.at.clone(), source }
    }
}

/// The value with which the server runs, of a row of `pg_settings AS s`: also where the agent's own sessions have another one, by
/// [`login`] or by what is set for its role or its database.
pub(super) const CONFIGURED: &str = "coalesce(CASE WHEN s.source IN ('database', 'user', 'database user', 'client', 'session') \
     THEN coalesce((SELECT f.setting FROM pg_file_settings AS f WHERE lower(f.name) = lower(s.name) AND f.error IS NULL \
                     ORDER BY f.seqno DESC LIMIT 1), s.boot_val) \
     ELSE current_setting(s.name, true) END, '')";

fn login(settings: &Settings) -> Config {
    let mut config = Config::new();
    config.user(&settings.user).dbname(&settings.database).application_name("pgherd-agent");
    // A query whose answer nobody awaits any more must not run on. What a cluster sets for its applications does not concern
    // the agent: a standby takes nothing serializable, a schema of somebody's may have functions by PostgreSQL's names, and
    // not every style in which a time is printed is read as the same time.
    config.options(
        "-c statement_timeout=10s -c lock_timeout=5s -c search_path=pg_catalog \
         -c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off \
         -c default_transaction_deferrable=off -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 \
         -c datestyle=ISO",
    );
    config.connect_timeout(settings.connect_timeout).tcp_user_timeout(settings.connect_timeout * 3);
    if let Some(password) = &settings.password {
        config.password(&password.0);
    }
    config
}
