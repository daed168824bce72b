//! What an agent answers to other processes, over HTTP and with a real log.

use pgherd_common::{Generation, HostPort, NodeId, WallTime};
use pgherd_core::cover::Durability;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::cluster::{Applied, Command, Contact, Contacts, Descriptor, Identity, NodeKind};
use crate::consensus::Options;
use crate::observation::NodeObservation;

/// Far more than anything here takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(15);

const CONFIG: &str = r#"
[cluster]
name = "demo"
[node]
id = 1
name = "server1"
kind = "witness"
listen = "10.0.0.1:7800"
[[members]]
id = 1
name = "server1"
agent = "10.0.0.1:7800"
[[members]]
id = 2
name = "server2"
agent = "10.0.0.2:7800"
"#;

/// The agent of server1, without its loop.
struct Agent {
    consensus: Consensus,
    address: HostPort,
    inbox: mpsc::Receiver<Event>,
    _dir: TempDir,
}

impl Agent {
    /// With these in its configuration.
    async fn start(configured: &[u64]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Arc::new(Config::parse(CONFIG).unwrap());
        let contact = |id| {
            let Descriptor { name, agent, .. } = descriptor(id);
            (NodeId(id), Contact { name, agent })
        };
        let consensus = Consensus::open(Options {
            node: NodeId(1),
            cluster: config.cluster.clone(),
            dir: dir.path().to_owned(),
            members: configured.iter().copied().map(contact).collect::<Contacts>(),
            remembers: false,
            heartbeat: Duration::from_millis(75),
            election_timeout: (Duration::from_millis(400), Duration::from_millis(800)),
            rpc_timeout: Duration::from_millis(500),
        });
        let consensus = consensus.await.unwrap();
        let (events, inbox) = mpsc::channel(8);
        let lease = config.timings.lease;
        let api = Api {
            consensus: consensus.clone(),
            instance: None,
            hub: Hub::new(config.cluster.clone(), consensus.state(), lease, events.clone()),
            events,
            link: Link::new(config.cluster.clone(), PATIENCE).unwrap(),
            working: Working::default(),
            stop: Arc::default(),
            notifier: Notifier::start(&config),
            config,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, router(api)).await.unwrap() });
        Self { consensus, address, inbox, _dir: dir }
    }

    /// A cluster of its own forms, of server1 and server2.
    async fn form(&self) {
        self.consensus.nothing_forgotten().await.unwrap();
        self.consensus.form().await.unwrap();
        let mut standing = self.consensus.standing();
        timeout(PATIENCE, standing.wait_for(|standing| standing.is_established)).await.unwrap().unwrap();
        self.propose(Command::Form {
            identity: Identity { cluster: "demo".parse().unwrap(), system_identifier: 7, major: 15 },
            primary: NodeId(2),
            members: vec![descriptor(1), descriptor(2)],
            at: WallTime(1),
        })
        .await;
    }

    async fn propose(&self, command: Command) {
        assert_eq!(self.consensus.propose(command).await.unwrap(), Applied::Changed);
    }

    /// What it says to a beat; nothing where that is passed on to its loop.
    async fn beaten_by(&mut self, descriptor: Descriptor) -> Option<Refusal> {
        let beat = Beat { observation: observation(descriptor.clone()), wants_lease: None };
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let post = client.post(format!("http://{}/v1/beat", self.address)).json(&beat).send();
        tokio::select! {
            answer = timeout(PATIENCE, post) => {
                let answer = answer.unwrap().unwrap();
                assert_eq!(answer.status(), StatusCode::CONFLICT);
                Some(answer.json().await.unwrap())
            }
            event = self.inbox.recv() => match event {
                Some(Event::Beat(beat, _)) => {
                    assert_eq!(beat.observation.descriptor, descriptor);
                    None
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn descriptor(id: u64) -> Descriptor {
    Descriptor {
        id: NodeId(id),
        name: format!("server{id}").parse().unwrap(),
        kind: if id == 1 { NodeKind::Witness } else { NodeKind::Database },
        agent: format!("10.0.0.{id}:7800").parse().unwrap(),
        postgres: (id != 1).then(|| format!("10.0.0.{id}:5432").parse().unwrap()),
        priority: 100,
        weight: 1,
        tags: Default::default(),
        upstream: None,
    }
}

fn named(descriptor: Descriptor, name: &str) -> Descriptor {
    Descriptor { name: name.parse().unwrap(), ..descriptor }
}

fn at(descriptor: Descriptor, agent: &str) -> Descriptor {
    Descriptor { agent: agent.parse().unwrap(), ..descriptor }
}

fn observation(descriptor: Descriptor) -> NodeObservation {
    NodeObservation {
        descriptor,
        cluster: "demo".parse().unwrap(),
        incarnation: 1,
        serial: 0,
        generation: Generation::ZERO,
        revision: 0,
        told: 0,
        probation: None,
        intent: None,
        promise_left_ms: 0,
        durability: Durability::default(),
        lease_left_ms: None,
        postgres: None,
        remote: Default::default(),
        address: None,
        proxies: Vec::new(),
        picked_proxy: None,
    }
}

#[tokio::test]
async fn a_beat_under_a_members_number_has_to_come_from_that_member() {
    let mut agent = Agent::start(&[1, 2]).await;
    assert_eq!(agent.beaten_by(descriptor(2)).await, None);
    for (other, told) in [
        (named(descriptor(2), "server9"), "server9 at 10.0.0.2:7800"),
        (at(descriptor(2), "10.0.0.9:7800"), "server2 at 10.0.0.9:7800"),
    ] {
        let Refusal { error, hint } = agent.beaten_by(other).await.expect(told);
        assert!(error.starts_with("node 2 is server2 at 10.0.0.2:7800 to this cluster, not "), "{error}");
        assert!(error.contains(told), "{error}");
        assert!(hint.contains("stop the agent that was removed"), "{hint}");
    }
    let Refusal { error, hint } = agent.beaten_by(named(descriptor(1), "server2")).await.unwrap();
    assert_eq!(error, "node 1 is this agent (server1), it cannot beat to itself");
    assert!(hint.contains("an id of its own"), "{hint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_added_again_elsewhere_is_heard_no_more_where_it_was() {
    let mut agent = Agent::start(&[1]).await;
    agent.form().await;
    let (here, there) = (descriptor(3), at(descriptor(3), "10.0.0.9:7800"));
    let invite = |descriptor: &Descriptor| {
        let Descriptor { id, name, agent, .. } = descriptor.clone();
        Command::Invite { id, name, agent, at: WallTime(2) }
    };
    agent.propose(invite(&here)).await;
    assert_eq!(agent.beaten_by(here.clone()).await, None);
    assert!(agent.beaten_by(there.clone()).await.is_some());
    agent.propose(Command::Remove { node: here.id, force: false, at: WallTime(3) }).await;
    // It is told in the answer to its beat, which is the loop's to give.
    assert_eq!(agent.beaten_by(here.clone()).await, None);
    agent.propose(invite(&there)).await;
    assert_eq!(agent.beaten_by(there).await, None);
    let Refusal { error, .. } = agent.beaten_by(here).await.unwrap();
    let told = "node 3 is server3 at 10.0.0.9:7800 to this cluster, not server3 at 10.0.0.3:7800";
    assert!(error.starts_with(told), "{error}");
    // A member's counts as well.
    assert!(agent.beaten_by(at(descriptor(2), "10.0.0.9:7800")).await.is_some());
}
