//! `[tls]` and `[server_tls]`: encryption towards clients, and towards servers.

use std::path::PathBuf;

use pgherd_common::config::{Reader, Section};

use super::one_of;

/// TLS for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whoever does not use it is refused.
    pub required: bool,
    /// What the proxy shows to clients.
    pub own: Pair,
    /// PEM: who signs the certificates of clients. Without, clients are not asked for one.
    pub ca: Option<PathBuf>,
}

/// How much a server has to prove, in the words of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerTlsMode {
    /// Servers are spoken to in clear.
    Disable,
    /// Encrypted where the server does it, whoever it is.
    Prefer,
    /// Encrypted or not at all. With a file of authorities the same as [`Self::VerifyCa`].
    Require,
    /// The server's certificate must come from one of the authorities.
    VerifyCa,
    /// It must be for the server's address, too.
    VerifyFull,
}

/// TLS to servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// How much a server has to prove.
    pub mode: ServerTlsMode,
    /// PEM: the authorities.
    pub root: Option<PathBuf>,
    /// What the proxy shows to servers that ask for a certificate.
    pub own: Option<Pair>,
}

/// A certificate and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// PEM: the certificate, then those that lead from it to its authority.
    pub certificate: PathBuf,
    /// PEM: the private key.
    pub key: PathBuf,
}

/// Reads `[server_tls]`.
pub(super) fn read_servers(r: &mut Reader, root: &mut Section) -> Option<ServerTls> {
    use ServerTlsMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let mut section = root.table(r, "server_tls");
    let modes = [
        ("prefer", Prefer),
        ("disable", Disable),
        ("require", Require),
        ("verify-ca", VerifyCa),
        ("verify-full", VerifyFull),
    ];
    let mode = one_of(r, &mut section, "mode", &modes);
    let root = section.optional(r, "root");
    let path = section.path_of("root");
    let own = read_pair(r, &mut section);
    section.finish(r);
    let mode = mode?;
    if matches!(mode, VerifyCa | VerifyFull) && root.is_none() {
        r.problem(&path, "missing; without authorities no server's certificate can be verified");
        return None;
    }
    Some(ServerTls { mode, root, own: own? })
}

/// Reads `[tls]`: `Some(None)` when clients are served in clear only, `None` after a problem was reported.
pub(super) fn read_clients(r: &mut Reader, root: &mut Section) -> Option<Option<Tls>> {
    let mut section = root.table(r, "tls");
    let modes = [("off", None), ("allowed", Some(false)), ("required", Some(true))];
    let required = one_of(r, &mut section, "clients", &modes);
    let own = read_pair(r, &mut section);
    let ca = section.optional(r, "ca");
    let path = section.path_of("certificate");
    section.finish(r);
    let Some(required) = required? else { return Some(None) };
    let own = own?;
    if own.is_none() {
        r.problem(&path, "missing; TLS for clients needs a certificate and its key");
    }
    Some(Some(Tls { required, own: own?, ca }))
}

/// Reads `certificate` and `key`: both or neither, `None` after a problem was reported.
fn read_pair(r: &mut Reader, section: &mut Section) -> Option<Option<Pair>> {
    match (section.optional(r, "certificate"), section.optional(r, "key")) {
        (Some(certificate), Some(key)) => Some(Some(Pair { certificate, key })),
        (None, None) => Some(None),
        (Some(_), None) => {
            r.problem(&section.path_of("key"), "missing; a certificate is of no use without its key");
            None
        }
        (None, Some(_)) => {
            r.problem(&section.path_of("certificate"), "missing; a key is of no use without its certificate");
            None
        }
    }
}
