//! What the loop has for people and their scripts.

use pgherd_core::events::{Call, Event, Kind};
use pgherd_core::node::Node;
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::driver;
use crate::notify::{About, Notifier};
use crate::scripts::{self, Scripts};

/// The ways to them.
#[derive(Clone)]
pub struct Tell {
    /// People.
    pub(crate) notifier: Notifier,
    /// Their scripts.
    pub(crate) scripts: Scripts,
    /// Whether PostgreSQL answers, for their monitor.
    answers: watch::Sender<bool>,
}

impl Tell {
    /// Starts what runs beside the loop.
    pub(crate) fn start(config: &Config, events: &mpsc::Sender<driver::Event>) -> Self {
        let notifier = Notifier::start(config);
        let scripts = Scripts::start(config, &notifier);
        let (answers, watching) = watch::channel(false);
        if let Some(monitor) = config.scripts.monitor.clone() {
            let about = About { cluster: config.cluster.clone(), node: config.node.name.clone() };
            tokio::spawn(scripts::watch(monitor, about, notifier.clone(), watching, events.clone()));
        }
        Self { notifier, scripts, answers }
    }

    /// What a turn has found.
    pub(super) fn pass_on(&self, events: &[Event], calls: &[Call]) {
        events.iter().for_each(|event| self.notifier.tell(event));
        calls.iter().for_each(|call| self.scripts.call(call));
    }

    /// PostgreSQL was looked at.
    pub(super) fn looked(&self, answers: bool) {
        self.answers.send_if_modified(|known| std::mem::replace(known, answers) != answers);
    }

    /// The agent has started, or ends because it was told to.
    pub(super) fn agent(&self, kind: Kind, node: &Node, config: &Config) {
        let name = &config.node.name;
        let text = match kind {
            Kind::AgentStopped => format!(
                "the agent of {name} was stopped: until it is started again nobody looks after PostgreSQL there"
            ),
            _ => format!("the agent of {name} has started"),
        };
        self.notifier.tell(&Event::new(kind, Some(name.clone()), node.state().generation, text));
    }
}
