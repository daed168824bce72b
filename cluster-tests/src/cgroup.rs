//! Processes that get no more than a share of a processor's time, by the kernel's control groups (either version).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::process::children;

/// Where the groups of the first version that share out processor time are, and all of the second version.
const PROCESSOR_GROUPS: &str = "/sys/fs/cgroup/cpu";
const ALL_GROUPS: &str = "/sys/fs/cgroup";

/// A share of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// So much time, in microseconds.
    pub time_us: u32,
    /// Of each of these spans, in microseconds.
    pub period_us: u32,
}

/// Processes that are held to a share together, and all that they start. They have all the time they want again once
/// this is dropped.
#[derive(Debug)]
pub struct Held {
    group: PathBuf,
}

impl Held {
    /// Holds a process, and all that it has started, to `quota`. `name` is for people who look at the groups.
    pub fn hold(root: u32, name: &str, quota: Quota) -> io::Result<Self> {
        let first = Path::new(PROCESSOR_GROUPS).join("cgroup.procs").is_file();
        let home = Path::new(if first { PROCESSOR_GROUPS } else { ALL_GROUPS });
        let group = home.join(format!("{name}-{}", std::process::id()));
        if !first {
            fs::write(home.join("cgroup.subtree_control"), "+cpu")?;
        }
        fs::create_dir(&group)?;
        let held = Self { group };
        let Quota { time_us, period_us } = quota;
        if first {
            fs::write(held.group.join("cpu.cfs_period_us"), period_us.to_string())?;
            fs::write(held.group.join("cpu.cfs_quota_us"), time_us.to_string())?;
        } else {
            fs::write(held.group.join("cpu.max"), format!("{time_us} {period_us}"))?;
        }
        // What it starts from now on is held, too.
        fs::write(held.group.join("cgroup.procs"), root.to_string())?;
        for child in children(root) {
            match fs::write(held.group.join("cgroup.procs"), child.to_string()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                moved => moved?,
            }
        }
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(home) = self.group.parent() else { return };
        // Whoever comes in meanwhile was started by one that has yet to go. Those that will not go stay held.
        let mut before = String::new();
        while let Ok(all) = fs::read_to_string(self.group.join("cgroup.procs"))
            && !all.is_empty()
            && all != before
        {
            for process in all.lines() {
                let _has_ended = fs::write(home.join("cgroup.procs"), process);
            }
            before = all;
        }
        let _stays_empty = fs::remove_dir(&self.group);
    }
}
