//! Whom to trust.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Trusts the authorities of this system, and those of a file.
pub(super) fn client(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    let (_added, _of_no_use) = roots.add_parsable_certificates(system.certs);
    if let Some(file) = ca_file {
        let cannot = |error: &dyn std::fmt::Display| {
            format!("cannot read certificates from {}: {error}", file.display())
        };
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| cannot(&error))? {
            let certificate = certificate.map_err(|error| cannot(&error))?;
            roots.add(certificate).map_err(|error| cannot(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| format!("TLS is not available: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
