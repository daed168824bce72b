//! Certificates made on the spot, and a client that checks them.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// Signs certificates, and keeps everything in files.
pub struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a test's authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { directory: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(authority.root(), authority.issuer.pem()).unwrap();
        authority
    }

    /// Its own certificate.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root.crt")
    }

    /// A certificate for somebody with this common name, reached under these names and addresses.
    pub fn sign(&self, common_name: &str, hosts: &[&str]) -> Files {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.directory.path().join(format!("{common_name}.{kind}"));
        let files = Files { certificate: file("crt"), key: file("key") };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&files.key, private).unwrap();
        files
    }

    /// A client that believes this authority alone, and checks names.
    pub fn client(&self, certificate: Option<&Files>, alpn: bool) -> TestTls {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.root()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        if alpn {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        TestTls { config: Arc::new(config), domain: String::new() }
    }
}

/// TLS for tokio-postgres, with channel binding.
#[derive(Clone)]
pub struct TestTls {
    config: Arc<rustls::ClientConfig>,
    domain: String,
}

impl TestTls {
    /// A handshake without a word before it.
    pub async fn direct(&self, port: u16) -> io::Result<TestStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        Self { domain: "localhost".to_owned(), ..self.clone() }.connect(stream).await
    }
}

/// What TLS may run over.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Carrier for S {}

impl<S: Carrier> MakeTlsConnect<S> for TestTls {
    type Stream = TestStream<S>;
    type TlsConnect = Self;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> io::Result<Self> {
        Ok(Self { domain: domain.to_owned(), ..self.clone() })
    }
}

impl<S: Carrier> TlsConnect<S> for TestTls {
    type Stream = TestStream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TestStream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let name = ServerName::try_from(self.domain).map_err(io::Error::other)?;
            tokio_rustls::TlsConnector::from(self.config).connect(name, stream).await.map(TestStream)
        })
    }
}

/// The encrypted stream.
pub struct TestStream<S>(tokio_rustls::client::TlsStream<S>);

impl<S: Carrier> TlsStream for TestStream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        use sha2::Digest;
        let shown = self.0.get_ref().1.peer_certificates().unwrap_or_default();
        // The authority signs with ECDSA and SHA-256.
        let hash = |own: &CertificateDer<'_>| sha2::Sha256::digest(own).to_vec();
        shown.first().map_or_else(ChannelBinding::none, |own| ChannelBinding::tls_server_end_point(hash(own)))
    }
}

impl<S: Carrier> AsyncRead for TestStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: Carrier> AsyncWrite for TestStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
