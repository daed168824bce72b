//! Where the own server listens, kept for when names cannot be looked up: an outage of the name service
//! must not make every node lose sight of its own PostgreSQL.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pgherd_common::HostPort;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// What the last lookup that succeeded has told.
#[derive(Debug, Default)]
pub(super) struct OwnAddress(Mutex<Vec<IpAddr>>);

impl OwnAddress {
    /// Looks the name up, for no longer than `patience`; if that fails, what it was the last time. Empty
    /// when it has never succeeded.
    pub(super) async fn resolve(&self, address: &HostPort, patience: Duration) -> Vec<IpAddr> {
        let found = match timeout(patience, lookup_host((address.host.as_str(), address.port))).await {
            Ok(Ok(found)) => found.map(|found| found.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        // Every critical section leaves it whole.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !found.is_empty() {
            *known = found;
        }
        known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_is_not_found_any_more_is_where_it_was() {
        let own = OwnAddress::default();
        let [nowhere, here] = ["no-such-host.invalid:1", "127.0.0.1:1"].map(|text| text.parse().unwrap());
        let patience = Duration::from_secs(10);
        assert!(own.resolve(&nowhere, patience).await.is_empty());
        let found = own.resolve(&here, patience).await;
        assert_eq!(found, [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(own.resolve(&nowhere, patience).await, found);
        assert_eq!(own.resolve(&nowhere, Duration::ZERO).await, found, "a lookup that hangs");
    }
}
