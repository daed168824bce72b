//! A virtual IP address: taken, announced, looked for elsewhere, and given up.
//!
//! What may be done when is decided by others (`pgherd_core::node`, the agents that grant it to a proxy);
//! here it is only done. Everything is synchronous and short, since a guardian uses it, which runs no
//! async: each call asks the kernel once, or waits for no longer than it is told.
//!
//! An address is taken for a limited time (the kernel's `valid_lft`), which its holder renews. So it goes
//! by itself where its holder is killed or stands still and nobody is left to remove it.

mod frame;
pub mod keeper;
mod netlink;
mod rights;
mod spec;
mod wire;

use std::time::Duration;

use pgherd_common::Clock;
use pgherd_common::time::RealClock;

pub use frame::Mac;
pub use netlink::NetlinkError;
pub use rights::{MissingRights, keep_to_this_process};
pub use spec::{Interface, Subnet};
pub use wire::WireError;

/// The kernel ends an address up to so much later than it was told.
pub const KERNEL_SLACK: Duration = Duration::from_secs(2);

/// The address cannot be taken care of here.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// This process may not.
    #[error(transparent)]
    Rights(#[from] MissingRights),
    /// The interface.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// One address on one interface of this machine.
#[derive(Debug, Clone)]
pub struct Vip {
    subnet: Subnet,
    interface: Interface,
}

impl Vip {
    /// Names it. Nothing is asked of the kernel yet.
    pub fn new(subnet: Subnet, interface: Interface) -> Self {
        Self { subnet, interface }
    }

    /// Whether this process could take it: it has the rights, and the interface is one that can announce it.
    pub fn check(&self) -> Result<(), OpenError> {
        rights::check()?;
        wire::Wire::open(&self.interface, self.subnet.address).map(drop)?;
        Ok(())
    }

    /// The address and the length of its prefix.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Whether this interface has the address now.
    pub fn is_held(&self) -> Result<bool, NetlinkError> {
        let index = netlink::index(&self.interface)?;
        Ok(netlink::find(self.subnet.address)?.iter().any(|found| found.index == index))
    }

    /// Takes the address, or renews it. It goes by itself after `lifetime` (in whole seconds, and see
    /// [`KERNEL_SLACK`]); never, for `None`.
    pub fn hold(&self, lifetime: Option<Duration>) -> Result<(), NetlinkError> {
        netlink::add(netlink::index(&self.interface)?, self.subnet, lifetime)
    }

    /// Gives the address up. Whether it was there.
    pub fn release(&self) -> Result<bool, NetlinkError> {
        let index = netlink::index(&self.interface)?;
        let mut was_there = false;
        for found in netlink::find(self.subnet.address)?.iter().filter(|found| found.index == index) {
            netlink::remove(index, Subnet { prefix: found.prefix, ..self.subnet })?;
            was_there = true;
        }
        Ok(was_there)
    }

    /// Tells all on the link that the address is here now, so that they forget where it was.
    pub fn announce(&self) -> Result<(), WireError> {
        let wire = wire::Wire::open(&self.interface, self.subnet.address)?;
        frame::announcements(self.subnet.address, wire.mac()).iter().try_for_each(|frame| wire.send(frame))
    }

    /// Asks once who on the link has the address, as somebody who has none himself, and waits for an answer.
    /// To be asked while this machine does not have it.
    pub fn ask(&self, wait: Duration) -> Result<Option<Mac>, WireError> {
        let wire = wire::Wire::open(&self.interface, self.subnet.address)?;
        wire.send(&frame::question(self.subnet.address, wire.mac()))?;
        let until = RealClock.now() + wait;
        while let Some(frame) = wire.receive(until)? {
            if let Some(holder) = frame::holder(self.subnet.address, &frame).filter(|mac| *mac != wire.mac())
            {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }
}
