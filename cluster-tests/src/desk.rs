//! Scripts of an operator, and what they were called with.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::process::Signal;
use crate::wait::{never, wait_until};

const SOON: Duration = Duration::from_secs(40);

/// Scripts, and what they were called with.
#[derive(Debug)]
pub struct Desk {
    dir: PathBuf,
    _own: Option<TempDir>,
}

impl Desk {
    /// In the directory of a cluster.
    pub fn of(cluster: &Cluster) -> Result<Self, Failure> {
        let dir = cluster.dir().join("desk");
        std::fs::create_dir_all(&dir)?;
        Self::furnish(dir, None)
    }

    /// In a directory of its own, which goes with it: for a cluster that is yet to be made.
    pub fn apart() -> Result<Self, Failure> {
        let own = tempfile::Builder::new().prefix("pgherd-desk-").tempdir()?;
        // The scripts are the agents', and those are not this user's.
        std::fs::set_permissions(own.path(), PermissionsExt::from_mode(0o777))?;
        Self::furnish(own.path().to_owned(), Some(own))
    }

    fn furnish(dir: PathBuf, own: Option<TempDir>) -> Result<Self, Failure> {
        let desk = Self { dir, _own: own };
        desk.script(
            "hook",
            "name=$1; shift; for word in \"$@\"; do args=\"$args [$word]\"; done; echo \"$PGHERD_NODE $name$args\" >> calls",
        )?;
        Ok(desk)
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A shell script that runs here.
    pub fn script(&self, name: &str, text: &str) -> Result<String, Failure> {
        let new = self.dir.join(format!("{name}.new"));
        std::fs::write(&new, format!("#!/bin/sh\ncd {}\n{text}\n", self.dir.display()))?;
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755))?;
        // Another one may be running.
        std::fs::rename(new, self.dir.join(name))?;
        Ok(self.path(name))
    }

    /// Every hook, as a call of the one script.
    pub fn hooks(&self) -> String {
        let hook = self.path("hook");
        let keys = [
            ("fence", "%p %f"),
            ("post_promotion", "%p %f"),
            ("remote_pre_promotion", "%p"),
            ("remote_post_promotion", "%p"),
            ("db_failure", ""),
            ("primary_isolated", ""),
            ("resumed", ""),
            ("load_balancer_attach", "%h %t"),
            ("load_balancer_detach", "%h %t"),
        ];
        let line = |(key, with): (&str, &str)| format!("{key} = \"{hook} {key} {with}\"\n");
        keys.into_iter().map(line).collect()
    }

    /// What was called, by name.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let mut calls: Vec<String> = text.lines().map(str::to_owned).collect();
        calls.sort();
        calls
    }

    /// Waits until exactly these calls were made; who tells a load balancer is not asked.
    pub async fn until(&self, what: &str, expected: &[String]) -> Result<(), Failure> {
        let mut expected = expected.to_vec();
        expected.sort();
        let calls = || {
            let told = |call: String| match call.split_once(' ') {
                Some((_, balancer)) if balancer.starts_with("load_balancer") => balancer.to_owned(),
                Some(_) | None => call,
            };
            let mut calls: Vec<String> = self.calls().into_iter().map(told).collect();
            calls.sort();
            calls
        };
        let same = wait_until(what, SOON, async || {
            let calls = calls();
            if calls == expected {
                Ok(())
            } else {
                Err(format!("{}\nexpected:\n{}", calls.join("\n"), expected.join("\n")))
            }
        });
        same.await?;
        // Nothing comes twice.
        let more =
            never(what, Duration::from_secs(2), async || (calls() != expected).then(|| calls().join("\n")));
        Ok(more.await?)
    }

    /// Of what was called.
    pub fn forget(&self) -> Result<(), Failure> {
        Ok(std::fs::write(self.dir.join("calls"), "")?)
    }
}

/// Gives every agent more settings: it is restarted, PostgreSQL is not.
pub async fn configure(cluster: &mut Cluster, more: &str) -> Result<(), Failure> {
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name.clone()).collect();
    for name in &names {
        let file = cluster.node(name).dir.join("agent.toml");
        let text = std::fs::read_to_string(&file)?;
        let before = text.split("\n# of the test\n").next().unwrap_or_default();
        std::fs::write(&file, format!("{before}\n# of the test\n{more}"))?;
        let agent = &mut cluster.node_mut(name).agent;
        agent.stop(Signal::TERM, SOON).await?;
        agent.start()?;
    }
    Ok(cluster.until_healthy(SOON).await?)
}
