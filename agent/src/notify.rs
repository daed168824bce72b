//! Tells people: in the log always, and by mail, HTTP and script where that is configured.
//!
//! Each channel has a queue of its own and a task that empties it, so none holds up another one, nor the loop: what does
//! not fit is dropped and counted.

mod smtp;
mod tls;
mod webhook;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, ClusterName, Generation, NodeName, WallTime};
use pgherd_core::events::{Event, Kind, Severity};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::config::{Config, Line, Smtp, Webhook};
use crate::scripts::{self, Surroundings};

/// Notices that wait for one channel.
const QUEUE: usize = 100;

/// Pauses before each further attempt to deliver, in seconds.
const AGAIN_AFTER: [u64; 5] = [1, 2, 5, 15, 30];

/// Who tries a channel waits for it no longer than this.
const TEST_PATIENCE: Duration = Duration::from_secs(8);

/// A subject is cut there.
const SUBJECT_MAX: usize = 200;

/// What a script is given as one argument is cut there, in bytes: the kernel takes 128 KiB.
const ARGUMENT_MAX: usize = 32 << 10;

/// An event on its way to people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Notice {
    cluster: ClusterName,
    /// Whose agent tells.
    reported_by: NodeName,
    event: &'static str,
    severity: Severity,
    /// The node that it is about.
    node: Option<NodeName>,
    generation: Generation,
    time: String,
    times: u32,
    subject: String,
    text: String,
    #[serde(skip)]
    body: String,
}

/// Who tells.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) cluster: ClusterName,
    pub(crate) node: NodeName,
}

/// See the module. Clones are handles to one and the same.
#[derive(Clone)]
pub struct Notifier(Arc<Inner>);

struct Inner {
    about: About,
    level: Severity,
    prefix: String,
    channels: Vec<Channel>,
}

/// One way to people.
struct Channel {
    means: Arc<Means>,
    queue: mpsc::Sender<Notice>,
    /// What was lost since the last delivery.
    dropped: Arc<AtomicU32>,
    /// Notices in the queue or in delivery.
    pending: watch::Sender<usize>,
}

enum Means {
    Smtp(Smtp),
    Webhook(Webhook),
    Script { line: Line, timeout: Duration, about: About },
}

impl Notifier {
    /// Starts the tasks of all channels that are configured.
    pub(crate) fn start(config: &Config) -> Self {
        let about = About { cluster: config.cluster.clone(), node: config.node.name.clone() };
        let notifications = &config.notifications;
        let script = config.scripts.notification.clone().map(|line| Means::Script {
            line,
            timeout: config.scripts.timeout,
            about: about.clone(),
        });
        let smtp = notifications.smtp.clone().map(Means::Smtp);
        let webhook = notifications.webhook.clone().map(Means::Webhook);
        let means = [smtp, webhook, script].into_iter().flatten();
        let channels = means.map(|means| Channel::start(means, &about, &notifications.prefix)).collect();
        let (level, prefix) = (notifications.level, notifications.prefix.clone());
        Self(Arc::new(Inner { about, level, prefix, channels }))
    }

    /// Tells whoever wants to know. Waits for nobody.
    pub(crate) fn tell(&self, event: &Event) {
        let (name, severity, text) = (event.kind.name(), event.kind.severity(), event.text.trim_end());
        match severity {
            Severity::Info => tracing::info!(event = name, "{text}"),
            Severity::Warning | Severity::Severe => tracing::warn!(event = name, %severity, "{text}"),
        }
        if severity < self.0.level {
            return;
        }
        let notice = Notice::of(event, &self.0.about, &self.0.prefix);
        self.0.channels.iter().for_each(|channel| channel.send(notice.clone()));
    }

    /// Whether each channel delivers, tried now and once.
    pub(crate) async fn test(&self) -> Vec<(String, Result<(), String>)> {
        let about = &self.0.about;
        let text =
            format!("{}: a test of notifications, sent by an operator. There is nothing to do.", about.node);
        let event = Event::new(Kind::Test, Some(about.node.clone()), Generation::ZERO, text);
        let notice = Notice::of(&event, about, &self.0.prefix);
        let tried = self.0.channels.iter().map(|channel| async {
            let delivered = tokio::time::timeout(TEST_PATIENCE, channel.means.deliver(&notice)).await;
            let late = |_| Err(format!("no answer within {TEST_PATIENCE:?}"));
            (channel.means.to_string(), delivered.unwrap_or_else(late))
        });
        futures_util::future::join_all(tried).await
    }

    /// Waits until all is delivered, but no longer than this.
    pub(crate) async fn flush(&self, within: Duration) {
        let empty = self.0.channels.iter().map(|channel| async {
            let mut pending = channel.pending.subscribe();
            let _until_none = pending.wait_for(|pending| *pending == 0).await.is_ok();
        });
        let _or_not = tokio::time::timeout(within, futures_util::future::join_all(empty)).await;
    }
}

impl Channel {
    fn start(means: Means, about: &About, prefix: &str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (means, dropped) = (Arc::new(means), Arc::new(AtomicU32::new(0)));
        let (pending, _) = watch::channel(0);
        let work = Work {
            means: means.clone(),
            dropped: dropped.clone(),
            pending: pending.clone(),
            about: about.clone(),
            prefix: prefix.to_owned(),
        };
        tokio::spawn(work.run(waiting));
        Self { means, queue, dropped, pending }
    }

    fn send(&self, notice: Notice) {
        self.pending.send_modify(|pending| *pending += 1);
        if self.queue.try_send(notice).is_err() {
            self.pending.send_modify(|pending| *pending -= 1);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The task of a channel.
struct Work {
    means: Arc<Means>,
    dropped: Arc<AtomicU32>,
    pending: watch::Sender<usize>,
    about: About,
    prefix: String,
}

impl Work {
    async fn run(self, mut waiting: mpsc::Receiver<Notice>) {
        while let Some(notice) = waiting.recv().await {
            match self.deliver(&notice).await {
                Ok(()) => self.confess().await,
                Err(error) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    let subject = &notice.subject;
                    tracing::warn!(
                        "a notification by {} was given up: {error}; it was: {subject}",
                        self.means
                    );
                }
            }
            self.pending.send_modify(|pending| *pending -= 1);
        }
    }

    async fn deliver(&self, notice: &Notice) -> Result<(), String> {
        for (pause, attempt) in AGAIN_AFTER.into_iter().zip(1..) {
            match self.means.deliver(notice).await {
                Ok(()) => return Ok(()),
                Err(error) if attempt == 1 => {
                    tracing::warn!("a notification by {} failed, and is tried again: {error}", self.means);
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
        self.means.deliver(notice).await
    }

    /// Says how many never arrived, once one does.
    async fn confess(&self) {
        let lost = self.dropped.swap(0, Ordering::Relaxed);
        if lost == 0 {
            return;
        }
        let node = &self.about.node;
        let text = format!(
            "{lost} notifications of the agent of {node} by {} could not be delivered and were given up; its log has them all",
            self.means
        );
        let event = Event::new(Kind::NoticesDropped, Some(node.clone()), Generation::ZERO, text);
        let notice = Notice::of(&event, &self.about, &self.prefix);
        if self.means.deliver(&notice).await.is_err() {
            self.dropped.fetch_add(lost, Ordering::Relaxed);
        }
    }
}

impl Means {
    async fn deliver(&self, notice: &Notice) -> Result<(), String> {
        match self {
            Self::Smtp(smtp) => smtp::send(smtp, &notice.subject, &notice.body).await,
            Self::Webhook(webhook) => webhook::post(webhook, notice).await,
            Self::Script { line, timeout, about } => {
                let mut arguments = line.fill(|_| String::new());
                arguments.extend([argument(&notice.subject), argument(&notice.body)]);
                let mut surroundings = Surroundings::of(about, notice.event, notice.generation);
                surroundings.add("SEVERITY", notice.severity);
                scripts::run(&arguments, &surroundings, *timeout).await.into_result()
            }
        }
    }
}

/// As a program can be given it: without NUL, and not too long.
fn argument(text: &str) -> String {
    let mut argument = text.replace('\0', "\u{fffd}");
    if argument.len() > ARGUMENT_MAX {
        let end = (0..=ARGUMENT_MAX).rev().find(|end| argument.is_char_boundary(*end));
        argument.truncate(end.unwrap_or(0));
        argument += "\n[cut here; the log of the agent has all of it]\n";
    }
    argument
}

impl std::fmt::Display for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Smtp(Smtp { host, port, .. }) => write!(f, "mail through {host}:{port}"),
            // Its path may be a secret.
            Self::Webhook(webhook) => write!(f, "webhook at {}", webhook.url.0.host().unwrap_or_default()),
            Self::Script { line, .. } => write!(f, "script {}", line.program()),
        }
    }
}

impl Notice {
    fn of(event: &Event, about: &About, prefix: &str) -> Self {
        let (name, severity) = (event.kind.name(), event.kind.severity());
        let About { cluster, node } = about;
        let time: WallTime = RealClock.wall();
        let mut subject = format!("{severity} {cluster}: {}", event.headline());
        if let Some((cut, _)) = subject.char_indices().nth(SUBJECT_MAX) {
            subject.truncate(cut);
            subject += "...";
        }
        let mut body = String::new();
        if !prefix.is_empty() {
            body += prefix;
            body += "\n\n";
        }
        body += event.text.trim_end();
        body += "\n";
        if event.times > 1 {
            body += &format!("This has happened {} times since it was last told.\n", event.times);
        }
        let subject_node = event.node.as_ref().map_or("-", NodeName::as_str);
        body += &format!(
            "\nEvent:       {name} ({severity})\nCluster:     {cluster}\nNode:        {subject_node}\n\
             Generation:  {}\nTold by:     the agent of {node}\nTime:        {time}\n",
            event.generation
        );
        Self {
            cluster: cluster.clone(),
            reported_by: node.clone(),
            event: name,
            severity,
            node: event.node.clone(),
            generation: event.generation,
            time: time.to_string(),
            times: event.times,
            subject,
            text: event.text.clone(),
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_given_what_a_program_can_take() {
        assert_eq!(argument("as it is\n"), "as it is\n");
        assert_eq!(argument("a\0b"), "a\u{fffd}b");
        let long = argument(&format!("x{}", "\u{e4}".repeat(ARGUMENT_MAX)));
        let (kept, note) = long.split_once('\n').unwrap();
        assert_eq!(kept.len(), ARGUMENT_MAX - 1, "not within a character");
        assert!(kept.ends_with('\u{e4}') && note.contains("cut here"), "{note}");
    }
}
