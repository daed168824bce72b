//! The proxies' virtual IP: this proxy asks the agents for it again and again, and has it while a majority of
//! them stands behind it. `docs/vip.md` tells the rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgherd_common::push::ToAgent;
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};
use pgherd_vip::KERNEL_SLACK;
use pgherd_vip::keeper::{Asked, Keeper, Order, Parting, Seen};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::config::VirtualIp;
use crate::control::Cluster;

/// Between questions.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// In the kernel's own count: as short as it can be, so that a proxy that hangs has lost the address before
/// another one is given it.
const LIFETIME: Duration = Duration::from_secs(1);
/// How long the end waits for the agents to hear of it.
const FAREWELL: Duration = Duration::from_millis(100);

/// What was found of the address.
#[derive(Debug)]
pub(crate) struct Address {
    keeper: Keeper,
    seen: watch::Receiver<Seen>,
    priority: u32,
    cluster: Arc<Cluster>,
    /// Nothing is asked for any more.
    ended: AtomicBool,
}

impl Address {
    /// Nothing is done before [`Self::keep`].
    pub(crate) fn start(ip: &VirtualIp, cluster: &Arc<Cluster>) -> std::io::Result<Self> {
        let (told, seen) = watch::channel(Seen::default());
        let held = cluster.clone();
        let tell = move |seen: &Seen| {
            held.set_address_held(seen.held);
            told.send_replace(seen.clone());
            true
        };
        let keeper = Keeper::start(ip.vip(), Box::new(tell))?;
        Ok(Self {
            keeper,
            seen,
            priority: ip.priority,
            cluster: cluster.clone(),
            ended: AtomicBool::new(false),
        })
    }

    /// Never returns.
    pub(crate) async fn keep(&self) {
        let mut due = interval(ASK_EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut answers) = (self.seen.clone(), self.cluster.address_answers());
        let mut alive = true;
        loop {
            tokio::select! {
                _ = due.tick() => self.ask(),
                _ = answers.changed() => {}
                // The keeper's thread lives as long as this process.
                changed = seen.changed(), if alive => alive = changed.is_ok(),
            }
            let now = RealClock.now();
            let order = decide(self.cluster.address_until(now), &seen.borrow(), now);
            self.keeper.order(order);
        }
    }

    fn ask(&self) {
        // One that knows no cluster serves nobody.
        if self.priority > 0 && !self.ended.load(Ordering::Relaxed) && self.cluster.topology().is_some() {
            self.cluster.want_address(self.priority);
        }
    }

    /// The process ends: the next one is not kept waiting.
    pub(crate) async fn give_up(self: Arc<Self>) {
        self.ended.store(true, Ordering::Relaxed);
        let own = self.clone();
        let released = tokio::task::spawn_blocking(move || own.keeper.end(Parting::Release)).await;
        if released.unwrap_or(false) {
            self.cluster.say_of_address(ToAgent::GaveUpAddress);
            sleep(FAREWELL).await;
        }
    }
}

/// What is to be done, with a majority behind this proxy until then.
fn decide(until: Option<MonoTime>, seen: &Seen, now: MonoTime) -> Order {
    // Whatever becomes of this process, the kernel has ended the address by then.
    let margin = LIFETIME + KERNEL_SLACK;
    let until = until.and_then(|until| {
        let last = until.since(now + margin);
        (!last.is_zero()).then(|| now + last)
    });
    match until {
        None => Order::Release,
        Some(until) if seen.held || seen.asked == Asked::Silent => Order::Hold { until, lifetime: LIFETIME },
        Some(_) => Order::Ask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_renewed_only_while_the_kernel_would_end_it_in_time() {
        let now = MonoTime::since_boot(Duration::from_secs(100));
        let held = Seen { held: true, ..Seen::default() };
        assert_eq!(decide(None, &held, now), Order::Release);
        assert_eq!(decide(Some(now + Duration::from_secs(3)), &held, now), Order::Release);
        let until = now + Duration::from_secs(1);
        let order = Order::Hold { until, lifetime: LIFETIME };
        assert_eq!(decide(Some(now + Duration::from_secs(4)), &held, now), order);
    }

    #[test]
    fn it_is_not_taken_before_nobody_else_answers() {
        let now = MonoTime::since_boot(Duration::from_secs(100));
        let until = Some(now + Duration::from_secs(4));
        assert_eq!(decide(until, &Seen::default(), now), Order::Ask);
        let silent = Seen { asked: Asked::Silent, ..Seen::default() };
        assert!(matches!(decide(until, &silent, now), Order::Hold { .. }));
    }
}
