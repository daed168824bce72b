//! How a client proves who it is.

use bytes::Buf;

use crate::config::AuthMethod;
use crate::pipe::Pipe;
use crate::shared::Shared;
use crate::sqlstate::Trouble;
use crate::tls::Peer;
use crate::upstream::nonce;
use crate::wire::backend;
use crate::wire::frame;
use crate::wire::frontend;
use crate::wire::password::{Credentials, Md5Hash, Stored};
use crate::wire::scram::{self, Keys, ScramError, ServerExchange, Verifier};
use crate::wire::startup::STARTUP_MAX;

use super::login::Refusal;

/// Who wants to be let in, and how it is connected.
pub(super) struct Claim<'a> {
    pub(super) user: &'a str,
    /// What SCRAM can bind to on this connection.
    pub(super) end_point: Option<&'a [u8]>,
}

/// By the name in a certificate that was verified in the handshake.
pub(super) fn by_certificate(pipe: &Pipe, user: &str) -> Result<(), Trouble> {
    let peer = Peer::of(pipe.tls().and_then(|tls| tls.get_ref().1.peer_certificates()));
    if !peer.certified {
        return Err(Trouble::Unauthorized("connection requires a valid client certificate".to_owned()));
    }
    if peer.common_name.as_deref() != Some(user) {
        tracing::info!(user, named = ?peer.common_name, "a certificate names somebody else");
        let what = format!("certificate authentication failed for user \"{user}\"");
        return Err(Trouble::Unauthorized(what));
    }
    Ok(())
}

/// By a password. Roles that do not exist, or have no password of the kind that `method` wants, go the
/// same way as others and fail at its end.
pub(super) async fn by_password(
    shared: &Shared,
    pipe: &mut Pipe,
    claim: &Claim<'_>,
    method: AuthMethod,
    stored: Stored,
) -> Result<Credentials, Refusal> {
    match stored {
        Stored::Scram(verifier) => Ok(Credentials::Scram(by_scram(shared, pipe, claim, verifier).await?)),
        Stored::Md5(hash) if method == AuthMethod::Md5 => {
            by_md5(shared, pipe, claim.user, &hash).await?;
            Ok(Credentials::Md5(hash))
        }
        Stored::Md5(_) => {
            let fake = shared.verifiers.fake(claim.user);
            Ok(Credentials::Scram(by_scram(shared, pipe, claim, fake).await?))
        }
    }
}

fn wrong_password(shared: &Shared, user: &str) -> Trouble {
    shared.verifiers.doubt(user);
    Trouble::WrongPassword { user: user.to_owned() }
}

async fn by_md5(shared: &Shared, pipe: &mut Pipe, user: &str, hash: &Md5Hash) -> Result<(), Refusal> {
    let salt = rand::random();
    backend::put_auth_md5(&mut pipe.output, salt);
    let answer = answer(pipe).await?;
    let proof = answer.strip_suffix(b"\0").unwrap_or(&answer);
    if hash.is_proven_by(salt, proof) { Ok(()) } else { Err(wrong_password(shared, user).into()) }
}

/// The SCRAM exchange; the keys that the client's proof gave away.
async fn by_scram(
    shared: &Shared,
    pipe: &mut Pipe,
    claim: &Claim<'_>,
    verifier: Verifier,
) -> Result<Keys, Refusal> {
    let refuse = |error: ScramError| match error {
        ScramError::WrongProof => wrong_password(shared, claim.user),
        ScramError::Downgrade | ScramError::WrongBinding => Trouble::Unauthorized(error.to_string()),
        other => Trouble::Protocol(other.to_string()),
    };
    let offered: &[&str] = match claim.end_point {
        Some(_) => &[scram::MECHANISM_PLUS, scram::MECHANISM],
        None => &[scram::MECHANISM],
    };
    backend::put_auth_sasl(&mut pipe.output, offered);
    let first = answer(pipe).await?;
    let malformed = |_| Trouble::Protocol("malformed SASL message".to_owned());
    let (mechanism, data) = frontend::sasl_initial(&first).map_err(malformed)?;
    if !offered.contains(&mechanism) {
        let what = "client selected an invalid SASL authentication mechanism";
        return Err(Trouble::Protocol(what.to_owned()).into());
    }
    let binding = (claim.end_point, mechanism == scram::MECHANISM_PLUS);
    let (exchange, answered) = ServerExchange::begin(verifier, data, &nonce(), binding).map_err(refuse)?;
    backend::put_auth_sasl_continue(&mut pipe.output, &answered);
    let proof = answer(pipe).await?;
    let (keys, last) = exchange.finish(&proof).map_err(refuse)?;
    backend::put_auth_sasl_final(&mut pipe.output, &last);
    Ok(keys)
}

/// What the client answers to what it is asked.
async fn answer(pipe: &mut Pipe) -> Result<Vec<u8>, Refusal> {
    pipe.flush().await?;
    loop {
        let bad = |_| Trouble::Protocol("invalid password packet".to_owned());
        let header = frame::header(&pipe.input).map_err(bad)?;
        if header.is_some_and(|header| header.tag != b'p' || header.len > STARTUP_MAX) {
            return Err(Trouble::Protocol("expected a password or SASL response".to_owned()).into());
        }
        if let Some((header, payload)) = frame::message(&pipe.input).map_err(bad)? {
            let payload = payload.to_vec();
            pipe.input.advance(header.len);
            return Ok(payload);
        }
        pipe.fill().await?;
    }
}
