//! `[[hba]]`: the rules for clients, in their order.

use pgherd_common::config::{Reader, Section};

use super::{AuthMethod, METHODS, one_of};
use crate::hba::{Addresses, Kind, Name, Rule};

/// The rules that could be read.
pub(super) fn read(r: &mut Reader, root: &mut Section) -> Vec<Rule> {
    let sections = root.tables(r, "hba");
    let mut rules = Vec::new();
    for mut section in sections {
        rules.extend(read_rule(r, &mut section));
        section.finish(r);
    }
    rules
}

/// One of them.
pub(super) fn read_rule(r: &mut Reader, section: &mut Section) -> Option<Rule> {
    let kinds = [
        ("host", Kind::Host),
        ("hostssl", Kind::HostSsl),
        ("hostnossl", Kind::HostNoSsl),
        ("local", Kind::Local),
    ];
    let kind = one_of(r, section, "type", &kinds);
    let databases = names(r, section, "database", Name::database);
    let users = names(r, section, "user", Name::user);
    let addresses: Option<String> = section.or(r, "address", "\"all\"");
    let method = one_of(r, section, "method", &[&METHODS[..], &[("reject", AuthMethod::Reject)]].concat());
    let addresses = match Addresses::parse(&addresses?) {
        Ok(addresses) => Some(addresses),
        Err(error) => {
            let path = section.path_of("address");
            r.problem(&path, error);
            None
        }
    };
    if kind == Some(Kind::Local) && addresses.is_some_and(|addresses| addresses != Addresses::All) {
        let path = section.path_of("address");
        r.problem(&path, "a Unix socket has no addresses: it goes with the other types only");
    }
    let rule =
        Rule { kind: kind?, databases: databases?, users: users?, addresses: addresses?, method: method? };
    if rule.method == AuthMethod::Cert && rule.kind != Kind::HostSsl {
        let path = section.path_of("method");
        r.problem(&path, "\"cert\" needs an encrypted connection: it goes with type \"hostssl\" only");
    }
    Some(rule)
}

fn names<E: std::fmt::Display>(
    r: &mut Reader,
    section: &mut Section,
    key: &str,
    parse: fn(&str) -> Result<Name, E>,
) -> Option<Vec<Name>> {
    let texts: Vec<String> = section.or(r, key, "[\"all\"]")?;
    let path = section.path_of(key);
    if texts.is_empty() {
        r.problem(&path, "empty; the rule would fit nobody");
    }
    let mut names = Vec::new();
    for text in &texts {
        match parse(text) {
            Ok(name) => names.push(name),
            Err(error) => r.problem(&path, error),
        }
    }
    Some(names)
}
