//! HTTP of the examples: trusted CAs, tokens, client certificates, and readable errors.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, Error as TlsError, RootCertStore};
use ureq::config::ConfigBuilder;
use ureq::http::{HeaderValue, Request, StatusCode, header};
use ureq::middleware::MiddlewareNext;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::{Agent, SendBody};
use url::Url;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(clap::Args)]
pub struct Access {
    /// File that contains only the bearer token to send
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// CA certificates to trust for https, in PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// For a server that requires client certificates.
#[derive(clap::Args)]
pub struct Identity {
    /// Client certificate for https with its chain, in PEM
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,

    /// Private key of --client-cert, in PEM
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

pub fn server_url(text: &str) -> std::result::Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err("expected a URL such as https://farm.example:10000".into()),
    }
}

impl Access {
    /// An agent for a server. No status of an answer is an error.
    pub fn agent(
        &self,
        server: &Url,
        config: ConfigBuilder<AgentScope>,
        identity: Option<ClientCert>,
    ) -> Result<Agent> {
        let roots = if server.scheme() == "https" { self.roots()? } else { Vec::new() };
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .client_cert(identity)
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        // The server never redirects, and the token must go to no other.
        let mut config = config.http_status_as_error(false).max_redirects(0).tls_config(tls);
        if let Some(authorization) = self.authorization()? {
            config = config.middleware(move |mut request: Request<SendBody>, next: MiddlewareNext| {
                request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
                next.handle(request)
            });
        }
        Ok(config.build().into())
    }

    fn authorization(&self) -> Result<Option<HeaderValue>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{} must contain one token and nothing else", path.display()).into());
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn roots(&self) -> Result<Vec<Certificate<'static>>> {
        let Some(path) = &self.ca_file else { return system_roots() };
        let certificates = certificates(path)?;
        for certificate in &certificates {
            let added = RootCertStore::empty().add(certificate.clone());
            added.map_err(|error| format!("{}: a certificate in it is not a CA's: {error}", path.display()))?;
        }
        Ok(certificates.iter().map(owned).collect())
    }

    /// The text of a refusal, with advice if it is about the token.
    pub fn refusal(&self, status: StatusCode, text: &str) -> String {
        let advice = match (status, &self.token_file) {
            (StatusCode::UNAUTHORIZED, Some(path)) => {
                format!("; the token in {} is not valid there: give another with --token-file FILE", path.display())
            }
            (StatusCode::FORBIDDEN, Some(path)) => {
                format!("; the token in {} does not allow it: give another with --token-file FILE", path.display())
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => "; give a token with --token-file FILE".into(),
            _ => String::new(),
        };
        format!("{status}: {text}{advice}")
    }

    /// Why a request got no answer.
    pub fn explain(&self, error: &ureq::Error) -> String {
        match tls_error(error) {
            Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
                let trusted = match &self.ca_file {
                    Some(path) => format!("a CA in {}", path.display()),
                    None => "a CA that the system trusts".into(),
                };
                format!("the server's certificate is not from {trusted}: give the farm's CA with --ca-file FILE")
            }
            Some(TlsError::InvalidCertificate(why)) => format!("the server's certificate is not accepted: {why}"),
            Some(TlsError::AlertReceived(AlertDescription::CertificateRequired)) => {
                "the server requires a client certificate: give one with --client-cert FILE".into()
            }
            Some(TlsError::InvalidMessage(_)) => "the server does not speak TLS: use http://".into(),
            _ => error.to_string(),
        }
    }
}

/// Whether a retry would fail the same way.
pub fn is_final(error: &ureq::Error) -> bool {
    match tls_error(error) {
        Some(error) => matches!(
            error,
            TlsError::InvalidCertificate(_)
                | TlsError::InvalidMessage(_)
                | TlsError::AlertReceived(AlertDescription::CertificateRequired)
        ),
        None => matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_)),
    }
}

fn tls_error(error: &ureq::Error) -> Option<&TlsError> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

impl Identity {
    pub fn load(&self) -> Result<Option<ClientCert>> {
        let (Some(path), Some(key_path)) = (&self.client_cert, &self.client_key) else { return Ok(None) };
        let chain = certificates(path)?;
        let pem = fs::read(key_path).map_err(|error| format!("cannot read {}: {error}", key_path.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| format!("{} contains no key in PEM: {error}", key_path.display()))?;
        let shown: Vec<_> = chain.iter().map(owned).collect();
        // ureq does not check that they belong together.
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
            format!("{} and {} cannot be used together: {error}", path.display(), key_path.display())
        })?;
        Ok(Some(ClientCert::new_with_certs(&shown, PrivateKey::from_pem(&pem)?)))
    }
}

/// All certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(none) if none.is_empty() => Err(format!("{} contains no certificate in PEM", path.display()).into()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{} contains no certificates in PEM: {error}", path.display()).into()),
    }
}

/// The CAs of the system, where a farm usually installs its own.
fn system_roots() -> Result<Vec<Certificate<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    match (found.certs.is_empty(), found.errors.first()) {
        (false, _) => Ok(found.certs.iter().map(owned).collect()),
        (true, None) => Err("the system has no CAs: give the farm's with --ca-file FILE".into()),
        (true, Some(error)) => Err(format!("cannot read the system's CAs: {error}; or give --ca-file FILE").into()),
    }
}

fn owned(certificate: &CertificateDer<'_>) -> Certificate<'static> {
    Certificate::from_der(certificate).to_owned()
}
