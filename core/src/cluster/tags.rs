//! What an operator says a node is good for.

use serde::{Deserialize, Serialize};

/// The tags of a node. What is left out is as ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tags {
    /// It may become the primary without being named.
    pub promotable: bool,
    /// Proxies send it reads.
    pub balance: bool,
    /// Commits may wait for it.
    pub sync: bool,
    /// Others are copied from it rather than from another one.
    pub clone_from: bool,
}

impl Default for Tags {
    fn default() -> Self {
        Self { promotable: true, balance: true, sync: true, clone_from: false }
    }
}

impl Tags {
    /// Those that are not as ever, for people.
    pub fn spelled(self) -> Vec<&'static str> {
        let usual = Self::default();
        let told = [
            (self.promotable != usual.promotable, "promotable = false"),
            (self.balance != usual.balance, "balance = false"),
            (self.sync != usual.sync, "sync = false"),
            (self.clone_from != usual.clone_from, "clone_from = true"),
        ];
        told.into_iter().filter_map(|(told, text)| told.then_some(text)).collect()
    }
}
