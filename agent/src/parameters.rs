//! Keeps this node's parameters as the log has them, beside the loop: no decision waits for them.

use std::sync::Arc;
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_common::{NodeId, NodeName};
use pgherd_core::events::{Event, Kind};
use pgherd_core::parameters::is_settable;
use pgherd_core::quorum::Admission;
use tokio::sync::watch;

use crate::cluster::ClusterState;
use crate::consensus::Standing;
use crate::notify::Notifier;
use crate::postgres::{Instance, Value, Wanted};

/// PostgreSQL may have come up since, or what was in the way may be gone.
const AGAIN: Duration = Duration::from_secs(2);

/// What the log has for a node; `None` while the log knows of no cluster, or has lost it.
pub(crate) fn wanted(state: &ClusterState, node: NodeId) -> Option<Wanted> {
    state.identity.as_ref()?;
    let parameters = &state.parameters;
    let value = |(name, parameter): (&str, &crate::cluster::Parameter)| {
        (name.to_owned(), Value { value: parameter.value.clone(), number: parameter.number })
    };
    let values = parameters.of(node).into_iter();
    let settable = values.filter(|(name, parameter)| is_settable(name, &parameter.value));
    Some(Wanted { number: parameters.number, values: settable.map(value).collect() })
}

/// For as long as the agent lives.
pub(crate) async fn keep(
    instance: Instance,
    mut state: watch::Receiver<Arc<ClusterState>>,
    standing: watch::Receiver<Standing>,
    (node, name): (NodeId, NodeName),
    notifier: Notifier,
) {
    let mut complained = None;
    loop {
        let seen = state.borrow_and_update().clone();
        // What is applied while a lost store is filled again is the past.
        let is_past = standing.borrow().admission != Admission::Full;
        if let Some(wanted) = wanted(&seen, node).filter(|_| !is_past) {
            instance.want(wanted).await;
        }
        match instance.configure().await {
            Ok(refused) => {
                complained = None;
                for (parameter, refused) in refused {
                    let text = format!(
                        "PostgreSQL on {name} does not take {parameter} = '{}', and runs without it: {}. Set another value, \
                         or the same again once it can be taken: `pgherd pg-set`",
                        refused.value.value, refused.why
                    );
                    notifier.tell(&Event::new(
                        Kind::ParameterRefused,
                        Some(name.clone()),
                        seen.generation,
                        text,
                    ));
                }
            }
            Err(error) => {
                let text = Chain(&error).to_string();
                // A server that starts, or is down, is told of by others.
                tracing::debug!("{text}");
                if instance.is_up() && complained.as_ref() != Some(&text) {
                    tracing::warn!("{text}; trying again");
                    complained = Some(text);
                }
            }
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Identity, Parameter};

    #[test]
    fn a_log_that_knows_no_cluster_wants_nothing_and_a_nodes_own_value_wins() {
        let mut state = ClusterState::default();
        let parameter = |value: &str| Parameter {
            value: value.to_owned(),
            number: 7,
            by: "dba".to_owned(),
            at: pgherd_common::WallTime(0),
        };
        state.parameters.cluster.insert("work_mem".to_owned(), parameter("4MB"));
        state.parameters.nodes.entry(NodeId(2)).or_default().insert("work_mem".to_owned(), parameter("8MB"));
        assert_eq!(wanted(&state, NodeId(1)), None);
        state.parameters.cluster.insert("archive_command".to_owned(), parameter("rm -r /"));
        state.identity = Some(Identity { cluster: "demo".parse().unwrap(), system_identifier: 7, major: 15 });
        let value = |node| wanted(&state, node).unwrap().values["work_mem"].value.clone();
        assert_eq!((value(NodeId(1)), value(NodeId(2))), ("4MB".to_owned(), "8MB".to_owned()));
        assert_eq!(
            wanted(&state, NodeId(1)).unwrap().values.len(),
            1,
            "whoever wrote that into the log, it is not obeyed"
        );
    }
}
