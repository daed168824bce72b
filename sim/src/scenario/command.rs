//! The commands of a script.

use pgherd_core::cluster::NodeKind;

use crate::clock::{MS, Micros, SECOND};
use crate::world::{Fault, Plan};

/// One line.
#[derive(Debug)]
pub(super) enum Command {
    /// `cluster server1 server2 witness server3`
    Cluster(Plan),
    /// `run 3s`
    Run(Micros),
    /// Something begins to go wrong, or an operator asks for something.
    Fault(Named),
    /// It ends.
    Over(Named),
    /// `mend`: all of it ends.
    Mend,
    /// `status`
    Status,
    /// `history`
    History,
    /// `log`
    Log,
    /// `writes`
    Writes,
}

/// A fault, with names.
#[derive(Debug)]
pub(super) struct Named {
    what: &'static str,
    names: Vec<String>,
}

/// What scripts can do to nodes: how it begins, how it ends.
const FAULTS: [(&str, Option<&str>); 15] = [
    ("kill postmaster", None),
    ("kill worker", None),
    ("kill agent", Some("start agent")),
    ("freeze postmaster", Some("thaw postmaster")),
    ("freeze worker", Some("thaw worker")),
    ("freeze machine", Some("thaw machine")),
    ("power off", Some("power on")),
    ("stall disk", None),
    ("promote by hand", None),
    ("switchover to", None),
    ("schedule switchover to", None),
    ("pause", None),
    ("cut postgres", Some("mend postgres")),
    ("cut agent", Some("mend agent")),
    ("cut", Some("mend")),
];

impl Command {
    /// `None` for a comment.
    pub(super) fn read(line: &str) -> Result<Option<Self>, String> {
        let line = line.split('#').next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(Some(match words.as_slice() {
            [] => return Ok(None),
            ["cluster", names @ ..] => Self::Cluster(plan(names)?),
            ["run", span] => Self::Run(self::span(span)?),
            ["status"] => Self::Status,
            ["history"] => Self::History,
            ["log"] => Self::Log,
            ["writes"] => Self::Writes,
            ["mend"] => Self::Mend,
            ["switchover"] => Self::Fault(Named { what: "switchover to", names: Vec::new() }),
            _ => return fault(line).map(Some),
        }))
    }
}

fn fault(line: &str) -> Result<Command, String> {
    let names = |rest: &str| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (begin, end) in FAULTS {
        if let Some(rest) = line.strip_prefix(begin) {
            return Ok(Command::Fault(Named { what: begin, names: names(rest) }));
        }
        if let Some(rest) = end.and_then(|end| line.strip_prefix(end)) {
            return Ok(Command::Over(Named { what: begin, names: names(rest) }));
        }
    }
    Err(format!("{line:?} is no command"))
}

fn plan(names: &[&str]) -> Result<Plan, String> {
    let (mut machines, mut kind) = (Vec::new(), NodeKind::Database);
    for name in names {
        if *name == "witness" {
            kind = NodeKind::Witness;
            continue;
        }
        machines.push((name.parse().map_err(|error| format!("{error}"))?, kind));
    }
    if machines.len() < 2 {
        return Err("a cluster has at least two nodes".to_owned());
    }
    Ok(Plan { machines, ..Plan::of(0, 0) })
}

fn span(text: &str) -> Result<Micros, String> {
    let read = |number: &str, unit: Micros| number.parse::<u64>().ok().map(|number| number * unit);
    let span = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => read(number, MS),
        (None, Some(number)) => read(number, SECOND),
        (None, None) => None,
    };
    span.ok_or_else(|| format!("{text:?} is no time such as 3s or 500ms"))
}

impl Named {
    /// With places in the world instead of names.
    pub(super) fn numbered(&self, place: impl Fn(&str) -> Result<usize, String>) -> Result<Fault, String> {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        Ok(match (self.what, names.as_slice()) {
            ("kill postmaster", [name]) => Fault::KillPostmaster(place(name)?),
            ("kill worker", [name]) => Fault::KillWorker(place(name)?),
            ("kill agent", [name]) => Fault::KillAgent(place(name)?),
            ("freeze postmaster", [name]) => Fault::HangPostmaster(place(name)?),
            ("freeze worker", [name]) => Fault::FreezeWorker(place(name)?),
            ("freeze machine", [name]) => Fault::Freeze(place(name)?),
            ("power off", [name]) => Fault::Power(place(name)?),
            ("stall disk", [name]) => Fault::StallDisk(place(name)?),
            ("promote by hand", [name]) => Fault::PromoteByHand(place(name)?),
            ("switchover to", []) => Fault::Switchover(None),
            ("switchover to", [name]) => Fault::Switchover(Some(place(name)?)),
            ("schedule switchover to", [name, "in", ahead]) => {
                Fault::Schedule(Some(place(name)?), span(ahead)?)
            }
            ("pause", ["everything", "for", long]) => Fault::Pause(None, span(long)?),
            ("pause", [name, "for", long]) => Fault::Pause(Some(place(name)?), span(long)?),
            ("cut postgres", [name]) => Fault::PostgresPort(place(name)?),
            ("cut agent", [name]) => Fault::AgentPort(place(name)?),
            ("cut", [from, "->", to]) => Fault::OneWay(place(from)?, place(to)?),
            ("cut", [a, "-", b]) => Fault::Pair(place(a)?, place(b)?),
            ("cut", [_, ..]) => {
                Fault::Partition(names.iter().map(|name| place(name)).collect::<Result<_, _>>()?)
            }
            (what, _) => return Err(format!("`{what}` of what?")),
        })
    }
}
