//! Who is connected, how many there may be, what each client is at, and how it is told to go.
//!
//! A client writes what it is at into its badge, which costs it a few plain stores; whoever wants to know
//! looks at all badges.

mod badge;
mod bell;
mod count;
mod sweep;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pgherd_common::Clock;
use pgherd_common::time::RealClock;

use crate::config::Config;
use crate::control::lock;
use crate::sqlstate::{ClientLimit, Trouble};

pub(crate) use badge::{Badge, Phase};
pub(crate) use bell::Bell;
pub(crate) use count::Tally;
pub(crate) use sweep::send_idle_away;

/// Tells clients apart, for as long as the process lives.
pub(crate) type ClientId = u64;

/// Who comes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guest {
    pub(crate) user: String,
    pub(crate) database: String,
    /// As the client calls itself.
    pub(crate) application: String,
    /// Where it comes from.
    pub(crate) address: String,
    pub(crate) encrypted: bool,
    pub(crate) admin: bool,
}

/// All badges, and how many there are of each kind.
#[derive(Debug, Default)]
struct Present {
    badges: BTreeMap<ClientId, Arc<Badge>>,
    databases: BTreeMap<String, u32>,
    users: BTreeMap<String, u32>,
}

/// What the clients of one user in one database did.
pub(crate) type Totals = BTreeMap<(String, String), Tally>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    last: AtomicU64,
    /// Connections that are not logged in yet.
    arriving: AtomicU32,
    present: Mutex<Present>,
    /// What those did who are gone, by database and user.
    gone: Mutex<Totals>,
}

/// A connection that is being logged in.
#[derive(Debug)]
pub(crate) struct Arrival(Arc<Clients>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client that is logged in, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Presence {
    clients: Arc<Clients>,
    pub(crate) badge: Arc<Badge>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.clients.leave(&self.badge);
    }
}

fn less(counts: &mut BTreeMap<String, u32>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(name);
        }
    }
}

impl Present {
    /// Why a guest may not come in, if it may not.
    fn refuses(&self, guest: &Guest, config: &Config) -> Option<ClientLimit> {
        let own = if guest.admin { config.reserve } else { 0 };
        let all = u32::try_from(self.badges.len()).unwrap_or(u32::MAX);
        if all >= config.max_client_connections.saturating_add(own) {
            return Some(ClientLimit::All { max: config.max_client_connections });
        }
        // As with PostgreSQL's limits of databases and roles, which do not hold for superusers.
        if guest.admin {
            return None;
        }
        let reached = |max: Option<u32>, counts: &BTreeMap<String, u32>, name: &str| {
            max.filter(|max| counts.get(name).copied().unwrap_or(0) >= *max)
        };
        let (database, user) = (&guest.database, &guest.user);
        let max = config.databases.get(database).and_then(|own| own.max_client_connections);
        if let Some(max) = reached(max, &self.databases, database) {
            return Some(ClientLimit::Database { name: database.clone(), max });
        }
        let max = config.users.get(user).and_then(|own| own.max_client_connections);
        reached(max, &self.users, user).map(|max| ClientLimit::User { name: user.clone(), max })
    }
}

impl Clients {
    /// A connection comes that has yet to prove who it is. No more of them than there may be clients.
    pub(crate) fn arrive(self: &Arc<Self>, config: &Config) -> Result<Arrival, Trouble> {
        let max = config.max_client_connections.saturating_add(config.reserve);
        let arrival = Arrival(self.clone());
        if self.arriving.fetch_add(1, Ordering::Relaxed) >= max {
            return Err(Trouble::TooManyClients(ClientLimit::Logins { max }));
        }
        Ok(arrival)
    }

    /// A client has proven who it is.
    pub(crate) fn enter(self: &Arc<Self>, guest: Guest, config: &Config) -> Result<Presence, Trouble> {
        let mut present = lock(&self.present);
        if let Some(limit) = present.refuses(&guest, config) {
            return Err(Trouble::TooManyClients(limit));
        }
        *present.databases.entry(guest.database.clone()).or_default() += 1;
        *present.users.entry(guest.user.clone()).or_default() += 1;
        // 0 is nobody.
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let badge = Arc::new(Badge::new(id, guest, RealClock.wall()));
        present.badges.insert(id, badge.clone());
        Ok(Presence { clients: self.clone(), badge })
    }

    fn leave(&self, badge: &Badge) {
        let guest = &badge.guest;
        let mut present = lock(&self.present);
        present.badges.remove(&badge.id);
        less(&mut present.databases, &guest.database);
        less(&mut present.users, &guest.user);
        // Under the same lock, so that nobody is counted twice or not at all.
        let key = (guest.database.clone(), guest.user.clone());
        lock(&self.gone).entry(key).or_default().add(&badge.counts.tally());
    }

    /// All clients, in the order in which they came.
    pub(crate) fn all(&self) -> Vec<Arc<Badge>> {
        lock(&self.present).badges.values().cloned().collect()
    }

    /// How many sessions have something on their connection to the primary that is lost with it, and one of them.
    pub(crate) fn unmovable(&self) -> (u32, Option<String>) {
        let present = lock(&self.present);
        let mut found = present
            .badges
            .values()
            .filter_map(|badge| Some((badge, badge.kept_by().filter(|why| why.is_unmovable())?)));
        let example = found.next().map(|(badge, why)| {
            let Guest { user, database, application, address, .. } = &badge.guest;
            let application = if application.is_empty() { "without a name" } else { application };
            format!("user {user} in {database} from {address}, application {application}, for its {why}")
        });
        let others = u32::try_from(found.count()).unwrap_or(u32::MAX);
        (if example.is_some() { others.saturating_add(1) } else { 0 }, example)
    }

    /// One of them.
    pub(crate) fn find(&self, id: ClientId) -> Option<Arc<Badge>> {
        lock(&self.present).badges.get(&id).cloned()
    }

    /// How many there are: of each database, or of each user.
    pub(crate) fn numbers(&self, of_databases: bool) -> BTreeMap<String, u32> {
        let present = lock(&self.present);
        if of_databases { present.databases.clone() } else { present.users.clone() }
    }

    /// What all clients did since the proxy was started, those who are gone too.
    pub(crate) fn totals(&self) -> Totals {
        let present = lock(&self.present);
        let mut totals = lock(&self.gone).clone();
        for badge in present.badges.values() {
            let key = (badge.guest.database.clone(), badge.guest.user.clone());
            totals.entry(key).or_default().add(&badge.counts.tally());
        }
        totals
    }

    /// The topology is another one: those that wait look at it.
    pub(crate) fn nudge(&self) {
        lock(&self.present).badges.values().for_each(|badge| badge.bell.nudge());
    }

    /// The process is to end: those that wait for their client look up.
    pub(crate) fn wake(&self) {
        lock(&self.present).badges.values().for_each(|badge| badge.bell.ring());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lines: &str) -> Config {
        let text = "[cluster]\nname = 'demo'\n[agents]\naddresses = ['h:1']\n[auth]\nmethod = 'trust'\n[proxy]\nname = 'p'\n";
        Config::parse(&format!("{text}{lines}")).unwrap()
    }

    fn guest(user: &str, database: &str) -> Guest {
        let (user, database) = (user.to_owned(), database.to_owned());
        Guest { admin: user == "root", user, database, ..Guest::default() }
    }

    #[test]
    fn every_limit_holds_by_itself() {
        let config = config(
            "max_client_connections = 4\nreserve = 1\n[databases.app]\nmax_client_connections = 2
             [users.ann]\nmax_client_connections = 1",
        );
        let clients = Arc::new(Clients::default());
        let enter = |user: &str, database: &str| clients.enter(guest(user, database), &config);
        let limit = |user: &str, database: &str| match enter(user, database) {
            Err(Trouble::TooManyClients(limit)) => limit,
            other => panic!("{other:?}"),
        };
        let ann = enter("ann", "app").unwrap();
        assert_eq!(limit("ann", "other"), ClientLimit::User { name: "ann".into(), max: 1 });
        let bob = enter("bob", "app").unwrap();
        assert_eq!(limit("bob", "app"), ClientLimit::Database { name: "app".into(), max: 2 });
        let more = (enter("bob", "other").unwrap(), enter("root", "app").unwrap());
        assert_eq!(limit("bob", "other"), ClientLimit::All { max: 4 });
        let reserved = enter("root", "app").unwrap();
        assert_eq!(limit("root", "app"), ClientLimit::All { max: 4 });
        drop((ann, reserved));
        drop(enter("ann", "other").unwrap());
        drop((bob, more));
        assert!(clients.all().is_empty() && clients.numbers(true).is_empty());
    }

    #[test]
    fn what_clients_did_outlives_them() {
        let (clients, config) = (Arc::new(Clients::default()), config(""));
        let one = clients.enter(guest("ann", "app"), &config).unwrap();
        one.badge.counts.queries.add(2);
        let other = clients.enter(guest("ann", "app"), &config).unwrap();
        other.badge.counts.queries.add(5);
        drop(one);
        let totals = clients.totals();
        assert_eq!(totals.len(), 1);
        assert_eq!(totals[&("app".to_owned(), "ann".to_owned())].queries, 7);
    }
}
