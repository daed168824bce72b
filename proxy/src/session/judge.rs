//! Where verdicts come from.

use std::sync::Arc;

use crate::sql::Verdict;

/// See the module.
pub trait Judge {
    /// The verdict on a text, as of now.
    fn verdict(&self, sql: &[u8]) -> Arc<Verdict>;

    /// A number that is another one once any verdict may be another one; `None`: it may be each time.
    fn version(&self) -> Option<u64> {
        None
    }
}

/// Of texts that are judged from scratch each time.
impl<F: Fn(&[u8]) -> Arc<Verdict>> Judge for F {
    fn verdict(&self, sql: &[u8]) -> Arc<Verdict> {
        self(sql)
    }
}
