//! `pgherd`: the operator's command line. Asks one agent over HTTP and prints what it says; it decides
//! nothing itself.
//!
//! What is printed comes from pure functions over [`crate::api::types`]. Results go to standard output,
//! `error:` and `hint:` lines to standard error. Exit status: 0 done (or healthy), 1 not, 2 not
//! understood.

mod args;
mod at;
mod check_config;
mod client;
mod cluster_status;
mod confirm;
mod create_standby;
mod error;
mod history;
mod members;
mod meter;
mod node_status;
mod notify_test;
mod pg_set;
mod pg_show;
mod progress;
mod promote;
mod rate;
mod rebuild;
mod restart;
mod table;
mod target;
mod units;
mod update;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use pgherd_common::NodeName;
use serde::Serialize;

use args::{Args, Command};
use at::Span;
use client::Agent;
use error::CliError;
use target::Target;

use crate::api::types::{
    Accepted, ClusterStatus, NodeRequest, NodeStatus, ParametersStatus, PauseRequest, PriorityRequest, Tried,
    UnpauseRequest,
};
use crate::cluster::HistoryEntry;

/// The whole program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(&args)),
        Err(cause) => Err(CliError::Start(cause)),
    };
    match result {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::FAILURE,
        // `pgherd history | head` is no error of ours.
        Err(CliError::Print(cause)) if cause.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// What the exit status tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// 0.
    Good,
    /// 1, after the reason was printed.
    Bad,
}

impl Outcome {
    fn good_if(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

async fn run(args: &Args) -> Result<Outcome, CliError> {
    // Found only where it is needed: checking a configuration needs no agent.
    let agent = || Agent::new(Target::choose(&args.agent)?);
    match &args.command {
        Command::ClusterStatus { json } => {
            let status: ClusterStatus = agent()?.fetch("/v1/status").await?;
            print(&shown(&status, *json, cluster_status::render))?;
            Ok(Outcome::good_if(status.healthy))
        }
        Command::NodeStatus { json } => {
            let node: NodeStatus = agent()?.fetch("/v1/node").await?;
            print(&shown(&node, *json, node_status::render))?;
            Ok(Outcome::good_if(node_status::is_in_order(&node)))
        }
        Command::History { json } => {
            let entries: Vec<HistoryEntry> = agent()?.fetch("/v1/history").await?;
            print(&shown(&entries, *json, |entries| history::render(entries)))?;
            Ok(Outcome::Good)
        }
        Command::Promote(promote) => promote::run(&agent()?, promote).await,
        Command::Resume { node } => order(&agent()?, "/v1/resume", node).await,
        Command::AllowNode { node } => order(&agent()?, "/v1/allow-node", node).await,
        Command::DisallowNode { node } => order(&agent()?, "/v1/disallow-node", node).await,
        Command::Detach { node } => order(&agent()?, "/v1/detach", node).await,
        Command::Attach { node } => order(&agent()?, "/v1/attach", node).await,
        Command::AddNode(add) => members::add(&agent()?, add).await,
        Command::RemoveNode(remove) => members::remove(&agent()?, remove).await,
        Command::ResetMembers { yes } => members::reset(&agent()?, *yes).await,
        Command::SetPriority { node, priority } => {
            let request = PriorityRequest { node: node.clone(), priority: *priority };
            done(&agent()?.order("/v1/set-priority", &request).await?)
        }
        Command::Restart(restart) => restart::run(&agent()?, restart).await,
        Command::PgSet(set) => pg_set::run(&agent()?, set).await,
        Command::PgShow { json } => {
            let status: ParametersStatus = agent()?.fetch("/v1/parameters").await?;
            print(&shown(&status, *json, pg_show::render))?;
            Ok(Outcome::good_if(pg_show::is_in_order(&status)))
        }
        Command::Update(update) => update::run(&agent()?, update).await,
        Command::Pause { node, span: Span(span) } => {
            let for_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            done(&agent()?.order("/v1/pause", &PauseRequest { node: node.clone(), for_ms }).await?)
        }
        Command::Unpause { node } => {
            done(&agent()?.order("/v1/unpause", &UnpauseRequest { node: node.clone() }).await?)
        }
        Command::Rebuild(rebuild) => rebuild::run(&agent()?, rebuild).await,
        Command::CreateStandby(create) => create_standby::run(&args.agent, create).await,
        Command::StopCluster { yes } => {
            if !*yes {
                confirm::ask(STOP_CLUSTER)?;
            }
            done(&agent()?.order("/v1/stop-cluster", &()).await?)
        }
        Command::NotifyTest { json } => {
            let tried: Vec<Tried> = agent()?.try_out("/v1/notify-test").await?;
            print(&shown(&tried, *json, |tried| notify_test::render(tried)))?;
            Ok(Outcome::good_if(notify_test::is_told(&tried)))
        }
        Command::CheckConfig { file } => {
            print(&check_config::run(file)?)?;
            Ok(Outcome::Good)
        }
    }
}

const STOP_CLUSTER: &str = "\
This stops every agent of the cluster. PostgreSQL is left running as it is, on every node, but nobody
guards it: a primary that fails is not replaced, and proxies keep to the last roles they were told.
Stop all agents?";

async fn order(agent: &Agent, path: &str, node: &NodeName) -> Result<Outcome, CliError> {
    done(&agent.order(path, &NodeRequest { node: node.clone() }).await?)
}

fn done(accepted: &Accepted) -> Result<Outcome, CliError> {
    print(&format!("{}\n", accepted.message))?;
    Ok(Outcome::Good)
}

fn shown<T: Serialize>(value: &T, json: bool, render: impl Fn(&T) -> String) -> String {
    if json {
        // Plain data without maps: encoding has no way to fail.
        serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
    } else {
        render(value)
    }
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Print)
}

fn complain(error: &CliError) {
    let mut text = format!("error: {error}");
    if let Some(cause) = root_cause(error) {
        text += &format!(": {cause}");
    }
    text.push('\n');
    if let Some(hint) = error.hint() {
        text += &format!("hint: {hint}\n");
    }
    // Where this cannot be written, nothing else can be said either.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The innermost cause. What lies between it and us is about HTTP, which no operator asked for.
fn root_cause(error: &CliError) -> Option<&dyn Error> {
    let mut cause = error.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause)
}
