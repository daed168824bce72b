//! `pgherd cluster-status` as text: EFM's sections in EFM's order, then what only pgherd has.

use pgherd_common::{Lsn, NodeName};

use super::node_status::vip;
use super::table::Table;
use super::units::{bytes, millis, span};
use crate::api::types::{
    AgentType, ClusterStatus, DurabilityStatus, NodeStatus, PausedStatus, ScheduledStatus,
};
use crate::cluster::NodeKind;

/// The whole report.
pub(super) fn render(status: &ClusterStatus) -> String {
    let mut sections = vec![title(status), members(status), coming_and_going(status)];
    sections.push(format!("Allowed node host list:\n{}", names(&status.allowed)));
    sections.push(match &status.leader {
        Some(leader) => format!("Membership coordinator: {leader}\n"),
        None => "Membership coordinator: none (no leader is known)\n".to_owned(),
    });
    sections.push(format!("Standby priority host list:\n{}", names(&status.priority)));
    sections.push(format!("Promote Status:\n\n{}", promote_status(status)));
    sections.push(indented(&status.verdict, ""));
    sections.push(idle(status));
    sections.push(agreement(status));
    sections.push(proxies(status));
    sections.push(match status.report.as_slice() {
        [] => String::new(),
        report => format!("Last decision:\n{}", indented(report, "    ")),
    });
    sections.retain(|section| !section.is_empty());
    sections.join("\n")
}

fn title(status: &ClusterStatus) -> String {
    let mut text = format!("Cluster Status: {}\n", status.cluster);
    if !status.formed {
        text += "The cluster has not formed yet: no primary was ever agreed on.\n";
    }
    for PausedStatus { node, until, left_ms } in &status.paused {
        let what = node.as_ref().map_or("Paused".to_owned(), |node| format!("{node} is paused"));
        text += &format!("{what}: PostgreSQL is left alone until {until} ({} left).\n", span(*left_ms));
    }
    if !status.auto_failover {
        text += "Automatic failover is off: a failed primary is replaced only by `pgherd promote`.\n";
    }
    text
}

fn members(status: &ClusterStatus) -> String {
    let mut table = Table::new(&["Agent Type", "Name", "Address", "DB", "VIP"]);
    for node in &status.nodes {
        table.row(vec![
            node.agent_type.to_string(),
            node.name.to_string(),
            node.agent.to_string(),
            node.db.to_string(),
            vip(node),
        ]);
    }
    table.render()
}

/// Nodes that are not members yet, or not for much longer.
fn coming_and_going(status: &ClusterStatus) -> String {
    let line = |node: &NodeStatus| match (node.invited, node.leaving) {
        (true, _) => Some(format!("{}: {}", node.name, node.info)),
        (false, true) => {
            Some(format!("{}: it is being removed; the last decision says what it waits for", node.name))
        }
        (false, false) => None,
    };
    let lines: Vec<String> = status.nodes.iter().filter_map(line).collect();
    indented(&lines, "")
}

/// How a node takes part in the comparison of WAL positions.
enum Part {
    Compared,
    Idle,
    None,
}

fn part(node: &NodeStatus) -> Part {
    match (node.kind, node.agent_type) {
        (NodeKind::Witness, _) | (NodeKind::Database, AgentType::Down | AgentType::Witness) => Part::None,
        (NodeKind::Database, AgentType::Idle) => Part::Idle,
        (NodeKind::Database, AgentType::Primary | AgentType::Standby | AgentType::Promoting) => {
            Part::Compared
        }
    }
}

fn promote_status(status: &ClusterStatus) -> String {
    let mut table = Table::new(&["DB Type", "Address", "WAL Received LSN", "WAL Replayed LSN", "Info"]);
    for node in status.nodes.iter().filter(|node| matches!(part(node), Part::Compared)) {
        let mut cells = vec![node.agent_type.to_string()];
        cells.extend(positions(node));
        table.row(cells);
    }
    if table.is_empty() { "No database is in service.\n".to_owned() } else { table.render() }
}

fn idle(status: &ClusterStatus) -> String {
    let mut table = Table::new(&["Address", "WAL Received LSN", "WAL Replayed LSN", "Info"]);
    for node in status.nodes.iter().filter(|node| matches!(part(node), Part::Idle)) {
        table.row(positions(node));
    }
    if table.is_empty() {
        return String::new();
    }
    format!("Idle Node Status (left out when positions are compared):\n\n{}", table.render())
}

fn positions(node: &NodeStatus) -> Vec<String> {
    let lsn = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.to_string()).unwrap_or_default();
    let mut info = Vec::new();
    if let Some(lag) = node.lag_bytes.filter(|lag| *lag > 0) {
        info.push(format!("{} behind", bytes(lag)));
    }
    if let Some(source) = &node.streams_from {
        info.push(format!("streams from {source}"));
    }
    info.extend(node.tags.spelled().into_iter().map(str::to_owned));
    if !node.attached {
        info.push("detached".to_owned());
    }
    if !node.info.is_empty() {
        info.push(node.info.clone());
    }
    let address = node.postgres.as_ref().unwrap_or(&node.agent).to_string();
    vec![address, lsn(node.received), lsn(node.replayed), info.join("; ")]
}

fn agreement(status: &ClusterStatus) -> String {
    let ClusterStatus { generation, term, voters, voters_heard, answered_by, .. } = status;
    let mut text = format!("Generation: {generation} (term {term})\n");
    text += &format!("Voters: {answered_by} hears {voters_heard} of {voters}\n");
    for out in &status.without_vote {
        text += &format!("    without a vote: {} ({})\n", out.node, out.reason);
    }
    text += &match &status.lease.holder {
        Some(holder) => {
            format!("Lease: {holder}, ends in {} unless it is renewed\n", millis(status.lease.left_ms))
        }
        None => "Lease: held by nobody\n".to_owned(),
    };
    text += &durability(&status.durability);
    match &status.change {
        None => text += "Change in flight: none\n",
        Some(change) => {
            let to = change.to.as_ref().map_or("the best standby", NodeName::as_str);
            text += &format!(
                "Change in flight: {} from {} to {to}, {}\n",
                change.kind, change.from, change.phase
            );
            text += &format!("    {}\n", change.reason);
        }
    }
    text += &status.scheduled.as_ref().map(scheduled).unwrap_or_default();
    text
}

fn scheduled(status: &ScheduledStatus) -> String {
    let when = match status.left_ms {
        0 => "due".to_owned(),
        left => format!("in {}", span(left)),
    };
    let to = match (&status.to, &status.successor) {
        (Some(to), _) => to.to_string(),
        (None, Some(best)) => format!("the best standby, {best} as things are"),
        (None, None) => "the best standby".to_owned(),
    };
    let ends = if status.end_transactions { "; transactions that do not end are ended" } else { "" };
    let mut text =
        format!("Scheduled switchover: {}, {when}, from {} to {to}{ends}\n", status.at, status.from);
    if let Some(obstacle) = &status.obstacle {
        text += &format!("    could not begin now: {obstacle}\n");
    }
    text
}

fn durability(status: &DurabilityStatus) -> String {
    let DurabilityStatus { asked, standbys, of, settled } = status;
    if *asked == 0 && *standbys == 0 {
        return String::new();
    }
    let of: Vec<&str> = of.iter().map(NodeName::as_str).collect();
    let waits = match standbys {
        0 => "for no standby".to_owned(),
        standbys => format!("for any {standbys} of {}", of.join(", ")),
    };
    let asked = if standbys == asked { String::new() } else { format!("; {asked} are asked for") };
    let settled = if *settled { "" } else { "; not yet so for those before" };
    format!("Commits: wait {waits}{asked}{settled}\n")
}

fn proxies(status: &ClusterStatus) -> String {
    let mut table = Table::new(&["Proxy", "Address", "Version", "State"]);
    for proxy in &status.proxies {
        let version = proxy.acknowledged.map_or_else(|| "none".to_owned(), |version| version.to_string());
        let state = if proxy.current { "current" } else { "behind" };
        table.row(vec![proxy.name.clone(), proxy.listen.to_string(), version, state.to_owned()]);
    }
    if table.is_empty() {
        return format!("Proxies: none connected to {}\n", status.answered_by);
    }
    format!("Proxies connected to {}:\n\n{}", status.answered_by, table.render())
}

fn names(names: &[NodeName]) -> String {
    match names {
        [] => "    (List is empty.)\n".to_owned(),
        names => format!("    {}\n", names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(" ")),
    }
}

fn indented(lines: &[String], by: &str) -> String {
    lines.iter().map(|line| format!("{by}{line}\n")).collect()
}

#[cfg(test)]
pub(super) mod tests;
