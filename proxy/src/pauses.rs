//! What administrators have paused: new work of those databases waits until it is resumed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, watch};

/// Whose work waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Which {
    all: bool,
    databases: BTreeSet<String>,
}

impl Which {
    fn holds(&self, database: &str) -> bool {
        self.all || self.databases.contains(database)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pauses {
    /// Whether there are any: all that is looked at as a rule.
    any: AtomicBool,
    which: watch::Sender<Which>,
    /// A client came to rest while something was paused.
    pub(crate) settled: Notify,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), which: watch::Sender::default(), settled: Notify::new() }
    }
}

impl Pauses {
    /// Pauses one database, or all of them. False when they were.
    pub(crate) fn begin(&self, database: Option<&str>) -> bool {
        // Before anybody is asked what it is at: who has not seen it has said so by then.
        self.any.store(true, Ordering::SeqCst);
        self.which.send_if_modified(|which| match database {
            Some(name) => which.databases.insert(name.to_owned()),
            None => !std::mem::replace(&mut which.all, true),
        })
    }

    /// Ends that. False when there was nothing to end.
    pub(crate) fn end(&self, database: Option<&str>) -> bool {
        let ended = self.which.send_if_modified(|which| match database {
            Some(name) => which.databases.remove(name),
            None => std::mem::take(which) != Which::default(),
        });
        let left = *self.which.borrow() != Which::default();
        self.any.store(left, Ordering::SeqCst);
        ended
    }

    /// Whether anything is paused.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    /// Whether new work of a database waits.
    pub(crate) fn holds(&self, database: &str) -> bool {
        self.any() && self.which.borrow().holds(database)
    }

    /// Returns when the database is not paused.
    pub(crate) async fn over(&self, database: &str) {
        let mut following = self.which.subscribe();
        // It ends with the process.
        drop(following.wait_for(|which| !which.holds(database)).await);
    }

    /// What is paused; `None` in it: all databases.
    pub(crate) fn held(&self) -> Vec<Option<String>> {
        if !self.any() {
            return Vec::new();
        }
        let which = self.which.borrow();
        if which.all { vec![None] } else { which.databases.iter().cloned().map(Some).collect() }
    }

    /// What is paused, in words.
    pub(crate) fn told(&self) -> Vec<String> {
        let which = self.which.borrow();
        let all = which.all.then(|| "all databases".to_owned());
        all.into_iter().chain(which.databases.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_one_database_and_of_all_are_kept_apart() {
        let pauses = Pauses::default();
        assert!(!pauses.holds("app") && !pauses.end(None) && !pauses.end(Some("app")));
        assert!(pauses.begin(Some("app")) && !pauses.begin(Some("app")));
        assert!(pauses.holds("app") && !pauses.holds("other"));
        assert!(pauses.begin(None) && pauses.holds("other"));
        assert!(pauses.end(Some("app")) && pauses.holds("app"), "all are paused");
        assert!(pauses.begin(Some("app")));
        assert_eq!(pauses.told(), ["all databases", "app"]);
        assert!(pauses.end(None) && !pauses.any() && !pauses.holds("app"));
    }
}
