//! PostgreSQL's parameters that the cluster sets: for everybody, and for single nodes.

use std::collections::BTreeMap;

use pgherd_common::{NodeId, WallTime};
use serde::{Deserialize, Serialize};

use super::command::Rejected;
use super::state::ClusterState;

/// What is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parameters {
    /// On every node.
    pub cluster: BTreeMap<String, Parameter>,
    /// On single nodes, where it wins over what is set everywhere.
    pub nodes: BTreeMap<NodeId, BTreeMap<String, Parameter>>,
    /// The log's entry that last changed anything of it; 0: nothing was ever set.
    pub number: u64,
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// As `postgresql.conf` would have it between quotes.
    pub value: String,
    /// The log's entry that set it: the same value set again is to be tried again.
    pub number: u64,
    /// Who, as the command line told.
    pub by: String,
    /// When.
    pub at: WallTime,
}

impl Parameters {
    /// What holds on a node.
    pub fn of(&self, node: NodeId) -> BTreeMap<&str, &Parameter> {
        let own = self.nodes.get(&node).into_iter().flatten();
        self.cluster.iter().chain(own).map(|(name, parameter)| (name.as_str(), parameter)).collect()
    }

    /// What differs from before, in one place, for people.
    pub fn changes_since(&self, before: &Self, place: Option<NodeId>) -> Vec<String> {
        let none = BTreeMap::new();
        let at = |of: &Self| match place {
            None => of.cluster.clone(),
            Some(node) => of.nodes.get(&node).unwrap_or(&none).clone(),
        };
        let (was, is) = (at(before), at(self));
        let set = is.iter().filter(|(name, parameter)| was.get(*name) != Some(parameter));
        let set = set.map(|(name, Parameter { value, by, .. })| format!("{name} = '{value}' (by {by})"));
        let gone = was.keys().filter(|name| !is.contains_key(*name)).map(|name| format!("{name} taken back"));
        set.chain(gone).collect()
    }

    /// Every name that is set anywhere.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = self.cluster.keys().chain(self.nodes.values().flat_map(BTreeMap::keys));
        all.map(String::as_str).collect::<std::collections::BTreeSet<_>>().into_iter()
    }
}

/// Who sets something, when, and with which entry of the log.
pub(super) struct Setter<'a> {
    pub(super) by: &'a str,
    pub(super) at: WallTime,
    pub(super) number: u64,
}

/// Sets parameters, and takes back those without a value.
pub(super) fn set(
    state: &mut ClusterState,
    node: Option<NodeId>,
    values: &BTreeMap<String, Option<String>>,
    setter: &Setter<'_>,
) -> Result<bool, Rejected> {
    if state.identity.is_none() {
        return Err(Rejected::NotFormed);
    }
    if let Some(node) = node {
        let member = state.members.get(&node).ok_or(Rejected::UnknownMember(node))?;
        if !member.is_database() {
            return Err(Rejected::Witness(node));
        }
    }
    let parameters = &mut state.parameters;
    let known = match node {
        None => &mut parameters.cluster,
        Some(node) => parameters.nodes.entry(node).or_default(),
    };
    let mut changed = false;
    for (name, value) in values {
        match value {
            Some(value) => {
                let (value, by) = (value.clone(), setter.by.to_owned());
                known.insert(name.clone(), Parameter { value, number: setter.number, by, at: setter.at });
                changed = true;
            }
            None => changed |= known.remove(name).is_some(),
        }
    }
    parameters.nodes.retain(|_, own| !own.is_empty());
    if changed {
        parameters.number = setter.number;
    }
    Ok(changed)
}
