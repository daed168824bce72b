//! What can be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use pgherd_common::{HostPort, NodeId, NodeName};

use super::at::{At, Span};
use super::pg_set::Assignment;
use super::rate::Rate;
use crate::api::types::Means;

/// Where this node's agent keeps its configuration.
pub(super) const CONFIG_DEFAULT: &str = "/etc/pgherd/agent.toml";

/// Looks at a pgherd cluster and operates it.
///
/// Any agent of the cluster may be asked: what only the raft leader can do is passed on to it.
#[derive(Debug, Parser)]
#[command(name = "pgherd", version, disable_help_subcommand = true, after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) agent: AgentArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  pgherd cluster-status
  pgherd promote --switchover --to server2
  pgherd --agent http://10.0.0.2:7800 cluster-status

Exit status: 0 done (for a status: all is well), 1 not, 2 the command line was not understood.";

const WHICH: &str = "Which agent";

/// Which agent to ask.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AgentArgs {
    /// The agent to ask; by default the one that --config describes, else http://127.0.0.1:7800
    #[arg(long, global = true, value_name = "URL", env = "PGHERD_AGENT", help_heading = WHICH)]
    pub(super) agent: Option<String>,
    /// The agent's configuration, read to find its address [default: /etc/pgherd/agent.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = WHICH)]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows the whole cluster; exit status 0 only if all is well
    #[command(after_help = "\
Examples:
  pgherd cluster-status
  pgherd cluster-status --json | jq -r '.nodes[] | select(.type == \"Primary\") | .postgres'
  pgherd cluster-status >/dev/null || echo 'look at the cluster'")]
    ClusterStatus {
        /// Print what the agent answered, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows the node of the agent asked; exit status 1 if its database failed or it is idle
    #[command(after_help = "\
Examples:
  pgherd node-status
  pgherd --agent http://10.0.0.3:7800 node-status --json")]
    NodeStatus {
        /// Print what the agent answered, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Makes a standby the primary
    ///
    /// Without --switchover this is a forced failover: the primary is not stopped cleanly, and
    /// transactions that no standby has received are lost. It asks before it does that.
    #[command(after_help = "\
Examples:
  pgherd promote --switchover                  # planned: nothing is lost, clients get no error
  pgherd promote --switchover --to server3
  pgherd promote --switchover --explain        # what would happen; nothing does
  pgherd promote --switchover --at 03:00       # when it is 03:00 next in the zone of this machine
  pgherd promote --switchover --at +90m        # s, m or min, h, d
  pgherd promote --switchover --at \"2026-12-01 03:00\" --to server3
  pgherd promote --switchover --at 2026-12-01T03:00:00+01:00
  pgherd promote --cancel-scheduled            # nothing is to happen then after all
  pgherd promote --yes                         # forced, without being asked
  pgherd promote --switchover --no-wait        # come back as soon as it has begun")]
    Promote(PromoteArgs),
    /// Takes a failed (idle) node back into service
    #[command(after_help = "\
Examples:
  pgherd resume server1")]
    Resume {
        /// The node's name
        node: NodeName,
    },
    /// Makes a node a standby of the primary anew, by pg_rewind or by a copy
    ///
    /// Rewound it is if it has WAL that the primary never had and that can be done; otherwise all of its data is copied,
    /// from a standby if there is one. A copy keeps the old data directory aside for failover.keep_old_data; a rewind keeps
    /// nothing. The agent of the node does the work: it goes on when this command is interrupted, and when the agent is
    /// restarted.
    #[command(after_help = "\
Examples:
  pgherd rebuild server1
  pgherd rebuild server2 --clone --from server3 --rate 50MB
  pgherd rebuild server2 --stop         # leaves it as it was")]
    Rebuild(RebuildArgs),
    /// Gives a new node, the one of this machine, its data
    ///
    /// To be run where the agent is to run and as its user, before it is started: its configuration lists the members, and its data directory
    /// is empty or missing. Copied is a standby if there is one.
    #[command(after_help = "\
Examples:
  pgherd create-standby
  pgherd --config /etc/pgherd/agent.toml create-standby --rate 50MB")]
    CreateStandby(CreateArgs),
    /// Lets a new node join the cluster
    ///
    /// Its agent is started afterwards, with this cluster's name and at least one member besides itself in [[members]]; a
    /// database without data is made by `pgherd create-standby` on the new machine before that.
    #[command(after_help = "\
Examples:
  pgherd add-node server4 --id 4 --address 10.0.0.4:7800
  pgherd remove-node server4        # takes the invitation back, as long as it has not come")]
    AddNode(AddArgs),
    /// Removes a node from the cluster: its PostgreSQL is stopped and its agent ends
    ///
    /// No commit waits for it any more, then it loses its vote, then its slots on the other nodes are dropped. Its data
    /// stays where it is. The primary cannot be removed, nor can a node without which the rest could decide nothing.
    #[command(after_help = "\
Examples:
  pgherd remove-node server3
  pgherd remove-node server3 --yes      # from a script
  pgherd remove-node server3 --force    # while other voters are silent, too")]
    RemoveNode(RemoveArgs),
    /// Removes every node whose agent is silent now
    #[command(after_help = "\
Examples:
  pgherd reset-members
  pgherd reset-members --yes    # from a script")]
    ResetMembers {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Sets a node's place in the promotion order
    #[command(after_help = "\
Examples:
  pgherd set-priority server3 1     # promoted first
  pgherd set-priority server2 0     # never promoted")]
    SetPriority {
        /// The node's name
        node: NodeName,
        /// 1 first, 0 never
        #[arg(value_name = "N")]
        priority: u32,
    },
    /// Lets a node be in service
    #[command(after_help = "\
Examples:
  pgherd allow-node server3")]
    AllowNode {
        /// The node's name
        node: NodeName,
    },
    /// Takes a node out of service until it is allowed again
    #[command(after_help = "\
Examples:
  pgherd disallow-node server3")]
    DisallowNode {
        /// The node's name
        node: NodeName,
    },
    /// Takes a node out of the proxies' rotation; it goes on replicating
    #[command(after_help = "\
Examples:
  pgherd detach server3     # before maintenance: no more reads go there")]
    Detach {
        /// The node's name
        node: NodeName,
    },
    /// Takes a detached node back into the proxies' rotation
    #[command(after_help = "\
Examples:
  pgherd attach server3")]
    Attach {
        /// The node's name
        node: NodeName,
    },
    /// Restarts PostgreSQL on one node after the other, the primary last; clients wait a moment and get no error
    ///
    /// Standbys take no new reads while they are restarted. The primary is stopped as for a switchover:
    /// new work is held, transactions end, and it starts again where it is.
    #[command(after_help = "\
Examples:
  pgherd restart                     # every node
  pgherd restart server2 server3     # these
  pgherd restart --pending           # those that have a changed setting which needs it
  pgherd restart --yes               # without being asked")]
    Restart(RestartArgs),
    /// Sets parameters of PostgreSQL on every node, or on one
    ///
    /// The primary's PostgreSQL says whether it takes a value before anything is changed. The cluster remembers what is set:
    /// a node that is down, rebuilt or new has it when it is back. What needs a restart waits for `pgherd restart
    /// --pending`, or is done at once with --restart: standbys first where they must have as much as the primary, and last
    /// where they get less.
    #[command(after_help = "\
Examples:
  pgherd pg-set work_mem=64MB
  pgherd pg-set max_connections=300 shared_buffers=8GB --restart
  pgherd pg-set --node server3 max_parallel_workers=16   # there only
  pgherd pg-set --reset work_mem                         # as postgresql.conf has it
  pgherd pg-show                                         # what is set, and what each node makes of it")]
    PgSet(PgSetArgs),
    /// Shows the parameters that are set with pg-set, and how they stand on each node; exit status 1 unless all are in effect
    #[command(after_help = "\
Examples:
  pgherd pg-show
  pgherd pg-show --json | jq -r '.parameters[].name'")]
    PgShow {
        /// Print what the agent answered, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Leads through a minor version update of PostgreSQL: one node after the other, the primary last
    ///
    /// Nothing is installed: for each node the command says what to run there, waits until the new programs are installed,
    /// and restarts what runs an older version. It can be interrupted and run again at any point.
    #[command(after_help = "\
Examples:
  pgherd update --check               # what runs where, and what is installed
  pgherd update                       # restart whatever runs something older than what is installed
  pgherd update --to 15.14 --yes      # wait for that version on each node
  pgherd update --switchover          # the primary is switched over rather than restarted in place")]
    Update(UpdateArgs),
    /// Has the agents leave PostgreSQL alone for a while: for maintenance by hand
    ///
    /// Nothing is started, stopped, promoted or replaced meanwhile, and every pause ends by itself. What
    /// keeps two primaries apart goes on: a primary that too few agents can reach is still fenced.
    #[command(after_help = "\
Examples:
  pgherd pause                          # everything, for an hour
  pgherd pause --for 30m                # s, m or min, h, d; at most 7d
  pgherd pause --node server2 --for 2h  # only the PostgreSQL of one node")]
    Pause {
        /// Only this node's PostgreSQL
        #[arg(long)]
        node: Option<NodeName>,
        /// For how long; a pause that is on gets this end from now on
        #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
        span: Span,
    },
    /// Ends a pause before its time
    #[command(after_help = "\
Examples:
  pgherd unpause
  pgherd unpause --node server2")]
    Unpause {
        /// That of this node, not that of the cluster
        #[arg(long)]
        node: Option<NodeName>,
    },
    /// Stops all agents; PostgreSQL is left running
    #[command(after_help = "\
Examples:
  pgherd stop-cluster
  pgherd stop-cluster --yes     # from a script")]
    StopCluster {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Lists past changes of primary, oldest first
    #[command(after_help = "\
Examples:
  pgherd history
  pgherd history --json | jq '.[-1]'")]
    History {
        /// Print what the agent answered, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Sends a test notification through every channel of one agent; exit status 1 if one of them fails
    #[command(after_help = "\
Examples:
  pgherd notify-test
  pgherd --agent http://10.0.0.3:7800 notify-test")]
    NotifyTest {
        /// Print what the agent answered, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Checks an agent's or a proxy's configuration and reports everything that is wrong with it
    #[command(after_help = "\
Examples:
  pgherd check-config /etc/pgherd/agent.toml
  pgherd check-config /etc/pgherd/proxy.toml")]
    CheckConfig {
        /// The configuration
        file: PathBuf,
    },
}

/// The options of `promote`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PromoteArgs {
    /// Planned: stop the primary cleanly first, and make it a standby of the new one
    #[arg(long)]
    pub(super) switchover: bool,
    /// The new primary; by default the best standby
    #[arg(long, value_name = "NODE")]
    pub(super) to: Option<NodeName>,
    /// With --switchover: begin it then, by the clock of the agent that leads; if it cannot begin within 60 s, or another
    /// node is the primary by then, it is given up, and `pgherd history` says why
    #[arg(long, value_name = "TIME", requires = "switchover")]
    pub(super) at: Option<At>,
    /// Take the scheduled switchover back
    #[arg(long, conflicts_with_all = ["switchover", "to", "allow_data_loss", "yes"])]
    pub(super) cancel_scheduled: bool,
    /// With --switchover: only say what it would do, and what it would have to wait for
    #[arg(long, requires = "switchover")]
    pub(super) explain: bool,
    /// With --switchover: end transactions that do not end within timings.drain_timeout, rather than roll back
    #[arg(long, requires = "switchover")]
    pub(super) end_transactions: bool,
    /// By force, where commits wait for standbys (failover.durability): although some that were acknowledged may be lost
    #[arg(long, conflicts_with = "switchover")]
    pub(super) allow_data_loss: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    /// Do not wait until it is over
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// The options of `restart`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RestartArgs {
    /// The nodes; by default every database node
    #[arg(value_name = "NODE")]
    pub(super) nodes: Vec<NodeName>,
    /// Only where a changed setting waits for it
    #[arg(long)]
    pub(super) pending: bool,
    /// End the primary's transactions that do not end within timings.drain_timeout, rather than give up
    #[arg(long)]
    pub(super) end_transactions: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

/// The options of `pg-set`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PgSetArgs {
    /// What to set; units as in postgresql.conf
    #[arg(value_name = "NAME=VALUE", required_unless_present = "reset")]
    pub(super) set: Vec<Assignment>,
    /// Only on this node, where it wins over what is set everywhere
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<NodeName>,
    /// Take back what was set; the servers' own files count again. May be given several times
    #[arg(long, value_name = "NAME")]
    pub(super) reset: Vec<String>,
    /// Restart at once what has to be restarted, one node after the other
    #[arg(long)]
    pub(super) restart: bool,
    /// Also what is dangerous
    #[arg(long)]
    pub(super) yes: bool,
}

/// The options of `update`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct UpdateArgs {
    /// Only show the versions; exit status 0 if every node runs what is installed there, and all the same
    #[arg(long, conflicts_with_all = ["to", "switchover", "end_transactions", "yes"])]
    pub(super) check: bool,
    /// The version that is to come; by default the newest that is installed on any node
    #[arg(long, value_name = "VERSION")]
    pub(super) to: Option<String>,
    /// Make an updated standby the primary, rather than restart the primary where it is
    #[arg(long)]
    pub(super) switchover: bool,
    /// End the primary's transactions that do not end within timings.drain_timeout, rather than give up
    #[arg(long)]
    pub(super) end_transactions: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

/// The options of `rebuild`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RebuildArgs {
    /// The node's name
    pub(super) node: NodeName,
    /// Only by pg_rewind
    #[arg(long)]
    pub(super) rewind: bool,
    /// Only by a copy
    #[arg(long, conflicts_with = "rewind")]
    pub(super) clone: bool,
    /// The node to copy from; by default the standby that has most, else the primary
    #[arg(long, value_name = "NODE", conflicts_with = "rewind")]
    pub(super) from: Option<NodeName>,
    /// Copy no more than this in a second, such as 50MB
    #[arg(long, value_name = "LIMIT", conflicts_with = "rewind")]
    pub(super) rate: Option<Rate>,
    /// End a rebuild that was begun
    #[arg(long, conflicts_with_all = ["rewind", "clone", "from", "rate", "no_wait"])]
    pub(super) stop: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    /// Do not wait until it is over
    #[arg(long)]
    pub(super) no_wait: bool,
}

impl RebuildArgs {
    pub(super) fn means(&self) -> Means {
        match (self.rewind, self.clone) {
            (true, _) => Means::Rewind,
            (false, true) => Means::Clone,
            (false, false) => Means::Best,
        }
    }
}

/// The options of `add-node`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AddArgs {
    /// The new node's name
    pub(super) node: NodeName,
    /// Its number: one that no other node has
    #[arg(long, value_name = "N")]
    pub(super) id: NodeId,
    /// Where the others reach its agent
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) address: HostPort,
}

/// The options of `remove-node`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RemoveArgs {
    /// The node's name
    pub(super) node: NodeName,
    /// Also while other voters are silent, and though nobody sees its PostgreSQL stop
    #[arg(long)]
    pub(super) force: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    /// Do not wait until it is gone
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// The options of `create-standby`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CreateArgs {
    /// The node to copy from; by default the standby that has most, else the primary
    #[arg(long, value_name = "NODE")]
    pub(super) from: Option<NodeName>,
    /// Copy no more than this in a second, such as 50MB
    #[arg(long, value_name = "LIMIT")]
    pub(super) rate: Option<Rate>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn node_names_are_checked_before_anybody_is_asked() {
        assert!(Args::try_parse_from(["pgherd", "resume", "Server 1"]).is_err());
        let args =
            Args::try_parse_from(["pgherd", "set-priority", "server3", "0", "--agent", "h:1"]).unwrap();
        assert_eq!(args.agent.agent.as_deref(), Some("h:1"));
        assert!(matches!(args.command, Command::SetPriority { priority: 0, .. }));
    }
}
