//! `docs/configuration.md` says about `proxy.toml` what the code does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use pgherd_common::config::KnownKey;
use pgherd_proxy::config::known_keys;

/// The part of the page about the proxy.
fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let proxy = text.split_once("\n## proxy.toml\n").unwrap().1;
    proxy.split_once("\n## ").map_or(proxy, |(proxy, _)| proxy).to_owned()
}

/// How a key's row begins.
fn row(key: &KnownKey) -> String {
    let default = match key.default.as_deref() {
        None => "*required*".to_owned(),
        Some("") => "*none*".to_owned(),
        Some(default) => format!("`{default}`"),
    };
    format!("| `{}` | {} | {default} | ", key.path, key.kind)
}

#[test]
fn every_key_is_documented_with_its_kind_and_default() {
    let page = page();
    for key in known_keys() {
        let row = row(&key);
        let found = page.lines().find(|line| line.starts_with(&row));
        assert!(
            found.is_some_and(|line| line.len() > row.len() + 10),
            "docs/configuration.md lacks the row {row}"
        );
    }
}

#[test]
fn no_key_is_documented_that_does_not_exist() {
    let known: BTreeSet<String> = known_keys().into_iter().map(|key| key.path).collect();
    let page = page();
    let documented = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<String> = documented.map(|(key, _)| key.to_owned()).collect();
    assert_eq!(documented, known);
}
