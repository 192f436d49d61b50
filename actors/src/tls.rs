//! Cryptography and certificates from PEM files, for TLS servers and clients.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
    let text = small_file::read(path).map_err(|error| pem_error(pem::Error::Io(error)))?;
    match CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(pem_error)? {
        none if none.is_empty() => Err("it contains no certificate".to_owned()),
        certificates => Ok(certificates),
    }
}

/// The first private key of a file.
///
/// # Errors
/// As [`PemObject::from_pem_slice`], or that the file cannot be read.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, pem::Error> {
    PrivateKeyDer::from_pem_slice(&small_file::read(path).map_err(pem::Error::Io)?)
}

/// The certificates of a file, as those of CAs to be trusted.
///
/// # Errors
/// What is wrong with the file.
pub fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for ca in certificates(path)? {
        roots.add(ca).map_err(|error| format!("a certificate in it cannot be used: {error}"))?;
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

/// Why a PEM file cannot be read.
pub fn pem_error(error: pem::Error) -> String {
    match error {
        pem::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => "it is not a text file".to_owned(),
        pem::Error::Io(error) => {
            format!("it cannot be read: {error}; correct the path, or let this user read the file")
        }
        error => format!("it is not valid PEM: {error}"),
    }
}
