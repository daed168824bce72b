//! `SHOW CONFIG`, `SHOW DATABASES` and `SHOW USERS`: what is configured, and what that comes to.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::{Effective, needs_restart};

use super::{Scope, Table};

pub(super) const CONFIG: &[&str] = &["key", "value", "default", "changed_by", "waits_for_restart"];

pub(super) const DATABASES: &[&str] = &[
    "database",
    "clients",
    "max_client_connections",
    "read_consistency",
    "pool_mode",
    "pool_size",
    "idle_timeout",
    "idle_in_transaction_timeout",
    "paused",
];

pub(super) const USERS: &[&str] = &[
    "user",
    "clients",
    "max_client_connections",
    "read_consistency",
    "pool_mode",
    "pool_size",
    "idle_timeout",
    "idle_in_transaction_timeout",
    "admin",
];

/// Every key of the configuration. What waits for a restart is told with the value that waits.
pub(super) fn config(scope: &Scope<'_>) -> Table {
    let mut rows = Vec::new();
    for setting in &scope.config.settings {
        let waits = scope.waiting.iter().find(|change| change.path == setting.path());
        rows.push(vec![
            setting.path().to_owned(),
            setting.shown().to_owned(),
            setting.default().to_owned(),
            if needs_restart(setting.pattern()) { "restart" } else { "reload" }.to_owned(),
            waits.map(|change| change.new.clone()).unwrap_or_default(),
        ]);
    }
    Table { columns: CONFIG, rows }
}

fn told(limit: Option<Duration>) -> String {
    limit.map(|limit| format!("{limit:?}")).unwrap_or_default()
}

fn limits(effective: &Effective) -> [String; 5] {
    [
        effective.consistency_word().to_owned(),
        effective.mode_word().to_owned(),
        effective.pool_size.to_string(),
        told(effective.idle_timeout),
        told(effective.idle_in_transaction_timeout),
    ]
}

/// Databases that have something of their own, or clients. No user has this empty name.
pub(super) fn databases(scope: &Scope<'_>) -> Table {
    let (present, own) = (scope.clients.numbers(true), &scope.config.databases);
    let row = |name: &&String| {
        let max = own.get(*name).and_then(|own| own.max_client_connections);
        let mut row = vec![
            (*name).clone(),
            present.get(*name).copied().unwrap_or(0).to_string(),
            max.map(|max| max.to_string()).unwrap_or_default(),
        ];
        row.extend(limits(&scope.config.effective("", name)));
        row.push(scope.pauses.holds(name).to_string());
        row
    };
    let names: BTreeSet<&String> = present.keys().chain(own.keys()).collect();
    Table { columns: DATABASES, rows: names.iter().map(row).collect() }
}

/// Users that have something of their own, or are here.
pub(super) fn users(scope: &Scope<'_>) -> Table {
    let (present, own) = (scope.clients.numbers(false), &scope.config.users);
    let row = |name: &&String| {
        let max = own.get(*name).and_then(|own| own.max_client_connections);
        let mut row = vec![
            (*name).clone(),
            present.get(*name).copied().unwrap_or(0).to_string(),
            max.map(|max| max.to_string()).unwrap_or_default(),
        ];
        row.extend(limits(&scope.config.effective(name, "")));
        row.push(scope.config.is_admin(name).to_string());
        row
    };
    let names: BTreeSet<&String> = present.keys().chain(own.keys()).chain(&scope.config.admins).collect();
    Table { columns: USERS, rows: names.iter().map(row).collect() }
}
