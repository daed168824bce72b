//! Of PostgreSQL's parameters, and of its versions.

use std::collections::BTreeMap;

use pgherd_common::{NodeName, WallTime};
use serde::{Deserialize, Serialize};

use super::{ParameterHere, Standing};

/// Body of `POST /v1/parameters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetParameters {
    /// On which node; on all of them when absent.
    pub node: Option<NodeName>,
    /// By name.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names whose values are taken back.
    #[serde(default)]
    pub reset: Vec<String>,
    /// Also what is dangerous.
    #[serde(default)]
    pub insist: bool,
    /// Who asks.
    pub by: String,
}

/// Body of `POST /v1/check-parameters`, all names in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckParameters {
    /// By name.
    pub set: BTreeMap<String, String>,
    /// Names whose values are taken back.
    pub reset: Vec<String>,
}

/// What a PostgreSQL says of values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checked {
    /// Why it does not take them.
    pub problems: Vec<String>,
    /// The values as it has them itself.
    pub normal: BTreeMap<String, String>,
    /// What it takes to change each: `context` of `pg_settings`.
    pub contexts: BTreeMap<String, String>,
    /// Whether its pages have checksums.
    pub checksums: Option<bool>,
}

/// How the parameters stand on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParametersHere {
    /// Up to which entry of the log they are laid out.
    pub applied: u64,
    /// By name.
    pub parameters: BTreeMap<String, ParameterHere>,
}

/// Everything `pgherd pg-show` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParametersStatus {
    /// The log's entry that last changed anything; 0: nothing was ever set.
    pub number: u64,
    /// How far the nodes are.
    pub nodes: Vec<NodeParameters>,
    /// By name.
    pub parameters: Vec<ParameterStatus>,
}

/// How far a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeParameters {
    /// Which.
    pub node: NodeName,
    /// Up to which entry of the log; `None`: its agent does not answer.
    pub applied: Option<u64>,
    /// Why it does not.
    pub trouble: Option<String>,
}

/// A parameter that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterStatus {
    /// Its name.
    pub name: String,
    /// What is set on every node, unless it has a value of its own.
    pub value: Option<String>,
    /// Who set that.
    pub by: Option<String>,
    /// When.
    pub at: Option<WallTime>,
    /// What is set on single nodes.
    pub overrides: Vec<OverrideStatus>,
    /// How it stands on each node where it is set.
    pub nodes: Vec<ParameterOnNode>,
}

/// A value of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideStatus {
    /// Which node.
    pub node: NodeName,
    /// Its value.
    pub value: String,
    /// Who set it.
    pub by: String,
    /// When.
    pub at: WallTime,
}

/// A parameter on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterOnNode {
    /// Which.
    pub node: NodeName,
    /// What is wanted there.
    pub wanted: String,
    /// What PostgreSQL runs with, if it tells.
    pub running: Option<String>,
    /// How it stands.
    #[serde(flatten)]
    pub standing: Standing,
}

/// The versions of PostgreSQL on one node; empty on a witness.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VersionHere {
    /// The major version of its data.
    pub major: u32,
    /// The running server's, such as `15.14`; `None` where none answers.
    pub running: Option<String>,
    /// That of the programs that are installed now.
    pub installed: Option<String>,
    /// Where they are.
    pub bin_dir: String,
    /// What brings them up to date.
    pub install: String,
}

/// The versions of PostgreSQL on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Which.
    pub node: NodeName,
    /// What its agent told.
    #[serde(flatten)]
    pub here: VersionHere,
    /// Why it told nothing.
    pub trouble: Option<String>,
}
