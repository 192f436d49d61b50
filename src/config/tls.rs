//! The settings of TLS: which belong together, and what they load.

use std::path::{Path, PathBuf};

use user_http_actors::broker::amqp::AmqpUrl;
use user_http_actors::tls::roots;

use super::layers::{ConfigError, Layers};
use crate::tls::{Tls, TlsFile, TlsFiles};

/// The settings of one server's TLS.
pub struct TlsSettings {
    cert: &'static str,
    key: &'static str,
    client_ca: Option<&'static str>,
}

/// Those of the server for workers.
pub const HTTP: TlsSettings = TlsSettings { cert: "http-tls-cert", key: "http-tls-key", client_ca: None };
/// Those of the server for the farm's services.
pub const API: TlsSettings = TlsSettings { cert: "api-tls-cert", key: "api-tls-key", client_ca: Some("api-client-ca") };

impl TlsSettings {
    /// Loads what they name; none where none of them is set.
    pub fn load(&self, layers: &Layers) -> Result<Option<Tls>, ConfigError> {
        let file = |setting| layers.parse(setting, "a file", |text| Some((!text.is_empty()).then(|| text.into())));
        let client_ca: Option<PathBuf> = self.client_ca.map_or(Ok(None), file)?;
        let files = match (file(self.cert)?, file(self.key)?) {
            (Some(cert), Some(key)) => TlsFiles { cert, key, client_ca },
            (Some(_), None) => return Err(needs(layers, self.cert, self.key)),
            (None, Some(_)) => return Err(needs(layers, self.key, self.cert)),
            (None, None) => match self.client_ca.filter(|_| client_ca.is_some()) {
                Some(setting) => return Err(needs(layers, setting, self.cert)),
                None => return Ok(None),
            },
        };
        Tls::load(files).map(Some).map_err(|error| {
            let setting = match error.file {
                TlsFile::Cert => self.cert,
                TlsFile::Key => self.key,
                TlsFile::ClientCa => self.client_ca.unwrap_or(self.cert),
            };
            layers.bad_value(setting, error.why)
        })
    }
}

fn needs(layers: &Layers, setting: &'static str, other: &str) -> ConfigError {
    layers.bad_value(setting, format!("expected --{other} beside it, as a flag, in the environment or in the file"))
}

/// The file of the CAs that the broker is checked by. It is read at each connection; what is wrong with it at the start
/// is told then.
pub fn amqp_ca_file(layers: &Layers, url: Option<&AmqpUrl>) -> Result<Option<PathBuf>, ConfigError> {
    layers.parse_or_why("amqp-ca-file", |text| match text {
        "" => Ok(None),
        _ if !url.is_some_and(AmqpUrl::is_tls) => {
            Err("expected an AMQP URL that begins with amqps:// beside it".to_owned())
        }
        path => roots(Path::new(path)).map(|_| Some(path.into())),
    })
}
