//! How a connection begins: encryption is agreed on, then comes the first packet proper.

use bytes::Buf;

use crate::pipe::Pipe;
use crate::shared::Shared;
use crate::sqlstate::Trouble;
use crate::wire::startup::{self, Startup};

use super::login::Refusal;

/// The first byte of a TLS handshake; a packet that begins with it would be far too long.
const HANDSHAKE: u8 = 0x16;

/// The first packet proper.
pub(super) struct Opening {
    pub(super) startup: Startup,
    /// The hash of the certificate that was shown, if the connection is encrypted and there is such a hash.
    pub(super) end_point: Option<Vec<u8>>,
}

/// Answers requests for encryption until the real first packet comes.
pub(super) async fn first_packet(shared: &Shared, pipe: &mut Pipe) -> Result<Opening, Refusal> {
    let mut end_point = None;
    if !pipe.is_local() && pipe.peek().await? == HANDSHAKE {
        end_point = secure(shared, pipe, true).await?;
    }
    loop {
        let parsed = startup::parse(&pipe.input).map_err(Trouble::Startup)?;
        match parsed {
            None => pipe.fill().await?,
            Some((request @ (Startup::Ssl | Startup::Gss), len)) => {
                pipe.input.advance(len);
                let offered = shared.tls.is_some() && pipe.tls().is_none() && !pipe.is_local();
                let accepted = request == Startup::Ssl && offered;
                if !pipe.input.is_empty() {
                    return Err(Trouble::ClearBehindRequest.into());
                }
                pipe.output.extend_from_slice(if accepted { b"S" } else { b"N" });
                pipe.flush().await?;
                if accepted {
                    end_point = secure(shared, pipe, false).await?;
                }
            }
            Some((Startup::Start(start), len)) => {
                pipe.input.advance(len);
                let required = shared.config().tls.as_ref().is_some_and(|tls| tls.required);
                if required && pipe.tls().is_none() && !pipe.is_local() {
                    return Err(Trouble::TlsRequired.into());
                }
                return Ok(Opening { startup: Startup::Start(start), end_point });
            }
            // The key in it is all the proof there is; older clients send it in clear whatever they agreed on.
            Some((cancel @ Startup::Cancel(_), len)) => {
                pipe.input.advance(len);
                return Ok(Opening { startup: cancel, end_point });
            }
        }
    }
}

/// The handshake; what SCRAM binds to from now on.
async fn secure(shared: &Shared, pipe: &mut Pipe, direct: bool) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(tls) = &shared.tls else {
        return Err(Trouble::Protocol("TLS is not offered here".to_owned()).into());
    };
    let acceptor = tls.current();
    pipe.secure(async |stream| acceptor.accept(stream, direct).await).await?;
    // Not of the certificate that is current by the time of the login.
    Ok(acceptor.end_point.clone())
}
