//! What can go wrong on the command line, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::NodeName;
use pgherd_common::config::Problems;

use super::target::Target;
use crate::api::types::Refusal;
use crate::config::LoadError;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("no agent answers at {target}")]
    NoAgent {
        target: Target,
        #[source]
        cause: reqwest::Error,
    },
    #[error("the agent at {target} took the request, but did not answer within {within:?}")]
    Slow { target: Target, within: Duration },
    #[error("the connection to the agent at {target} broke before the answer was complete")]
    Broken {
        target: Target,
        #[source]
        cause: reqwest::Error,
    },
    #[error("{}", .0.error)]
    Refused(Refusal),
    #[error("what answers at {target} is not a pgherd agent of this version: {what}")]
    Stranger { target: Target, what: String },
    #[error("{text:?} is not the address of an agent")]
    Address { text: String },
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("{} is not valid", path.display())]
    Invalid {
        path: PathBuf,
        #[source]
        problems: Problems,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "{} is the configuration of a proxy, which pgherd-proxy checks, and it cannot be run from {}",
        file.display(), program.display()
    )]
    NoProxy {
        file: PathBuf,
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{typed} {understood}")]
    Time { typed: String, understood: String },
    #[error("this asks for confirmation, and there is no terminal to ask on")]
    NoTerminal,
    #[error("not confirmed; nothing was done")]
    Declined,
    #[error("cannot read the answer")]
    Answer(#[source] io::Error),
    #[error("there is no node {node}")]
    NoSuchNode { node: NodeName },
    #[error("the change of primary is not over after {within:?}")]
    NotOver { within: Duration },
    #[error("{nodes} still being removed after {within:?}")]
    NotGone { nodes: String, within: Duration },
    #[error("{why}")]
    NotRebuilt { why: String },
    #[error("the agent was restarted and knows nothing of this rebuild any more: it had come to its end")]
    Forgotten,
    #[error("{why}")]
    NotCreated { why: String, hint: String },
    #[error("cannot prepare a connection to the agent")]
    Client(#[source] reqwest::Error),
    #[error("cannot start")]
    Start(#[source] io::Error),
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

impl CliError {
    /// What to do next.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::NoAgent { target, .. } => Some(format!(
                "is pgherd-agent running there? Try `systemctl status pgherd-agent` and `journalctl -u pgherd-agent` on \
                 that node, or ask another one: {}",
                target.another()
            )),
            Self::Slow { target, .. } => Some(format!(
                "whether it was carried out is not known; look with `pgherd cluster-status`, or ask another node: {}",
                target.another()
            )),
            Self::Broken { .. } => {
                Some("whether it was carried out is not known; look with `pgherd cluster-status`".to_owned())
            }
            Self::NoSuchNode { .. } => Some("pgherd cluster-status lists the nodes".to_owned()),
            Self::Refused(refusal) => Some(refusal.hint.clone()).filter(|hint| !hint.is_empty()),
            Self::Stranger { .. } => Some(
                "is this the port in node.listen of that node's agent.toml, and is the same version of pgherd \
                 installed there?"
                    .to_owned(),
            ),
            Self::Address { .. } => Some("write it as http://10.0.0.1:7800 or 10.0.0.1:7800".to_owned()),
            Self::Config(LoadError::Read { .. }) => {
                Some("--agent URL needs no configuration; --config names another one".to_owned())
            }
            Self::Config(LoadError::Invalid { .. }) => {
                Some("--agent URL needs no configuration; docs/configuration.md lists every key".to_owned())
            }
            Self::Invalid { .. } => Some("docs/configuration.md lists every key".to_owned()),
            Self::NoProxy { file, .. } => Some(format!(
                "run `pgherd-proxy --check-config {}` where the proxy is installed",
                file.display()
            )),
            Self::Time { .. } => Some("with its offset a time means the same everywhere: 2026-12-01T03:00:00+01:00".to_owned()),
            Self::NoTerminal => Some("--yes confirms in advance".to_owned()),
            Self::NotGone { .. } => Some(
                "it goes on without this command; `pgherd cluster-status` says at the end what it waits for".to_owned(),
            ),
            Self::NotOver { .. } => {
                Some("it goes on without this command; follow it with `pgherd cluster-status`".to_owned())
            }
            Self::NotRebuilt { .. } | Self::Forgotten => {
                Some("pgherd cluster-status shows how the node is; its agent's log tells more".to_owned())
            }
            Self::NotCreated { hint, .. } => Some(hint.clone()),
            Self::Read { .. }
            | Self::Declined
            | Self::Answer(_)
            | Self::Client(_)
            | Self::Start(_)
            | Self::Print(_) => None,
        }
    }
}
