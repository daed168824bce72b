//! Removes a cluster whatever happens to the process that started it.
//!
//! A shell script waits on a pipe. It is told about every directory, namespace and link before that
//! exists, and acts when the pipe ends: at a drop, a panic, a Ctrl-C or a `kill -9` alike. There is no
//! other tear-down, so this one is always exercised.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

const SCRIPT: &str = include_str!("undertaker.sh");

/// The waiting script.
#[derive(Debug)]
pub struct Undertaker {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Undertaker {
    /// Starts the script in a process group of its own, where no Ctrl-C reaches it.
    pub fn start() -> std::io::Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "pgherd-undertaker"])
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// The directory and everything in it will be removed; processes that work in it will be ended.
    pub fn will_remove(&mut self, dir: &Path) -> std::io::Result<()> {
        self.tell("remove", &dir.display().to_string())
    }

    /// The same, but the empty directory stays.
    pub fn will_empty(&mut self, dir: &Path) -> std::io::Result<()> {
        self.tell("empty", &dir.display().to_string())
    }

    /// What is mounted here will be unmounted.
    pub fn will_unmount(&mut self, at: &Path) -> std::io::Result<()> {
        self.tell("umount", &at.display().to_string())
    }

    /// The network namespace will be deleted.
    pub fn will_delete_netns(&mut self, name: &str) -> std::io::Result<()> {
        self.tell("netns", name)
    }

    /// The network interface will be deleted.
    pub fn will_delete_link(&mut self, name: &str) -> std::io::Result<()> {
        self.tell("link", name)
    }

    fn tell(&mut self, kind: &str, name: &str) -> std::io::Result<()> {
        assert!(!name.contains(char::is_whitespace), "the undertaker takes no blanks in names: {name:?}");
        match &mut self.pipe {
            Some(pipe) => writeln!(pipe, "{kind} {name}"),
            None => Ok(()),
        }
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _exit_status = self.child.wait();
    }
}
