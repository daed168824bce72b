//! `[[members]]`: every voter of a cluster that is yet to form, in the same words on every node; of one that has formed, the
//! members that this node can ask for the others.

use std::collections::BTreeMap;

use pgherd_common::config::{Reader, Section};
use pgherd_common::{HostPort, NodeId, NodeName};

use crate::cluster::ClusterState;

/// A voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEntry {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Where its agent is reached.
    pub agent: HostPort,
}

const VOTERS_MAX: usize = ClusterState::MEMBERS_MAX;

/// The entries that could be read, in the order of their ids.
pub(super) fn read(r: &mut Reader, root: &mut Section) -> Vec<MemberEntry> {
    let mut members = Vec::new();
    let sections = root.tables(r, "members");
    let listed = sections.len();
    for mut section in sections {
        let (id, name, agent) =
            (section.required(r, "id"), section.required(r, "name"), section.required(r, "agent"));
        section.finish(r);
        if let (Some(id), Some(name), Some(agent)) = (id, name, agent) {
            members.push(MemberEntry { id, name, agent });
        }
    }
    if listed == 0 {
        r.problem(
            "members",
            "missing; list every node, this one included, as [[members]] with id, name and agent",
        );
    }
    if listed > VOTERS_MAX {
        r.problem("members", format!("{listed} nodes are listed; a cluster has at most {VOTERS_MAX}"));
    }
    members.sort_by_key(|member| member.id);
    members
}

/// Reports what two entries may not share, and entries that contradict `[node]`.
pub(super) fn check(r: &mut Reader, members: &[MemberEntry], id: Option<NodeId>, name: Option<&NodeName>) {
    unique(r, members, "id", |member| member.id.to_string());
    unique(r, members, "name", |member| member.name.to_string());
    unique(r, members, "agent", |member| member.agent.to_string());
    slots(r, members);

    let (Some(id), Some(name)) = (id, name) else { return };
    let by_id = members.iter().find(|member| member.id == id);
    let by_name = members.iter().find(|member| member.name == *name);
    match (by_id, by_name) {
        (Some(entry), _) if entry.name == *name => {}
        (Some(entry), _) => r.problem(
            "node.name",
            format!(
                "node {id} is \"{name}\" here, but \"{}\" in [[members]]; both must be the same",
                entry.name
            ),
        ),
        (None, Some(entry)) => r.problem(
            "node.id",
            format!("\"{name}\" has id {id} here, but id {} in [[members]]; both must be the same", entry.id),
        ),
        (None, None) if members.is_empty() => {}
        (None, None) => {
            r.problem(
                "members",
                format!("this node (id {id}, \"{name}\") is not listed; every node lists all nodes"),
            );
        }
    }
}

/// Slot names know no `-`, so that two names can come to the same slot.
fn slots(r: &mut Reader, members: &[MemberEntry]) {
    let mut names = BTreeMap::<String, &NodeName>::new();
    for member in members {
        let slot = member.name.slot();
        match names.get(&slot) {
            Some(other) if **other != member.name => {
                let (name, other) = (&member.name, other.as_str());
                r.problem(
                    "members",
                    format!("\"{other}\" and \"{name}\" would share the replication slot {slot}"),
                );
            }
            Some(_) => {}
            None => {
                names.insert(slot, &member.name);
            }
        }
    }
}

fn unique(r: &mut Reader, members: &[MemberEntry], what: &str, value: impl Fn(&MemberEntry) -> String) {
    let mut seen = BTreeMap::<String, usize>::new();
    for member in members {
        *seen.entry(value(member)).or_default() += 1;
    }
    for (value, times) in seen.into_iter().filter(|(_, times)| *times > 1) {
        r.problem("members", format!("{what} {value} is listed {times} times; it must be unique"));
    }
}
