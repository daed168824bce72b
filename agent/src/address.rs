//! The primary's virtual IP: what is decided about it goes to its keeper, and what that finds to the driver.

use pgherd_core::node::{AddressOrder, AddressSeen, Asked};
use pgherd_vip::Vip;
use pgherd_vip::keeper::{self, Parting};
use tokio::sync::mpsc;

use crate::driver::Event;

/// See [`keeper::Keeper`].
#[derive(Debug)]
pub struct Keeper(keeper::Keeper);

impl Keeper {
    /// Starts it; it reports what it finds at once, and then what changes.
    pub(crate) fn start(vip: Vip, events: mpsc::Sender<Event>) -> std::io::Result<Self> {
        let tell = move |seen: &keeper::Seen| events.try_send(Event::Address(seen_of(seen))).is_ok();
        Ok(Self(keeper::Keeper::start(vip, Box::new(tell))?))
    }

    /// Returns at once.
    pub(crate) fn order(&self, order: AddressOrder) {
        self.0.order(match order {
            AddressOrder::Release => keeper::Order::Release,
            AddressOrder::Ask => keeper::Order::Ask,
            AddressOrder::Hold { until, lifetime } => keeper::Order::Hold { until, lifetime },
        });
    }

    /// The worker ends in order: PostgreSQL goes on, and its clients are to reach it.
    pub(crate) fn leave(&self) {
        let _in_time_or_not = self.0.end(Parting::Leave);
    }
}

fn seen_of(seen: &keeper::Seen) -> AddressSeen {
    let asked = match seen.asked {
        keeper::Asked::Unknown => Asked::Unknown,
        keeper::Asked::Silent => Asked::Silent,
        keeper::Asked::Elsewhere(by) => Asked::Elsewhere(by.to_string()),
    };
    AddressSeen { held: seen.held, asked, trouble: seen.trouble.clone() }
}
