//! A connection to a server, logged in.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use pgherd_common::{HostPort, Lsn, NodeId, NodeName};
use tokio::time::timeout;

use crate::clients::ClientId;
use crate::control::Counts;
use crate::pipe::Pipe;
use crate::pool::Lease;
use crate::session::Known;
use crate::topology::Role;
use crate::wire::backend::{self, ServerError, Severity};
use crate::wire::frame::{self, BadFrame};
use crate::wire::frontend;
use crate::wire::startup::CancelKey;

use super::cancel::Gate;

/// What was committed lies before the position written; before the one inserted, where commits are
/// acknowledged before they are written.
const POSITION: &str = "SELECT CASE pg_catalog.current_setting('synchronous_commit') WHEN 'off' \
     THEN pg_catalog.pg_current_wal_insert_lsn() ELSE pg_catalog.pg_current_wal_lsn() END";

const POSITION_INSERTED: &str = "SELECT pg_catalog.pg_current_wal_insert_lsn()";

/// The position in a row's only column.
pub(crate) fn position(row: &[u8]) -> Option<Lsn> {
    // Two bytes count the columns, four the bytes of the first.
    std::str::from_utf8(row.get(6..)?).ok()?.parse().ok()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
    pub(crate) address: HostPort,
    pub(crate) role: Role,
    pub(crate) pipe: Pipe,
    pub(crate) key: CancelKey,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) known: Known,
    pub(crate) counts: Arc<Counts>,
    /// Its position was asked for, and the answer has yet to be read.
    pub(crate) position_asked: bool,
    /// How far it had replayed when it was last asked, if it is a standby.
    pub(crate) replayed: Lsn,
    /// The server said that it is ready, outside of a transaction, and nothing was sent since.
    pub(crate) at_rest: bool,
    /// Whose state is on it; 0: nobody's.
    pub(crate) owner: ClientId,
    pub(crate) gate: Gate,
    pub(crate) lease: Lease,
}

/// Why a query of the proxy's own failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the server broke the protocol")]
    Frame(#[from] BadFrame),
    #[error("the server refused: {0}")]
    Refused(ServerError),
}

impl Server {
    /// Sends what is in `pipe.output` and waits for `ReadyForQuery`. Every message of the answer is for
    /// the proxy alone; the payload of the last row is returned.
    pub(crate) async fn ask(&mut self) -> Result<Option<Vec<u8>>, QueryError> {
        self.pipe.flush().await?;
        let (mut row, mut refused) = (None, None);
        loop {
            while let Some((header, payload)) = frame::message(&self.pipe.input)? {
                match header.tag {
                    b'D' => row = Some(payload.to_vec()),
                    b'S' => {
                        if let Ok((name, value)) = backend::parameter(payload) {
                            self.parameters.insert(name.to_owned(), value.to_owned());
                        }
                    }
                    b'E' => refused = refused.or(ServerError::read(payload).ok()),
                    _ => {}
                }
                let fatal = refused.as_ref().is_some_and(|error| error.severity == Severity::Fatal);
                self.pipe.input.advance(header.len);
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

    /// Asks for its position without waiting for it: `position_asked` says that the answer is due.
    /// `inserted`: what was acknowledged need not be written yet.
    pub(crate) fn ask_position(&mut self, inserted: bool) {
        if !self.position_asked {
            self.known.forget_unnamed();
            let question = if inserted { POSITION_INSERTED } else { POSITION };
            frontend::put_query(&mut self.pipe.output, question);
            self.position_asked = true;
        }
    }

    /// How far a standby has replayed; `None` when it is none.
    pub(crate) async fn look_at_replay(&mut self) -> Result<Option<Lsn>, QueryError> {
        self.known.forget_unnamed();
        let row = self.query("SELECT pg_catalog.pg_last_wal_replay_lsn()").await?;
        Ok(row.as_deref().and_then(position))
    }

    /// Whether it has said nothing since it was last used, not even goodbye.
    pub(crate) async fn is_silent(&mut self) -> bool {
        let said = std::future::poll_fn(|cx| std::task::Poll::Ready(self.pipe.poll_fill(cx).is_ready()));
        !said.await && self.pipe.input.is_empty()
    }

    /// Whatever a client left on it goes, but for what is indelible. Nothing may run on it.
    pub(crate) async fn become_nobodys(&mut self) -> Result<(), QueryError> {
        if self.position_asked {
            self.ask().await?;
            self.position_asked = false;
        }
        if !self.known.is_clean() {
            // The one does not forget what `random()` was told to begin with.
            let seed = rand::random::<f64>();
            frontend::put_query(&mut self.pipe.output, "DISCARD ALL");
            frontend::put_query(&mut self.pipe.output, &format!("SET seed = {seed}"));
            self.ask().await?;
            self.ask().await?;
        }
        self.known = Known::default().behind_others(&self.known);
        self.owner = 0;
        Ok(())
    }

    /// Says goodbye, as far as that is possible without waiting.
    pub(crate) fn close(mut self) {
        self.pipe.output.clear();
        frontend::put_terminate(&mut self.pipe.output);
        self.leave();
    }

    /// Sends what there is to be sent, and nothing more.
    pub(crate) fn leave(mut self) {
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
