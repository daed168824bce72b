//! Doing a fault to a cluster, and taking it back: afterwards everything that a person would have to
//! repair is repaired (links, machines, disks), and the cluster is left to heal by itself.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::firewall::{self, Drop};
use super::kind::{Kind, Victim};
use super::plan::Fault;
use super::switchover;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::node::Node;
use crate::postgres::APP;
use crate::process::{self, Signal};

const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a killed worker may take to be there again before somebody else starts it.
const RESPAWN_TIME: Duration = Duration::from_millis(400);
/// A standby that was promoted past the agents is looked at for so long.
const ROGUE_TIME: Duration = Duration::from_secs(3);
const SUCCESSOR_TIME_MAX: Duration = Duration::from_secs(30);

/// Who is who when the fault comes.
#[derive(Debug, Clone)]
pub(crate) struct Cast {
    pub(crate) primary: String,
    pub(crate) victim: String,
    /// Database nodes but for the primary.
    pub(crate) standbys: Vec<String>,
    pub(crate) witness: String,
    /// Another node than the victim.
    pub(crate) second: String,
}

impl Cast {
    /// Chooses the victims.
    pub(crate) fn choose(cluster: &Cluster, fault: &Fault, primary: &str) -> Option<Self> {
        let names = |with: &dyn Fn(&Node) -> bool| -> Vec<String> {
            cluster.nodes().iter().filter(|node| with(node)).map(|node| node.name.clone()).collect()
        };
        let standbys = names(&|node| node.postgres.is_some() && node.name != primary);
        let witness = names(&|node| node.postgres.is_none()).pop()?;
        let from = match fault.kind.rule().victim {
            Victim::Database | Victim::Any if fault.meets_primary => vec![primary.to_owned()],
            Victim::Primary => vec![primary.to_owned()],
            Victim::Database | Victim::Standby => standbys.clone(),
            Victim::Any => names(&|node| node.name != primary),
            Victim::Witness => vec![witness.clone()],
        };
        let victim = pick(&from, fault.choice)?;
        let others = names(&|node| node.name != victim);
        let second = pick(&others, fault.second)?;
        Some(Self { primary: primary.to_owned(), victim, standbys, witness, second })
    }

    /// Whether the primary itself was met.
    pub(crate) fn meets_primary(&self) -> bool {
        self.victim == self.primary
    }
}

fn pick<T: Clone>(from: &[T], choice: usize) -> Option<T> {
    choice.checked_rem(from.len()).and_then(|at| from.get(at)).cloned()
}

/// What was done.
#[derive(Debug)]
pub(crate) struct Deed {
    /// Just before the harm.
    pub(crate) begun: Instant,
    /// When frozen processes were woken up.
    pub(crate) woken: Option<Instant>,
    /// What a person should know about it.
    pub(crate) note: String,
    /// What should not have happened.
    pub(crate) wrong: Option<String>,
}

/// Does it and takes it back.
pub(crate) async fn inflict(cluster: &mut Cluster, fault: &Fault, cast: &Cast) -> Result<Deed, Failure> {
    let mut deed = Deed { begun: Instant::now(), woken: None, note: String::new(), wrong: None };
    let victim = cast.victim.as_str();
    match fault.kind {
        Kind::KillPostmaster => kill_postmaster(cluster, victim)?,
        Kind::StopPostmaster => signal_postmaster(cluster, victim, Signal::STOP)?,
        Kind::KillBackend => deed.note = server_process(cluster, fault, victim, " app ", None).await?,
        Kind::StopBackend => {
            deed.note = server_process(cluster, fault, victim, " app ", fault.hold()).await?;
        }
        Kind::StopWalsender => {
            deed.note = server_process(cluster, fault, victim, "walsender", fault.hold()).await?;
        }
        Kind::StopCheckpointer => {
            deed.note = server_process(cluster, fault, victim, "checkpointer", fault.hold()).await?;
        }
        Kind::KillWorker => deed.note = kill_worker(cluster, fault, victim).await?,
        Kind::KillBoth => {
            kill_postmaster(cluster, victim)?;
            deed.note = kill_worker(cluster, fault, victim).await?;
        }
        Kind::KillAgent | Kind::LoseWitness => {
            cluster.kill_agent(victim).await?;
            sleep(fault.hold).await;
            cluster.node_mut(victim).agent.start()?;
        }
        Kind::FreezeWorker => freeze_worker(cluster, fault, victim).await,
        Kind::FreezeNode => deed.woken = Some(freeze_node(cluster, fault, victim).await),
        Kind::Isolate | Kind::IsolateStandby | Kind::Blip => {
            cluster.cut(victim).await?;
            sleep(fault.hold).await;
            cluster.heal(victim).await?;
        }
        Kind::LoseNode | Kind::LongGone => lose_node(cluster, fault, victim).await?,
        Kind::Deaf => filtered(cluster, fault, victim, &[Drop::Incoming]).await?,
        Kind::Mute => filtered(cluster, fault, victim, &[Drop::Outgoing]).await?,
        Kind::PacketLoss => {
            deed.note = format!("{} % lost", fault.percent);
            filtered(cluster, fault, victim, &[Drop::Share(fault.percent)]).await?;
        }
        Kind::Partial | Kind::NoReplication | Kind::NoClients => {
            deed.note = cut_connections(cluster, fault, cast).await?;
        }
        Kind::TwoAndTwo => deed.note = two_and_two(cluster, fault, cast).await?,
        Kind::QuorumLost => quorum_lost(cluster, fault).await?,
        Kind::Flapping => deed.note = flapping(cluster, fault, victim).await?,
        Kind::RoguePromote => rogue_promote(cluster, victim).await?,
        Kind::ConnectionsFull => deed.note = connections_full(cluster, fault, victim).await,
        Kind::WipeStore => deed.note = wipe_store(cluster, fault, victim).await?,
        Kind::Unstartable => unstartable(cluster, fault, victim).await?,
        Kind::Switchover => deed.wrong = switchover::planned(cluster, fault, cast).await?,
        Kind::SwitchoverKill => deed.note = switchover::interrupted(cluster, fault, cast).await?,
        Kind::Double => deed.note = double(cluster, fault, cast).await?,
    }
    Ok(deed)
}

impl Fault {
    /// As the time a process is stopped for.
    fn hold(&self) -> Option<Duration> {
        Some(self.hold)
    }
}

fn missing(what: &str, node: &str) -> Failure {
    Failure::new(format!("there is no {what} on {node}"))
}

fn signal_postmaster(cluster: &Cluster, node: &str, signal: Signal) -> Result<(), Failure> {
    let postmaster = cluster.node(node).postmaster().ok_or_else(|| missing("postmaster", node))?;
    process::signal(postmaster, signal);
    Ok(())
}

fn kill_postmaster(cluster: &Cluster, node: &str) -> Result<(), Failure> {
    signal_postmaster(cluster, node, Signal::KILL)
}

/// Kills a process of a server, or stops it for a while.
async fn server_process(
    cluster: &Cluster,
    fault: &Fault,
    node: &str,
    title: &str,
    stopped_for: Option<Duration>,
) -> Result<String, Failure> {
    let postmaster = cluster.node(node).postmaster().ok_or_else(|| missing("postmaster", node))?;
    let titled = |child: &u32| process::title(*child).contains(title);
    let children: Vec<u32> = process::children(postmaster).into_iter().filter(titled).collect();
    let chosen = pick(&children, fault.second).ok_or_else(|| missing(title, node))?;
    let told = process::title(chosen);
    match stopped_for {
        None => process::signal(chosen, Signal::KILL),
        Some(hold) => {
            process::signal(chosen, Signal::STOP);
            sleep(hold).await;
            process::signal(chosen, Signal::CONT);
        }
    }
    Ok(told)
}

async fn kill_worker(cluster: &mut Cluster, fault: &Fault, name: &str) -> Result<String, Failure> {
    let node = cluster.node_mut(name);
    let worker = node.worker().ok_or_else(|| missing("agent", name))?;
    process::signal(worker, Signal::KILL);
    sleep(RESPAWN_TIME + fault.hold).await;
    if node.agent.ended().is_none() {
        return Ok(String::new());
    }
    node.agent.start()?;
    Ok("nobody guards the agent: started again by hand".to_owned())
}

async fn freeze_worker(cluster: &Cluster, fault: &Fault, name: &str) {
    let Some(worker) = cluster.node(name).worker() else { return };
    process::signal(worker, Signal::STOP);
    sleep(fault.hold).await;
    process::signal(worker, Signal::CONT);
}

/// Returns when it was woken up.
async fn freeze_node(cluster: &Cluster, fault: &Fault, name: &str) -> Instant {
    let node = cluster.node(name);
    // Once more for those that were being born.
    for _ in 0..2 {
        for process in node.processes() {
            process::signal(process, Signal::STOP);
        }
    }
    sleep(fault.hold).await;
    let mut frozen = node.processes();
    let first = fault.choice.checked_rem(frozen.len()).unwrap_or(0);
    frozen.rotate_left(first);
    let woken = Instant::now();
    for process in frozen {
        process::signal(process, Signal::CONT);
    }
    woken
}

async fn lose_node(cluster: &mut Cluster, fault: &Fault, name: &str) -> Result<(), Failure> {
    cluster.lose(name).await?;
    sleep(fault.hold).await;
    cluster.regain(name).await
}

async fn filtered(cluster: &Cluster, fault: &Fault, node: &str, drops: &[Drop]) -> Result<(), Failure> {
    let place = &cluster.node(node).place;
    firewall::drop_packets(place, drops).await?;
    sleep(fault.hold).await;
    Ok(firewall::lift(place).await?)
}

/// Cuts some connections of one node.
async fn cut_connections(cluster: &Cluster, fault: &Fault, cast: &Cast) -> Result<String, Failure> {
    let (mut node, host) = (cluster.node(&cast.victim), |name: &str| cluster.node(name).place.host.clone());
    let postgres_port = |node: &Node| node.postgres.as_ref().map_or(0, |postgres| postgres.port);
    let (note, rule) = match fault.kind {
        Kind::NoReplication => ("its own way to PostgreSQL", Drop::OutgoingPort(postgres_port(node))),
        Kind::NoClients => {
            ("the proxy's way to it", Drop::PortWith(host(&cast.witness), postgres_port(node)))
        }
        // The proxy lives beside the witness, and this is not about the proxy.
        _ if cast.victim == cast.witness => {
            node = cluster.node(&cast.second);
            ("only between agents", Drop::PortWith(host(&cast.witness), node.agent_port))
        }
        _ if cast.second == cast.witness => {
            ("only between agents", Drop::PortWith(host(&cast.witness), node.agent_port))
        }
        _ => ("everything", Drop::Peer(host(&cast.second))),
    };
    filtered(cluster, fault, &node.name, &[rule]).await?;
    let with = if fault.kind == Kind::Partial { format!(", with {}", cast.second) } else { String::new() };
    Ok(format!("{note}{with}"))
}

async fn two_and_two(cluster: &Cluster, fault: &Fault, cast: &Cast) -> Result<String, Failure> {
    let mate = pick(&cast.standbys, fault.second).ok_or_else(|| missing("standby", &cast.primary))?;
    let side = [cast.primary.as_str(), mate.as_str()];
    let others = cluster.nodes().iter().filter(|node| !side.contains(&node.name.as_str()));
    let drops: Vec<Drop> = others.map(|node| Drop::Peer(node.place.host.clone())).collect();
    for name in side {
        firewall::drop_packets(&cluster.node(name).place, &drops).await?;
    }
    sleep(fault.hold).await;
    for name in side {
        firewall::lift(&cluster.node(name).place).await?;
    }
    Ok(format!("with {mate}"))
}

async fn quorum_lost(cluster: &Cluster, fault: &Fault) -> Result<(), Failure> {
    let databases = || cluster.nodes().iter().filter(|node| node.postgres.is_some());
    for node in databases() {
        cluster.cut(&node.name).await?;
    }
    sleep(fault.hold).await;
    for node in databases() {
        cluster.heal(&node.name).await?;
    }
    Ok(())
}

async fn flapping(cluster: &Cluster, fault: &Fault, name: &str) -> Result<String, Failure> {
    let (mut spent, mut times) = (Duration::ZERO, 0);
    for pair in fault.beats.chunks(2) {
        if spent >= fault.hold {
            break;
        }
        let [down, up] = pair else { break };
        cluster.cut(name).await?;
        sleep(*down).await;
        cluster.heal(name).await?;
        sleep(*up).await;
        spent += *down + *up;
        times += 1;
    }
    Ok(format!("{times} times"))
}

async fn rogue_promote(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let postgres = cluster.node(name).postgres.as_ref().ok_or_else(|| missing("PostgreSQL", name))?;
    let mut command = postgres.place.postgres_command(postgres.bin_dir.join("pg_ctl"));
    command.arg("-D").arg(&postgres.data_dir).args(["-W", "promote"]);
    process::run(command, STOP_TIME_MAX).await?;
    sleep(ROGUE_TIME).await;
    Ok(())
}

async fn connections_full(cluster: &Cluster, fault: &Fault, name: &str) -> String {
    const MORE_THAN_THERE_ARE: usize = 200;
    let mut taken = Vec::new();
    let mut refused = 0;
    let until = Instant::now() + fault.hold;
    // Every slot that becomes free is taken again.
    while Instant::now() < until {
        let Some(postgres) = &cluster.node(name).postgres else { break };
        let mut config = tokio_postgres::Config::new();
        config.host_path(&postgres.socket_dir).port(postgres.port).user(APP).dbname(APP);
        match config.connect(tokio_postgres::NoTls).await {
            Ok((client, connection)) if taken.len() < MORE_THAN_THERE_ARE => {
                tokio::spawn(connection);
                taken.push(client);
            }
            Ok(_) => break,
            Err(_) => {
                refused += 1;
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
    format!("{} slots taken, then {refused} times refused", taken.len())
}

async fn wipe_store(cluster: &mut Cluster, fault: &Fault, name: &str) -> Result<String, Failure> {
    cluster.kill_agent(name).await?;
    let state = cluster.node(name).dir.join("state");
    let all = fault.second % 4 > 1;
    for entry in std::fs::read_dir(&state)?.flatten() {
        let path = entry.path();
        if path.is_file() && (all || path.extension().is_some_and(|extension| extension == "redb")) {
            std::fs::remove_file(&path)?;
        }
    }
    sleep(fault.hold).await;
    cluster.node_mut(name).agent.start()?;
    Ok(if all { "its whole state directory" } else { "its raft store" }.to_owned())
}

async fn unstartable(cluster: &Cluster, fault: &Fault, name: &str) -> Result<(), Failure> {
    let postgres = cluster.node(name).postgres.as_ref().ok_or_else(|| missing("PostgreSQL", name))?;
    let file = postgres.config_file();
    let text = std::fs::read_to_string(&file)?;
    // Written over, so that its owner stays.
    std::fs::write(&file, format!("{text}\nno_such_setting = 'on'\n"))?;
    kill_postmaster(cluster, name)?;
    sleep(fault.hold).await;
    Ok(std::fs::write(&file, text)?)
}

async fn double(cluster: &Cluster, fault: &Fault, cast: &Cast) -> Result<String, Failure> {
    kill_postmaster(cluster, &cast.primary)?;
    let successor = cluster.until("a successor", SUCCESSOR_TIME_MAX, |status| {
        status.primary().filter(|name| *name != cast.primary).map(str::to_owned)
    });
    let successor = successor.await?;
    sleep(fault.hold).await;
    let Some(postmaster) = cluster.node(&successor).postmaster() else {
        return Ok(format!("then {successor}, which was down already"));
    };
    process::signal(postmaster, Signal::KILL);
    Ok(format!("then {successor}, {:.1} s after it took over", fault.hold.as_secs_f64()))
}
