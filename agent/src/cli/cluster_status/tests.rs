use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, HostPort, NodeId, Version};

use super::*;
use crate::api::types::{ChangeStatus, DatabaseState, LeaseStatus, ProxyStatus, WithoutVote};
use crate::cli::node_status;

fn node(id: u64, agent_type: AgentType) -> NodeStatus {
    let address = |port| HostPort { host: format!("10.0.0.{id}"), port };
    NodeStatus {
        id: NodeId(id),
        name: format!("server{id}").parse().unwrap(),
        kind: NodeKind::Database,
        agent_type,
        agent: address(7800),
        postgres: Some(address(5432)),
        db: DatabaseState::Up,
        vip: None,
        vip_active: false,
        priority: 100,
        weight: 1,
        tags: Default::default(),
        streams_from: None,
        attached: true,
        allowed: true,
        timeline: Some(pgherd_common::Timeline(4)),
        received: Some(Lsn(0x3_0000_0060)),
        replayed: Some(Lsn(0x3_0000_0060)),
        lag_bytes: Some(0),
        in_service: true,
        pid: Some(100),
        pending_restart: Vec::new(),
        pending_lowered: Vec::new(),
        refused: Vec::new(),
        invited: false,
        leaving: false,
        info: String::new(),
    }
}

/// A primary, a standby that lags, an idle node, a witness, and a failover in flight.
pub(in crate::cli) fn three_nodes() -> ClusterStatus {
    let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<NodeName>>();
    let generation = Generation::ZERO.next().next();
    let version = Version { generation, revision: 123 };
    ClusterStatus {
        system_identifier: Some(7),
        cluster: "demo".parse().unwrap(),
        answered_by: "server1".parse().unwrap(),
        formed: true,
        auto_failover: true,
        durability: DurabilityStatus::default(),
        generation,
        leader: Some("server4".parse().unwrap()),
        term: 3,
        voters: 3,
        voters_heard: 3,
        voting: names(&["server1", "server2", "server4"]),
        without_vote: vec![WithoutVote {
            node: "server3".parse().unwrap(),
            reason: "it is returning".to_owned(),
        }],
        lease: LeaseStatus { holder: Some("server1".parse().unwrap()), left_ms: 1640 },
        change: Some(ChangeStatus {
            kind: ChangeKind::Failover,
            from: "server1".parse().unwrap(),
            to: None,
            phase: "recruiting".into(),
            reason: "an operator asked for it".into(),
        }),
        scheduled: None,
        paused: Vec::new(),
        nodes: vec![
            NodeStatus {
                vip: Some("10.0.0.100".into()),
                vip_active: true,
                received: None,
                lag_bytes: None,
                ..node(1, AgentType::Primary)
            },
            NodeStatus {
                vip: Some("10.0.0.100".into()),
                replayed: Some(Lsn(0x2_FFE8_0060)),
                lag_bytes: Some(3 << 19),
                attached: false,
                ..node(2, AgentType::Standby)
            },
            NodeStatus {
                db: DatabaseState::Unknown,
                received: None,
                replayed: None,
                lag_bytes: None,
                info: "connection refused".into(),
                ..node(3, AgentType::Idle)
            },
            NodeStatus {
                kind: NodeKind::Witness,
                postgres: None,
                db: DatabaseState::NotApplicable,
                received: None,
                replayed: None,
                ..node(4, AgentType::Witness)
            },
        ],
        allowed: names(&["server1", "server2", "server3", "server4"]),
        priority: names(&["server2"]),
        proxies: vec![
            ProxyStatus {
                name: "proxy1".into(),
                listen: "10.0.0.4:6432".parse().unwrap(),
                acknowledged: Some(version),
                current: true,
            },
            ProxyStatus {
                name: "proxy2".into(),
                listen: "10.0.0.5:6432".parse().unwrap(),
                acknowledged: None,
                current: false,
            },
        ],
        healthy: false,
        verdict: vec![
            "One or more standbys are not in sync with the primary.".into(),
            "server2 is 1.5 MB behind.".into(),
        ],
        report: vec!["recruiting: 1 of 2 standbys have answered".into()],
    }
}

#[test]
fn everything_is_shown() {
    assert_eq!(
        render(&three_nodes()),
        "\
Cluster Status: demo

Agent Type  Name     Address        DB       VIP
--------------------------------------------------------
Primary     server1  10.0.0.1:7800  UP       10.0.0.100*
Standby     server2  10.0.0.2:7800  UP       10.0.0.100
Idle        server3  10.0.0.3:7800  UNKNOWN
Witness     server4  10.0.0.4:7800  N/A

Allowed node host list:
    server1 server2 server3 server4

Membership coordinator: server4

Standby priority host list:
    server2

Promote Status:

DB Type  Address        WAL Received LSN  WAL Replayed LSN  Info
-----------------------------------------------------------------------------------
Primary  10.0.0.1:5432                    3/60
Standby  10.0.0.2:5432  3/60              2/FFE80060        1.5 MB behind; detached

One or more standbys are not in sync with the primary.
server2 is 1.5 MB behind.

Idle Node Status (left out when positions are compared):

Address        WAL Received LSN  WAL Replayed LSN  Info
---------------------------------------------------------------------
10.0.0.3:5432                                      connection refused

Generation: 2 (term 3)
Voters: server1 hears 3 of 3
    without a vote: server3 (it is returning)
Lease: server1, ends in 1.6 s unless it is renewed
Change in flight: failover from server1 to the best standby, recruiting
    an operator asked for it

Proxies connected to server1:

Proxy   Address        Version  State
---------------------------------------
proxy1  10.0.0.4:6432  2.123    current
proxy2  10.0.0.5:6432  none     behind

Last decision:
    recruiting: 1 of 2 standbys have answered
"
    );
}

#[test]
fn commits_that_wait_are_told_of() {
    let told = |asked, standbys, of: &[&str], settled| {
        let of = of.iter().map(|name| name.parse().unwrap()).collect();
        durability(&DurabilityStatus { asked, standbys, of, settled })
    };
    let both = ["server2", "server3"];
    assert_eq!(told(0, 0, &[], true), "");
    assert_eq!(told(1, 1, &both, true), "Commits: wait for any 1 of server2, server3\n");
    assert_eq!(told(2, 0, &[], true), "Commits: wait for no standby; 2 are asked for\n");
    let changing =
        "Commits: wait for any 1 of server2, server3; 2 are asked for; not yet so for those before\n";
    assert_eq!(told(2, 1, &both, false), changing);
}

#[test]
fn what_is_paused_is_told_first() {
    let paused = |node: Option<&str>| PausedStatus {
        node: node.map(|node| node.parse().unwrap()),
        until: pgherd_common::WallTime(1_795_422_667_000),
        left_ms: 720_000,
    };
    let mut status = three_nodes();
    status.paused = vec![paused(None), paused(Some("server2"))];
    let told = title(&status);
    let lines: Vec<&str> = told.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "Paused: PostgreSQL is left alone until 2026-11-23 08:31:07.000Z (12 min left).",
            "server2 is paused: PostgreSQL is left alone until 2026-11-23 08:31:07.000Z (12 min left)."
        ]
    );
}

#[test]
fn a_scheduled_switchover_is_told_of() {
    let mut status = ScheduledStatus {
        at: pgherd_common::WallTime(1_795_422_667_000),
        left_ms: 3 * 3_600_000 + 720_000,
        from: "server1".parse().unwrap(),
        to: None,
        end_transactions: false,
        successor: Some("server2".parse().unwrap()),
        obstacle: None,
    };
    let told = "Scheduled switchover: 2026-11-23 08:31:07.000Z, in 3 h 12 min, from server1 to the best standby, server2 as \
                things are\n";
    assert_eq!(scheduled(&status), told);
    status.to = Some("server3".parse().unwrap());
    status.end_transactions = true;
    status.left_ms = 0;
    (status.successor, status.obstacle) = (None, Some("server3 has no vote".to_owned()));
    let told = "Scheduled switchover: 2026-11-23 08:31:07.000Z, due, from server1 to server3; transactions that do not end are \
                ended\n    could not begin now: server3 has no vote\n";
    assert_eq!(scheduled(&status), told);
}

#[test]
fn what_is_not_there_is_said_or_left_out() {
    let status = ClusterStatus {
        formed: false,
        auto_failover: false,
        leader: None,
        lease: LeaseStatus { holder: None, left_ms: 0 },
        change: None,
        nodes: vec![NodeStatus { db: DatabaseState::Unknown, ..node(1, AgentType::Down) }],
        allowed: vec![],
        priority: vec![],
        proxies: vec![],
        verdict: vec!["No primary is in service.".into()],
        report: vec![],
        ..three_nodes()
    };
    assert_eq!(
        render(&status),
        "\
Cluster Status: demo
The cluster has not formed yet: no primary was ever agreed on.
Automatic failover is off: a failed primary is replaced only by `pgherd promote`.

Agent Type  Name     Address        DB       VIP
------------------------------------------------
DOWN        server1  10.0.0.1:7800  UNKNOWN

Allowed node host list:
    (List is empty.)

Membership coordinator: none (no leader is known)

Standby priority host list:
    (List is empty.)

Promote Status:

No database is in service.

No primary is in service.

Generation: 2 (term 3)
Voters: server1 hears 3 of 3
    without a vote: server3 (it is returning)
Lease: held by nobody
Change in flight: none

Proxies: none connected to server1
"
    );
}

#[test]
fn a_node_alone() {
    let status = three_nodes();
    let [primary, standby, idle, witness] = status.nodes.as_slice() else { panic!("four nodes") };
    assert_eq!(
        node_status::render(standby),
        "\
Node:         server2 (id 2)
Agent type:   Standby
Address:      10.0.0.2:7800
DB:           UP
PostgreSQL:   10.0.0.2:5432
VIP:          10.0.0.100
Priority:     100
Weight:       1 (detached: takes no reads)
Allowed:      yes
Timeline:     4
WAL received: 3/60
WAL replayed: 2/FFE80060 (1.5 MB behind)
"
    );
    assert!(
        node_status::render(primary).ends_with("\nWAL written:  3/60\n"),
        "{}",
        node_status::render(primary)
    );
    assert!(!node_status::render(witness).contains("VIP"), "{}", node_status::render(witness));
    let in_order = [primary, standby, idle, witness].map(node_status::is_in_order);
    assert_eq!(in_order, [true, true, false, true]);
    assert!(!node_status::is_in_order(&NodeStatus { db: DatabaseState::Down, ..standby.clone() }));
}
