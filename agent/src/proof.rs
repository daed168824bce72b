//! Shows that a request comes from an agent of this cluster. WAL is the data of all databases: whoever asks for it has to
//! know the password with which the agents log in to PostgreSQL, since that would give it to them, too.

use hmac::{Hmac, Mac};
use pgherd_common::config::Secret;
use sha2::Sha256;

/// The header that carries it.
pub(crate) const HEADER: &str = "x-pgherd-proof";

/// The proof for a request of this path and query.
pub(crate) fn prove(secret: &Secret, request: &str) -> String {
    let tag = mac(secret, request).finalize().into_bytes();
    tag.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `proof` is one for this request. Takes as long for a wrong one as for the right one.
pub(crate) fn holds(secret: &Secret, request: &str, proof: &str) -> bool {
    let byte = |at: usize| proof.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
    let tag: Option<Vec<u8>> = (0..proof.len()).step_by(2).map(byte).collect();
    tag.is_some_and(|tag| mac(secret, request).verify_slice(&tag).is_ok())
}

fn mac(secret: &Secret, request: &str) -> Hmac<Sha256> {
    // Made for this: a key of its own, so that nothing else that uses the password can be taken for a proof.
    let Ok(key) = Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()) else {
        unreachable!("HMAC takes keys of any length")
    };
    let key = key.chain_update(b"pgherd agent").finalize().into_bytes();
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(&key) else { unreachable!("HMAC takes keys of any length") };
    mac.chain_update(request.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_request_and_password_only() {
        let (secret, request) =
            (Secret("agents-secret".to_owned()), "/v1/wal?timeline=1&from=0/300&length=10");
        let proof = prove(&secret, request);
        assert_eq!(proof.len(), 64);
        assert!(holds(&secret, request, &proof));
        assert!(!holds(&secret, "/v1/wal?timeline=1&from=0/300&length=11", &proof));
        assert!(!holds(&Secret("another".to_owned()), request, &proof));
        for wrong in [
            "",
            "0",
            "zz",
            "é",
            &proof[..62],
            &format!("{proof}00"),
            &proof.replace('a', "b").replace('1', "2"),
        ] {
            assert!(!holds(&secret, request, wrong), "{wrong}");
        }
    }
}
