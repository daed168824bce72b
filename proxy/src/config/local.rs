//! `proxy.unix_socket_dir` and `proxy.unix_socket_mode`: clients of the same machine.

use std::collections::BTreeSet;
use std::path::PathBuf;

use pgherd_common::config::{Reader, Section};

use super::Config;

/// Where Unix sockets are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalSocket {
    /// The directory.
    pub dir: PathBuf,
    /// Permissions of the sockets: who may write may connect.
    pub mode: u32,
}

impl Config {
    /// The Unix sockets to listen on: named as PostgreSQL does, one for each port.
    pub fn unix_sockets(&self) -> Vec<PathBuf> {
        let Some(socket) = &self.unix_socket else { return Vec::new() };
        let ports: BTreeSet<u16> = self.listen.iter().map(|address| address.port).collect();
        ports.iter().map(|port| socket.dir.join(format!(".s.PGSQL.{port}"))).collect()
    }
}

/// `Some(None)` when none is wanted, `None` after a problem was reported.
pub(super) fn read(r: &mut Reader, section: &mut Section) -> Option<Option<LocalSocket>> {
    let dir: Option<PathBuf> = section.optional(r, "unix_socket_dir");
    let mode: String = section.or(r, "unix_socket_mode", "\"0777\"")?;
    let octal = mode.bytes().all(|digit| digit.is_ascii_digit());
    let read = u32::from_str_radix(&mode, 8).ok().filter(|mode| octal && *mode <= 0o777);
    let Some(mode) = read else {
        let path = section.path_of("unix_socket_mode");
        r.problem(&path, format!("{mode:?} is no mode; expected octal digits from \"0000\" to \"0777\""));
        return None;
    };
    Some(dir.map(|dir| LocalSocket { dir, mode }))
}
