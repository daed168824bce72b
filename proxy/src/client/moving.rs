//! A read-only transaction that began on a standby goes on on the primary, once something comes that a
//! standby cannot do. It sees what was committed before each of its statements, and the primary has all
//! that a standby has: the client cannot tell. The other way round, one that turns out to only read before
//! anything ran in it goes to a standby.

use pgherd_common::{NodeId, NodeName};
use tokio::time::timeout;

use crate::session::{Segment, Wanted};
use crate::sqlstate::Trouble;
use crate::topology::Role;
use crate::upstream::QueryError;
use crate::wire::backend::TxStatus;
use crate::wire::frontend;

use super::fresh::Look;
use super::introduce::fail;
use super::state::{Client, Gone};

impl Client {
    /// The standby that holds the open transaction, if one does.
    pub(super) fn reading_transaction(&self) -> Option<NodeId> {
        let node = self.session.tx_node()?;
        self.servers.get(node).filter(|server| server.role == Role::Standby).map(|server| server.node)
    }

    /// Whether the transaction has to leave its standby before `segment` is run. What failed there
    /// stays there unless something for the primary comes behind its end in one text, and so does what goes on
    /// with a portal that only the standby has.
    pub(super) fn must_move(&self, segment: &Segment) -> bool {
        match self.session.status() {
            TxStatus::Open => {
                !segment.reaches_back() && (!segment.suits_reader() || segment.leaves_portals())
            }
            TxStatus::Failed => segment.goes_on_behind_its_end(),
            TxStatus::Idle => false,
        }
    }

    /// Ends the transaction on the standby `from` and begins it anew on the primary.
    pub(super) async fn move_transaction(&mut self, from: NodeId) -> Result<Result<(), Trouble>, Gone> {
        let Some(name) = self.servers.get(from).map(|server| server.name.clone()) else { return Ok(Ok(())) };
        let failed = self.session.status() == TxStatus::Failed;
        self.session.detach_tx();
        self.end_on(from).await;
        let begun = self.go_on_on_primary(name).await?;
        if failed && begun.is_ok() {
            self.fail_on_primary().await;
        }
        Ok(begun)
    }

    /// A transaction that failed on a standby has failed on the primary, too.
    async fn fail_on_primary(&mut self) {
        let limit = self.config.connect_timeout;
        let Some(node) = self.session.tx_node() else { return };
        let Some(server) = self.servers.get_mut(node) else { return };
        match timeout(limit, fail(server)).await {
            Ok(Ok(())) => self.session.fail_tx(),
            Ok(Err(_)) | Err(_) => self.drop_server(node, "a transaction could not be carried over"),
        }
    }

    /// Begins the transaction that the standby `name` held on the primary.
    pub(super) async fn go_on_on_primary(&mut self, name: NodeName) -> Result<Result<(), Trouble>, Gone> {
        let node = match self.reach(&Segment::default(), Wanted::Writer).await? {
            Ok(node) => node,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let lost = |why: &str| Trouble::RolledBack { server: name, why: why.to_owned(), transaction: true };
        Ok(match timeout(self.config.connect_timeout, self.begin_reading(node)).await {
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

    /// A transaction in which nothing ran yet is told to only read: it is begun anew on a standby, if one
    /// can serve it.
    pub(super) async fn move_to_reader(&mut self, from: NodeId) -> Result<(), Gone> {
        let Some(begin) = self.session.begun().map(str::to_owned) else { return Ok(()) };
        self.session.detach_tx();
        let to = match self.with_regard_to_writes(Wanted::Reader).await? {
            Ok(Wanted::Reader) => self.reach(&Segment::default(), Wanted::Reader).await?.ok(),
            Ok(Wanted::Stay(_) | Wanted::Writer | Wanted::Any) | Err(_) => None,
        };
        if let Some(node) = to
            && self.servers.get(node).is_some_and(|server| server.role == Role::Standby)
            && matches!(self.look_for_writes(node).await?, Look::Fresh)
        {
            let limit = self.config.connect_timeout;
            if matches!(timeout(limit, self.begin_without_snapshot(node, &begin)).await, Ok(Ok(true))) {
                self.end_on(from).await;
                self.session.attach_tx(node);
                return Ok(());
            }
            self.end_on(node).await;
        }
        // Should its connection be gone by now, the next statement is told so.
        self.session.attach_tx(from);
        Ok(())
    }

    async fn end_on(&mut self, node: NodeId) {
        let limit = self.config.connect_timeout;
        let Some(server) = self.servers.get_mut(node) else { return };
        server.known.forget_unnamed();
        let ended = timeout(limit, server.query("ROLLBACK")).await;
        server.at_rest = true;
        if !matches!(ended, Ok(Ok(_))) {
            self.drop_server(node, "a transaction could not be ended");
        }
    }

    /// False when it keeps the snapshot that it begins with.
    async fn begin_without_snapshot(&mut self, node: NodeId, begin: &str) -> Result<bool, QueryError> {
        let Some(server) = self.servers.get_mut(node) else { return Ok(false) };
        server.at_rest = false;
        server.known.forget_unnamed();
        server.query(begin).await?;
        let level = server.query("SHOW transaction_isolation").await?;
        Ok(level.is_some_and(|row| row.ends_with(b"read committed") || row.ends_with(b"read uncommitted")))
    }

    /// False when the session's transactions keep the snapshot that they began with.
    async fn begin_reading(&mut self, node: NodeId) -> Result<bool, QueryError> {
        let (begun, chained) = (self.session.begun().map(str::to_owned), self.session.is_chained());
        let lacks_portal = self.session.lacks_portal();
        let Some(server) = self.servers.get_mut(node) else { return Ok(false) };
        server.at_rest = false;
        server.known.forget_unnamed();
        if let Some(begin) = begun {
            server.query(&begin).await?;
            return Ok(true);
        }
        let usual =
            server.query("SELECT pg_catalog.current_setting('default_transaction_isolation')").await?;
        let keeps_none =
            usual.is_some_and(|row| row.ends_with(b"read committed") || row.ends_with(b"read uncommitted"));
        if keeps_none {
            // As behind any query, it is too late to let it write.
            let chain = if chained { "COMMIT AND CHAIN; " } else { "" };
            let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY; {chain}SELECT 1");
            server.query(&begin).await?;
        }
        if keeps_none && lacks_portal {
            frontend::put_parse(&mut server.pipe.output, "", b"SELECT\0\0\0");
            frontend::put_bind_unnamed(&mut server.pipe.output);
            // The portal does without it, and the client has none.
            frontend::put_close_statement(&mut server.pipe.output, "");
            frontend::put_sync(&mut server.pipe.output);
            server.ask().await?;
            self.session.stand_in();
        }
        Ok(keeps_none)
    }
}
