//! What a cluster keeps of passwords, and what opens its servers without them: for SCRAM see [`super::scram`],
//! for the older MD5 the hash itself.

use md5::{Digest, Md5};

use super::scram::{Keys, Verifier};

/// What `pg_authid.rolpassword` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// For SCRAM.
    Scram(Verifier),
    /// An MD5 hash, from before that.
    Md5(Md5Hash),
}

impl Stored {
    /// Reads it; `None` for anything that no client can prove to know.
    pub fn parse(text: &str) -> Option<Self> {
        let scram = Verifier::parse(text).map(Self::Scram);
        scram.or_else(|| Md5Hash::parse(text).map(Self::Md5))
    }
}

/// What a client's proof gave away, or confirmed: it opens every server that stores the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The keys of a SCRAM exchange.
    Scram(Keys),
    /// The stored hash: knowing it is all that MD5 asks for.
    Md5(Md5Hash),
}

/// The hash of password and name, in hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Hash(String);

impl std::fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Md5Hash(..)")
    }
}

impl Md5Hash {
    /// Reads `md5` and 32 digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("md5")?;
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (digits.len() == 32 && digits.bytes().all(digit)).then(|| Self(digits.to_owned()))
    }

    /// What proves to know it.
    pub fn answer(&self, salt: [u8; 4]) -> String {
        let hash = Md5::new().chain_update(&self.0).chain_update(salt).finalize();
        let digits = hash.iter().map(|byte| format!("{byte:02x}"));
        format!("md5{}", digits.collect::<String>())
    }

    /// Whether that is what a client answered, in a time that does not depend on where they differ.
    pub fn is_proven_by(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        let expected = self.answer(salt);
        let differences = expected.bytes().zip(answer).fold(0, |all, (ours, theirs)| all | (ours ^ theirs));
        differences == 0 && answer.len() == expected.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of user `ann` with password `secret`, by PostgreSQL 15.
    const ANN: &str = "md59d792a3a8853c2411afb9163d088c036";

    #[test]
    fn hashes_are_read_as_postgresql_writes_them() {
        assert!(matches!(Stored::parse(ANN), Some(Stored::Md5(_))));
        for bad in ["", "md5", "md5xyz", "MD5d41d8cd98f00b204e9800998ecf8427e", &ANN.to_uppercase()] {
            assert!(Stored::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn only_the_right_answer_to_the_right_salt_proves_anything() {
        let hash = Md5Hash::parse(ANN).unwrap();
        let answer = hash.answer([1, 2, 3, 4]);
        assert_eq!(answer, "md59009ce60b9ca97f1e752376843d1309e");
        assert!(hash.is_proven_by([1, 2, 3, 4], answer.as_bytes()));
        assert!(!hash.is_proven_by([1, 2, 3, 5], answer.as_bytes()));
        assert!(!hash.is_proven_by([1, 2, 3, 4], b""));
        assert!(!hash.is_proven_by([1, 2, 3, 4], format!("{answer}0").as_bytes()));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let stored = Stored::parse(ANN).unwrap();
        assert_eq!(format!("{stored:?}"), "Md5(Md5Hash(..))");
        let Stored::Md5(hash) = stored else { panic!("not MD5") };
        assert_eq!(format!("{:?}", Credentials::Md5(hash)), "Md5(Md5Hash(..))");
        assert_eq!(format!("{:?}", Stored::Scram(Verifier::fake("x", &[0; 32], 1))), "Scram(Verifier(..))");
    }
}
