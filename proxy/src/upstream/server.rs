//! A connection to a server, logged in.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::{Lsn, NodeId, NodeName};
use tokio::time::{Instant, timeout};

use crate::clients::ClientId;
use crate::control::Counts;
use crate::pipe::Pipe;
use crate::pool::Lease;
use crate::session::Known;
use crate::topology::Role;
use crate::wire::backend::{self, ServerError, Severity};
use crate::wire::frame::{self, BadFrame, Malformed};
use crate::wire::frontend;

use super::cancel::Gate;
use super::questions::{Heard, Questions};

/// See the module.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
    pub(crate) role: Role,
    pub(crate) pipe: Pipe,
    /// What it reports of its settings: mostly the same as others, and as clients were told.
    pub(crate) parameters: Reported,
    pub(crate) known: Known,
    pub(crate) counts: Arc<Counts>,
    /// What it was asked beside what the client sent.
    pub(crate) questions: Questions,
    /// How far it had replayed when it was last asked, if it is a standby.
    pub(crate) replayed: Lsn,
    /// The server said that it is ready, outside of a transaction, and nothing was sent since.
    pub(crate) at_rest: bool,
    /// The worker that watches its socket.
    pub(crate) worker: usize,
    /// Whose state is on it; 0: nobody's.
    pub(crate) owner: ClientId,
    /// Where it is interrupted.
    pub(crate) gate: Arc<Gate>,
    pub(crate) lease: Lease,
}

/// What a server reports of its settings. Mostly the same for all of its connections and clients, which then share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reported(Arc<BTreeMap<String, String>>);

impl Reported {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    /// Whether that is new.
    pub(crate) fn note(&mut self, name: &str, value: &str) -> bool {
        let new = self.get(name) != Some(value);
        if new {
            Arc::make_mut(&mut self.0).insert(name.to_owned(), value.to_owned());
        }
        new
    }
}

/// Why a query of the proxy's own failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the server broke the protocol")]
    Frame(#[from] BadFrame),
    #[error("the server broke the protocol")]
    Content(#[from] Malformed),
    #[error("the server refused: {0}")]
    Refused(ServerError),
}

impl Server {
    /// Sends what is in `pipe.output` and waits for `ReadyForQuery`. Every message of the answer is for
    /// the proxy alone; the payload of the last row is returned.
    pub(crate) async fn ask(&mut self) -> Result<Option<Vec<u8>>, QueryError> {
        self.pipe.flush().await?;
        self.let_it_finish().await?;
        let (mut row, mut refused) = (None, None);
        loop {
            while let Some((header, payload)) = frame::message(&self.pipe.input)? {
                match header.tag {
                    b'D' => row = Some(payload.to_vec()),
                    b'S' => {
                        if let Ok((name, value)) = backend::parameter(payload) {
                            self.parameters.note(name, value);
                        }
                    }
                    b'E' => refused = refused.or(ServerError::read(payload).ok()),
                    _ => {}
                }
                let fatal = refused.as_ref().is_some_and(|error| error.severity == Severity::Fatal);
                frame::consume(&mut self.pipe.input, header.len);
                match refused {
                    Some(error) if fatal || header.tag == b'Z' => return Err(QueryError::Refused(error)),
                    None if header.tag == b'Z' => return Ok(row),
                    _ => {}
                }
            }
            self.pipe.fill().await?;
        }
    }

    /// Runs a query of the proxy's own.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Option<Vec<u8>>, QueryError> {
        frontend::put_query(&mut self.pipe.output, sql);
        self.ask().await
    }

    /// Asks for its position without waiting for it: `questions` says that the answer is due. `lazily`: what
    /// was acknowledged need not be written yet.
    /// `as_login`: the session acts as the role that logged in.
    pub(crate) fn ask_position(&mut self, lazily: bool, as_login: bool) {
        self.questions.ask_position(lazily, as_login, Instant::now(), &mut self.pipe.output);
    }

    /// Asks for the number of the open transaction, ahead of what ends it. Whether that may be done.
    pub(crate) fn ask_xid(&mut self) -> bool {
        self.questions.ask_xid(&mut self.pipe.output)
    }

    /// Waits for the answers that are due, though nobody wants them any more.
    async fn let_it_finish(&mut self) -> Result<(), QueryError> {
        while self.questions.are_due() {
            let Some((header, payload)) = frame::message(&self.pipe.input)? else {
                self.pipe.fill().await?;
                continue;
            };
            if self.questions.hear(header.tag, payload, Instant::now) == Heard::Unasked && header.tag == b'E'
            {
                return Err(QueryError::Refused(ServerError::read(payload)?));
            }
            frame::consume(&mut self.pipe.input, header.len);
        }
        Ok(())
    }

    /// This worker's thread watches its socket from now on, if that can be moved.
    pub(crate) fn come_to(&mut self, worker: usize) -> io::Result<()> {
        if self.worker != worker {
            self.pipe.settle()?;
            self.worker = worker;
        }
        Ok(())
    }

    /// Whether it has said nothing since it was last used, not even goodbye.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.pipe.fill_now().is_pending() && self.pipe.input.is_empty()
    }

    /// Whatever a client left on it goes, but for what is indelible. Nothing may run on it.
    pub(crate) async fn become_nobodys(&mut self) -> Result<(), QueryError> {
        self.pipe.flush().await?;
        self.let_it_finish().await?;
        if !self.known.is_clean() {
            // The one does not forget what `random()` was told to begin with.
            let seed = rand::random::<f64>();
            frontend::put_query(&mut self.pipe.output, "DISCARD ALL");
            frontend::put_query(&mut self.pipe.output, &format!("SET seed = {seed}"));
            self.ask().await?;
            self.ask().await?;
            self.known.lose_statements();
        }
        self.known = Known::default().behind_others(std::mem::take(&mut self.known));
        self.questions.forget_laziness();
        self.owner = 0;
        Ok(())
    }

    /// Says goodbye, as far as that is possible without waiting.
    pub(crate) fn close(mut self: Box<Self>) {
        self.pipe.output.clear();
        frontend::put_terminate(&mut self.pipe.output);
        self.leave();
    }

    /// Sends what there is to be sent, and nothing more.
    pub(crate) fn leave(mut self: Box<Self>) {
        tokio::spawn(async move {
            let goodbye = async {
                self.pipe.finish().await?;
                // What it still answers is heard to its end: a broken pipe would be fatal to it, and logged.
                loop {
                    self.pipe.input.clear();
                    self.pipe.fill().await?;
                }
            };
            let heard: Result<io::Result<Infallible>, _> = timeout(Duration::from_secs(1), goodbye).await;
            // A server that is gone needs no goodbye.
            drop(heard);
        });
    }
}
