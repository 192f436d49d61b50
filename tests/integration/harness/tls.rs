//! Certificates for the tests, and a client that checks them.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SigningKey};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tempfile::TempDir;

use super::{Connection, connect};

/// A certificate authority of a test's own.
pub struct Ca {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and its key.
pub struct Identity {
    /// The chain as PEM: this certificate, then the CA's.
    pub chain: String,
    /// As PEM.
    pub key: String,
    /// As DER.
    pub certificate: CertificateDer<'static>,
    private: PrivateKeyDer<'static>,
}

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("uhs-ca-").tempdir().expect("a folder for the CA");
        let mut params = CertificateParams::new(Vec::new()).expect("a CA");
        params.distinguished_name = named(&dir.path().display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("the CA's certificate");
        Self { dir, issuer: Issuer::new(params, key), certificate: certificate.der().clone() }
    }

    /// The file with its certificate.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A new certificate, for 127.0.0.1 and localhost.
    pub fn issue(&self) -> Identity {
        self.issue_for(&["127.0.0.1", "localhost"])
    }

    /// A new certificate for names of hosts.
    pub fn issue_for(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("names of hosts");
        params.distinguished_name = named("host");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            chain: certificate.pem() + &fs::read_to_string(self.path()).expect("the CA's certificate"),
            key: key.serialize_pem(),
            certificate: certificate.der().clone(),
            private: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        }
    }

    /// A certificate of X.509 version 1, as OpenSSL 3.0 issues it unless it is given extensions.
    pub fn issue_version_1(&self) -> Identity {
        let Identity { key, certificate, private, .. } = self.issue();
        let [tbs, algorithm, _] = elements(&certificate)[..] else { panic!("a certificate has 3 parts") };
        // without the version at the start and the extensions at the end
        let [_, fields @ .., _] = &elements(tbs)[..] else { panic!("a certificate has fields") };
        let tbs = element(0x30, &fields.concat());
        let signature = self.issuer.key().sign(&tbs).expect("a signature");
        let signature = element(0x03, &[&[0], &signature[..]].concat());
        let certificate = CertificateDer::from(element(0x30, &[&tbs, algorithm, &signature].concat()));
        let body = base64::engine::general_purpose::STANDARD.encode(&certificate);
        let chain = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        Identity { chain, key, certificate, private }
    }

    /// A certificate for 127.0.0.1 in files of that name: chain and key.
    pub fn issue_files(&self, name: &str) -> [String; 2] {
        self.issue().write(self.dir.path(), name)
    }
}

impl Identity {
    /// Writes it to `NAME.pem` and `NAME.key`, the certificate first.
    pub fn write(&self, folder: &Path, name: &str) -> [String; 2] {
        let paths = [folder.join(format!("{name}.pem")), folder.join(format!("{name}.key"))];
        for (path, text) in paths.iter().zip([&self.chain, &self.key]) {
            fs::write(path, text).expect("a PEM file");
        }
        paths.map(|path| path.into_os_string().into_string().expect("UTF-8"))
    }
}

/// The elements inside an element of DER.
fn elements(der: &[u8]) -> Vec<&[u8]> {
    let header = |der: &[u8]| if der[1] < 0x80 { 2 } else { 2 + usize::from(der[1] & 0x7f) };
    let mut rest = &der[header(der)..];
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let start = header(rest);
        let long = rest[2..start].iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        let len = if start == 2 { usize::from(rest[1]) } else { long };
        let (first, others) = rest.split_at(start + len);
        elements.push(first);
        rest = others;
    }
    elements
}

/// An element of DER with this tag.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).expect("a short element");
    // in as few bytes as possible
    let len = match len.to_be_bytes() {
        [0, len @ ..0x80] => vec![len],
        [0, len] => vec![0x81, len],
        [high, low] => vec![0x82, high, low],
    };
    [&[tag], &len[..], content].concat()
}

/// Unique, since OpenSSL takes a certificate for its own issuer if both have the same name.
fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A client that trusts one CA.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

impl Client {
    pub fn trusting(ca: &Ca) -> Self {
        Self::with(ca, None, rustls::DEFAULT_VERSIONS, &[])
    }

    /// With a certificate of its own, versions of TLS and protocols that it offers.
    pub fn with(
        ca: &Ca,
        identity: Option<&Identity>,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate.clone()).expect("a CA");
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions of TLS")
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, private, .. }) => {
                let key = any_supported_type(private).expect("a key");
                // whatever the certificate is like
                let identity = CertifiedKey::new(vec![certificate.clone()], key);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Self(Arc::new(config))
    }

    /// A connection after its handshake.
    pub fn try_shake_hands(&self, to: SocketAddr) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        self.try_shake_hands_over(connect(to)?)
    }

    /// Performs the handshake over a connected socket.
    pub fn try_shake_hands_over(&self, mut socket: TcpStream) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let name = ServerName::IpAddress(socket.peer_addr()?.ip().into());
        let mut tls = ClientConnection::new(Arc::clone(&self.0), name).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(tls, socket))
    }

    /// A connection for HTTP.
    pub fn try_open(&self, to: SocketAddr) -> io::Result<Connection> {
        Ok(Connection::over(to, self.try_shake_hands(to)?))
    }

    #[track_caller]
    pub fn open(&self, to: SocketAddr) -> Connection {
        self.try_open(to).unwrap_or_else(|error| panic!("{to}: {error}"))
    }

    /// The certificate that a server shows.
    #[track_caller]
    pub fn certificate_of(&self, to: SocketAddr) -> CertificateDer<'static> {
        let stream = self.try_shake_hands(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
    }
}
