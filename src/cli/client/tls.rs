//! TLS of the client: what proves that the server is the right one, and what proves it to the server.

use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgMatches;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};
use user_http_actors::tls::{certificates, explained, private_key, provider, roots, system_roots};
use user_http_server::config::ApiServer;

/// What a client trusts, and what it shows.
pub struct Credentials {
    /// The certificate of the configured server. A server that has its key is that server, whatever names the
    /// certificate has and whoever has issued it: it is often self-signed, and rarely for 127.0.0.1.
    own: Option<CertificateDer<'static>>,
    roots: RootCertStore,
    /// What `roots` are, for errors.
    roots_origin: String,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Credentials {
    /// What the arguments and the configuration of the server give. The system's CAs vouch for a server at another
    /// address, but are not needed for the configured one.
    pub fn find(args: &ArgMatches, server: &ApiServer, is_configured: bool) -> Result<Self, String> {
        let file = |name: &str| args.get_one::<PathBuf>(name);
        let chain = match server.tls.as_ref().map(|files| certificates(&files.cert)) {
            Some(Ok(chain)) => chain,
            Some(Err(why)) if is_configured && file("ca-file").is_none() => {
                return Err(format!("--api-tls-cert: {why}; give the CA of the server with --ca-file"));
            }
            _ => Vec::new(),
        };
        let (mut roots, roots_origin) = match file("ca-file") {
            Some(path) => {
                let roots = roots(path).map_err(|why| format!("--ca-file {}: {why}", path.display()))?;
                (roots, format!("from a CA in {}", path.display()))
            }
            None if is_configured => (RootCertStore::empty(), "from a CA behind it in that file".to_owned()),
            None => (system_roots().unwrap_or(RootCertStore::empty()), "from a CA that the system trusts".to_owned()),
        };
        roots.add_parsable_certificates(chain.iter().skip(1).cloned());
        let own_files = server.tls.as_ref().filter(|files| files.client_ca.is_some());
        let identity = match (file("client-cert"), file("client-key"), own_files) {
            (Some(cert), Some(key), _) => {
                let chain = certificates(cert).map_err(|why| format!("--client-cert {}: {why}", cert.display()))?;
                let key = private_key(key).map_err(|why| format!("--client-key {}: {why}", key.display()))?;
                Some((chain, key))
            }
            // It may be that the CA of the clients has issued it too. If it cannot be read, the server says what it
            // needs.
            (_, _, Some(own)) => private_key(&own.key).ok().map(|key| (chain.clone(), key)),
            _ => None,
        };
        Ok(Self { own: chain.into_iter().next(), roots, roots_origin, identity })
    }

    /// What is trusted, for errors: "neither …".
    pub fn trust(&self) -> String {
        format!("the one in --api-tls-cert nor {}", self.roots_origin)
    }
}

/// Makes TLS connections.
#[derive(Debug)]
pub struct TlsConnector(Arc<ClientConfig>);

impl TlsConnector {
    pub fn new(credentials: Credentials) -> Result<Self, String> {
        let Credentials { own, roots, identity, .. } = credentials;
        let provider = provider();
        let roots = match roots.is_empty() {
            true => None,
            false => {
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
                Some(verifier.build().map_err(|error| error.to_string())?)
            }
        };
        let verifier = Verifier { own, roots, provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match identity {
            Some((chain, key)) => config
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("the client certificate and its key cannot be used: {}", explained(&error)))?,
            None => config.with_no_client_auth(),
        };
        Ok(Self(Arc::new(config)))
    }
}

/// Accepts the certificate of the configured server, and those that CAs have issued for the name of the server.
#[derive(Debug)]
struct Verifier {
    own: Option<CertificateDer<'static>>,
    roots: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.roots {
            _ if self.own.as_ref() == Some(end_entity) => Ok(ServerCertVerified::assertion()),
            Some(roots) => roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| Error::Other(error.into()))?;
        let session = ClientConnection::new(Arc::clone(&self.0), name).map_err(|error| Error::Other(error.into()))?;
        let mut socket = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        socket.set_timeout(details.timeout);
        let mut stream = StreamOwned::new(session, socket);
        stream.conn.complete_io(&mut stream.sock)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream })))
    }
}

/// A connection after its handshake.
pub struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        Ok(std::io::Write::write_all(&mut self.stream, output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = std::io::Read::read(&mut self.stream, self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
