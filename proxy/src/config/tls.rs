//! `[tls]` and `[server_tls]`: encryption towards clients, and towards servers.

use std::path::PathBuf;

use pgherd_common::config::{Reader, Section};

use super::one_of;

/// TLS for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whoever does not use it is refused.
    pub required: bool,
    /// PEM: the proxy's certificate, then those that lead from it to its authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: who signs the certificates of clients. Without, clients are not asked for one.
    pub ca: Option<PathBuf>,
}

/// Reads `[tls]`: `Some(None)` when clients are served in clear only, `None` after a problem was reported.
pub(super) fn read_clients(r: &mut Reader, root: &mut Section) -> Option<Option<Tls>> {
    let mut section = root.table(r, "tls");
    let modes = [("off", None), ("allowed", Some(false)), ("required", Some(true))];
    let required = one_of(r, &mut section, "clients", &modes);
    let certificate: Option<PathBuf> = section.optional(r, "certificate");
    let key: Option<PathBuf> = section.optional(r, "key");
    let ca = section.optional(r, "ca");
    let (certificate_path, key_path) = (section.path_of("certificate"), section.path_of("key"));
    section.finish(r);
    let Some(required) = required? else { return Some(None) };
    for (path, missing) in [(certificate_path, certificate.is_none()), (key_path, key.is_none())] {
        if missing {
            r.problem(&path, "missing; TLS for clients needs a certificate and its key");
        }
    }
    Some(Some(Tls { required, certificate: certificate?, key: key?, ca }))
}
