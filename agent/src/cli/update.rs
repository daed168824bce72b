//! `pgherd update`: a minor version of PostgreSQL, on one node after the other. Nothing is installed here: the command says
//! what is to be installed where, waits for it, and restarts what runs something older.

use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeName};

use super::args::{PromoteArgs, UpdateArgs};
use super::client::Agent;
use super::confirm;
use super::error::CliError;
use super::promote;
use super::table::Table;
use super::{Outcome, print, restart};
use crate::api::types::{AgentType, ClusterStatus, NodeStatus, VersionHere, VersionStatus};
use crate::cluster::NodeKind;

const POLL: Duration = Duration::from_secs(1);
/// How long nodes may take to come back into service by themselves.
const SETTLE_WAIT: Duration = Duration::from_secs(120);

pub(super) async fn run(agent: &Agent, args: &UpdateArgs) -> Result<Outcome, CliError> {
    let status: ClusterStatus = agent.fetch("/v1/status").await?;
    let versions: Vec<VersionStatus> = agent.fetch("/v1/versions").await?;
    print(&render(&status, &versions))?;
    if args.check {
        return Ok(Outcome::good_if(is_current(&versions)));
    }
    let target = match target(&versions, args.to.as_deref()) {
        Ok(target) => target,
        Err(why) => {
            print(&format!("{why}\n"))?;
            return Ok(Outcome::Bad);
        }
    };
    let todo = behind(&status, &versions, target).filter(|(node, _)| node.allowed).count();
    if todo == 0 {
        let (outcome, mut text) = verdict(&status, &versions, target);
        if outcome == Outcome::Good {
            text += &first_step(&versions);
        }
        print(&text)?;
        return Ok(outcome);
    }
    if !args.yes {
        let how = if args.switchover { "switched over first" } else { "restarted while new work is held" };
        confirm::ask(&format!(
            "Nodes that do not run {} are restarted, one after the other, once it is installed there; the primary comes last \
             and is {how}.\nUpdate {todo} nodes?",
            spell(target)
        ))?;
    }
    loop {
        let status = match settled(agent).await? {
            Ok(status) => status,
            Err(out) => {
                print(&format!(
                    "{out}: nothing is restarted before that is over; run the same command again then\n"
                ))?;
                return Ok(Outcome::Bad);
            }
        };
        let versions: Vec<VersionStatus> = agent.fetch("/v1/versions").await?;
        let Some(next) = next(&status, &versions, target) else {
            let (outcome, text) = verdict(&status, &versions, target);
            print(&text)?;
            return Ok(outcome);
        };
        let outcome = take_turn(agent, args, &status, &next.name, target).await?;
        if outcome == Outcome::Bad {
            print("nothing else is restarted; run the same command again to go on\n")?;
            return Ok(Outcome::Bad);
        }
    }
}

/// Waits until every node is in service; who is not, if that does not come to pass.
async fn settled(agent: &Agent) -> Result<Result<ClusterStatus, String>, CliError> {
    let begun = RealClock.now();
    loop {
        let status: ClusterStatus = agent.fetch("/v1/status").await?;
        let Some(out) = out_of_service(&status) else { return Ok(Ok(status)) };
        if RealClock.now().since(begun) > SETTLE_WAIT {
            return Ok(Err(out));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn out_of_service(status: &ClusterStatus) -> Option<String> {
    if let Some(change) = &status.change {
        return Some(format!("a {} is in flight", change.kind));
    }
    if !status.nodes.iter().any(|node| node.agent_type == AgentType::Primary) {
        return Some("no primary serves".to_owned());
    }
    let databases = status.nodes.iter().filter(|node| node.kind == NodeKind::Database && node.allowed);
    let mut out = databases
        .filter(|node| !node.in_service || matches!(node.agent_type, AgentType::Down | AgentType::Idle));
    out.next().map(|node| format!("{} is not in service ({})", node.name, node.info))
}

async fn take_turn(
    agent: &Agent,
    args: &UpdateArgs,
    status: &ClusterStatus,
    name: &NodeName,
    target: Minor,
) -> Result<Outcome, CliError> {
    if await_installed(agent, name, target).await? {
        // That may have taken days: who is what, and whether all are in service, is looked at again.
        return Ok(Outcome::Good);
    }
    let is_primary =
        status.nodes.iter().any(|node| node.name == *name && node.agent_type == AgentType::Primary);
    if is_primary && args.switchover {
        // It is a standby afterwards, and its turn comes again.
        let switchover = PromoteArgs {
            switchover: true,
            to: None,
            at: None,
            cancel_scheduled: false,
            explain: false,
            end_transactions: args.end_transactions,
            allow_data_loss: false,
            yes: true,
            no_wait: false,
        };
        return promote::run(agent, &switchover).await;
    }
    let outcome = restart::take_turn(agent, name, args.end_transactions).await?;
    if outcome == Outcome::Bad {
        return Ok(Outcome::Bad);
    }
    let versions: Vec<VersionStatus> = agent.fetch("/v1/versions").await?;
    let now = versions.iter().find(|node| node.node == *name);
    let running = now.and_then(|node| node.here.running.as_deref()).unwrap_or("nothing that answers");
    print(&format!("{name} runs {running}\n"))?;
    Ok(Outcome::good_if(now.is_some_and(|node| runs(node, target))))
}

/// Waits until the programs of a node are new enough; the operator, or their configuration management, sees to that. Tells
/// whether that had to be waited for.
async fn await_installed(agent: &Agent, name: &NodeName, target: Minor) -> Result<bool, CliError> {
    let mut told = false;
    loop {
        let versions: Vec<VersionStatus> = agent.fetch("/v1/versions").await?;
        let Some(node) = versions.into_iter().find(|node| node.node == *name) else {
            return Err(CliError::NoSuchNode { node: name.clone() });
        };
        if installed(&node.here).is_some_and(|installed| installed >= target) {
            return Ok(told);
        }
        if !told {
            let has = node.here.installed.as_deref().unwrap_or("nothing that tells its version");
            print(&format!(
                "{name} has {has} installed; waiting for {}. On {name}, run:\n  {}\n(Ctrl-C is safe: the same command goes on \
                 from there)\n",
                spell(target),
                node.here.install
            ))?;
            told = true;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// `15.14`: major and minor.
type Minor = (u32, u32);

fn parse(version: &str) -> Option<Minor> {
    let (major, minor) = version.split_once('.')?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    Some((digits(major).parse().ok()?, digits(minor).parse().ok()?))
}

fn spell((major, minor): Minor) -> String {
    format!("{major}.{minor}")
}

fn installed(here: &VersionHere) -> Option<Minor> {
    parse(here.installed.as_deref()?)
}

fn running(here: &VersionHere) -> Option<Minor> {
    parse(here.running.as_deref()?)
}

/// Nobody is made older: whoever runs more than the target has had its turn.
fn runs(node: &VersionStatus, target: Minor) -> bool {
    running(&node.here).is_some_and(|running| running >= target)
}

/// Whether every node runs what is installed there, and all run the same.
fn is_current(versions: &[VersionStatus]) -> bool {
    let first = versions.first().and_then(|node| running(&node.here));
    let same = |node: &VersionStatus| {
        let running = running(&node.here);
        running.is_some() && running == installed(&node.here) && running == first
    };
    versions.iter().all(same)
}

/// To which version everybody is to come: the one asked for, or the newest that is installed anywhere.
fn target(versions: &[VersionStatus], to: Option<&str>) -> Result<Minor, String> {
    let major = versions.iter().map(|node| node.here.major).find(|major| *major > 0);
    let Some(major) = major else { return Err("no agent of a database node answers".to_owned()) };
    let other = versions.iter().find(|node| installed(&node.here).is_some_and(|(found, _)| found != major));
    let not_here = format!(
        "that is another major version than the data's ({major}), and no minor update: it takes pg_upgrade or logical \
         replication into a new cluster; leave postgres.bin_dir at the programs of {major}"
    );
    if let Some(other) = other {
        let found = other.here.installed.as_deref().unwrap_or_default();
        return Err(format!("{} has {found} in {}: {not_here}", other.node, other.here.bin_dir));
    }
    match to.map(|to| (to, parse(to))) {
        Some((to, Some((asked, _)))) if asked != major => Err(format!("{to}: {not_here}")),
        Some((_, Some(target))) => Ok(target),
        Some((to, None)) => Err(format!("{to} is not a version such as {major}.4")),
        None => {
            let all = versions.iter().flat_map(|node| [installed(&node.here), running(&node.here)]);
            all.flatten().max().ok_or_else(|| "no node tells which version is installed there".to_owned())
        }
    }
}

/// What there is to do where all is the same.
fn first_step(versions: &[VersionStatus]) -> String {
    let line = versions.first().map(|node| node.here.install.clone()).unwrap_or_default();
    format!(
        "to update, install the new version on a standby and run this again, or say which one is to come with --to \
         VERSION:\n  {line}\n"
    )
}

/// Who does not run the target yet, so far as it is known.
fn behind<'a, 'b>(
    status: &'a ClusterStatus,
    versions: &'b [VersionStatus],
    target: Minor,
) -> impl Iterator<Item = (&'a NodeStatus, &'b VersionStatus)> {
    let both = status.nodes.iter().filter_map(|node| {
        let known = versions.iter().find(|known| known.node == node.name)?;
        Some((node, known))
    });
    both.filter(move |(_, known)| !runs(known, target))
}

/// Whose turn it is: standbys first, the primary last. Who is disallowed has none: stopped, it would stay down.
fn next<'a>(status: &'a ClusterStatus, versions: &[VersionStatus], target: Minor) -> Option<&'a NodeStatus> {
    let todo = behind(status, versions, target).map(|(node, _)| node).filter(|node| node.allowed);
    todo.min_by_key(|node| (node.agent_type == AgentType::Primary, node.id))
}

/// What has come of it when nobody has a turn any more.
fn verdict(status: &ClusterStatus, versions: &[VersionStatus], target: Minor) -> (Outcome, String) {
    let left_out = behind(status, versions, target).filter(|(node, _)| !node.allowed).map(|(node, known)| {
        let state = match (&known.trouble, &known.here.running) {
            (Some(trouble), _) => trouble.clone(),
            (None, Some(running)) => format!("runs {running}"),
            (None, None) => "PostgreSQL does not answer".to_owned(),
        };
        format!("  {}: {state}\n", node.name)
    });
    let left_out: String = left_out.collect();
    let target = spell(target);
    if left_out.is_empty() {
        return (Outcome::Good, format!("every node runs {target}\n"));
    }
    let text = format!(
        "every node that is allowed in the cluster runs {target}; left out, since disallow-node keeps them out of service:\n\
         {left_out}to update them as well, run `pgherd allow-node NODE` for each, then the same command again\n"
    );
    (Outcome::Bad, text)
}

fn render(status: &ClusterStatus, versions: &[VersionStatus]) -> String {
    let mut table = Table::new(&["Node", "Runs", "Installed", "To do"]);
    let newest = target(versions, None).ok();
    for node in versions {
        let cell = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".to_owned());
        let disallowed = status.nodes.iter().any(|known| known.name == node.node && !known.allowed);
        let todo = match (&node.trouble, running(&node.here), installed(&node.here)) {
            (Some(trouble), _, _) => trouble.clone(),
            (None, _, Some((major, _))) if major != node.here.major => "another major version".to_owned(),
            _ if disallowed && newest.is_some_and(|newest| !runs(node, newest)) => {
                format!("left out: it is disallowed (pgherd allow-node {})", node.node)
            }
            (None, _, Some(installed)) if newest.is_some_and(|newest| installed < newest) => {
                node.here.install.clone()
            }
            (None, Some(running), Some(installed)) if running < installed => "restart".to_owned(),
            (None, Some(_), Some(_)) => "nothing".to_owned(),
            (None, _, _) => "PostgreSQL does not run".to_owned(),
        };
        table.row(vec![node.node.to_string(), cell(&node.here.running), cell(&node.here.installed), todo]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster_status::tests::three_nodes;

    fn node(name: &str, running: &str, installed: &str) -> VersionStatus {
        let some = |version: &str| (!version.is_empty()).then(|| version.to_owned());
        let here = VersionHere {
            major: 15,
            running: some(running),
            installed: some(installed),
            bin_dir: "/usr/lib/postgresql/15/bin".to_owned(),
            install: "apt-get install postgresql-15".to_owned(),
        };
        VersionStatus { node: name.parse().unwrap(), here, trouble: None }
    }

    #[test]
    fn the_newest_that_is_installed_is_the_aim_unless_another_is_named() {
        let versions = [node("server1", "15.13", "15.13"), node("server2", "15.13", "15.14")];
        assert_eq!(target(&versions, None), Ok((15, 14)));
        assert_eq!(target(&versions, Some("15.15")), Ok((15, 15)));
        assert!(target(&versions, Some("16.1")).unwrap_err().contains("pg_upgrade"));
        assert!(target(&versions, Some("new")).unwrap_err().contains("not a version"));
        let other = [node("server1", "15.13", "16.2")];
        assert!(target(&other, None).unwrap_err().starts_with("server1 has 16.2 in /usr/lib"));
        assert!(target(&[], None).is_err());
    }

    #[test]
    fn standbys_come_first_and_whoever_is_done_not_at_all() {
        let status = three_nodes();
        let turn =
            |versions: &[VersionStatus]| next(&status, versions, (15, 14)).map(|node| node.name.to_string());
        let old = |name| node(name, "15.13", "15.14");
        let new = |name| node(name, "15.14", "15.14");
        assert_eq!(turn(&[old("server1"), old("server2"), old("server3")]).as_deref(), Some("server2"));
        assert_eq!(turn(&[old("server1"), new("server2"), old("server3")]).as_deref(), Some("server3"));
        assert_eq!(turn(&[old("server1"), new("server2"), new("server3")]).as_deref(), Some("server1"));
        assert_eq!(turn(&[new("server1"), node("server2", "15.15", "15.15"), new("server3")]), None);
        let mut status = three_nodes();
        status.nodes[1].allowed = false;
        let left = next(&status, &[old("server1"), old("server2"), old("server3")], (15, 14));
        assert_eq!(
            left.map(|node| node.name.as_str()),
            Some("server3"),
            "server2 is kept out of the cluster"
        );
    }

    #[test]
    fn who_is_left_out_is_named_and_why() {
        let mut status = three_nodes();
        status.nodes[1].allowed = false;
        let new = |name| node(name, "15.14", "15.14");
        let told = |second: VersionStatus| {
            let versions = [new("server1"), second, new("server3")];
            assert!(next(&status, &versions, (15, 14)).is_none(), "there is nobody else");
            verdict(&status, &versions, (15, 14))
        };
        let older = "every node that is allowed in the cluster runs 15.14; left out, since disallow-node keeps them out of \
                     service:\n  server2: runs 15.13\nto update them as well, run `pgherd allow-node NODE` for each, then the \
                     same command again\n";
        assert_eq!(told(node("server2", "15.13", "15.14")), (Outcome::Bad, older.to_owned()));
        let (_, down) = told(node("server2", "", "15.14"));
        assert!(down.contains("  server2: PostgreSQL does not answer\n"), "{down}");
        let away = VersionStatus {
            here: VersionHere::default(),
            trouble: Some("connection refused".to_owned()),
            ..new("server2")
        };
        let (_, away) = told(away);
        assert!(away.contains("  server2: connection refused\n"), "{away}");
        let all = (Outcome::Good, "every node runs 15.14\n".to_owned());
        assert_eq!(told(new("server2")), all, "it runs it, disallowed or not");

        let row = |second: VersionStatus| {
            let text = render(&status, &[new("server1"), second, new("server3")]);
            text.lines().nth(3).unwrap().to_owned()
        };
        for installed in ["15.13", "15.14"] {
            let row = row(node("server2", "15.13", installed));
            assert!(row.ends_with("left out: it is disallowed (pgherd allow-node server2)"), "{row}");
        }
        assert!(row(new("server2")).ends_with("nothing"));
    }

    #[test]
    fn the_table_tells_what_is_to_be_done_where() {
        let versions = [
            node("server1", "15.13", "15.13"),
            node("server2", "15.13", "15.14"),
            node("server3", "15.14", "15.14"),
        ];
        let text = render(&three_nodes(), &versions);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert!(rows[0].ends_with("apt-get install postgresql-15"), "{text}");
        assert!(rows[1].ends_with("restart") && rows[2].ends_with("nothing"), "{text}");
        assert!(!is_current(&versions) && is_current(&versions[2..]));
        assert!(!is_current(&[node("server1", "15.14", "15.14"), node("server2", "15.13", "15.13")]));
        assert!(!is_current(&[node("server1", "", "15.14")]));
    }
}
