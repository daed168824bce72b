//! Waiting for a level to be reached, bounded in time.

use std::fmt;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// How often a level is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Something did not become true.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {missing}")]
pub struct NotReached {
    /// What was waited for.
    pub what: String,
    /// How long, and what was missing at the last look; or why there was nothing to wait for.
    pub missing: String,
}

/// Looks until `probe` succeeds. Its error says what is still missing.
pub async fn wait_until<T, E: fmt::Display>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, NotReached> {
    let mut last = String::from("never looked");
    let look = async {
        loop {
            match probe().await {
                Ok(value) => return value,
                Err(missing) => last = missing.to_string(),
            }
            sleep(LOOK_EVERY).await;
        }
    };
    let reached = timeout(within, look).await;
    let missing = || format!("not within {within:?}; at last: {last}");
    reached.map_err(|_| NotReached { what: what.to_owned(), missing: missing() })
}

/// Something happened that never may.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {seen}")]
pub struct Happened {
    /// What never may happen.
    pub what: String,
    /// What was seen.
    pub seen: String,
}

/// Looks for so long that nothing happens. `probe` tells what it saw if it does.
pub async fn never(
    what: &str,
    during: Duration,
    mut probe: impl AsyncFnMut() -> Option<String>,
) -> Result<(), Happened> {
    let watch = async {
        loop {
            if let Some(seen) = probe().await {
                return seen;
            }
            sleep(LOOK_EVERY).await;
        }
    };
    match timeout(during, watch).await {
        Ok(seen) => Err(Happened { what: what.to_owned(), seen }),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_reason_is_told() {
        let mut looks = 0;
        let seen = wait_until("three", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("only {looks}")) }
        });
        assert_eq!(seen.await.unwrap(), 3);
        let never = wait_until("rain", Duration::from_millis(60), async || Err::<(), _>("still dry")).await;
        assert_eq!(never.unwrap_err().to_string(), "rain: not within 60ms; at last: still dry");
    }
}
