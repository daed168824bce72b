//! What there is to copy.

use std::path::PathBuf;
use std::time::Duration;

use super::super::session::{Session, SessionError};
use super::super::settings::{Settings, Upstream};
use super::CloneError;

/// Every file is looked at once, to know how large it is.
const PATIENCE: Duration = Duration::from_secs(120);

/// Of a server that can be copied.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) system_identifier: u64,
    /// Of everything in the data directory itself, in bytes.
    pub(super) data: u64,
    pub(super) tablespaces: Vec<Tablespace>,
}

/// What lies elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tablespace {
    pub(super) oid: u32,
    /// Over there.
    pub(super) location: PathBuf,
    pub(super) bytes: u64,
}

impl Facts {
    pub(super) async fn of(settings: &Settings, from: &Upstream) -> Result<Self, CloneError> {
        let failed = |source| CloneError::Ask { source_node: Box::new(from.clone()), source };
        Self::ask(settings, from).await.map_err(failed)
    }

    async fn ask(settings: &Settings, from: &Upstream) -> Result<Self, SessionError> {
        const SPACES: &str = "SELECT oid::int8, pg_tablespace_location(oid), pg_tablespace_size(oid) \
                              FROM pg_tablespace ORDER BY oid";
        let patient = Settings { connect_timeout: PATIENCE, ..settings.clone() };
        let quick = Session::remote(settings, &from.address).await?;
        let identifier: i64 = quick.value("SELECT system_identifier FROM pg_control_system()").await?;
        let session = Session::remote(&patient, &from.address).await?;
        session.run("SET statement_timeout = '2min'", settings.connect_timeout).await?;
        let mut facts =
            Self { system_identifier: identifier.cast_unsigned(), data: 0, tablespaces: Vec::new() };
        for row in session.rows(SPACES, &[]).await? {
            let (oid, location): (i64, String) = (session.take(&row, 0)?, session.take(&row, 1)?);
            let bytes = session.take::<i64>(&row, 2)?.max(0).cast_unsigned();
            let location = PathBuf::from(location);
            // Those of the data directory have no location, or one within it.
            if location.is_absolute() {
                let oid = u32::try_from(oid).unwrap_or_default();
                facts.tablespaces.push(Tablespace { oid, location, bytes });
            } else {
                facts.data += bytes;
            }
        }
        Ok(facts)
    }

    /// In bytes.
    pub(super) fn total(&self) -> u64 {
        self.data + self.tablespaces.iter().map(|space| space.bytes).sum::<u64>()
    }
}
