//! The TLS settings: groups them by server, and loads the files that they name.

use std::path::PathBuf;

use user_http_actors::broker::amqp::AmqpUrl;
use user_http_actors::tls::roots;

use super::error::ConfigError;
use super::layers::Layers;
use super::setting::Setting;
use super::settings;
use crate::tls::{Tls, TlsFile, TlsFiles};

/// The TLS settings of one server.
pub struct TlsSettings {
    cert: Setting<PathBuf>,
    key: Setting<PathBuf>,
    client_ca: Option<Setting<PathBuf>>,
}

/// The TLS settings of the worker server.
pub const HTTP: TlsSettings =
    TlsSettings { cert: settings::HTTP_TLS_CERT, key: settings::HTTP_TLS_KEY, client_ca: None };
/// The TLS settings of the API server.
pub const API: TlsSettings =
    TlsSettings { cert: settings::API_TLS_CERT, key: settings::API_TLS_KEY, client_ca: Some(settings::API_CLIENT_CA) };

impl TlsSettings {
    /// Loads the files. `None` if none of these settings is set.
    pub fn load(&self, layers: &Layers) -> Result<Option<Tls>, ConfigError> {
        let needs = |setting: &Setting<PathBuf>, other: &Setting<PathBuf>| {
            let other = other.declaration().key;
            let why = format!("expected --{other} as well, as a flag, in the environment or in the file");
            layers.bad_value(setting, why)
        };
        let client_ca = self.client_ca.as_ref().map_or(Ok(None), |setting| layers.optional(setting))?;
        let files = match (layers.optional(&self.cert)?, layers.optional(&self.key)?) {
            (Some(cert), Some(key)) => TlsFiles { cert, key, client_ca },
            (Some(_), None) => return Err(needs(&self.cert, &self.key)),
            (None, Some(_)) => return Err(needs(&self.key, &self.cert)),
            (None, None) => match self.client_ca.as_ref().filter(|_| client_ca.is_some()) {
                Some(setting) => return Err(needs(setting, &self.cert)),
                None => return Ok(None),
            },
        };
        Tls::load(files).map(Some).map_err(|error| {
            let setting = match error.file {
                TlsFile::Cert => &self.cert,
                TlsFile::Key => &self.key,
                TlsFile::ClientCa => self.client_ca.as_ref().unwrap_or(&self.cert),
            };
            layers.bad_value(setting, error.why)
        })
    }
}

/// The file with the CAs to trust for the broker. It is read again for each connection; this reads it once, to report
/// errors at start.
pub fn amqp_ca_file(layers: &Layers, url: Option<&AmqpUrl>) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = layers.optional(&settings::AMQP_CA_FILE)? else { return Ok(None) };
    let checked = if url.is_some_and(AmqpUrl::is_tls) {
        roots(&path).map(drop)
    } else {
        Err("expected an --amqp-url that begins with amqps:// as well".to_owned())
    };
    checked.map(|()| Some(path)).map_err(|why| layers.bad_value(&settings::AMQP_CA_FILE, why))
}
