//! TLS of the two servers: certificate, key and CA from PEM files, loaded again when they change.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use user_http_actors::tls::{certificates, pem_error, provider, roots};

/// How long a client may take for the handshake. Until then it has a socket and a few KiB, nothing that others wait
/// for.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);

/// Where a server's certificate, key and CA are, all in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, with those between it and its CA.
    pub cert: PathBuf,
    /// Its private key, as PKCS#8, SEC1 or RSA (PKCS#1).
    pub key: PathBuf,
    /// The CAs of which a client must have a certificate; without, none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// Which of the files cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// [`TlsFiles::cert`].
    Cert,
    /// [`TlsFiles::key`].
    Key,
    /// [`TlsFiles::client_ca`].
    ClientCa,
}

/// What is wrong with one of the files.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct TlsError {
    /// Which one.
    pub file: TlsFile,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// A server's side of TLS. What new connections use is replaced whole; connections keep what they began with. Clones
/// are the same.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
    watch: Mutex<Watch>,
}

/// What the files looked like.
#[derive(Debug)]
struct Watch {
    /// When they were last loaded.
    acted_on: Vec<Stamp>,
    /// When they were last looked at.
    seen: Vec<Stamp>,
}

/// Modification time, size and inode of a file; none where it cannot be looked at.
type Stamp = Option<(SystemTime, u64, u64)>;

impl Tls {
    /// Loads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let acted_on = files.stamps();
        let current = RwLock::new(Arc::new(files.load()?));
        let watch = Mutex::new(Watch { seen: acted_on.clone(), acted_on });
        Ok(Self(Arc::new(Inner { files, current, watch })))
    }

    /// Whether a client must have a certificate.
    pub fn requires_client_certificate(&self) -> bool {
        self.0.files.client_ca.is_some()
    }

    /// Loads the files again, now. Where they cannot be used, what was loaded before stays, and the log says why.
    pub fn reload(&self) {
        self.load_again(&mut self.0.watch.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Loads the files again if they have changed. Whoever replaces them does so one after the other, so a change
    /// counts once it has stood still from one look to the next.
    fn reload_if_changed(&self) {
        let mut watch = self.0.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.0.files.stamps();
        let stands_still = now == watch.seen;
        let is_new = now != watch.acted_on;
        watch.seen = now;
        if is_new && stands_still {
            self.load_again(&mut watch);
        }
    }

    /// Loads the files again. `watch` is locked from before they are read until what they hold counts: of two who do
    /// this at the same time, the one who has read them later wins.
    fn load_again(&self, watch: &mut Watch) {
        let Inner { files, current, .. } = &*self.0;
        watch.acted_on = files.stamps();
        match files.load() {
            Ok(config) => {
                *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                log::info!("new connections use the certificate that is now in {}", files.cert.display());
            }
            Err(error) => log::warn!("new connections go on with the certificate from before: {error}"),
        }
    }

    /// What a new connection uses.
    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a client begins with.
pub(crate) enum Greeting {
    /// A handshake, which is over.
    Tls(Box<TlsStream<TcpStream>>),
    /// A request in plain HTTP, of which nothing is read.
    Http(TcpStream),
}

/// Shakes hands with a client.
///
/// # Errors
/// Why it did not come to that, [`HANDSHAKE_TIMEOUT`] among it.
pub(crate) async fn greet(tls: Tls, socket: TcpStream) -> io::Result<Greeting> {
    let greeting = async {
        let mut first = [0];
        // a method begins with a letter, a record of TLS with a number below 32
        if socket.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
            return Ok(Greeting::Http(socket));
        }
        Ok(Greeting::Tls(Box::new(accept(tls, socket).await?)))
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, greeting).await?
}

/// Shakes hands with a client that does so, as long as that takes.
pub(crate) async fn accept<S>(tls: Tls, socket: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    TlsAcceptor::from(tls.current()).accept(socket).await
}

/// Loads the files of each again whenever they change. Never ends.
pub(crate) async fn watch(all: Vec<Tls>) {
    while !all.is_empty() {
        tokio::time::sleep(POLL).await;
        let all = all.clone();
        // its panic has been told of, and the next round comes all the same
        let _ = tokio::task::spawn_blocking(move || all.iter().for_each(Tls::reload_if_changed)).await;
    }
}

impl TlsFiles {
    fn stamps(&self) -> Vec<Stamp> {
        let paths = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let stamp = |path| {
            let of = fs::metadata(path).ok()?;
            Some((of.modified().ok()?, of.len(), of.ino()))
        };
        paths.into_iter().flatten().map(stamp).collect()
    }

    fn load(&self) -> Result<ServerConfig, TlsError> {
        let provider = provider();
        let identity = self.identity(&provider)?;
        let clients = self.clients(&provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::of(TlsFile::Cert, &self.cert, error))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn identity(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let bad_cert = |why: &dyn ToString| TlsError::of(TlsFile::Cert, &self.cert, why.to_string());
        let bad_key = |why: &dyn ToString| TlsError::of(TlsFile::Key, &self.key, why.to_string());
        let chain = certificates(&self.cert).map_err(|why| bad_cert(&why))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => bad_key(&"there is no private key in it that is not encrypted"),
            error => bad_key(&pem_error(error)),
        })?;
        let key = provider.key_provider.load_private_key(key).map_err(|error| bad_key(&error))?;
        let identity = CertifiedKey::new(chain, key);
        match identity.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(identity),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(bad_key(&format!("it is not the key of the certificate in {}", self.cert.display())))
            }
            Err(error) => Err(bad_cert(&error)),
        }
    }

    fn clients(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let Some(path) = &self.client_ca else { return Ok(Arc::new(NoClientAuth)) };
        let bad = |why: String| TlsError::of(TlsFile::ClientCa, path, why);
        let roots = roots(path).map_err(bad)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        verifier.map_err(|error| bad(error.to_string()))
    }
}

impl TlsError {
    fn of(file: TlsFile, path: &Path, why: impl ToString) -> Self {
        Self { file, path: path.to_owned(), why: why.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::TryLockError;
    use std::thread;

    use super::*;

    #[test]
    fn while_files_are_loaded_again_nobody_else_loads_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        fs::write(&cert, issued.cert.pem()).expect("writable");
        fs::write(&key, issued.signing_key.serialize_pem()).expect("writable");
        let tls = Tls::load(TlsFiles { cert, key: key.clone(), client_ca: None }).expect("sound files");

        // who loads it waits for what is written into the pipe
        fs::remove_file(&key).expect("a file");
        assert!(Command::new("mkfifo").arg(&key).status().expect("mkfifo").success());
        let loading = tls.clone();
        let loading = thread::spawn(move || loading.reload());
        let pipe = fs::OpenOptions::new().write(true).open(&key).expect("a reader at the other end");
        assert!(matches!(tls.0.watch.try_lock(), Err(TryLockError::WouldBlock)));
        drop(pipe);
        loading.join().expect("no panic");
        assert!(tls.0.watch.try_lock().is_ok());
    }
}
