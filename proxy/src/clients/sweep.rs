//! Sends clients away that have said nothing for too long. They carry no timers of their own: one task
//! looks at all of them now and then, and only where there is such a limit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime};
use tokio::time::timeout;

use crate::config::Config;
use crate::shared::Shared;

use super::{Badge, ClientId, Phase};

/// Between two looks; a client is sent away that much too late at most.
const EVERY_MIN: Duration = Duration::from_millis(20);
const EVERY_MAX: Duration = Duration::from_secs(1);

/// The turn after which a client was first seen to say nothing, and when that was.
type Silent = BTreeMap<ClientId, (u64, MonoTime)>;

/// Never returns.
pub(crate) async fn send_idle_away(shared: Arc<Shared>) {
    let mut following = shared.config.subscribe();
    let mut silent = Silent::new();
    loop {
        let config = following.borrow_and_update().clone();
        let Some(shortest) = config.shortest_idle() else {
            silent.clear();
            if following.changed().await.is_err() {
                return;
            }
            continue;
        };
        let every = (shortest / 4).clamp(EVERY_MIN, EVERY_MAX);
        if timeout(every, following.changed()).await.is_ok() {
            continue;
        }
        look(&shared.clients.all(), &config, &mut silent, RealClock.now());
    }
}

fn look(badges: &[Arc<Badge>], config: &Config, silent: &mut Silent, now: MonoTime) {
    let mut still = Silent::new();
    for badge in badges {
        let limits = config.effective(&badge.guest.user, &badge.guest.database);
        let turns = badge.turns();
        let limit = match badge.phase() {
            Phase::Idle => limits.idle_timeout,
            Phase::IdleInTransaction => limits.idle_in_transaction_timeout,
            Phase::Login | Phase::Active | Phase::Waiting | Phase::Paused => None,
        };
        let Some(limit) = limit else { continue };
        let before = silent.get(&badge.id).copied().filter(|(known, _)| *known == turns);
        let (_, since) = before.unwrap_or((turns, now));
        if now.since(since) >= limit {
            badge.expire(turns);
        }
        still.insert(badge.id, (turns, since));
    }
    *silent = still;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::Guest;

    #[test]
    fn only_who_says_nothing_for_long_enough_is_sent_away() {
        let text = "[cluster]\nname = 'demo'\n[agents]\naddresses = ['h:1']\n[auth]\nmethod = 'trust'\n[proxy]\nname = 'p'
             idle_timeout = '60s'\nidle_in_transaction_timeout = '5s'";
        let config = Config::parse(text).unwrap();
        let badge = Arc::new(Badge::new(1, Guest::default(), pgherd_common::WallTime(0)));
        let mut silent = Silent::new();
        let mut look_at = |second: u64| {
            let now = MonoTime::since_boot(Duration::from_secs(second));
            look(std::slice::from_ref(&badge), &config, &mut silent, now);
            badge.is_expired()
        };
        badge.is_at(Phase::Active, 1);
        assert!(!look_at(0) && !look_at(100));
        badge.is_at(Phase::Idle, 0);
        assert!(!look_at(101) && !look_at(160));
        badge.next_turn();
        assert!(!look_at(162), "it spoke in between");
        badge.next_turn();
        badge.is_at(Phase::IdleInTransaction, 1);
        assert!(!look_at(163) && !look_at(167) && look_at(168));
    }
}
