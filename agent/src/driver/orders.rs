//! What operators ask of this node's PostgreSQL: taken, remembered on disk, and told when it has come to its end.

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeName};
use pgherd_core::node::Done;
use pgherd_core::rebuild::{Order, OrderRefused};

use super::Driver;
use crate::orders;
use crate::reconcile::LocalAction;

/// An order that was taken, or why it was not.
pub type Taken = Result<u64, NotTaken>;

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It cannot be.
    #[error(transparent)]
    Refused(#[from] OrderRefused),
    /// It would be forgotten.
    #[error("the order cannot be written to the agent's state directory on {0}")]
    Disk(NodeName, #[source] std::io::Error),
}

impl Driver {
    /// What an earlier process has not finished.
    pub(super) fn resume_order(&mut self) {
        if let Some(order) = orders::pending(&self.parts.config.node.state_dir) {
            tracing::info!(?order, "going on with what an operator asked for");
            self.parts.working.taken(order.number);
            self.node.order_again(order);
        }
    }

    /// Tells the number of the order that is in force from now on.
    pub(super) fn take_order(&mut self, order: &Order) -> Taken {
        let number = self.node.order(order.clone(), RealClock.now(), RealClock.wall())?;
        if number == order.number {
            if let Err(error) = orders::keep(&self.parts.config.node.state_dir, order) {
                self.node.forget_order();
                return Err(NotTaken::Disk(self.parts.config.node.name.clone(), error));
            }
            self.parts.working.taken(number);
            tracing::info!(?order, "an operator has this node rebuilt");
        }
        Ok(number)
    }

    /// Whether there was one.
    pub(super) fn stop_order(&mut self) -> bool {
        let Some(number) = self.node.ordered().map(|order| order.number) else { return false };
        tracing::info!("an operator stops the rebuild of this node");
        if self.node.forget_order() {
            self.settle(number, Err("stopped by an operator before it began".to_owned()));
        } else {
            self.parts.working.stop();
        }
        true
    }

    /// A node that has become the primary after all is what the others are made from.
    pub(super) fn drop_outdated_order(&mut self) {
        if let Some(number) = self.node.outdated_order() {
            let why = format!("{} has become the primary", self.parts.config.node.name);
            self.settle(number, Err(why));
        }
    }

    /// Before the node learns of the end of an action.
    pub(super) fn note_end(&mut self, done: &Done) {
        let LocalAction::Rebuild(rebuild) = &done.action else { return };
        self.parts.working.idle();
        let Some(number) = rebuild.order else { return };
        let name = &self.parts.config.node.name;
        let result = match &done.result {
            Ok(()) => {
                let how = self.parts.working.outcome();
                Ok(format!("{name} is a standby of {} again: {how}", rebuild.upstream.node))
            }
            Err(error) => Err(error.clone()),
        };
        self.settle(number, result);
    }

    fn settle(&mut self, number: u64, result: Result<String, String>) {
        if let Err(error) = orders::forget(&self.parts.config.node.state_dir) {
            tracing::error!("an order that is done may be carried out again after a restart: {error}");
        }
        self.parts.working.ended(number, result);
    }
}
