//! What all sessions of the process share.

use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, watch};

use crate::config::{Config, ServerTls, Tls};
use crate::control::{Cluster, lock};
use crate::pool::Pool;
use crate::sql::{Verdict, VerdictCache};
use crate::tls::{Kept, TlsError};
use crate::upstream::{Cancels, Catalogs, Verifiers};

/// Memory for verdicts.
const VERDICTS_BYTES: usize = 16 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) verifiers: Verifiers,
    pub(crate) catalogs: Arc<Catalogs>,
    pub(crate) cancels: Cancels,
    pub(crate) pool: Arc<Pool>,
    /// TLS for clients, if it is on.
    pub(crate) tls: Option<Kept<Tls>>,
    /// TLS to servers.
    pub(crate) server_tls: Arc<Kept<ServerTls>>,
    /// One permit for each client that may be logged in.
    pub(crate) places: Arc<Semaphore>,
    /// Turns true when the process is to end.
    pub(crate) stopping: watch::Receiver<bool>,
    verdicts: Mutex<VerdictCache>,
}

impl Shared {
    pub(crate) fn new(
        config: Arc<Config>,
        cluster: Arc<Cluster>,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, TlsError> {
        let places = usize::try_from(config.max_client_connections).unwrap_or(usize::MAX);
        let server_tls = Arc::new(Kept::new(config.server_tls.clone())?);
        Ok(Self {
            tls: config.tls.clone().map(Kept::new).transpose()?,
            catalogs: Arc::new(Catalogs::new(config.auth.clone(), server_tls.clone())),
            verifiers: Verifiers::new(config.auth.clone(), config.connect_timeout, server_tls.clone()),
            cancels: Cancels::default(),
            pool: Arc::new(Pool::new(config.pool.clone())),
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            stopping,
            verdicts: Mutex::new(VerdictCache::new(VERDICTS_BYTES)),
            server_tls,
            config,
            cluster,
        })
    }

    /// Reads certificates again where the files changed, or where that is `asked` for. Blocks.
    pub(crate) fn refresh_certificates(&self, asked: bool) {
        if let Some(tls) = &self.tls {
            tls.refresh(asked);
        }
        if self.config.server_tls.root.is_some() {
            self.server_tls.refresh(asked);
        }
    }

    /// What a text means in a database. What it redefines is doubted from now on.
    pub(crate) fn verdict(&self, database: &str, sql: &[u8]) -> Arc<Verdict> {
        let edition = self.catalogs.edition(database);
        let verdict = lock(&self.verdicts).verdict(database, &edition, sql);
        if let Some(defined) = &verdict.defines {
            self.catalogs.doubt(database, defined);
        }
        verdict
    }

    /// A standby refused to run these texts in recovery.
    pub(crate) fn refused_by_standby<'a>(&self, database: &str, texts: impl Iterator<Item = &'a [u8]>) {
        let edition = self.catalogs.edition(database);
        let mut verdicts = lock(&self.verdicts);
        texts.for_each(|text| verdicts.refused_by_standby(database, &edition, text));
    }
}
