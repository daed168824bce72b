//! What is under way to the primary when it is taken away: a proxy says that it holds new work only once what it sent
//! before has surely been read. A server knows nothing of a transaction whose beginning waits in its socket, and
//! would be stopped under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// A server has read by then what it was sent, however long it takes to answer.
pub(crate) const READ_BY_NOW: Duration = Duration::from_millis(100);

/// Batches on their way to primaries and back: those that began before a primary was last taken away, and all since.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    /// Its lowest bit is the place where those that begin now are counted.
    taken_away: AtomicUsize,
    counts: [AtomicU32; 2],
    ended: Notify,
}

/// One of them, from before it is sent until it is answered.
#[derive(Debug)]
pub(crate) struct UnderWay {
    batches: Arc<Batches>,
    place: usize,
}

impl Batches {
    /// One begins. Whoever looks at the topology after this either sees that the primary was taken away, or is waited for.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        let place = self.taken_away.load(Ordering::SeqCst) & 1;
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        UnderWay { batches: Arc::clone(self), place }
    }

    /// A topology without a primary is in effect.
    pub(crate) fn take_away(&self) {
        self.taken_away.fetch_add(1, Ordering::SeqCst);
    }

    /// Resolves when all that began before have ended.
    pub(crate) async fn earlier_ended(&self) {
        let place = (self.taken_away.load(Ordering::SeqCst) + 1) & 1;
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.counts.get(place).is_none_or(|count| count.load(Ordering::SeqCst) == 0) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some(count) = self.batches.counts.get(self.place) else { return };
        let last = count.fetch_sub(1, Ordering::SeqCst) == 1;
        // Behind that, lest somebody begins to wait in between. Nobody waits for those that began after.
        if last && self.batches.taken_away.load(Ordering::SeqCst) & 1 != self.place {
            self.batches.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_that_began_before_are_waited_for_and_no_others() {
        let batches = Arc::new(Batches::default());
        let before = (batches.begin(), batches.begin());
        batches.take_away();
        let since = batches.begin();
        let mut ended = Box::pin(batches.earlier_ended());
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut ended).await.is_err());
        drop(before.0);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut ended).await.is_err());
        drop(before.1);
        ended.await;
        batches.take_away();
        drop(since);
        batches.earlier_ended().await;
    }
}
