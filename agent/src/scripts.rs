//! Runs the operators' scripts, beside the loop: none of them holds up anything but the promotion that one may forbid.

mod monitor;
mod run;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::{Generation, HostPort};
use pgherd_core::events::{Call, Event, Kind, Values};
use tokio::sync::mpsc;

use crate::config::{self, Config, Line};
use crate::notify::{About, Notifier};

pub(crate) use monitor::watch;
pub(crate) use run::{End, Ran, Surroundings, run};

/// Calls that wait for one script.
const QUEUE: usize = 32;

/// Pauses before each further attempt to tell a load balancer.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// See the module. Clones are handles to one and the same.
#[derive(Clone)]
pub(crate) struct Scripts(Arc<Inner>);

struct Inner {
    config: config::Scripts,
    about: About,
    /// Where the own PostgreSQL listens.
    address: Option<HostPort>,
    notifier: Notifier,
    queues: BTreeMap<&'static str, mpsc::Sender<Call>>,
}

impl Scripts {
    /// Starts a task for each script that is configured.
    pub(crate) fn start(config: &Config, notifier: &Notifier) -> Self {
        let about = About { cluster: config.cluster.clone(), node: config.node.name.clone() };
        let mut queues = BTreeMap::new();
        let mut receivers = Vec::new();
        for name in QUEUES {
            let (queue, waiting) = mpsc::channel(QUEUE);
            queues.insert(name, queue);
            receivers.push(waiting);
        }
        let address = config.postgres.as_ref().map(|postgres| postgres.address.clone());
        let config = config.scripts.clone();
        let inner = Inner { config, about, address, notifier: notifier.clone(), queues };
        let scripts = Self(Arc::new(inner));
        for waiting in receivers {
            tokio::spawn(work(scripts.clone(), waiting));
        }
        scripts
    }

    /// Has a script run, if there is one for this.
    pub(crate) fn call(&self, call: &Call) {
        let name = call.name();
        if self.0.config.by_name(name).is_none() {
            return;
        }
        let waits =
            self.0.queues.get(queue_of(name)).is_some_and(|queue| queue.try_send(call.clone()).is_ok());
        if !waits {
            let text =
                format!("script {name} was not run on {}: too many of its kind still run", self.0.about.node);
            self.tell(Kind::ScriptFailed, call.values().generation, text);
        }
    }

    /// The script that a promotion has to wait for. An error is the reason not to promote.
    pub(crate) async fn fence(&self, generation: Generation, old: Option<HostPort>) -> Result<(), String> {
        let Some(line) = &self.0.config.fence else { return Ok(()) };
        let primary = self.0.address.clone();
        let values = Values { generation, primary, old_primary: old, ..Values::default() };
        let ran = self.run("fence", line, &values, None, self.0.config.fence_timeout).await;
        let failed = self.report("fence", line, generation, &ran);
        failed.map_or(Ok(()), |text| {
            Err(format!("{text}. There is no promotion before it succeeds; it is run again"))
        })
    }

    async fn run(
        &self,
        name: &str,
        line: &Line,
        values: &Values,
        role: Option<&str>,
        within: Duration,
    ) -> Ran {
        let host = |address: &Option<HostPort>| address.as_ref().map(|a| a.host.clone()).unwrap_or_default();
        let arguments = line.fill(|placeholder| match placeholder {
            'p' => host(&values.primary),
            'f' => host(&values.old_primary),
            'h' => host(&values.host),
            't' => role.unwrap_or_default().to_owned(),
            _ => String::new(),
        });
        let mut surroundings = Surroundings::of(&self.0.about, name, values.generation);
        for (variable, address) in
            [("PRIMARY", &values.primary), ("OLD_PRIMARY", &values.old_primary), ("HOST", &values.host)]
        {
            address.iter().for_each(|address| surroundings.add(variable, address));
        }
        values.node.iter().for_each(|node| surroundings.add("HOST_NODE", node));
        // Its arguments may hold a password.
        tracing::info!("running script {name}: {}", line.program());
        run(&arguments, &surroundings, within).await
    }

    /// Tells how it went; what is wrong, if something is.
    fn report(&self, name: &str, line: &Line, generation: Generation, ran: &Ran) -> Option<String> {
        let node = &self.0.about.node;
        let what = format!("script {name} ({}) on {node}", line.program());
        let failed = match &ran.end {
            End::Success => None,
            failed => Some(format!("{what} {failed}")),
        };
        let text = failed.clone().unwrap_or_else(|| format!("{what} ran, in {} ms", ran.took.as_millis()));
        let kind = if failed.is_some() { Kind::ScriptFailed } else { Kind::ScriptRan };
        self.tell(kind, generation, format!("{text}{}", ran.quoted()));
        failed
    }

    fn tell(&self, kind: Kind, generation: Generation, text: String) {
        let node = Some(self.0.about.node.clone());
        self.0.notifier.tell(&Event::new(kind, node, generation, text));
    }

    /// Once, or until a load balancer has understood.
    async fn carry_out(&self, call: &Call) {
        let name = call.name();
        let Some(line) = self.0.config.by_name(name) else { return };
        let (role, pauses): (_, &[Duration]) = match call {
            Call::Attach(_, role) | Call::Detach(_, role) => (Some(role.letter()), &AGAIN_AFTER),
            Call::PostPromotion(_)
            | Call::RemotePrePromotion(_)
            | Call::RemotePostPromotion(_)
            | Call::DbFailure(_)
            | Call::PrimaryIsolated(_)
            | Call::Resumed(_) => (None, &[]),
        };
        let mut pauses = pauses.iter();
        loop {
            let ran = self.run(name, line, call.values(), role, self.0.config.timeout).await;
            match (&ran.end, pauses.next()) {
                (End::Success, _) | (_, None) => {
                    self.report(name, line, call.values().generation, &ran);
                    return;
                }
                (failed, Some(pause)) => {
                    tracing::warn!("script {name} {failed}; it is run again{}", ran.quoted());
                    tokio::time::sleep(*pause).await;
                }
            }
        }
    }
}

/// Attach and detach keep their order.
const BALANCER: &str = "load_balancer";
const QUEUES: [&str; 7] = [
    "post_promotion",
    "remote_pre_promotion",
    "remote_post_promotion",
    "db_failure",
    "primary_isolated",
    "resumed",
    BALANCER,
];

fn queue_of(name: &'static str) -> &'static str {
    if name.starts_with(BALANCER) { BALANCER } else { name }
}

async fn work(scripts: Scripts, mut waiting: mpsc::Receiver<Call>) {
    while let Some(call) = waiting.recv().await {
        scripts.carry_out(&call).await;
    }
}
