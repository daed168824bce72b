//! Every kind of event there is. `docs/notifications.md` has the same list, which a test sees to.

use super::Severity;

/// Who tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The agent that leads, for all.
    Cluster,
    /// The agent of the node that it is about.
    Node,
}

macro_rules! kinds {
    ($($variant:ident $name:literal $severity:ident $scope:ident $what:literal)*) => {
        /// A kind of event.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = $what] $variant,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name by which programs know it; it never changes.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// How much it matters.
            pub fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// Who tells it.
            pub fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope,)* }
            }

            /// What it means, in a line.
            pub fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)* }
            }
        }
    };
}

kinds! {
    ClusterFormed "cluster_formed" Info Cluster "The agents have agreed on a primary for the first time."
    MemberInvited "member_invited" Info Cluster "An operator lets a new node join."
    MemberJoined "member_joined" Info Cluster "A node is a member from now on."
    MemberLeaving "member_leaving" Info Cluster "An operator has a node removed."
    MemberRemoved "member_removed" Info Cluster "A node is not a member any more."
    FailoverBegun "failover_begun" Warning Cluster "The primary has failed and is being replaced."
    FailoverCompleted "failover_completed" Warning Cluster "The new primary serves."
    SwitchoverBegun "switchover_begun" Info Cluster "A switchover has begun."
    SwitchoverCompleted "switchover_completed" Info Cluster "The new primary serves, and nothing was lost."
    SwitchoverScheduled "switchover_scheduled" Info Cluster "A switchover is to begin at a set time."
    SwitchoverNotDone "switchover_not_done" Warning Cluster "A scheduled switchover was given up."
    ChangeRolledBack "change_rolled_back" Warning Cluster "A change of primary was given up; the old primary serves again."
    StartedInPlace "started_in_place" Warning Cluster "The failed primary was started again where it was, and serves."
    PromotionFailed "promotion_failed" Severe Cluster "The chosen node did not become primary; another one is chosen."
    CommitsLost "commits_lost" Severe Cluster "A failover lost transactions that no standby had."
    NodeFailed "node_failed" Warning Cluster "A standby is out of service."
    NodeInService "node_in_service" Info Cluster "A standby is in service."
    WitnessLost "witness_lost" Warning Cluster "Nothing is heard of a witness."
    WitnessBack "witness_back" Info Cluster "A witness is heard again."
    NodeDetached "node_detached" Info Cluster "An operator took a node out of the proxies' rotation."
    NodeAttached "node_attached" Info Cluster "An operator took a node back into the proxies' rotation."
    NodeDisallowed "node_disallowed" Warning Cluster "An operator took a node out of service."
    NodeAllowed "node_allowed" Info Cluster "An operator lets a node be in service again."
    PriorityChanged "priority_changed" Info Cluster "An operator changed a node's place in the promotion order."
    Paused "paused" Warning Cluster "An operator has PostgreSQL left alone, on one node or everywhere."
    Unpaused "unpaused" Info Cluster "The agents look after PostgreSQL again."
    ParametersSet "parameters_set" Info Cluster "An operator set parameters of PostgreSQL (pg-set)."
    VotersLowered "voters_lowered" Warning Cluster "A lost node has no vote any more."
    VotersRaised "voters_raised" Info Cluster "A node has its vote again."
    SyncLowered "sync_lowered" Warning Cluster "Commits wait for fewer standbys than before."
    SyncRaised "sync_raised" Info Cluster "Commits wait for more standbys than before."
    TooFewStandbys "too_few_standbys" Severe Cluster "Fewer standbys are in service than commits are to wait for."
    FailoverIsOff "failover_is_off" Severe Cluster "The primary has failed, and failover is by hand."
    NoCandidate "no_candidate" Severe Cluster "The primary has failed, and no standby can take over."
    TooFewLeft "too_few_left" Severe Cluster "The primary has failed, and a failover would leave too few standbys."
    LeftAlone "left_alone" Severe Cluster "The primary has failed while it is paused."
    PrimarySick "primary_sick" Severe Cluster "The primary cannot do its work, and stays for want of a standby that could."
    PrimaryUnguarded "primary_unguarded" Warning Cluster "The primary's agent is silent while its database serves: no failover until it is back."
    Minority "minority" Warning Cluster "Too few agents are heard to judge whether the primary is lost."
    SwitchoverWaits "switchover_waits" Warning Cluster "A scheduled switchover is due and cannot begin."
    SeveralPrimaries "several_primaries" Severe Cluster "The cluster does not form: more than one server would be primary."
    WrongDatabase "wrong_database" Severe Cluster "A node holds another database, or another major version of it."
    DuplicateName "duplicate_name" Severe Cluster "Two agents call themselves the same."
    VotesAtRisk "votes_at_risk" Warning Cluster "Voters are lost and keep their votes: one more loss may leave nobody to decide."
    AgentStarted "agent_started" Info Node "The agent has started."
    AgentStopped "agent_stopped" Warning Node "The agent was stopped; PostgreSQL goes on without it."
    AgentIsolated "agent_isolated" Warning Node "The agent hears too few others to have a say."
    DatabaseDown "database_down" Severe Node "PostgreSQL crashed or was killed."
    DatabaseFenced "database_fenced" Severe Node "The agent killed PostgreSQL, so that there is one primary only."
    PrimaryIsolated "primary_isolated" Severe Node "The primary lost its lease and was killed: too few agents answered."
    DatabaseSilent "database_silent" Warning Node "PostgreSQL runs and lets the agent not in."
    DatabaseSick "database_sick" Warning Node "PostgreSQL answers but has trouble with its disk or its processes."
    DatabaseUnusable "database_unusable" Severe Node "The agent must not touch this data directory."
    ActionFailed "action_failed" Warning Node "Something that the agent has to do to PostgreSQL failed; it is tried again."
    ParameterRefused "parameter_refused" Warning Node "PostgreSQL here does not take a value that was set cluster-wide; it runs with another one."
    MonitorFailed "monitor_failed" Severe Node "The custom monitor says that the database has failed."
    MonitorComplains "monitor_complains" Warning Node "The custom monitor failed or took too long, and nothing is done about it."
    ScriptRan "script_ran" Info Node "A script ran; its output is told."
    ScriptFailed "script_failed" Severe Node "A script failed or took too long; its output is told."
    NoticesDropped "notices_dropped" Warning Node "Notifications could not be delivered and were given up."
    Test "test" Info Node "An operator tries whether notifications arrive."
}
