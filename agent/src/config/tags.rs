//! `[node.tags]`: what a node is good for.

use pgherd_common::config::{Reader, Section};

use crate::cluster::Tags;

/// As read; `priority` is the node's, as far as it is known.
pub(super) fn read(r: &mut Reader, mut section: Section, priority: Option<u32>) -> Option<Tags> {
    let promotable = section.optional(r, "promotable");
    let balance = section.or(r, "balance", "true");
    let sync = section.or(r, "sync", "true");
    let clone_from = section.or(r, "clone_from", "false");
    if (promotable, priority) == (Some(true), Some(0)) {
        r.problem(
            &section.path_of("promotable"),
            "contradicts node.priority = 0, with which a node is never promoted without being named; leave one of them out",
        );
    }
    section.finish(r);
    Some(Tags {
        promotable: promotable.unwrap_or(true),
        balance: balance?,
        sync: sync?,
        clone_from: clone_from?,
    })
}
