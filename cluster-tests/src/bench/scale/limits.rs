//! How many sockets this process and those that it starts may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;

/// For files, libraries and connections to servers.
const MORE: u64 = 1000;

/// Enough for so many clients. Whatever is started from now on may have as many.
pub(super) fn allow_sockets(clients: usize) -> Result<(), Failure> {
    let needed = u64::try_from(clients).unwrap_or(u64::MAX).saturating_add(MORE);
    let now = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if enough(now.current) {
        return Ok(());
    }
    let maximum = if enough(now.maximum) { now.maximum } else { Some(needed) };
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).map_err(|error| {
        Failure::new(format!(
            "cannot allow {needed} open files ({error}): raise the hard limit with `ulimit -Hn {needed}`, \
             or ask for fewer clients"
        ))
    })
}
