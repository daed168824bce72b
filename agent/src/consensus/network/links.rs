//! What is known of the way to each other agent. Says so once per change, not once per retry.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use pgherd_common::{HostPort, NodeId};

/// The way to one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// It answers.
    Up,
    /// No answer.
    Silent,
    /// It answers, and will have nothing to do with this node.
    Refused(String),
}

/// The way to every agent that was tried.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<BTreeMap<NodeId, Link>>);

impl Links {
    /// `detail` is only printed: it may differ from one retry to the next.
    pub(super) fn note(&self, node: NodeId, address: &HostPort, link: &Link, detail: &str) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, link.clone());
        if known.as_ref() == Some(link) {
            return;
        }
        match (link, known) {
            (Link::Up, None) => tracing::debug!(%node, %address, "the agent answers"),
            (Link::Up, Some(_)) => tracing::info!(%node, %address, "the agent answers again"),
            (Link::Silent, _) => tracing::warn!(%node, %address, "the agent does not answer: {detail}"),
            (Link::Refused(why), _) => {
                tracing::error!(%node, %address, "the agent refuses this node's messages: {why}; check [[members]] on both nodes");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_change_is_said_once() {
        let log = Arc::new(Mutex::new(Vec::<u8>::new()));
        let writer = Arc::clone(&log);
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || Tee(Arc::clone(&writer))).finish();
        let (node, address) = (NodeId(2), "10.0.0.2:7800".parse().unwrap());
        let refused = Link::Refused("this is node 3 of cluster b".to_owned());
        tracing::subscriber::with_default(subscriber, || {
            let links = Links::default();
            for round in 0..3 {
                links.note(node, &address, &Link::Silent, &format!("attempt {round}"));
            }
            for link in [&refused, &refused, &Link::Up, &Link::Up] {
                links.note(node, &address, link, "");
            }
        });
        let text = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("WARN") && lines[0].contains("does not answer: attempt 0"), "{text}");
        assert!(lines[1].contains("ERROR") && lines[1].contains("this is node 3 of cluster b"), "{text}");
        assert!(lines[2].contains("INFO") && lines[2].contains("answers again"), "{text}");
    }

    struct Tee(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Tee {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
