//! Who changes the primary, and what applications connect to.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::case::Case;

/// One stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Agents, a witness and the proxy.
    Pgherd,
    /// Patroni as it comes, behind HAProxy.
    Patroni,
    /// Patroni as fast as it may be, behind HAProxy.
    PatroniTuned,
    /// Pgpool-II with a script that promotes.
    Pgpool,
}

impl System {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pgherd, Self::Patroni, Self::PatroniTuned, Self::Pgpool];
    /// All but ours.
    pub const PEERS: [Self; 3] = [Self::Patroni, Self::PatroniTuned, Self::Pgpool];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pgherd => "pgherd",
            Self::Patroni => "patroni",
            Self::PatroniTuned => "patroni-tuned",
            Self::Pgpool => "pgpool",
        }
    }

    /// What it is, for the table's legend.
    pub fn told(self) -> &'static str {
        match self {
            Self::Pgherd => "three agents, a witness and the proxy, all with their default settings",
            Self::Patroni => {
                "`ttl` 30, `loop_wait` 10, `retry_timeout` 10; HAProxy asks `/primary` each second (`fall 3`, `rise 2`, `retries 2`) \
                 and closes the sessions of a server that is marked down; one etcd beside HAProxy, which nothing happens to"
            }
            Self::PatroniTuned => {
                "the same with `ttl` 20, `loop_wait` 1, `retry_timeout` 3, `primary_start_timeout` 0, HAProxy's checks each \
                 200 ms (`fall 2`, `rise 1`, `retries 0`)"
            }
            Self::Pgpool => {
                "one Pgpool-II, `health_check_period` 1 without retries, `failover_on_backend_error` and \
                 `failover_on_backend_shutdown` on, a `failover_command` that promotes and repoints; a switchover is \
                 `pcp_promote_node --switchover`. What comes back is made anew"
            }
        }
    }

    /// The files it needs, and the Debian packages that bring them.
    pub(super) fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Pgherd => &[],
            Self::Patroni | Self::PatroniTuned => &[
                ("/usr/bin/patroni", "patroni"),
                ("/usr/lib/python3/dist-packages/etcd", "python3-etcd"),
                ("/usr/bin/etcd", "etcd-server"),
                ("/usr/sbin/haproxy", "haproxy"),
            ],
            Self::Pgpool => &[("/usr/sbin/pgpool", "pgpool2"), ("/usr/sbin/pcp_attach_node", "pgpool2")],
        }
    }

    /// Why this case is not for it.
    pub fn cannot(self, case: Case) -> Option<&'static str> {
        match self {
            Self::Pgpool if case.is_synchronous() => {
                Some("it promotes whatever standby is next, whether commits waited for that one or not")
            }
            Self::Pgherd | Self::Patroni | Self::PatroniTuned | Self::Pgpool => None,
        }
    }

    /// How long it goes from one look at the servers to the next: an event may meet it anywhere between.
    pub(super) fn period(self) -> Duration {
        match self {
            Self::Patroni => Duration::from_secs(10),
            Self::Pgherd | Self::PatroniTuned | Self::Pgpool => Duration::from_secs(1),
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No peer has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peers are {}", System::PEERS.map(System::name).join(", "))]
pub struct NoSuchPeer;

impl FromStr for System {
    type Err = NoSuchPeer;

    fn from_str(name: &str) -> Result<Self, NoSuchPeer> {
        Self::PEERS.into_iter().find(|system| system.name() == name).ok_or(NoSuchPeer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_found_by_their_names_and_ours_is_none() {
        for system in System::PEERS {
            assert_eq!(system.name().parse(), Ok(system));
        }
        assert_eq!("pgherd".parse::<System>(), Err(NoSuchPeer));
    }

    #[test]
    fn only_pgpool_has_no_synchronous_mode() {
        let cannot = |system: &System| Case::ALL.into_iter().any(|case| system.cannot(case).is_some());
        assert_eq!(System::ALL.into_iter().filter(cannot).collect::<Vec<_>>(), [System::Pgpool]);
    }
}
