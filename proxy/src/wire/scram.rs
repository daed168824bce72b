//! SCRAM-SHA-256 (RFC 5802, RFC 7677) on both sides: towards clients from a stored verifier, towards
//! servers from the keys that a client's own proof gave away.
//!
//! Never sees a password. Nonces come from the caller.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// The mechanism that does without TLS.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// The same, bound to the TLS connection that it runs on.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// What it is bound by: a hash of the server's certificate.
const BOUND: &str = "p=tls-server-end-point";

const KEY_LEN: usize = 32;
/// Of PostgreSQL.
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// A key or a signature.
pub type Key = [u8; KEY_LEN];

/// What `pg_authid.rolpassword` holds for a role with a SCRAM password.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// Rounds of hashing.
    pub iterations: u32,
    /// Base64, as it goes over the wire.
    pub salt: String,
    stored_key: Key,
    server_key: Key,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(..)")
    }
}

/// What logs in to any server that holds the same verifier.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    client_key: Key,
    verifier: Verifier,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message that breaks the protocol.
    #[error("malformed SCRAM message")]
    Malformed,
    /// The client insists on channel binding, or on another kind of it.
    #[error("the client requires SCRAM channel binding of a kind that is not offered")]
    ChannelBinding,
    /// Somebody hid from the client what the server offered.
    #[error("SCRAM channel binding negotiation error: the client does not know that it was offered")]
    Downgrade,
    /// The two ends see different certificates: somebody is in between.
    #[error("SCRAM channel binding check failed")]
    WrongBinding,
    /// The proof does not fit the verifier.
    #[error("the password does not match")]
    WrongProof,
    /// The server's salt or iteration count is not that of the known verifier.
    #[error("the server holds another password for this role than the one the client logged in with")]
    OtherVerifier,
    /// The server could not prove that it knows the role.
    #[error("the server's signature is wrong")]
    WrongServer,
}

fn mac(key: &[u8], data: &[&[u8]]) -> Key {
    // HMAC takes keys of any length, so that this cannot fail; an all-zero key would fit nothing.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; KEY_LEN] };
    data.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn xor(a: Key, b: Key) -> Key {
    std::array::from_fn(|i| a.get(i).copied().unwrap_or(0) ^ b.get(i).copied().unwrap_or(0))
}

/// Compares in a time that does not depend on where the difference is.
fn same(a: &Key, b: &Key) -> bool {
    a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

fn key_from_base64(text: &str) -> Option<Key> {
    BASE64.decode(text).ok()?.try_into().ok()
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; `None` for anything else (an
    /// MD5 hash, for one).
    pub fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        BASE64.decode(salt).ok()?;
        Some(Self {
            iterations: iterations.parse().ok().filter(|count| *count > 0)?,
            salt: salt.to_owned(),
            stored_key: key_from_base64(stored)?,
            server_key: key_from_base64(server)?,
        })
    }

    /// A secret for [`Self::fake`] that everybody who knows this verifier finds, and nobody else.
    pub fn made_up_secret(&self) -> Key {
        mac(&self.stored_key, &[b"verifiers of roles that do not exist"])
    }

    /// A verifier that no proof fits, for a role that does not exist: always the same salt for the same
    /// name, so that strangers cannot tell which roles exist.
    pub fn fake(user: &str, secret: &Key, iterations: u32) -> Self {
        let salt = mac(secret, &[b"salt", user.as_bytes()]);
        Self {
            iterations,
            salt: BASE64.encode(salt.get(..16).unwrap_or(&salt)),
            stored_key: mac(secret, &[b"stored", user.as_bytes()]),
            server_key: mac(secret, &[b"server", user.as_bytes()]),
        }
    }
}

/// Splits `x=value,rest`.
fn attribute<'a>(text: &'a str, name: &str) -> Result<&'a str, ScramError> {
    let found = text.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    found.ok_or(ScramError::Malformed)
}

/// The server's side, between its two messages.
#[derive(Debug)]
pub struct ServerExchange {
    verifier: Verifier,
    /// What the client has to repeat.
    binding: Vec<u8>,
    bound: bool,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

impl ServerExchange {
    /// Answers the client's first message. `end_point`: the hash of the certificate on this connection, if
    /// [`MECHANISM_PLUS`] was offered; `plus`: the client chose that.
    pub fn begin(
        verifier: Verifier,
        client_first: &[u8],
        server_nonce: &str,
        (end_point, plus): (Option<&[u8]>, bool),
    ) -> Result<(Self, String), ScramError> {
        let text = std::str::from_utf8(client_first).map_err(|_| ScramError::Malformed)?;
        let mut parts = text.splitn(3, ',');
        let (binding, identity) = (parts.next(), parts.next());
        let bare = parts.next().ok_or(ScramError::Malformed)?;
        let bound_to = match (binding, plus) {
            (Some("n"), false) => None,
            (Some("y"), false) if end_point.is_some() => return Err(ScramError::Downgrade),
            (Some("y"), false) => None,
            (Some(BOUND), true) => Some(end_point.ok_or(ScramError::ChannelBinding)?),
            (Some(other), _) if other.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(ScramError::Malformed),
        };
        let header = format!("{},{},", binding.unwrap_or_default(), identity.unwrap_or_default());
        let bound = bound_to.is_some();
        let binding = [header.as_bytes(), bound_to.unwrap_or_default()].concat();
        let client_nonce = attribute(bare, "r")?;
        if client_nonce.is_empty() {
            return Err(ScramError::Malformed);
        }
        let nonce = format!("{client_nonce}{server_nonce}");
        let server_first = format!("r={nonce},s={},i={}", verifier.salt, verifier.iterations);
        let answer = server_first.clone();
        let client_first_bare = bare.to_owned();
        Ok((Self { verifier, binding, bound, client_first_bare, server_first, nonce }, answer))
    }

    /// Checks the client's proof. On success the keys it gave away, and the last message.
    pub fn finish(self, client_final: &[u8]) -> Result<(Keys, String), ScramError> {
        let text = std::str::from_utf8(client_final).map_err(|_| ScramError::Malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        if attribute(without_proof, "c")? != BASE64.encode(&self.binding) {
            return Err(if self.bound { ScramError::WrongBinding } else { ScramError::Malformed });
        }
        if attribute(without_proof, "r")? != self.nonce {
            return Err(ScramError::Malformed);
        }
        let proof = key_from_base64(proof).ok_or(ScramError::Malformed)?;
        let auth = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let signature = mac(&self.verifier.stored_key, &[auth.as_bytes()]);
        let client_key = xor(proof, signature);
        if !same(&Sha256::digest(client_key).into(), &self.verifier.stored_key) {
            return Err(ScramError::WrongProof);
        }
        let signature = mac(&self.verifier.server_key, &[auth.as_bytes()]);
        Ok((Keys { client_key, verifier: self.verifier }, format!("v={}", BASE64.encode(signature))))
    }
}

/// What a client can do about channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: there is no TLS, or the certificate has no such hash.
    Unable,
    /// Bind to a certificate, which the server did not offer.
    NotOffered,
    /// Bind to the certificate with this hash.
    EndPoint(Vec<u8>),
}

impl Binding {
    /// What to do with a server's certificate and the mechanisms that it offers.
    pub fn choose(end_point: Option<Vec<u8>>, offered: &[String]) -> Self {
        match end_point {
            None => Self::Unable,
            Some(hash) if offered.iter().any(|name| name == MECHANISM_PLUS) => Self::EndPoint(hash),
            Some(_) => Self::NotOffered,
        }
    }

    /// The mechanism that goes with it.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Unable | Self::NotOffered => MECHANISM,
            Self::EndPoint(_) => MECHANISM_PLUS,
        }
    }

    fn header(&self) -> String {
        let flag = match self {
            Self::Unable => "n",
            Self::NotOffered => "y",
            Self::EndPoint(_) => BOUND,
        };
        format!("{flag},,")
    }

    /// What the second message repeats.
    fn input(&self) -> Vec<u8> {
        let hash: &[u8] = if let Self::EndPoint(hash) = self { hash } else { &[] };
        [self.header().as_bytes(), hash].concat()
    }
}

/// The client's side, after its first message.
#[derive(Debug)]
pub struct ClientExchange {
    binding: Binding,
    nonce: String,
    bare: String,
}

/// The client's side, after its second message.
#[derive(Debug)]
pub struct AwaitingServer {
    signature: Key,
}

impl ClientExchange {
    /// The first message.
    pub fn begin(nonce: &str, binding: Binding) -> (Self, String) {
        // PostgreSQL takes the name from the startup packet and ignores this one.
        let bare = format!("n=,r={nonce}");
        let first = format!("{}{bare}", binding.header());
        (Self { binding, nonce: nonce.to_owned(), bare }, first)
    }

    /// The second message: the proof.
    pub fn answer(self, server_first: &str, keys: &Keys) -> Result<(AwaitingServer, String), ScramError> {
        let nonce = attribute(server_first, "r")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Malformed);
        }
        let iterations: u32 = attribute(server_first, "i")?.parse().map_err(|_| ScramError::Malformed)?;
        let verifier = &keys.verifier;
        if attribute(server_first, "s")? != verifier.salt || iterations != verifier.iterations {
            return Err(ScramError::OtherVerifier);
        }
        let without_proof = format!("c={},r={nonce}", BASE64.encode(self.binding.input()));
        let auth = format!("{},{server_first},{without_proof}", self.bare);
        let proof = xor(keys.client_key, mac(&verifier.stored_key, &[auth.as_bytes()]));
        let signature = mac(&verifier.server_key, &[auth.as_bytes()]);
        Ok((AwaitingServer { signature }, format!("{without_proof},p={}", BASE64.encode(proof))))
    }
}

impl AwaitingServer {
    /// Checks that the server knew the verifier too.
    pub fn verify(self, server_final: &str) -> Result<(), ScramError> {
        let signature = key_from_base64(attribute(server_final, "v")?).ok_or(ScramError::Malformed)?;
        if same(&signature, &self.signature) { Ok(()) } else { Err(ScramError::WrongServer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salted(password: &[u8], salt: &[u8], iterations: u32) -> Key {
        let mut block = mac(password, &[salt, &1u32.to_be_bytes()]);
        let mut sum = block;
        for _ in 1..iterations {
            block = mac(password, &[&block]);
            sum = xor(sum, block);
        }
        sum
    }

    fn keys(password: &str, salt: &str, iterations: u32) -> Keys {
        let salted = salted(password.as_bytes(), &BASE64.decode(salt).unwrap(), iterations);
        let client_key = mac(&salted, &[b"Client Key"]);
        let verifier = Verifier {
            iterations,
            salt: salt.to_owned(),
            stored_key: Sha256::digest(client_key).into(),
            server_key: mac(&salted, &[b"Server Key"]),
        };
        Keys { client_key, verifier }
    }

    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";

    #[test]
    fn the_vector_of_rfc_7677_holds() {
        let keys = keys("pencil", SALT, 4096);
        let nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        let (server, answer) =
            ServerExchange::begin(keys.verifier.clone(), first, nonce, (None, false)).unwrap();
        assert_eq!(answer, format!("r=rOprNGfwEbeRWgbNEkqO{nonce},s={SALT},i=4096"));
        let last =
            format!("c=biws,r=rOprNGfwEbeRWgbNEkqO{nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        let (recovered, answer) = server.finish(last.as_bytes()).unwrap();
        assert_eq!(answer, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(recovered.client_key, keys.client_key);
    }

    fn exchange(client: &Keys, server: Verifier) -> Result<Keys, ScramError> {
        bound_exchange(client, server, Binding::Unable, None)
    }

    /// The server offers binding when it has an `end_point`.
    fn bound_exchange(
        client: &Keys,
        server: Verifier,
        binding: Binding,
        end_point: Option<&[u8]>,
    ) -> Result<Keys, ScramError> {
        let offer = (end_point, binding.mechanism() == MECHANISM_PLUS);
        let (ours, first) = ClientExchange::begin("client-nonce", binding);
        let (theirs, answer) = ServerExchange::begin(server, first.as_bytes(), "server-nonce", offer)?;
        let (ours, proof) = ours.answer(&answer, client)?;
        let (recovered, last) = theirs.finish(proof.as_bytes())?;
        ours.verify(&last)?;
        Ok(recovered)
    }

    #[test]
    fn recovered_keys_log_in_elsewhere() {
        let keys = keys("secret", SALT, 64);
        let recovered = exchange(&keys, keys.verifier.clone()).unwrap();
        assert!(exchange(&recovered, keys.verifier).is_ok());
    }

    #[test]
    fn whoever_is_in_between_is_noticed() {
        let keys = keys("secret", SALT, 64);
        let offered = [MECHANISM_PLUS.to_owned(), MECHANISM.to_owned()];
        let run =
            |binding, end_point| bound_exchange(&keys, keys.verifier.clone(), binding, end_point).map(drop);
        let ours = Binding::choose(Some(b"hash".to_vec()), &offered);
        assert_eq!(run(ours.clone(), Some(b"hash")), Ok(()));
        assert_eq!(run(ours.clone(), Some(b"other")), Err(ScramError::WrongBinding), "another certificate");
        assert_eq!(run(ours, None), Err(ScramError::ChannelBinding));
        let deceived = Binding::choose(Some(b"hash".to_vec()), &offered[1..]);
        assert_eq!(run(deceived.clone(), Some(b"hash")), Err(ScramError::Downgrade), "the offer was hidden");
        assert_eq!(run(deceived, None), Ok(()));
        let unable = Binding::choose(None, &offered);
        assert_eq!(run(unable.clone(), Some(b"hash")), Ok(()), "a client that cannot do it may log in");
        assert_eq!(run(unable, None), Ok(()));
    }

    #[test]
    fn mechanism_and_binding_must_agree() {
        let begin = |first: &str, plus| {
            let offer = (Some(b"hash".as_slice()), plus);
            ServerExchange::begin(Verifier::fake("x", &[0; 32], 1), first.as_bytes(), "s", offer).map(drop)
        };
        assert_eq!(begin("n,,n=,r=a", true), Err(ScramError::Malformed));
        assert_eq!(begin("y,,n=,r=a", true), Err(ScramError::Malformed));
        assert_eq!(begin("p=tls-server-end-point,,n=,r=a", false), Err(ScramError::ChannelBinding));
        assert_eq!(begin("p=tls-unique,,n=,r=a", true), Err(ScramError::ChannelBinding));
        assert_eq!(begin("p=tls-server-end-point,,n=,r=a", true), Ok(()));
    }

    #[test]
    fn wrong_passwords_and_changed_verifiers_are_told_apart() {
        let (good, wrong) = (keys("secret", SALT, 64), keys("guess", SALT, 64));
        assert_eq!(exchange(&wrong, good.verifier.clone()).unwrap_err(), ScramError::WrongProof);
        let changed = keys("secret", SALT, 65);
        assert_eq!(exchange(&good, changed.verifier).unwrap_err(), ScramError::OtherVerifier);
        let (ours, _) = ClientExchange::begin("n", Binding::Unable);
        let (ours, _) = ours.answer(&format!("r=nx,s={SALT},i=64"), &good).unwrap();
        let forged = format!("v={}", BASE64.encode([7; 32]));
        assert_eq!(ours.verify(&forged).unwrap_err(), ScramError::WrongServer);
    }

    #[test]
    fn verifiers_are_read_as_postgresql_writes_them() {
        let text = format!("SCRAM-SHA-256$4096:{SALT}${}:{}", BASE64.encode([1; 32]), BASE64.encode([2; 32]));
        let verifier = Verifier::parse(&text).unwrap();
        assert_eq!((verifier.iterations, verifier.salt.as_str()), (4096, SALT));
        assert!(Verifier::parse("md5d41d8cd98f00b204e9800998ecf8427e").is_none());
        assert!(Verifier::parse("SCRAM-SHA-256$0:AA==$x:y").is_none());
    }

    #[test]
    fn a_role_that_does_not_exist_looks_like_one_that_does() {
        let fake = Verifier::fake("nobody", &[3; 32], 4096);
        assert_eq!(fake, Verifier::fake("nobody", &[3; 32], 4096));
        assert_ne!(fake.salt, Verifier::fake("somebody", &[3; 32], 4096).salt);
        assert_eq!(BASE64.decode(&fake.salt).unwrap().len(), 16);
        assert_eq!(
            exchange(&Keys { client_key: [0; 32], verifier: fake.clone() }, fake).unwrap_err(),
            ScramError::WrongProof
        );
    }

    #[test]
    fn garbage_is_refused() {
        let verifier = Verifier::fake("x", &[0; 32], 4096);
        for bad in ["", "n", "n,,", "n,,n=x", "n,,n=x,r=", "q,,n=,r=a"] {
            let error =
                ServerExchange::begin(verifier.clone(), bad.as_bytes(), "s", (None, false)).unwrap_err();
            assert_eq!(error, ScramError::Malformed, "{bad}");
        }
        let bound = ServerExchange::begin(verifier, b"p=tls-server-end-point,,n=,r=a", "s", (None, false))
            .unwrap_err();
        assert_eq!(bound, ScramError::ChannelBinding);
    }
}
