//! A read-only transaction that began on a standby goes on on the primary, once something comes that a
//! standby cannot do. It sees what was committed before each of its statements, and the primary has all
//! that a standby has: the client cannot tell.

use pgherd_common::NodeId;
use tokio::time::timeout;

use crate::session::{Segment, Wanted};
use crate::sqlstate::Trouble;
use crate::topology::Role;
use crate::upstream::QueryError;
use crate::wire::backend::TxStatus;

use super::state::{Client, Gone};

impl Client {
    /// The standby that holds the open transaction, if one does.
    pub(super) fn reading_transaction(&self) -> Option<NodeId> {
        let node = self.session.tx_node()?;
        self.servers.get(&node).filter(|server| server.role == Role::Standby).map(|server| server.node)
    }

    /// Whether the transaction has to leave its standby before `segment` is run. What failed there
    /// stays there.
    pub(super) fn must_move(&self, segment: &Segment) -> bool {
        self.session.status() == TxStatus::Open && (!segment.suits_reader() || segment.leaves_portals())
    }

    /// Ends the transaction on the standby `from` and begins it anew on the primary.
    pub(super) async fn move_transaction(&mut self, from: NodeId) -> Result<Result<(), Trouble>, Gone> {
        let limit = self.shared.config.connect_timeout;
        let Some(server) = self.servers.get_mut(&from) else { return Ok(Ok(())) };
        let name = server.name.clone();
        server.known.forget_unnamed();
        let ended = timeout(limit, server.query("ROLLBACK")).await;
        self.session.detach_tx();
        if !matches!(ended, Ok(Ok(_))) {
            self.drop_server(from, "a transaction could not be ended");
        }
        let node = match self.reach(&Segment::default(), Wanted::Writer).await? {
            Ok(node) => node,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let lost = |why: &str| Trouble::RolledBack { server: name, why: why.to_owned(), transaction: true };
        Ok(match timeout(limit, self.begin_reading(node)).await {
            Ok(Ok(true)) => {
                self.session.attach_tx(node);
                Ok(())
            }
            Ok(Ok(false)) => Err(lost("its snapshot cannot be had on the primary")),
            Ok(Err(_)) | Err(_) => {
                self.drop_server(node, "a transaction could not be begun");
                Err(lost("it could not be begun anew on the primary"))
            }
        })
    }

    /// False when the session's transactions keep the snapshot that they began with.
    async fn begin_reading(&mut self, node: NodeId) -> Result<bool, QueryError> {
        let Some(server) = self.servers.get_mut(&node) else { return Ok(false) };
        server.known.forget_unnamed();
        let usual =
            server.query("SELECT pg_catalog.current_setting('default_transaction_isolation')").await?;
        let keeps_none =
            usual.is_some_and(|row| row.ends_with(b"read committed") || row.ends_with(b"read uncommitted"));
        if keeps_none {
            server.query("BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY").await?;
        }
        Ok(keeps_none)
    }
}
