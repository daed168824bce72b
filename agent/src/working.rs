//! Work on the own PostgreSQL that takes long: how far it is, how it ended, and whether it is to stop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Shared by whoever works, watches or stops. Clones are the same.
#[derive(Debug, Clone)]
pub struct Working {
    seen: Arc<Mutex<WorkStatus>>,
    outcome: Arc<Mutex<String>>,
    stop: watch::Sender<bool>,
}

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkStatus {
    /// The order that waits or is carried out.
    pub order: Option<u64>,
    /// What is done now.
    pub step: Option<Step>,
    /// How the last order ended.
    pub last: Option<Ended>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// In words.
    pub what: String,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all; 0 where that is not known.
    pub total: u64,
}

/// The end of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which.
    pub order: u64,
    /// Whether it was carried out.
    pub succeeded: bool,
    /// What became of it.
    pub message: String,
}

impl Default for Working {
    fn default() -> Self {
        Self { seen: Arc::default(), outcome: Arc::default(), stop: watch::Sender::new(false) }
    }
}

impl Working {
    fn lock(&self) -> MutexGuard<'_, WorkStatus> {
        // Every critical section leaves it whole.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to tell now.
    pub fn status(&self) -> WorkStatus {
        self.lock().clone()
    }

    /// An order was taken.
    pub fn taken(&self, order: u64) {
        self.stop.send_replace(false);
        self.lock().order = Some(order);
    }

    /// This is done now.
    pub fn step(&self, what: &str, done: u64, total: u64) {
        self.lock().step = Some(Step { what: what.to_owned(), done, total });
    }

    /// Nothing is done any more.
    pub fn idle(&self) {
        self.lock().step = None;
    }

    /// What was achieved, in words.
    pub fn achieved(&self, outcome: &str) {
        outcome.clone_into(&mut self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The last of it.
    pub fn outcome(&self) -> String {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An order has come to its end.
    pub fn ended(&self, order: u64, result: Result<String, String>) {
        let (succeeded, message) = match result {
            Ok(message) => (true, message),
            Err(message) => (false, message),
        };
        self.stop.send_replace(false);
        let mut seen = self.lock();
        seen.order = None;
        seen.last = Some(Ended { order, succeeded, message });
    }

    /// Has whoever works stop as soon as it can.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Resolves when somebody has asked for that.
    pub async fn stopped(&self) {
        // The sender lives as long as this does.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }
}
