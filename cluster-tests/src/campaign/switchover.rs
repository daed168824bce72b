//! Planned changes of primary, undisturbed and disturbed.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::inflict::Cast;
use super::plan::Fault;
use crate::cluster::Cluster;
use crate::failure::Failure;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a killed agent stays away, beyond what is left to chance.
const AWAY: Duration = Duration::from_millis(500);

fn command(cluster: &Cluster, asked: &str, target: &str) -> Command {
    let mut command = Command::new(&cluster.binaries().cli);
    command.arg("--agent").arg(cluster.node(asked).agent_url());
    command.args(["promote", "--switchover", "--to", target]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn target(fault: &Fault, cast: &Cast) -> Result<String, Failure> {
    let at = fault.choice.checked_rem(cast.standbys.len());
    let target = at.and_then(|at| cast.standbys.get(at)).cloned();
    target.ok_or_else(|| Failure::new("there is no standby to switch over to"))
}

/// What went wrong with it, if anything did.
pub(super) async fn planned(
    cluster: &Cluster,
    fault: &Fault,
    cast: &Cast,
) -> Result<Option<String>, Failure> {
    to(cluster, &cast.witness, &target(fault, cast)?).await
}

/// Has the agent of `asked` switch over to `target`; what went wrong with it, if anything did.
pub(crate) async fn to(cluster: &Cluster, asked: &str, target: &str) -> Result<Option<String>, Failure> {
    let output = timeout(ANSWER_TIME_MAX, command(cluster, asked, target).output()).await;
    let Ok(output) = output else {
        return Ok(Some(format!("the switchover to {target} is not answered within {ANSWER_TIME_MAX:?}")));
    };
    let output = output?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((!output.status.success()).then(|| format!("the switchover to {target} failed: {said}")))
}

/// Kills the victim's agent at some moment of it; what the command line said.
pub(super) async fn interrupted(
    cluster: &mut Cluster,
    fault: &Fault,
    cast: &Cast,
) -> Result<String, Failure> {
    let target = target(fault, cast)?;
    let asked = if cast.victim == cast.witness { &cast.second } else { &cast.witness };
    let running = command(cluster, asked, &target).spawn()?;
    sleep(fault.hold).await;
    cluster.kill_agent(&cast.victim).await?;
    sleep(AWAY + fault.hold).await;
    cluster.node_mut(&cast.victim).agent.start()?;
    let to = format!("switchover to {target}, agent killed after {} ms", fault.hold.as_millis());
    Ok(match timeout(ANSWER_TIME_MAX, running.wait_with_output()).await {
        Ok(output) => format!("{to}, exit status {}", output?.status.code().unwrap_or(-1)),
        Err(_) => format!("{to}, not answered"),
    })
}
