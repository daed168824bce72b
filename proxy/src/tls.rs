//! TLS on both sides, each by itself: what certificates say, who is believed, and files that change while
//! the process runs.

mod certificate;
mod clients;
mod kept;
mod servers;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Pair;

pub(crate) use certificate::{Peer, end_point};
pub(crate) use kept::{Kept, Source};

/// How PostgreSQL names its protocol inside TLS.
pub(crate) const ALPN: &[u8] = b"postgresql";

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("{path}: no certificate or key can be read from it", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file without certificates.
    #[error("{path}: holds no certificate", path = path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The certificates of one file, or a certificate and its key, do not do.
    #[error("{path}: cannot be used", path = path.display())]
    Unfit {
        /// The file with the certificate.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The certificates of authorities do not do.
    #[error("{path}: no authority can be made of it", path = path.display())]
    Authority {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::client::VerifierBuilderError,
    },
    /// A private key that others on the machine may read.
    #[error("{path}: a private key that others may read (mode {mode:04o}); chmod 0600 it, or 0640 where root owns it", path = path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Nothing that this build of TLS does.
    #[error("TLS cannot be set up")]
    Versions(#[source] rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// All certificates of a file, at least one.
fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    if found.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(found) }
}

/// A certificate with what leads to its authority, and its key. The key must be for the owner's eyes only,
/// by the rule of libpq.
fn identity(own: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&own.certificate)?;
    let unread = |source| TlsError::Read { path: own.key.clone(), source };
    let meta = std::fs::metadata(&own.key).map_err(|error| unread(pem::Error::Io(error)))?;
    let (mode, forbidden) = (meta.mode() & 0o7777, if meta.uid() == 0 { 0o037 } else { 0o077 });
    if meta.is_file() && mode & forbidden != 0 {
        return Err(TlsError::Exposed { path: own.key.clone(), mode });
    }
    Ok((chain, PrivateKeyDer::from_pem_file(&own.key).map_err(unread)?))
}

/// The certificates of a file as authorities.
fn authorities(path: &std::path::Path) -> Result<rustls::RootCertStore, TlsError> {
    let mut store = rustls::RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|source| TlsError::Unfit { path: path.to_owned(), source })?;
    }
    Ok(store)
}

/// A handshake that failed, as an error of the socket.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
