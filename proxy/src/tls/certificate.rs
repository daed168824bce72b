//! What a certificate says.

use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::time::ASN1Time;

/// Who is at the other end, as far as certificates tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// A certificate was shown, and it holds.
    pub(crate) certified: bool,
    /// Its common name.
    pub(crate) common_name: Option<String>,
}

impl Peer {
    /// From the certificates it showed, which were verified.
    pub(crate) fn of(shown: Option<&[CertificateDer<'_>]>) -> Self {
        let Some(own) = shown.and_then(<[_]>::first) else { return Self::default() };
        Self { certified: true, common_name: parse(own).and_then(|own| common_name(&own)) }
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    parse_x509_certificate(der).ok().map(|(_, certificate)| certificate)
}

/// The subject's only common name. Several of them, or one with a zero inside, are none: whoever compares
/// names must not be led to read but a part of it.
fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    (names.next().is_none() && !name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
}

/// Whether a certificate without alternative names bears this one.
pub(super) fn is_named(der: &CertificateDer<'_>, name: &str) -> bool {
    let Some(certificate) = parse(der) else { return false };
    let alternatives = certificate.subject_alternative_name();
    matches!(alternatives, Ok(None))
        && common_name(&certificate).is_some_and(|common| common.eq_ignore_ascii_case(name))
}

/// Whether a certificate is valid now and not only before or after.
pub(super) fn is_within_its_time(der: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Some(certificate) = parse(der) else { return false };
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    now.is_some_and(|now| certificate.validity().is_valid_at(now))
}

/// `tls-server-end-point` (RFC 5929): the hash of a certificate by the algorithm of its signature, where
/// MD5 and SHA-1 become SHA-256. `None` for signatures that have no such hash (Ed25519).
pub(crate) fn end_point(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let certificate = parse(der)?;
    let algorithm = &certificate.signature_algorithm;
    let hash = match SignatureAlgorithm::try_from(algorithm).ok()? {
        SignatureAlgorithm::RSASSA_PSS(parameters) => {
            match parameters.hash_algorithm_oid().to_id_string().as_str() {
                "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Hash::Sha256,
                "2.16.840.1.101.3.4.2.2" => Hash::Sha384,
                "2.16.840.1.101.3.4.2.3" => Hash::Sha512,
                "2.16.840.1.101.3.4.2.4" => Hash::Sha224,
                _ => return None,
            }
        }
        _ => signature_hash(&algorithm.algorithm.to_id_string())?,
    };
    Some(match hash {
        Hash::Sha224 => Sha224::digest(der).to_vec(),
        Hash::Sha256 => Sha256::digest(der).to_vec(),
        Hash::Sha384 => Sha384::digest(der).to_vec(),
        Hash::Sha512 => Sha512::digest(der).to_vec(),
    })
}

enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn signature_hash(algorithm: &str) -> Option<Hash> {
    Some(match algorithm {
        // RSA with MD5, with SHA-1, with SHA-256; ECDSA with SHA-1, with SHA-256; DSA likewise.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.2.840.10040.4.3"
        | "2.16.840.1.101.3.4.3.2" => Hash::Sha256,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Hash::Sha224,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Hash::Sha384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Hash::Sha512,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm, names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let key = KeyPair::generate_for(algorithm).unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_hash_follows_the_signature() {
        let p256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, &["x"]);
        assert_eq!(end_point(&p256), Some(Sha256::digest(&p256).to_vec()));
        let p384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384, &["x"]);
        assert_eq!(end_point(&p384), Some(Sha384::digest(&p384).to_vec()));
        assert_eq!(end_point(&certificate(&rcgen::PKCS_ED25519, &["x"])), None);
        assert_eq!(end_point(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    #[test]
    fn a_peer_is_who_its_certificate_says() {
        let peer = |names: &[&str]| Peer::of(Some(&[certificate(&rcgen::PKCS_ECDSA_P256_SHA256, names)]));
        assert_eq!(peer(&["ann"]), Peer { certified: true, common_name: Some("ann".to_owned()) });
        assert_eq!(peer(&["ann\0.example"]).common_name, None);
        assert_eq!(peer(&[]).common_name, None);
        assert_eq!(Peer::of(None), Peer::default());
    }
}
