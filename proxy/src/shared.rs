//! What all sessions of the process share.

use std::sync::{Arc, Mutex};

use pgherd_common::NodeId;
use tokio::sync::watch;

use crate::admin::{self, Scope, Table};
use crate::clients::Clients;
use crate::config::{Change, Config, ServerTls, Tls};
use crate::control::{Cluster, lock};
use crate::pauses::Pauses;
use crate::pool::Pool;
use crate::session::{Identities, Judge};
use crate::sql::{Show, Verdict};
use crate::tls::{Kept, TlsError};
use crate::upstream::{Cancels, Catalogs, Verifiers};
use crate::verdicts::Verdicts;

/// Memory for verdicts, of all threads together.
const VERDICTS_BYTES: usize = 16 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What is in effect; another one after a reload.
    pub(crate) config: watch::Sender<Arc<Config>>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) verifiers: Verifiers,
    pub(crate) catalogs: Arc<Catalogs>,
    pub(crate) cancels: Cancels,
    pub(crate) pool: Arc<Pool>,
    /// TLS for clients, if it is on.
    pub(crate) tls: Option<Kept<Tls>>,
    /// TLS to servers.
    pub(crate) server_tls: Arc<Kept<ServerTls>>,
    /// Who is connected.
    pub(crate) clients: Arc<Clients>,
    /// What administrators have paused.
    pub(crate) pauses: Pauses,
    /// Changes of the configuration file that wait for a restart.
    pub(crate) waiting: Mutex<Vec<Change>>,
    /// Turns true when the process is to end.
    pub(crate) stopping: watch::Receiver<bool>,
    /// Tells prepared statements apart.
    pub(crate) identities: Arc<Identities>,
    verdicts: Verdicts,
}

impl Shared {
    pub(crate) fn new(
        config: Arc<Config>,
        cluster: Arc<Cluster>,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, TlsError> {
        let server_tls = Arc::new(Kept::new(config.server_tls.clone())?);
        let current = watch::Sender::new(config);
        let config = current.borrow().clone();
        Ok(Self {
            tls: config.tls.clone().map(Kept::new).transpose()?,
            catalogs: Arc::new(Catalogs::new(config.auth.clone(), server_tls.clone())),
            verifiers: Verifiers::new(config.auth.clone(), config.connect_timeout, server_tls.clone()),
            cancels: Cancels::default(),
            pool: Arc::new(Pool::new(current.subscribe())),
            clients: Arc::default(),
            identities: Arc::default(),
            pauses: Pauses::default(),
            waiting: Mutex::default(),
            stopping,
            verdicts: Verdicts::new(config.threads, VERDICTS_BYTES),
            server_tls,
            config: current,
            cluster,
        })
    }

    /// Answers `show` for somebody whose last read went to `last_read`.
    pub(crate) fn answer(&self, show: Show, last_read: Option<NodeId>) -> Table {
        let (config, waiting) = (self.config(), lock(&self.waiting).clone());
        let (config, waiting) = (&config, waiting.as_slice());
        let Self { cluster, pool, clients, pauses, verdicts, .. } = self;
        let catalogs = &|| self.catalogs.usage();
        let scope = Scope { cluster, pool, clients, pauses, verdicts, catalogs, config, waiting, last_read };
        admin::answer(show, &scope)
    }

    /// What is in effect now.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Reads certificates again where the files changed, or where that is `asked` for. Blocks.
    pub(crate) fn refresh_certificates(&self, asked: bool) {
        if let Some(tls) = &self.tls {
            tls.refresh(asked);
        }
        let config = self.config();
        let servers = &config.server_tls;
        if servers.root.is_some() || servers.own.is_some() {
            self.server_tls.refresh(asked);
        }
    }

    /// Says what texts mean in a database.
    pub(crate) fn judge<'a>(&'a self, database: &'a str) -> InDatabase<'a> {
        InDatabase { shared: self, database }
    }

    /// A standby refused to run these texts in recovery.
    pub(crate) fn refused_by_standby<'a>(&self, database: &str, texts: impl Iterator<Item = &'a [u8]>) {
        self.verdicts.refused_by_standby(database, texts);
    }
}

/// Says what texts mean in a database.
pub(crate) struct InDatabase<'a> {
    shared: &'a Shared,
    database: &'a str,
}

impl Judge for InDatabase<'_> {
    /// What the text redefines is doubted from now on.
    fn verdict(&self, sql: &[u8]) -> Arc<Verdict> {
        let Shared { verdicts, catalogs, .. } = self.shared;
        let verdict = verdicts.verdict(catalogs.as_ref(), self.database, sql);
        if let Some(defined) = &verdict.defines {
            catalogs.doubt(self.database, defined);
        }
        verdict
    }

    fn version(&self) -> Option<u64> {
        Some(self.shared.verdicts.version(self.shared.catalogs.as_ref()))
    }
}
