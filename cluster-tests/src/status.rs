//! What `GET /v1/status` says, as far as the tests look at it.

use std::time::Duration;

use serde::Deserialize;

/// An agent that does not answer is not waited for.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// One agent's view of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether the cluster has formed.
    pub formed: bool,
    /// Whether all is well.
    pub healthy: bool,
    /// The fencing number.
    pub generation: u64,
    /// The raft leader.
    pub leader: Option<String>,
    /// Who votes.
    #[serde(default)]
    pub voting: Vec<String>,
    /// The members.
    pub nodes: Vec<NodeStatus>,
    /// The verdict, in sentences.
    pub verdict: Vec<String>,
    /// Why the leader did or did not act.
    pub report: Vec<String>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// `Primary`, `Standby`, `Witness`, `Promoting`, `Idle` or `DOWN`.
    #[serde(rename = "type")]
    pub agent_type: String,
    /// `UP`, `DOWN`, `UNKNOWN` or `N/A`.
    pub db: String,
    /// In the proxies' rotation unless detached.
    pub attached: bool,
    /// Timeline of its WAL.
    pub timeline: Option<u32>,
    /// What is worth knowing.
    pub info: String,
}

/// No status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No agent there, or it does not answer.
    #[error("the agent at {url} does not answer")]
    Silent {
        /// Which.
        url: String,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// No agent answers.
    #[error("no agent of the cluster answers")]
    AllSilent,
}

impl Status {
    /// Asks the agent at `url`.
    pub async fn of(http: &reqwest::Client, url: &str) -> Result<Self, StatusError> {
        let silent = |source| StatusError::Silent { url: url.to_owned(), source };
        let answer = http.get(format!("{url}/v1/status")).timeout(ANSWER_TIME_MAX).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).map_err(silent)?;
        answer.json().await.map_err(silent)
    }

    /// The node that is primary with its database up.
    pub fn primary(&self) -> Option<&str> {
        let primary = self.nodes.iter().find(|node| node.agent_type == "Primary" && node.db == "UP");
        primary.map(|node| node.name.as_str())
    }

    /// Standbys whose database is up.
    pub fn standbys(&self) -> Vec<&str> {
        let standbys = self.nodes.iter().filter(|node| node.agent_type == "Standby" && node.db == "UP");
        standbys.map(|node| node.name.as_str()).collect()
    }

    /// A member.
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let node = |node: &NodeStatus| format!("{} {} {} {}", node.name, node.agent_type, node.db, node.info);
        let nodes: Vec<String> = self.nodes.iter().map(node).collect();
        let parts = [nodes.join("; "), self.verdict.join(" "), self.report.join(" ")];
        format!("generation {}, leader {:?}: {}", self.generation, self.leader, parts.join(" | "))
    }
}
