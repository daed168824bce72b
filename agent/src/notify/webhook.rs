//! JSON to an address of the web.

use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use axum::http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use pgherd_common::errors::Chain;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::smtp::first_line;
use super::{Notice, tls};
use crate::config::Webhook;

/// What a server says of a request that it refuses is read so far.
const ANSWER_MAX: usize = 2000;

/// Posts a notice. Only an answer of 2xx will do.
pub(super) async fn post(webhook: &Webhook, notice: &Notice) -> Result<(), String> {
    let timeout = webhook.timeout;
    let sent = tokio::time::timeout(timeout, try_post(webhook, notice)).await;
    sent.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
}

async fn try_post(webhook: &Webhook, notice: &Notice) -> Result<(), String> {
    let uri = &webhook.url.0;
    let host = uri.host().unwrap_or_default();
    let encrypted = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
    let request = request(webhook, notice)?;
    let bare = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((bare, port)).await;
    let stream = stream.map_err(|error| format!("cannot connect to {host}:{port}: {error}"))?;
    if !encrypted {
        return exchange(stream, request).await;
    }
    // The system's certificates are many files.
    let ca_file = webhook.ca_file.clone();
    let config = tokio::task::spawn_blocking(move || tls::client(ca_file.as_deref()));
    let config = config.await.map_err(|error| error.to_string())??;
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| format!("{bare}: {error}"))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    exchange(stream.map_err(|error| format!("no TLS with {host}:{port}: {error}"))?, request).await
}

fn request(webhook: &Webhook, notice: &Notice) -> Result<Request<Full<Bytes>>, String> {
    let uri = &webhook.url.0;
    let json = serde_json::to_vec(notice).map_err(|error| error.to_string())?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(USER_AGENT, concat!("pgherd/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json");
    for (name, value) in &webhook.headers {
        request = request.header(name, &value.0);
    }
    if let Some(file) = &webhook.token_file {
        request = request.header(AUTHORIZATION, format!("Bearer {}", first_line(file)?));
    }
    request.body(Full::new(Bytes::from(json))).map_err(|error| error.to_string())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(), String> {
    let chain = |error: hyper::Error| Chain(&error).to_string();
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(chain)?;
    // Ends with the request.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(chain)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let said =
        said.map(|said| String::from_utf8_lossy(&said.to_bytes()).trim().to_owned()).unwrap_or_default();
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    Err(format!("the server answered {status}{said}"))
}
