//! Which keys take effect when the file is read again, and which only when the proxy is started again.

use pgherd_common::config::Setting;

use super::{AuthMethod, Config};

/// Keys, or tables, that only a restart changes: what the process is built on.
const RESTART: &[&str] = &[
    "cluster.name",
    "proxy.name",
    "proxy.listen",
    "proxy.threads",
    "proxy.advertise",
    "agents.addresses",
    "auth.user",
    "auth.password",
    "auth.database",
    "auth.query",
    "tls.",
    "server_tls.",
    "virtual_ip.",
];

/// Whether a new value of this key waits for a restart.
pub fn needs_restart(pattern: &str) -> bool {
    RESTART.iter().any(|key| pattern == *key || (key.ends_with('.') && pattern.starts_with(key)))
}

/// A key that has another value than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it stands.
    pub path: String,
    /// As people may see it; empty: there was none.
    pub old: String,
    /// The same.
    pub new: String,
    /// It waits for a restart.
    pub waits: bool,
}

impl Config {
    /// What is in effect once `file` was read again in place of `self`: of those keys that need a restart the
    /// values of `self`.
    #[must_use]
    pub fn reloaded(&self, file: Self) -> Self {
        let kept = self.settings.iter().filter(|setting| needs_restart(setting.pattern()));
        let taken = file.settings.iter().filter(|setting| !needs_restart(setting.pattern()));
        let settings: Vec<Setting> = kept.chain(taken).cloned().collect();
        let method: AuthMethod = file.auth.method;
        let mut auth = self.auth.clone();
        auth.method = method;
        Self {
            cluster: self.cluster.clone(),
            name: self.name.clone(),
            listen: self.listen.clone(),
            threads: self.threads,
            advertise: self.advertise.clone(),
            agents: self.agents.clone(),
            auth,
            tls: self.tls.clone(),
            server_tls: self.server_tls.clone(),
            virtual_ip: self.virtual_ip.clone(),
            file: self.file.clone(),
            settings,
            ..file
        }
    }

    /// In what `file` differs.
    pub fn changes(&self, file: &Self) -> Vec<Change> {
        let find = |all: &[Setting], path: &str| all.iter().find(|one| one.path() == path).cloned();
        let mut paths: Vec<&Setting> = self.settings.iter().collect();
        paths.extend(file.settings.iter().filter(|one| find(&self.settings, one.path()).is_none()));
        let mut changes = Vec::new();
        for setting in paths {
            let (old, new) = (find(&self.settings, setting.path()), find(&file.settings, setting.path()));
            let same = match (&old, &new) {
                (Some(old), Some(new)) => old.same_value(new),
                // Tables of databases and users come and go as a whole; what they say nothing of is no change.
                (Some(one), None) | (None, Some(one)) => !one.is_given() && one.default().is_empty(),
                (None, None) => true,
            };
            if !same {
                let shown = |of: Option<Setting>| of.map(|one| one.shown().to_owned()).unwrap_or_default();
                changes.push(Change {
                    path: setting.path().to_owned(),
                    old: shown(old),
                    new: shown(new),
                    waits: needs_restart(setting.pattern()),
                });
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::known_keys;

    const TEXT: &str = "
        [cluster]
        name = 'demo'
        [proxy]
        name = 'proxy1'
        max_client_connections = 5
        [agents]
        addresses = ['10.0.0.1:7800']
        [auth]
        method = 'trust'
        password = 'hunter2'
        [users.ann]
        pool_size = 3
    ";

    #[test]
    fn what_needs_a_restart_stays_and_the_rest_is_new() {
        let old = Config::parse(TEXT).unwrap();
        let text = TEXT.replace("= 5", "= 6").replace("hunter2", "hunter3").replace("ann", "bob");
        let new = Config::parse(&text).unwrap();
        let changes = old.changes(&new);
        let told: Vec<String> = changes
            .iter()
            .map(|change| format!("{} {} {} {}", change.path, change.old, change.new, change.waits))
            .collect();
        assert_eq!(
            told,
            [
                "proxy.max_client_connections 5 6 false",
                "auth.password *** *** true",
                "users.ann.pool_size 3  false",
                "users.bob.pool_size  3 false",
            ]
        );
        let in_effect = old.reloaded(new);
        assert_eq!(in_effect.max_client_connections, 6);
        assert_eq!(in_effect.auth.password.0, "hunter2");
        assert!(in_effect.users.contains_key("bob") && !in_effect.users.contains_key("ann"));
        assert!(old.changes(&old).is_empty());
        // Asked again, what waits is still told.
        let again = in_effect.changes(&Config::parse(&text).unwrap());
        assert_eq!(again.iter().map(|change| change.path.as_str()).collect::<Vec<_>>(), ["auth.password"]);
    }

    #[test]
    fn every_key_that_needs_a_restart_exists() {
        let keys = known_keys();
        for key in RESTART {
            assert!(keys.iter().any(|known| known.path.starts_with(key)), "{key}");
        }
    }
}
