//! The threads that serve clients, each with a runtime of its own: what happens between a client and its servers
//! stays within one thread, and wakes no other. Clients go from one to another as the load wants it.

mod balance;
mod desk;

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::client::{self, Moving};
use crate::listen::Visitor;
use crate::shared::Shared;

use desk::{Desk, Meter, Order, Watch};

/// SQL is parsed on these stacks, which are touched only as far as they are used.
pub(crate) const STACK_BYTES: usize = 8 << 20;

/// Of threads that serve nobody.
const NO_WORKER: usize = usize::MAX;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(NO_WORKER) };
    static DESK: RefCell<Arc<Desk>> = RefCell::default();
}

/// The number of the worker that this thread is; threads that serve nobody have one together.
pub(crate) fn current() -> usize {
    NUMBER.try_with(Cell::get).unwrap_or(NO_WORKER)
}

/// Where a client of this thread goes on, if it is one of those that are to go. `heard`: the last order that it heard.
pub(crate) fn departs_for(heard: &mut u64) -> Option<usize> {
    let order = DESK.with_borrow(|desk| desk.current());
    if order == *heard {
        return None;
    }
    *heard = order;
    Order::sends(order, rand::random())
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    queue: mpsc::UnboundedSender<Arrival>,
    desk: Arc<Desk>,
    runtime: Handle,
    thread: JoinHandle<()>,
    meter: io::Result<Meter>,
}

/// A client on its way to its worker.
#[derive(Debug)]
struct Arrival {
    who: Who,
    /// Dropped when its session is over.
    alive: mpsc::Sender<()>,
}

#[derive(Debug)]
enum Who {
    Visitor(Visitor),
    /// From another worker.
    Client(Moving),
}

/// How a worker is reached by the others.
type Door = mpsc::WeakUnboundedSender<Arrival>;

/// Lets a client in, unless the worker is about to end.
fn pass(door: &Door, client: Moving, alive: &mpsc::Sender<()>) -> Result<(), Moving> {
    let Some(queue) = door.upgrade() else { return Err(client) };
    let arrival = Arrival { who: Who::Client(client), alive: alive.clone() };
    queue.send(arrival).map_err(|refused| match refused.0.who {
        Who::Client(client) => client,
        Who::Visitor(_) => unreachable!("a client was sent"),
    })
}

impl Workers {
    /// Starts so many.
    pub(crate) fn start(shared: &Arc<Shared>, threads: usize) -> io::Result<Self> {
        let (queues, arrivals): (Vec<_>, Vec<_>) = (0..threads).map(|_| mpsc::unbounded_channel()).unzip();
        let doors: Arc<[Door]> = queues.iter().map(mpsc::UnboundedSender::downgrade).collect();
        let workers = queues.into_iter().zip(arrivals).zip(0..).map(|((queue, arrivals), number)| {
            Worker::start(queue, Post { number, shared: shared.clone(), doors: doors.clone(), arrivals })
        });
        workers.collect::<io::Result<_>>().map(Self)
    }

    /// Where clients are best waited for: the first of them has the most to do as long as one can do it all, and who is
    /// served by the thread that waited for it wakes no other.
    pub(crate) fn reception(&self) -> io::Result<Handle> {
        let first = self.0.first().map(|worker| worker.runtime.clone());
        first.ok_or_else(|| io::Error::other("there is no thread"))
    }

    /// Has a client served. `alive` is dropped when its session is over.
    pub(crate) fn serve(&self, visitor: Visitor, alive: mpsc::Sender<()>) {
        let host = balance::host(&self.loads());
        let visitor = if host == current() { Ok(visitor) } else { visitor.leave() };
        let visitor = match visitor {
            Ok(visitor) => visitor,
            Err(error) => return tracing::debug!(%error, "client socket unusable"),
        };
        let Some(worker) = self.0.get(host) else { return };
        // A worker lives as long as somebody can send it a client.
        drop(worker.queue.send(Arrival { who: Who::Visitor(visitor), alive }));
    }

    fn loads(&self) -> Vec<u32> {
        self.0.iter().map(|worker| worker.desk.load()).collect()
    }

    /// Has clients go to other workers when they had better. Never returns, unless nobody can tell.
    pub(crate) async fn balance(&self) {
        if let Err(error) = self.watch().await {
            self.0.iter().for_each(|worker| worker.desk.close());
            tracing::warn!(%error, "it is not known how busy threads are: the first one serves all clients that come");
        }
    }

    async fn watch(&self) -> io::Result<()> {
        let meters = self.0.iter().map(|worker| worker.meter.as_ref());
        let watches = meters.map(|meter| meter.map_err(|error| error.kind().into()).and_then(Watch::begin));
        let mut watches = watches.collect::<io::Result<Vec<_>>>()?;
        let mut number = 0_u32;
        loop {
            sleep(balance::LOOK).await;
            for (worker, watch) in self.0.iter().zip(&mut watches) {
                watch.note(&worker.desk)?;
            }
            number = number.wrapping_add(1);
            let wanted = balance::plan(&self.loads());
            for (worker, own) in self.0.iter().zip(0..) {
                worker.desk.order(number, wanted.filter(|wanted| wanted.from == own));
            }
        }
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
    fn start(queue: mpsc::UnboundedSender<Arrival>, post: Post) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let desk = Arc::<Desk>::default();
        let thread = thread::Builder::new().name(format!("worker-{}", post.number)).stack_size(STACK_BYTES);
        let (own, handle) = (desk.clone(), runtime.handle().clone());
        let (tells, told) = std::sync::mpsc::sync_channel(1);
        let thread = thread.spawn(move || {
            drop(tells.send(Meter::of_this_thread()));
            post.work(runtime, own);
        })?;
        let meter = told.recv().map_err(io::Error::other).flatten();
        Ok(Self { queue, desk, runtime: handle, thread, meter })
    }
}

/// What a worker works with.
struct Post {
    number: usize,
    shared: Arc<Shared>,
    doors: Arc<[Door]>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
}

impl Post {
    /// Serves clients until no more can come.
    fn work(self, runtime: Runtime, desk: Arc<Desk>) {
        let Self { number, shared, doors, mut arrivals } = self;
        NUMBER.with(|own| own.set(number));
        DESK.set(desk);
        runtime.block_on(async move {
            while let Some(arrival) = arrivals.recv().await {
                tokio::spawn(serve(shared.clone(), arrival, doors.clone()));
            }
        });
        // Nobody waits for a name that is still being resolved.
        runtime.shutdown_background();
    }
}

/// Serves a client until its session is over or another worker has it.
async fn serve(shared: Arc<Shared>, arrival: Arrival, doors: Arc<[Door]>) {
    let Arrival { who, alive } = arrival;
    let mut moving = match who {
        Who::Visitor(visitor) => client::serve(shared, visitor).await,
        Who::Client(client) => client.go_on().await,
    };
    while let Some(client) = moving {
        let passed = match doors.get(client.to) {
            Some(door) => pass(door, client, &alive),
            None => Err(client),
        };
        match passed {
            Ok(()) => break,
            Err(client) => moving = client.go_on().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F, A, B, C>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_client_is_small() {
        // Ten thousand clients that say nothing have one each.
        assert!(size(serve) <= 3 << 10, "{} bytes", size(serve));
    }
}
