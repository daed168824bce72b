//! Has a connection learn of the prepared statements that SQL names: the session has them, wherever it goes.

use pgherd_common::NodeId;

use crate::session::{Introduction, Introductions, Segment};
use crate::upstream::{QueryError, Server};
use crate::wire::backend::{self, Severity, TxStatus};

use super::state::Client;

impl Client {
    /// Prepares what `segment` names and `node` does not know. An open transaction does not fail by one that cannot be
    /// prepared any more.
    pub(super) async fn introduce(&mut self, node: NodeId, segment: &Segment) -> Result<(), QueryError> {
        let Some(server) = self.servers.get_mut(node) else { return Ok(()) };
        let failed = self.session.status() == TxStatus::Failed;
        let before = failed.then(|| server.known.clone());
        let introductions = self.session.introduce(segment, &mut server.known);
        if introductions.is_empty() {
            return Ok(());
        }
        let Some(before) = before else {
            return self.tell(node, segment, &introductions).await;
        };
        let Some(way_out) = &introductions.way_out else {
            server.pipe.output.extend_from_slice(&introductions.messages);
            return server.ask().await.map(drop);
        };
        if refused(server.query(way_out).await)? {
            // It was told nothing.
            server.known = before;
            server.known.forget_unnamed();
            return Ok(());
        }
        server.known.forget_unnamed();
        self.tell(node, segment, &introductions).await?;
        // `segment` finds it as the client left it.
        let Some(server) = self.servers.get_mut(node) else { return Ok(()) };
        fail(server).await?;
        // Of what it undid nothing is told where the client's own statement does the same.
        let parameters = server.parameters.clone();
        for (name, value) in parameters.iter() {
            if self.tells(name, value) {
                backend::put_parameter(&mut self.pipe.output, name, value);
            }
        }
        Ok(())
    }

    async fn tell(
        &mut self,
        node: NodeId,
        segment: &Segment,
        introductions: &Introductions,
    ) -> Result<(), QueryError> {
        let in_block = self.session.status() != TxStatus::Idle;
        let Some(server) = self.servers.get_mut(node) else { return Ok(()) };
        // What the client has yet to fetch from an unnamed portal would be gone.
        let guarded = in_block && !segment.reaches_back();
        if guarded {
            server.query("SAVEPOINT pgherd_introduces").await?;
            server.known.forget_unnamed();
        }
        if !introductions.messages.is_empty() {
            server.pipe.output.extend_from_slice(&introductions.messages);
            if refused(server.ask().await)? {
                server.known.doubt(introductions);
                if guarded {
                    server.query("ROLLBACK TO SAVEPOINT pgherd_introduces").await?;
                }
                for introduction in introductions.by_protocol.iter().filter(|_| guarded || !in_block) {
                    learn_as_then(server, introduction, guarded).await?;
                }
            }
        }
        for introduction in &introductions.by_sql {
            introduction.put(&mut server.pipe.output);
            if !refused(server.ask().await)? {
                server.known.learn(introduction);
                continue;
            }
            server.known.forget_unnamed();
            if guarded {
                server.query("ROLLBACK TO SAVEPOINT pgherd_introduces").await?;
            }
            if guarded || !in_block {
                learn_as_then(server, introduction, guarded).await?;
            }
        }
        if guarded {
            server.query("RELEASE SAVEPOINT pgherd_introduces").await?;
        }
        Ok(())
    }
}

/// Prepares a statement with names looked for as when the session prepared it: what it names is not to be found any
/// more, which the client is to be told when it uses it. What is prepared outlives its transaction, and the setting
/// does not. `guarded`: there is a savepoint to go back to.
async fn learn_as_then(
    server: &mut Server,
    introduction: &Introduction,
    guarded: bool,
) -> Result<(), QueryError> {
    if !guarded {
        server.query("BEGIN").await?;
    }
    let path = introduction.path.as_deref().unwrap_or("RESET search_path");
    let mut is_refused = refused(server.query(path).await)?;
    if !is_refused {
        introduction.put(&mut server.pipe.output);
        is_refused = refused(server.ask().await)?;
    }
    server.query(if guarded { "ROLLBACK TO SAVEPOINT pgherd_introduces" } else { "ROLLBACK" }).await?;
    if is_refused {
        // It is gone for good: to the client the statement is, too.
        tracing::info!(server = %server.name, "a statement cannot be prepared again");
        server.known.forget_unnamed();
    } else {
        server.known.learn(introduction);
    }
    Ok(())
}

/// Has the open transaction fail, by a text that is no statement: it leaves the portals there.
pub(super) async fn fail(server: &mut Server) -> Result<(), QueryError> {
    server.known.forget_unnamed();
    refused(server.query("pgherd has this transaction fail").await).map(drop)
}

/// Whether the server would not do it, and goes on.
fn refused<T>(result: Result<T, QueryError>) -> Result<bool, QueryError> {
    match result {
        Ok(_) => Ok(false),
        Err(QueryError::Refused(error)) if error.severity != Severity::Fatal => Ok(true),
        Err(error) => Err(error),
    }
}
