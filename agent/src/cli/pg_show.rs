//! `pgherd pg-show`: the parameters that the cluster sets, and how they stand on each node.

use super::table::Table;
use crate::api::types::{ParametersStatus, Standing};

pub(super) fn render(status: &ParametersStatus) -> String {
    if status.parameters.is_empty() {
        return "no parameter is set cluster-wide; `pgherd pg-set NAME=VALUE` sets one\n".to_owned();
    }
    let mut table = Table::new(&["Parameter", "Node", "Set to", "Runs with", "State"]);
    for parameter in &status.parameters {
        for node in &parameter.nodes {
            let own = parameter.overrides.iter().any(|own| own.node == node.node);
            let wanted = if own { format!("{} (of this node)", node.wanted) } else { node.wanted.clone() };
            let running = node.running.clone().unwrap_or_else(|| "?".to_owned());
            let state = spell(&node.standing);
            table.row(vec![parameter.name.clone(), node.node.to_string(), wanted, running, state]);
        }
    }
    let mut text = table.render();
    for node in &status.nodes {
        if let Some(trouble) = &node.trouble {
            text += &format!("{}: {trouble}\n", node.node);
        }
    }
    text
}

/// Whether all of it is in effect.
pub(super) fn is_in_order(status: &ParametersStatus) -> bool {
    let nodes = status.parameters.iter().flat_map(|parameter| &parameter.nodes);
    nodes.into_iter().all(|node| node.standing == Standing::InEffect)
}

/// For people.
pub(super) fn spell(standing: &Standing) -> String {
    match standing {
        Standing::InEffect => "in effect".to_owned(),
        Standing::RestartPending => "restart pending (restart --pending)".to_owned(),
        Standing::Overridden { by } => format!("overridden by {by}"),
        Standing::Refused { why } => format!("not taken: {why}"),
        Standing::NotYet { why } => format!("not yet: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{NodeParameters, OverrideStatus, ParameterOnNode, ParameterStatus};

    #[test]
    fn each_node_has_a_row_with_what_it_runs_with() {
        let none = ParametersStatus { number: 0, nodes: Vec::new(), parameters: Vec::new() };
        assert!(render(&none).starts_with("no parameter is set") && is_in_order(&none));
        let on = |name: &str, wanted: &str, standing| ParameterOnNode {
            node: name.parse().unwrap(),
            wanted: wanted.to_owned(),
            running: Some("4MB".to_owned()),
            standing,
        };
        let own = OverrideStatus {
            node: "server2".parse().unwrap(),
            value: "8MB".to_owned(),
            by: "dba".to_owned(),
            at: pgherd_common::WallTime(0),
        };
        let silent = NodeParameters {
            node: "server3".parse().unwrap(),
            applied: None,
            trouble: Some("silent".to_owned()),
        };
        let status = ParametersStatus {
            number: 3,
            nodes: vec![silent],
            parameters: vec![ParameterStatus {
                name: "work_mem".to_owned(),
                value: Some("4MB".to_owned()),
                by: Some("dba".to_owned()),
                at: None,
                overrides: vec![own],
                nodes: vec![
                    on("server1", "4MB", Standing::InEffect),
                    on("server2", "8MB", Standing::Overridden { by: "/d/postgresql.auto.conf".to_owned() }),
                ],
            }],
        };
        let text = render(&status);
        assert!(text.contains("work_mem   server1  4MB                 4MB        in effect\n"), "{text}");
        assert!(
            text.contains("8MB (of this node)  4MB        overridden by /d/postgresql.auto.conf\n"),
            "{text}"
        );
        assert!(text.ends_with("server3: silent\n") && !is_in_order(&status), "{text}");
    }
}
