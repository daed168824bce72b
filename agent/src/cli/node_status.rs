//! `pgherd node-status` as text.

use super::units::bytes;
use crate::api::types::{AgentType, DatabaseState, NodeStatus};
use crate::cluster::NodeKind;

/// Whether the exit status is 0: the database has not failed, and the agent takes care of it.
pub(super) fn is_in_order(node: &NodeStatus) -> bool {
    let database = match node.db {
        DatabaseState::Up | DatabaseState::NotApplicable => true,
        DatabaseState::Down | DatabaseState::Unknown => false,
    };
    let agent = match node.agent_type {
        AgentType::Primary | AgentType::Standby | AgentType::Witness | AgentType::Promoting => true,
        AgentType::Idle | AgentType::Down => false,
    };
    database && agent
}

/// One line for each fact.
pub(super) fn render(node: &NodeStatus) -> String {
    let mut facts = vec![
        ("Node", format!("{} (id {})", node.name, node.id)),
        ("Agent type", node.agent_type.to_string()),
        ("Address", node.agent.to_string()),
        ("DB", node.db.to_string()),
    ];
    if let Some(postgres) = &node.postgres {
        facts.push(("PostgreSQL", postgres.to_string()));
    }
    if node.vip.is_some() {
        facts.push(("VIP", vip(node)));
    }
    if node.kind == NodeKind::Database {
        let priority = match node.priority {
            _ if !node.tags.promotable => "0 (promotable = false: never promoted)".to_owned(),
            0 => "0 (never promoted)".to_owned(),
            place => place.to_string(),
        };
        facts.push(("Priority", priority));
        let detached = match (node.attached, node.tags.balance) {
            (false, _) => " (detached: takes no reads)",
            (true, false) => " (balance = false: takes no reads)",
            (true, true) => "",
        };
        facts.push(("Weight", format!("{}{detached}", node.weight)));
    }
    let tags = node.tags.spelled();
    if !tags.is_empty() {
        facts.push(("Tags", tags.join(", ")));
    }
    if let Some(source) = &node.streams_from {
        facts.push(("Streams from", source.to_string()));
    }
    facts.push(("Allowed", if node.allowed { "yes" } else { "no" }.to_owned()));
    if let Some(timeline) = node.timeline {
        facts.push(("Timeline", timeline.to_string()));
    }
    if let Some(received) = node.received {
        facts.push(("WAL received", received.to_string()));
    }
    if let Some(replayed) = node.replayed {
        let lag = node.lag_bytes.filter(|lag| *lag > 0).map(|lag| format!(" ({} behind)", bytes(lag)));
        let position = if node.agent_type == AgentType::Primary { "WAL written" } else { "WAL replayed" };
        facts.push((position, format!("{replayed}{}", lag.unwrap_or_default())));
    }
    if !node.info.is_empty() {
        facts.push(("Info", node.info.clone()));
    }
    facts
        .into_iter()
        .map(|(what, value)| format!("{:<14}{value}", format!("{what}:")).trim_end().to_owned() + "\n")
        .collect()
}

/// The virtual IP, with `*` while it is held.
pub(super) fn vip(node: &NodeStatus) -> String {
    let held = if node.vip_active { "*" } else { "" };
    node.vip.as_ref().map(|vip| format!("{vip}{held}")).unwrap_or_default()
}
