//! The threads that serve clients, each with a runtime of its own: what happens between a client and its servers
//! stays within one thread, and wakes no other.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::client;
use crate::listen::Visitor;
use crate::shared::Shared;

/// SQL is parsed on these stacks, which are touched only as far as they are used.
pub(crate) const STACK_BYTES: usize = 8 << 20;

/// Of threads that serve nobody.
const NO_WORKER: usize = usize::MAX;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(NO_WORKER) };
}

/// The number of the worker that this thread is; threads that serve nobody have one together.
pub(crate) fn current() -> usize {
    NUMBER.try_with(Cell::get).unwrap_or(NO_WORKER)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    queue: mpsc::UnboundedSender<Arrival>,
    /// Those that it serves, or has yet to.
    clients: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// A client on its way to its worker.
#[derive(Debug)]
struct Arrival {
    visitor: Visitor,
    session: Counted,
    /// Dropped when its session is over.
    alive: mpsc::Sender<()>,
}

/// Counts a session for as long as it lasts.
#[derive(Debug)]
struct Counted {
    clients: Arc<AtomicUsize>,
}

impl Counted {
    fn among(clients: &Arc<AtomicUsize>) -> Self {
        clients.fetch_add(1, Ordering::Relaxed);
        Self { clients: clients.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts so many.
    pub(crate) fn start(shared: &Arc<Shared>, threads: usize) -> io::Result<Self> {
        (0..threads).map(|number| Worker::start(number, shared.clone())).collect::<io::Result<_>>().map(Self)
    }

    /// Has a client served by the worker that serves the fewest. `alive` is dropped when its session is over.
    pub(crate) fn serve(&self, visitor: Visitor, alive: mpsc::Sender<()>) {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.clients.load(Ordering::Relaxed)) else {
            return;
        };
        let arrival = Arrival { visitor, session: Counted::among(&worker.clients), alive };
        // A worker lives as long as somebody can send it a client.
        drop(worker.queue.send(arrival));
    }

    /// Ends the sessions that are left. Blocks for a moment.
    pub(crate) fn stop(self) {
        let threads: Vec<JoinHandle<()>> = self.0.into_iter().map(|worker| worker.thread).collect();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread that served clients has panicked");
            }
        }
    }
}

impl Worker {
    fn start(number: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (queue, arrivals) = mpsc::unbounded_channel();
        let thread = thread::Builder::new().name(format!("worker-{number}")).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || work(number, runtime, shared, arrivals))?;
        Ok(Self { queue, clients: Arc::default(), thread })
    }
}

/// Serves clients until no more can come.
fn work(
    number: usize,
    runtime: Runtime,
    shared: Arc<Shared>,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
) {
    NUMBER.with(|own| own.set(number));
    runtime.block_on(async move {
        while let Some(Arrival { visitor, session, alive }) = arrivals.recv().await {
            let shared = shared.clone();
            tokio::spawn(async move {
                client::serve(shared, visitor).await;
                drop((session, alive));
            });
        }
    });
    // Nobody waits for a name that is still being resolved.
    runtime.shutdown_background();
}
