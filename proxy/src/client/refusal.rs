//! What pool mode "transaction" does not offer is refused before it runs, as a server would refuse it: an
//! open transaction has failed then.

use tokio::time::timeout;

use crate::session::Segment;
use crate::sql::Why;
use crate::sqlstate::Trouble;
use crate::upstream::QueryError;
use crate::wire::backend::{self, Severity, TxStatus};

use super::state::{Client, Gone};

/// No statement: what is left is a failed transaction.
const NO_STATEMENT: &str = "refused by pgherd";

impl Client {
    /// What in `segment` needs a connection of its own, where nobody gets one.
    pub(super) fn refused_by_mode(&self, segment: &Segment) -> Option<Why> {
        let status = self.session.status();
        // In a failed transaction the server refuses everything.
        let judged = self.shares_always() && status != TxStatus::Failed;
        judged.then(|| segment.holds(status == TxStatus::Open)).flatten()
    }

    /// Answers `segment` with an error; what it belongs to fails with it.
    pub(super) async fn refuse_in_place(&mut self, trouble: &Trouble, segment: &Segment) -> Result<(), Gone> {
        let Some(node) = self.session.tx_node() else {
            self.refuse(trouble, segment.ends_when_refused(), segment.rest);
            return Ok(());
        };
        // The statement is not run, cancelled or not.
        drop(self.settle(node).await);
        let limit = self.config.connect_timeout;
        let Some(server) = self.servers.get_mut(node) else {
            self.refuse(trouble, segment.ends_when_refused(), segment.rest);
            return Ok(());
        };
        server.known.forget_unnamed();
        match timeout(limit, server.query(NO_STATEMENT)).await {
            Ok(Err(QueryError::Refused(error))) if error.severity != Severity::Fatal => {}
            Ok(_) | Err(_) => self.drop_server(node, "a transaction could not be ended"),
        }
        tracing::info!(user = self.user, ?trouble, "statement not run");
        trouble.response(Severity::Error).put(&mut self.pipe.output);
        self.session.fail_tx();
        self.discard = segment.rest;
        if segment.ends_when_refused() {
            backend::put_ready(&mut self.pipe.output, self.session.status());
        } else {
            self.skipping = true;
        }
        Ok(())
    }
}
