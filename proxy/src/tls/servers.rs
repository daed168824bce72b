//! TLS to servers, with the modes of libpq: how much a server has to prove.

use std::io;
use std::path::Path;
use std::sync::Arc;

use pgherd_common::HostPort;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{ServerTls, ServerTlsMode};

use super::certificate::{is_named, is_within_its_time};
use super::{ALPN, Source, TlsError, authorities, certificates, failed, identity, provider};

/// What handshakes with servers need.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) mode: ServerTlsMode,
    config: Arc<ClientConfig>,
}

impl Source for ServerTls {
    type Made = Connector;
    const WHAT: &'static str = "[server_tls]";

    fn files(&self) -> Vec<&Path> {
        let own = self.own.iter().flat_map(|own| [own.certificate.as_path(), own.key.as_path()]);
        own.chain(self.root.as_deref()).collect()
    }

    fn make(&self) -> Result<Connector, TlsError> {
        let trust = |root: &std::path::PathBuf| {
            Ok(Trust {
                roots: authorities(root)?,
                listed: certificates(root)?,
                name: self.mode == ServerTlsMode::VerifyFull,
            })
        };
        let checked = !matches!(self.mode, ServerTlsMode::Disable | ServerTlsMode::Prefer);
        let trust = self.root.as_ref().filter(|_| checked).map(trust).transpose()?;
        let algorithms = provider().signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Checker { trust, algorithms }));
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (chain, key) = identity(own)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|source| TlsError::Unfit { path: own.certificate.clone(), source })?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // PostgreSQL does not resume sessions.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Connector { mode: self.mode, config: Arc::new(config) })
    }
}

impl Connector {
    /// The client's side of a handshake with the server at `address`.
    pub(crate) async fn connect(
        &self,
        address: &HostPort,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(address.host.clone()).map_err(failed)?;
        TlsConnector::from(self.config.clone()).connect(name, stream).await
    }
}

/// Whom to believe.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// The same certificates: a server may show one of them as its own.
    listed: Vec<CertificateDer<'static>>,
    /// The certificate must be for the address that was connected to.
    name: bool,
}

/// Checks a server's certificate as far as the mode says.
#[derive(Debug)]
struct Checker {
    /// `None`: whoever answers is believed.
    trust: Option<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Checker {
    fn check(
        &self,
        trust: &Trust,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(shown)?;
        if trust.listed.contains(shown) {
            if !is_within_its_time(shown, now) {
                return Err(CertificateError::Expired.into());
            }
        } else {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &trust.roots, between, now, algorithms)?;
        }
        if trust.name {
            // Certificates without alternative names are older than webpki; libpq takes their common name.
            verify_server_name(&parsed, name)
                .or_else(|error| if is_named(shown, &name.to_str()) { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }
}

impl ServerCertVerifier for Checker {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            self.check(trust, shown, between, name, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
