//! `pgherd pg-set`: PostgreSQL's parameters, on all nodes or on one.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeName};

use super::args::{PgSetArgs, RestartArgs};
use super::client::Agent;
use super::error::CliError;
use super::{Outcome, pg_show, print, restart};
use crate::api::types::{ParametersStatus, SetParameters, Standing};

/// How long nodes that answer may take to lay out what was set.
const WAIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);

/// `NAME=VALUE`, as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    name: String,
    value: String,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("it has no `=`: write NAME=VALUE, or --reset NAME")?;
        let (name, value) = (name.trim().to_owned(), value.trim());
        if name.is_empty() {
            return Err("there is no name before the `=`".to_owned());
        }
        // As it would stand in postgresql.conf.
        let unquoted = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
        let value = unquoted.map_or_else(|| value.to_owned(), |value| value.replace("''", "'"));
        Ok(Self { name, value })
    }
}

pub(super) async fn run(agent: &Agent, args: &PgSetArgs) -> Result<Outcome, CliError> {
    let mut set = BTreeMap::new();
    for Assignment { name, value } in &args.set {
        set.insert(name.to_ascii_lowercase(), value.clone());
    }
    let by = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let by = by.filter(|by| !by.is_empty()).unwrap_or_else(|| "an operator".to_owned());
    let reset = args.reset.clone();
    let request = SetParameters { node: args.node.clone(), set, reset, insist: args.yes, by };
    let before: ParametersStatus = agent.fetch("/v1/parameters").await?;
    let accepted = agent.order("/v1/parameters", &request).await?;
    print(&format!("{}\n", accepted.message))?;
    let (status, laid_out) = settle(agent, before.number).await?;
    print(&after(&status))?;
    let refused = names_refused(&status, &request);
    if args.restart && refused.is_empty() && laid_out {
        let restart = RestartArgs { nodes: Vec::new(), pending: true, end_transactions: false, yes: true };
        let outcome = restart::run(agent, &restart).await?;
        let status: ParametersStatus = agent.fetch("/v1/parameters").await?;
        print(&after(&status))?;
        let well = outcome == Outcome::Good && names_refused(&status, &request).is_empty();
        return Ok(Outcome::good_if(well));
    }
    if args.restart {
        print("nothing is restarted before every node that answers has taken the values\n")?;
    }
    Ok(Outcome::good_if(refused.is_empty() && laid_out))
}

/// Waits until all nodes that answer have laid out what was set, and tells whether they have.
async fn settle(agent: &Agent, before: u64) -> Result<(ParametersStatus, bool), CliError> {
    let begun = RealClock.now();
    loop {
        let status: ParametersStatus = agent.fetch("/v1/parameters").await?;
        // The agent asked may be behind the one that leads.
        let known = status.number > before || RealClock.now().since(begun) > POLL * 10;
        let laid_out =
            status.nodes.iter().filter_map(|node| node.applied).all(|applied| applied >= status.number);
        if (known && laid_out) || RealClock.now().since(begun) > WAIT {
            return Ok((status, known && laid_out));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Nodes that did not take what was asked for.
fn names_refused<'a>(status: &'a ParametersStatus, request: &SetParameters) -> Vec<&'a NodeName> {
    let named = status.parameters.iter().filter(|parameter| request.set.contains_key(&parameter.name));
    let nodes = named.flat_map(|parameter| &parameter.nodes);
    nodes.filter(|node| matches!(node.standing, Standing::Refused { .. })).map(|node| &node.node).collect()
}

/// What an operator has to know of the nodes.
fn after(status: &ParametersStatus) -> String {
    let mut text = String::new();
    for node in status.nodes.iter().filter(|node| node.applied.is_none()) {
        text += &format!("{} does not answer: it takes over what was set when it is back\n", node.node);
    }
    for node in status.nodes.iter().filter(|node| node.applied.is_some_and(|applied| applied < status.number))
    {
        text += &format!("{} has not taken over yet what was set; `pgherd pg-show` tells\n", node.node);
    }
    for parameter in &status.parameters {
        for node in &parameter.nodes {
            let told = match &node.standing {
                Standing::Refused { .. } | Standing::Overridden { .. } => pg_show::spell(&node.standing),
                Standing::InEffect | Standing::RestartPending | Standing::NotYet { .. } => continue,
            };
            text += &format!("{} = '{}' on {}: {told}\n", parameter.name, node.wanted, node.node);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{NodeParameters, ParameterOnNode, ParameterStatus};

    #[test]
    fn assignments_are_read_as_postgresql_conf_has_them() {
        let read = |text: &str| text.parse::<Assignment>().map(|a| (a.name, a.value));
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(read("work_mem=64MB"), pair("work_mem", "64MB"));
        assert_eq!(read("work_mem = '64MB'"), pair("work_mem", "64MB"));
        assert_eq!(read("search_path='it''s'"), pair("search_path", "it's"));
        assert_eq!(read("a="), pair("a", ""));
        assert_eq!(read("log_line_prefix=%m=%p"), pair("log_line_prefix", "%m=%p"));
        assert!(read("work_mem").is_err() && read("=1").is_err());
    }

    #[test]
    fn nodes_that_lag_or_refuse_are_named() {
        let node =
            |name: &str, applied| NodeParameters { node: name.parse().unwrap(), applied, trouble: None };
        let on = |name: &str, standing| ParameterOnNode {
            node: name.parse().unwrap(),
            wanted: "1TB".to_owned(),
            running: None,
            standing,
        };
        let status = ParametersStatus {
            number: 7,
            nodes: vec![node("server1", Some(7)), node("server2", Some(6)), node("server3", None)],
            parameters: vec![ParameterStatus {
                name: "shared_buffers".to_owned(),
                value: Some("1TB".to_owned()),
                by: None,
                at: None,
                overrides: Vec::new(),
                nodes: vec![
                    on("server1", Standing::Refused { why: "no room".to_owned() }),
                    on("server2", Standing::RestartPending),
                ],
            }],
        };
        assert_eq!(
            after(&status),
            "server3 does not answer: it takes over what was set when it is back\n\
             server2 has not taken over yet what was set; `pgherd pg-show` tells\n\
             shared_buffers = '1TB' on server1: not taken: no room\n"
        );
    }
}
