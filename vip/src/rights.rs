//! Whether this process may change addresses and speak on a link.

use rustix::thread::{CapabilitySet, capabilities, clear_ambient_capability_set};

/// It may not.
#[derive(Debug, thiserror::Error)]
#[error(
    "this process lacks {missing}, which it needs for virtual_ip: give its systemd unit \
     `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`, or remove [virtual_ip]"
)]
pub struct MissingRights {
    missing: &'static str,
}

/// CAP_NET_ADMIN to change addresses, CAP_NET_RAW to ask and announce.
pub(crate) fn check() -> Result<(), MissingRights> {
    // What cannot be asked will be refused where it is needed.
    let Ok(sets) = capabilities(None) else { return Ok(()) };
    let has = |wanted| sets.effective.contains(wanted);
    let missing = match (has(CapabilitySet::NET_ADMIN), has(CapabilitySet::NET_RAW)) {
        (true, true) => return Ok(()),
        (false, true) => "CAP_NET_ADMIN",
        (true, false) => "CAP_NET_RAW",
        (false, false) => "CAP_NET_ADMIN and CAP_NET_RAW",
    };
    Err(MissingRights { missing })
}

/// From now on programs that this thread starts, or threads that it starts do, have none of the rights that
/// systemd gave to this process: PostgreSQL has no use for them.
pub fn keep_to_this_process() -> std::io::Result<()> {
    Ok(clear_ambient_capability_set()?)
}
