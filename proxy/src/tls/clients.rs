//! TLS from clients: the proxy's own certificate, and whose certificates it believes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::config::Tls;

use super::{ALPN, Source, TlsError, authorities, end_point, failed, identity, provider};

/// What handshakes with clients need.
#[derive(Debug)]
pub(crate) struct Acceptor {
    config: Arc<ServerConfig>,
    /// The hash of the proxy's certificate that SCRAM binds to; `None` where none is defined for it.
    pub(crate) end_point: Option<Vec<u8>>,
}

impl Source for Tls {
    type Made = Acceptor;
    const WHAT: &'static str = "[tls]";

    fn files(&self) -> Vec<&Path> {
        let own = [self.own.certificate.as_path(), self.own.key.as_path()];
        own.into_iter().chain(self.ca.as_deref()).collect()
    }

    fn make(&self) -> Result<Acceptor, TlsError> {
        let (chain, key) = identity(&self.own)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(authorities(ca)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .allow_unauthenticated()
                    .build()
                    .map_err(|source| TlsError::Authority { path: ca.clone(), source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let end_point = chain.first().and_then(|own| end_point(own));
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::Unfit { path: self.own.certificate.clone(), source })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Clients of PostgreSQL do not resume sessions.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Acceptor { config: Arc::new(config), end_point })
    }
}

impl Acceptor {
    /// The server's side of a handshake. `direct`: nothing was said before it, so that the client must name
    /// the protocol inside.
    pub(crate) async fn accept(&self, stream: TcpStream, direct: bool) -> io::Result<TlsStream<TcpStream>> {
        let stream = TlsAcceptor::from(self.config.clone()).accept(stream).await?;
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(failed(NoAlpn));
        }
        Ok(TlsStream::Server(stream))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the client began with TLS at once and did not name the protocol \"postgresql\" (ALPN)")]
struct NoAlpn;
