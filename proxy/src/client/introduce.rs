//! Has a connection learn of the prepared statements that SQL names: the session has them, wherever it goes.

use pgherd_common::NodeId;

use crate::session::{Introduction, Segment};
use crate::upstream::{QueryError, Server};
use crate::wire::backend::{Severity, TxStatus};

use super::state::Client;

impl Client {
    /// Prepares what `segment` names and `node` does not know. An open transaction does not fail by one that cannot be
    /// prepared any more.
    pub(super) async fn introduce(&mut self, node: NodeId, segment: &Segment) -> Result<(), QueryError> {
        let open = self.session.status() == TxStatus::Open;
        let Some(server) = self.servers.get_mut(node) else { return Ok(()) };
        let introductions = self.session.introduce(segment, &mut server.known);
        if introductions.is_empty() {
            return Ok(());
        }
        // What the client has yet to fetch from an unnamed portal would be gone.
        let guarded = open && !segment.reaches_back();
        if guarded {
            server.query("SAVEPOINT pgherd_introduces").await?;
            server.known.forget_unnamed();
        }
        if !introductions.messages.is_empty() {
            server.pipe.output.extend_from_slice(&introductions.messages);
            if refused(server.ask().await)? {
                server.known.doubt(&introductions);
                if guarded {
                    server.query("ROLLBACK TO SAVEPOINT pgherd_introduces").await?;
                }
                for introduction in introductions.by_protocol.iter().filter(|_| guarded || !open) {
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
            if guarded || !open {
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

/// Whether the server would not do it, and goes on.
fn refused<T>(result: Result<T, QueryError>) -> Result<bool, QueryError> {
    match result {
        Ok(_) => Ok(false),
        Err(QueryError::Refused(error)) if error.severity != Severity::Fatal => Ok(true),
        Err(error) => Err(error),
    }
}
