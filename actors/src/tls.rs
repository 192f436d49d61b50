//! Cryptography and certificates from PEM files, for TLS servers and clients.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, Error, OtherError, RootCertStore};

use crate::small_file;

/// Passed explicitly to each configuration, because a library must not set the default of the process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// All certificates of a file, at least one.
///
/// # Errors
/// What is wrong with the file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    match CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>().map_err(invalid)? {
        none if none.is_empty() => Err("it contains no certificate".to_owned()),
        certificates => Ok(certificates),
    }
}

/// The first private key of a file.
///
/// # Errors
/// What is wrong with the file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => "it contains no unencrypted private key".to_owned(),
        error => invalid(error),
    })
}

/// The certificates of a file, as those of CAs to be trusted.
///
/// # Errors
/// What is wrong with the file.
pub fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for ca in certificates(path)? {
        roots.add(ca).map_err(|error| format!("a certificate in it cannot be used: {}", explained(&error)))?;
    }
    Ok(roots)
}

/// The CAs that the system trusts. A farm that has its own CA can install it there.
///
/// # Errors
/// Why there are none.
pub fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    match (roots.is_empty(), found.errors.first()) {
        (false, _) => Ok(roots),
        (true, None) => Err("the system has no CAs".to_owned()),
        (true, Some(error)) => Err(format!("the system's CAs cannot be read: {error}")),
    }
}

/// What is wrong. Says more than rustls where that names a certificate's version without a word of explanation.
pub fn explained(error: &Error) -> String {
    wrong_version(error).map_or_else(|| error.to_string(), str::to_owned)
}

/// What would be right, if a certificate is refused for its version.
pub fn wrong_version(error: &Error) -> Option<&'static str> {
    // as webpki's error shows itself
    let is_version = |other: &OtherError| other.0.to_string() == "UnsupportedCertVersion";
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) if is_version(other) => Some(
            "the certificate is not of X.509 version 3, because it was issued without any extension; issue it again \
             with one, such as extendedKeyUsage (`openssl x509 -req` takes them from a file with -extfile)",
        ),
        _ => None,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    small_file::read(path).map_err(|error| format!("it cannot be read: {error}"))
}

fn invalid(error: pem::Error) -> String {
    format!("it is not valid PEM: {error}")
}
