//! A socket to a server, encrypted as configured.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use pgherd_common::HostPort;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_postgres::{Client, Config, NoTls};
use tokio_rustls::client::TlsStream;

use crate::config::{ServerTls, ServerTlsMode};
use crate::pipe::Pipe;
use crate::tls::{Kept, end_point};
use crate::wire::startup;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot connect")]
    Io(#[from] io::Error),
    #[error("the server does not offer TLS, which server_tls.mode demands")]
    NoTls,
    #[error("the server answered the request for TLS with something else: {0:?}")]
    Answer(char),
    #[error("no encrypted connection to the server can be made")]
    Handshake(#[source] io::Error),
}

impl DialError {
    /// Whether the same attempt may well succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Io(_) => true,
            Self::NoTls | Self::Answer(_) => false,
            // The server does not show what it has to.
            Self::Handshake(error) => error.kind() != io::ErrorKind::InvalidData,
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Line {
    Clear(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Line {
    /// The same with buffers.
    pub(crate) fn into_pipe(self) -> io::Result<Pipe> {
        match self {
            Self::Clear(stream) => Pipe::new(stream),
            Self::Encrypted(stream) => Pipe::encrypted((*stream).into()),
        }
    }

    /// A session of the driver's, for questions of the proxy's own, and the task that carries it.
    pub(super) async fn log_in(
        self,
        config: &mut Config,
    ) -> Result<(Client, Carrier), tokio_postgres::Error> {
        match self {
            Self::Clear(stream) => {
                let (client, connection) =
                    config.ssl_mode(SslMode::Disable).connect_raw(stream, NoTls).await?;
                Ok((client, tokio::spawn(connection)))
            }
            // Nothing more is agreed on before the login.
            Self::Encrypted(stream) => {
                config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
                let (client, connection) = config.connect_raw(*stream, Shaken).await?;
                Ok((client, tokio::spawn(connection)))
            }
        }
    }
}

/// See [`Line::log_in`].
pub(super) type Carrier = JoinHandle<Result<(), tokio_postgres::Error>>;

/// How long a server may take to say what it has to before its connection is closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Ends a session of the driver's whose client is dropped. What the server still answers is heard to its end: a
/// broken pipe would be fatal to it, and logged.
pub(super) fn hear_out(carrier: Carrier) {
    tokio::spawn(async move {
        let cut = carrier.abort_handle();
        if timeout(LAST_WORDS, carrier).await.is_err() {
            cut.abort();
        }
    });
}

/// Connects to the server at `address`.
pub(crate) async fn dial(address: &HostPort, tls: &Kept<ServerTls>) -> Result<Line, DialError> {
    let tls = tls.current();
    if tls.mode == ServerTlsMode::Disable {
        return dial_in_clear(address).await;
    }
    let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    let mut request = BytesMut::new();
    startup::put_ssl_request(&mut request);
    stream.write_all_buf(&mut request).await?;
    // Not a byte more is read: what follows the answer in clear breaks the handshake.
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if tls.mode == ServerTlsMode::Prefer => return Ok(Line::Clear(stream)),
        b'N' => return Err(DialError::NoTls),
        other => return Err(DialError::Answer(other.into())),
    }
    match tls.connect(address, stream).await {
        Ok(stream) => Ok(Line::Encrypted(Box::new(stream))),
        Err(error) if tls.mode == ServerTlsMode::Prefer => {
            tracing::debug!(server = %address, %error, "no encrypted connection; trying in clear");
            dial_in_clear(address).await
        }
        Err(error) => Err(DialError::Handshake(error)),
    }
}

/// The same without encryption, whatever is configured.
pub(crate) async fn dial_in_clear(address: &HostPort) -> Result<Line, DialError> {
    Ok(Line::Clear(TcpStream::connect((address.host.as_str(), address.port)).await?))
}

/// For the driver's own connections: the handshake is already over.
struct Shaken;

/// An encrypted connection that tells the driver what SCRAM binds to.
struct Bound(TlsStream<TcpStream>);

impl TlsConnect<TlsStream<TcpStream>> for Shaken {
    type Stream = Bound;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Bound>>;

    fn connect(self, stream: TlsStream<TcpStream>) -> Self::Future {
        std::future::ready(Ok(Bound(stream)))
    }
}

impl tokio_postgres::tls::TlsStream for Bound {
    fn channel_binding(&self) -> ChannelBinding {
        let shown = self.0.get_ref().1.peer_certificates().and_then(<[_]>::first);
        shown.and_then(end_point).map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for Bound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bound {
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
