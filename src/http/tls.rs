//! TLS for the two servers: certificate, key and CAs from PEM files, which are reloaded when they change.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use user_http_actors::tls::{certificates, explained, private_key, provider, roots};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a client may take for the handshake. It occupies a connection and a few KiB for that time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the files are checked for changes.
const POLL: Duration = Duration::from_secs(1);

/// The paths of a server's certificate, key and CA, all in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, followed by the intermediate ones.
    pub cert: PathBuf,
    /// Its private key: PKCS#8, SEC1 or PKCS#1 (RSA), not encrypted.
    pub key: PathBuf,
    /// If set, a client must present a certificate that one of these CAs has issued.
    pub client_ca: Option<PathBuf>,
}

/// The file that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// [`TlsFiles::cert`].
    Cert,
    /// [`TlsFiles::key`].
    Key,
    /// [`TlsFiles::client_ca`].
    ClientCa,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct TlsError {
    /// Which file.
    pub file: TlsFile,
    /// Its path.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// The TLS configuration of a server. A reload replaces it for new connections; open ones keep theirs. Clones share it.
///
/// ```
/// use user_http_server::tls::{Tls, TlsFile, TlsFiles};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
/// let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
/// std::fs::write(&cert, issued.cert.pem())?;
///
/// let files = TlsFiles { cert, key: key.clone(), client_ca: None };
/// let error = Tls::load(files.clone()).expect_err("there is no key yet");
/// assert_eq!((error.file, error.path), (TlsFile::Key, key.clone()));
///
/// std::fs::write(&key, issued.signing_key.serialize_pem())?;
/// let tls = Tls::load(files)?;
/// assert!(!tls.requires_client_certificate());
/// tls.reload();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: TlsFiles,
    current: RwLock<Loaded>,
    watch: Mutex<Watch>,
}

/// What the files contain.
#[derive(Clone, Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// When the certificate expires, in seconds since 1970.
    expiry: i64,
}

/// The state of the files.
#[derive(Debug)]
struct Watch {
    /// Their state at the last load.
    acted_on: Vec<Stamp>,
    /// Their state at the last check.
    seen: Vec<Stamp>,
}

/// Modification time, size and inode of a file; `None` if they cannot be read.
type Stamp = Option<(SystemTime, u64, u64)>;

impl Tls {
    /// Loads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let acted_on = files.stamps();
        let current = RwLock::new(files.load()?);
        let watch = Mutex::new(Watch { seen: acted_on.clone(), acted_on });
        Ok(Self(Arc::new(Inner { files, current, watch })))
    }

    /// Whether a client must present a certificate.
    pub fn requires_client_certificate(&self) -> bool {
        self.0.files.client_ca.is_some()
    }

    /// Reloads the files now. If they cannot be used, logs a warning, and the configuration stays as it is.
    pub fn reload(&self) {
        self.load_again(&mut self.0.watch.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Reloads the files if they have changed. Certificate and key are replaced one after another, so a change counts
    /// only once the files are the same at two consecutive checks.
    fn reload_if_changed(&self) {
        let mut watch = self.0.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.0.files.stamps();
        let is_settled = now == watch.seen;
        let is_new = now != watch.acted_on;
        watch.seen = now;
        if is_new && is_settled {
            self.load_again(&mut watch);
        }
    }

    /// Reloads the files. The caller holds the lock of `watch` from before they are read until the new configuration is
    /// in use, so that of two concurrent reloads the later one wins.
    fn load_again(&self, watch: &mut Watch) {
        let Inner { files, current, .. } = &*self.0;
        watch.acted_on = files.stamps();
        match files.load() {
            Ok(loaded) => {
                *current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
                log::info!("certificate reloaded from {}; new connections use it", files.cert.display());
            }
            Err(error) => log::warn!("cannot reload the certificate, new connections use the previous one: {error}"),
        }
    }

    /// The path of the certificate.
    pub fn cert(&self) -> &Path {
        &self.0.files.cert
    }

    /// When the certificate expires, in seconds since 1970.
    pub fn expiry(&self) -> i64 {
        self.current().expiry
    }

    /// What new connections use.
    fn current(&self) -> Loaded {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a client starts its connection.
pub(crate) enum Greeting {
    /// With a TLS handshake, which is complete.
    Tls(Box<TlsStream<TcpStream>>),
    /// With a request in plain HTTP. Nothing of it has been read.
    Http(TcpStream),
}

/// Performs the handshake with a client.
///
/// # Errors
/// Why it failed, or that it took longer than [`HANDSHAKE_TIMEOUT`].
pub(crate) async fn greet(tls: Tls, socket: TcpStream) -> Result<Greeting, String> {
    let greeting = async {
        let mut first = [0];
        // A method begins with a letter, a TLS record with a byte below 32.
        if socket.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
            return Ok(Greeting::Http(socket));
        }
        Ok(Greeting::Tls(Box::new(accept(tls, socket).await?)))
    };
    let greeted = match tokio::time::timeout(HANDSHAKE_TIMEOUT, greeting).await {
        Ok(greeted) => greeted,
        Err(_) => return Err(format!("it took longer than {HANDSHAKE_TIMEOUT:?}")),
    };
    greeted.map_err(|error: io::Error| match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(error) => explained(error),
        None => error.to_string(),
    })
}

/// Performs the handshake with a client, without a timeout.
pub(crate) async fn accept<S>(tls: Tls, socket: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    TlsAcceptor::from(tls.current().config).accept(socket).await
}

/// Reloads the files of each configuration when they change. Never returns, unless there are none.
pub(crate) async fn watch(all: Vec<Tls>) {
    while !all.is_empty() {
        tokio::time::sleep(POLL).await;
        let all = all.clone();
        // The panic hook logs a panic, and the next check happens anyway.
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

    /// What is wrong with each file, after `first` was found. The files are read one by one, so it may be that only
    /// `first` is left: that two of them do not belong together, for example.
    pub(crate) fn errors_or(&self, first: TlsError) -> Vec<TlsError> {
        let provider = provider();
        let errors = [self.chain().err(), self.private_key(&provider).err(), self.clients(&provider).err()];
        let errors: Vec<TlsError> = errors.into_iter().flatten().collect();
        if errors.is_empty() { vec![first] } else { errors }
    }

    fn load(&self) -> Result<Loaded, TlsError> {
        let provider = provider();
        let identity = self.identity(&provider)?;
        let expiry = self.expiry(&identity)?;
        let clients = self.clients(&provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::of(TlsFile::Cert, &self.cert, error))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Loaded { config: Arc::new(config), expiry })
    }

    fn expiry(&self, identity: &CertifiedKey) -> Result<i64, TlsError> {
        let certificate = identity.end_entity_cert().map_err(|error| explained(&error));
        let expiry = certificate.and_then(|certificate| {
            let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
            Ok(certificate.validity().not_after.timestamp())
        });
        expiry.map_err(|why| TlsError::of(TlsFile::Cert, &self.cert, why))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates(&self.cert).map_err(|why| TlsError::of(TlsFile::Cert, &self.cert, why))
    }

    fn private_key(&self, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, TlsError> {
        let bad_key = |why: &dyn ToString| TlsError::of(TlsFile::Key, &self.key, why.to_string());
        let key = private_key(&self.key).map_err(|why| bad_key(&why))?;
        provider.key_provider.load_private_key(key).map_err(|error| bad_key(&error))
    }

    fn identity(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let identity = CertifiedKey::new(self.chain()?, self.private_key(provider)?);
        match identity.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(identity),
            Err(rustls::Error::InconsistentKeys(_)) => {
                let cert = self.cert.display();
                let why = format!("it does not belong to the certificate in {cert}; give the key of that certificate");
                Err(TlsError::of(TlsFile::Key, &self.key, why))
            }
            Err(error) => Err(TlsError::of(TlsFile::Cert, &self.cert, explained(&error))),
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
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::sync::TryLockError;
    use std::thread;

    use super::*;

    #[test]
    fn only_one_reload_reads_the_files_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        fs::write(&cert, issued.cert.pem()).expect("writable");
        fs::write(&key, issued.signing_key.serialize_pem()).expect("writable");
        let tls = Tls::load(TlsFiles { cert, key: key.clone(), client_ca: None }).expect("sound files");

        // The key is a pipe, so that a reload blocks until the test closes its other end.
        let (reader, mut writer) = io::pipe().expect("a pipe");
        fs::remove_file(&key).expect("a file");
        symlink(format!("/proc/self/fd/{}", reader.as_raw_fd()), &key).expect("a link");
        let loading = tls.clone();
        let loading = thread::spawn(move || loading.reload());
        writer.write_all(b"no key").expect("a reader");
        while rustix::io::ioctl_fionread(&reader).expect("a pipe") > 0 {
            thread::yield_now();
        }
        assert!(matches!(tls.0.watch.try_lock(), Err(TryLockError::WouldBlock)));
        drop(writer);
        loading.join().expect("no panic");
        assert!(tls.0.watch.try_lock().is_ok());
    }
}
