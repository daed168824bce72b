//! How a client that waits is told to look up, at next to no cost for one that does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// One client's; only its own task listens.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waker: AtomicWaker,
    rung: AtomicBool,
}

impl Bell {
    /// Somebody wants something of the client: whoever listens, or does so next, hears it.
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Something else changed that the client looks at whenever it listens.
    pub(crate) fn nudge(&self) {
        self.waker.wake();
    }

    /// The task is woken by what comes from here on. What nudges tell of must be looked at behind this.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Ready, once, when it was rung; otherwise it is listened for.
    pub(crate) fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        self.listen(cx);
        if self.take_ring() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether it was rung; heard once.
    pub(crate) fn take_ring(&self) -> bool {
        // Hardly ever, and a plain look costs less than a swap.
        self.rung.load(Ordering::Acquire) && self.rung.swap(false, Ordering::AcqRel)
    }

    /// Waits until it is rung.
    pub(crate) async fn rung(&self) {
        std::future::poll_fn(|cx| self.poll_rung(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_ring_is_heard_once_and_a_nudge_only_wakes() {
        let (bell, counter) = (Bell::default(), Arc::new(Counter::default()));
        let woken = || counter.0.load(Ordering::SeqCst);
        let waker = Waker::from(counter.clone());
        let listens = || bell.poll_rung(&Context::from_waker(&waker)).is_ready();
        bell.nudge();
        assert!(!listens() && woken() == 0, "nobody listened");
        bell.nudge();
        assert_eq!(woken(), 1);
        assert!(!listens());
        bell.ring();
        assert_eq!(woken(), 2);
        assert!(listens() && !listens(), "once");
        bell.nudge();
        bell.ring();
        assert!(listens(), "also what came while nobody listened");
    }
}
