//! SCRAM-SHA-256 (RFC 5802, RFC 7677) for a client that logs in again and again.
//!
//! The key that takes thousands of rounds to derive from the password is kept, as the RFC allows. So a burst
//! of logins costs whoever is logged in to, not whoever measures it.

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

type Key = [u8; 32];

/// A password, and the key that was last derived from it.
#[derive(Debug)]
pub(super) struct Password {
    text: &'static str,
    derived: Mutex<Option<Derived>>,
}

#[derive(Debug, Clone)]
struct Derived {
    salt: String,
    iterations: u32,
    key: Key,
}

/// An exchange of SCRAM that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScramError {
    /// What the server said cannot be read.
    #[error("the server breaks the protocol of SCRAM")]
    Malformed,
    /// It does not know the password.
    #[error("the server's own proof is wrong")]
    WrongServer,
}

impl Password {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, derived: Mutex::new(None) }
    }

    /// The key for this salt, derived if it is another than the last time.
    fn key(&self, salt: &str, iterations: u32) -> Result<Key, ScramError> {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = derived.as_ref().filter(|own| own.salt == salt && own.iterations == iterations) {
            return Ok(known.key);
        }
        let bytes = BASE64.decode(salt).map_err(|_| ScramError::Malformed)?;
        let key = stretched(self.text.as_bytes(), &bytes, iterations)?;
        *derived = Some(Derived { salt: salt.to_owned(), iterations, key });
        Ok(key)
    }
}

/// The client's side of one login.
#[derive(Debug)]
pub(super) struct Login {
    bare: String,
    expected: Key,
}

impl Login {
    /// `nonce` must be new for each login. PostgreSQL takes the user's name from the startup message.
    pub(super) fn new(nonce: u128) -> Self {
        Self { bare: format!("n=,r={nonce:032x}"), expected: Key::default() }
    }

    /// The client's first message.
    pub(super) fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// Its second, which proves that it knows the password.
    pub(super) fn answer(&mut self, server_first: &str, password: &Password) -> Result<String, ScramError> {
        let nonce = attribute(server_first, "r=")?;
        let own = self.bare.split_once("r=").map_or("", |(_, nonce)| nonce);
        if !nonce.starts_with(own) {
            return Err(ScramError::Malformed);
        }
        let iterations = attribute(server_first, "i=")?.parse().map_err(|_| ScramError::Malformed)?;
        let key = password.key(attribute(server_first, "s=")?, iterations)?;
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.bare);
        let client_key = mac(&key, b"Client Key")?;
        let signature = mac(&Sha256::digest(client_key), signed.as_bytes())?;
        self.expected = mac(&mac(&key, b"Server Key")?, signed.as_bytes())?;
        let mut proof = client_key;
        xor_into(&mut proof, &signature);
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
    }

    /// Whether the server knows the password, too.
    pub(super) fn verify(&self, server_final: &str) -> Result<(), ScramError> {
        let told = attribute(server_final, "v=")?;
        if told == BASE64.encode(self.expected) { Ok(()) } else { Err(ScramError::WrongServer) }
    }
}

fn attribute<'a>(text: &'a str, name: &str) -> Result<&'a str, ScramError> {
    text.split(',').find_map(|part| part.strip_prefix(name)).ok_or(ScramError::Malformed)
}

fn keyed(key: &[u8]) -> Result<Hmac<Sha256>, ScramError> {
    // HMAC takes keys of any length.
    Hmac::new_from_slice(key).map_err(|_| ScramError::Malformed)
}

fn mac(key: &[u8], data: &[u8]) -> Result<Key, ScramError> {
    Ok(keyed(key)?.chain_update(data).finalize().into_bytes().into())
}

fn xor_into(key: &mut Key, other: &Key) {
    key.iter_mut().zip(other).for_each(|(own, other)| *own ^= other);
}

/// PBKDF2 for one block.
fn stretched(password: &[u8], salt: &[u8], iterations: u32) -> Result<Key, ScramError> {
    let keyed = keyed(password)?;
    let first = keyed.clone().chain_update(salt).chain_update(1u32.to_be_bytes());
    let mut last: Key = first.finalize().into_bytes().into();
    let mut key = last;
    for _ in 1..iterations {
        last = keyed.clone().chain_update(last).finalize().into_bytes().into();
        xor_into(&mut key, &last);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn login() -> Login {
        Login { bare: "n=user,r=rOprNGfwEbeRWgbNEkqO".to_owned(), expected: Key::default() }
    }

    #[test]
    fn the_vector_of_rfc_7677_holds() {
        let (mut login, password) = (login(), Password::new("pencil"));
        for _ in ["derived", "kept"] {
            let answer = login.answer(SERVER_FIRST, &password).unwrap();
            assert!(answer.ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="), "{answer}");
        }
        assert_eq!(login.verify("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        assert_eq!(login.verify("v=AAAA"), Err(ScramError::WrongServer));
    }

    #[test]
    fn another_salt_gets_another_key() {
        let password = Password::new("pencil");
        let first = password.key("W22ZaJ0SNY7soEsUEjb6gQ==", 2).unwrap();
        assert_ne!(password.key("AAAAAAAAAAAAAAAAAAAAAA==", 2).unwrap(), first);
        assert_eq!(password.key("W22ZaJ0SNY7soEsUEjb6gQ==", 2).unwrap(), first);
    }

    #[test]
    fn an_answer_to_somebody_else_is_refused() {
        let other = SERVER_FIRST.replace("rOpr", "rXpr");
        assert_eq!(login().answer(&other, &Password::new("pencil")), Err(ScramError::Malformed));
    }
}
