//! A logged-in client and its main loop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::{NodeId, Topology};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clients::{ClientId, Presence};
use crate::config::{Config, Effective};
use crate::pipe::Pipe;
use crate::pool::{Account, Place};
use crate::session::{Segment, Session, TakeError, Taken};
use crate::shared::Shared;
use crate::sql::Why;
use crate::sqlstate::Trouble;
use crate::upstream::{CancelSlot, Login, Reported};
use crate::wire::backend::{self, Severity};
use crate::wire::startup::CancelKey;
use crate::wire::{frame, frontend};
use crate::workers;

use super::Moving;
use super::login::Admitted;
use super::say_goodbye;
use super::servers::Servers;
use super::spare::Gathering;

/// Who leaves and does not read the rest of its answers in this time does not want them.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Why a session ends.
#[derive(Debug)]
pub(super) enum Gone {
    /// The client said goodbye, or its socket did.
    Left,
    /// Its socket failed.
    Io(io::Error),
    /// The client is told why.
    Trouble(Trouble),
    /// Not at all: the worker of this number goes on with it.
    Moves(usize),
}

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Left } else { Self::Io(error) }
    }
}

/// See the module.
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) id: ClientId,
    pub(super) pipe: Pipe,
    pub(super) login: Login,
    pub(super) user: String,
    pub(super) account: Arc<Account>,
    /// Where its connections come from, once it had one.
    pub(super) places: Vec<Arc<Place>>,
    pub(super) session: Session,
    pub(super) servers: Servers,
    pub(super) topology: watch::Receiver<Option<Arc<Topology>>>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) slot: Arc<CancelSlot>,
    /// Settings as the client was last told.
    pub(super) told: Reported,
    /// Messages gathered so far.
    pub(super) segment: Gathering,
    /// Messages are dropped up to the next `Sync`.
    pub(super) skipping: bool,
    /// So many bytes of the client's are still part of a message that nobody wants.
    pub(super) discard: usize,
    /// So many bytes of the client's are still part of a message that this server has the beginning of.
    pub(super) owed: Option<(NodeId, usize)>,
    /// What the session had on one connection only is gone: it cannot go on.
    pub(super) bereft: Option<Trouble>,
    /// What is in effect, as of the last statement.
    pub(super) config: Arc<Config>,
    /// What of it holds for this user in this database.
    pub(super) own: Effective,
    pub(super) configured: watch::Receiver<Arc<Config>>,
    pub(super) presence: Presence,
    /// What the badge says keeps it on its connection.
    pub(super) kept_by: Option<Why>,
    key: Option<CancelKey>,
    /// The last order to move that it heard.
    heard: u64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, pipe: Pipe, admitted: Admitted) -> Self {
        let account = shared.pool.account(Account::new(&admitted.user, &admitted.login));
        let statements = admitted.presence.badge.statements.clone();
        let mut configured = shared.config.subscribe();
        let config = configured.borrow_and_update().clone();
        Self {
            id: admitted.presence.badge.id,
            own: config.effective(&admitted.user, account.database()),
            config,
            configured,
            kept_by: None,
            account,
            places: Vec::new(),
            topology: shared.cluster.follow(),
            stopping: shared.stopping.clone(),
            session: Session::new(statements, shared.identities.clone()),
            shared,
            pipe,
            login: admitted.login,
            user: admitted.user,
            presence: admitted.presence,
            servers: Servers::default(),
            slot: Arc::default(),
            told: Reported::default(),
            segment: Gathering::default(),
            skipping: false,
            discard: 0,
            owed: None,
            bereft: None,
            key: None,
            heard: 0,
        }
    }

    /// Serves the session to its end, or until it moves.
    pub(super) async fn run(mut self: Box<Self>) -> Option<Moving> {
        // What is not waited for in each statement has memory of its own while it is: the task of a client is there for
        // as long as the client is, whatever it does.
        let gone = match Box::pin(self.welcome()).await {
            Ok(()) if self.login.replication.is_some() => Box::pin(self.replicate()).await,
            Ok(()) => self.serve().await,
            Err(gone) => gone,
        };
        self.end(gone).await
    }

    /// Goes on on this thread.
    pub(super) async fn go_on(mut self: Box<Self>) -> Option<Moving> {
        let gone = match self.pipe.settle() {
            Ok(()) => self.serve().await,
            Err(error) => Gone::Io(error),
        };
        self.end(gone).await
    }

    async fn end(mut self: Box<Self>, gone: Gone) -> Option<Moving> {
        match gone {
            Gone::Moves(to) => return Some(Moving { client: self, to }),
            Gone::Left => {
                tracing::debug!(user = self.user, "client left");
                // It may still read what it asked for.
                drop(timeout(LAST_WORDS_MAX, self.flush_or_go()).await);
            }
            Gone::Io(error) => tracing::debug!(user = self.user, %error, "client lost"),
            Gone::Trouble(trouble) => {
                tracing::info!(user = self.user, ?trouble, "session ended");
                say_goodbye(&mut self.pipe, &trouble).await;
            }
        }
        if let Some(key) = self.key {
            self.shared.cancels.forget(key);
        }
        self.part();
        let shared = self.shared.clone();
        drop(self);
        if shared.pauses.any() {
            shared.pauses.settled.notify_waiters();
        }
        None
    }

    /// Where it goes on, if it is to, and nothing of it has to stay here. For when nothing runs.
    pub(super) fn departs_for(&mut self) -> Option<usize> {
        let free = self.servers.is_empty()
            && self.segment.is_empty()
            && self.pipe.moves()
            && self.discard == 0
            && self.owed.is_none();
        if free { workers::departs_for(&mut self.heard) } else { None }
    }

    /// Opens a server connection, so that the settings reported to the client are real, and a refusal of
    /// the login is the server's own.
    async fn welcome(&mut self) -> Result<(), Gone> {
        let node = match self.login.replication {
            Some(_) => self.reach_for_replication().await?,
            None => self.reach_any().await?,
        };
        let node = node.map_err(Gone::Trouble)?;
        if let Some(server) = self.servers.get(node) {
            self.told = server.parameters.clone();
            let key = self.shared.cancels.register(server.gate.key.pid, &self.slot);
            self.key = Some(key);
            backend::put_key(&mut self.pipe.output, key);
        }
        for (name, value) in self.told.iter() {
            backend::put_parameter(&mut self.pipe.output, name, value);
        }
        self.note_told();
        backend::put_ready(&mut self.pipe.output, self.session.status());
        self.pipe.flush().await?;
        if self.login.replication.is_some() {
            return Ok(());
        }
        let shared = &self.shared;
        shared.catalogs.follow(&shared.cluster, &shared.stopping, self.login.database(), &self.user);
        self.begin_floor(node).await;
        Ok(())
    }

    async fn serve(&mut self) -> Gone {
        loop {
            if let Err(gone) = self.step().await {
                return gone;
            }
        }
    }

    /// Uses the client's bytes, or waits for more.
    async fn step(&mut self) -> Result<(), Gone> {
        if (self.discard > 0 || self.owed.is_some()) && self.settle_debts().await? {
            return self.idle().await;
        }
        if self.skipping {
            return if self.skip()? { Ok(()) } else { self.idle().await };
        }
        if self.pipe.input.is_empty() {
            return self.idle().await;
        }
        let judge = self.shared.judge(self.account.database());
        self.segment.under_way = false;
        match self.session.take(&mut self.pipe.input, &mut self.segment, &judge) {
            Ok(Taken::Complete) => {
                let segment = self.segment.take();
                self.work(segment).await
            }
            Ok(Taken::Incomplete) => self.idle().await,
            Ok(Taken::Ignored(rest)) => {
                self.discard = rest;
                Ok(())
            }
            Ok(Taken::Goodbye) => Err(Gone::Left),
            Err(error) => Err(protocol(&error)),
        }
    }

    /// Gets rid of bytes that belong to a message already dealt with. Whether more of them must come.
    async fn settle_debts(&mut self) -> Result<bool, Gone> {
        let unwanted = self.discard.min(self.pipe.input.len());
        frame::consume(&mut self.pipe.input, unwanted);
        self.discard -= unwanted;
        if let Some((node, rest)) = self.owed.take() {
            let bytes = self.pipe.input.split_to(rest.min(self.pipe.input.len()));
            if let Some(server) = self.servers.get_mut(node) {
                server.pipe.output.extend_from_slice(&bytes);
                if server.pipe.flush().await.is_err() {
                    self.drop_server(node, "the connection broke");
                }
            }
            self.owed = Some((node, rest - bytes.len())).filter(|(_, rest)| *rest > 0);
        }
        Ok(self.discard > 0 || self.owed.is_some())
    }

    /// Drops messages up to a `Sync` and answers that. False when more bytes are needed.
    fn skip(&mut self) -> Result<bool, Gone> {
        let header = frontend::header(&self.pipe.input);
        let header = header.map_err(|error| protocol(&TakeError::Frame(error)))?;
        let Some(header) = header else { return Ok(false) };
        match header.tag {
            b'X' => return Err(Gone::Left),
            b'S' => {
                self.skipping = false;
                backend::put_ready(&mut self.pipe.output, self.session.status());
            }
            _ => {}
        }
        self.discard = header.len;
        Ok(true)
    }

    /// Answers a segment with an error instead of running it.
    pub(super) fn refuse(&mut self, trouble: &Trouble, ended: bool, rest: usize) {
        tracing::info!(user = self.user, ?trouble, "statement not run or lost");
        self.presence.badge.counts.errors.add(1);
        trouble.response(Severity::Error).put(&mut self.pipe.output);
        self.session.abandon_tx();
        // What was gathered of the batch goes with it.
        self.segment.clear();
        self.discard = rest;
        if ended {
            backend::put_ready(&mut self.pipe.output, self.session.status());
        } else {
            self.skipping = true;
        }
    }

    /// A segment behind an error is not run: it, and what follows it up to the next `Sync`, is passed
    /// over. A query or a function call in it is, too.
    pub(super) fn pass_over(&mut self, segment: &Segment) {
        self.discard = segment.rest;
        if segment.ends_with_sync() {
            backend::put_ready(&mut self.pipe.output, self.session.status());
        } else {
            self.skipping = true;
        }
    }

    /// Whether the client is to be told of a setting; notes that it is.
    pub(super) fn tells(&mut self, name: &str, value: &str) -> bool {
        // The client talks to several servers; whether one of them is in recovery tells it nothing.
        if name == "in_hot_standby" || !self.told.note(name, value) {
            return false;
        }
        self.note_told();
        true
    }

    /// Some settings concern the proxy, too.
    pub(super) fn note_told(&mut self) {
        let is = |name: &str, value: &str| self.told.get(name) == Some(value);
        // With backslashes in plain strings, texts mean something else than the classifier reads.
        if is("standard_conforming_strings", "off") {
            self.session.pin();
        }
        self.session.reads_as_usual = is("default_transaction_read_only", "on");
    }
}

pub(super) fn protocol(error: &TakeError) -> Gone {
    Gone::Trouble(Trouble::Protocol(error.to_string()))
}
