//! The TLS settings: groups them by server, and loads the files that they name.

use std::path::PathBuf;

use user_http_actors::broker::amqp::AmqpUrl;
use user_http_actors::tls::roots;

use super::layers::Layers;
use super::setting::Setting;
use super::settings;
use crate::tls::{Tls, TlsError, TlsFile, TlsFiles};

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
    /// The files that the settings name. `None` if none of them is set, or if they are incomplete, which is an error.
    pub fn files(&self, layers: &mut Layers) -> Option<TlsFiles> {
        let settings = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let (given, needed) = match settings.map(|setting| layers.optional(setting?)) {
            [Some(cert), Some(key), client_ca] => return Some(TlsFiles { cert, key, client_ca }),
            [Some(_), None, _] => (&self.cert, &self.key),
            [None, Some(_), _] => (&self.key, &self.cert),
            [None, None, Some(_)] => (self.client_ca.as_ref()?, &self.cert),
            [None, None, None] => return None,
        };
        let needed = needed.declaration().key;
        layers.refuse(given, format!("expected --{needed} as well, as a flag, in the environment or in the file"));
        None
    }

    /// Loads the files. `None` if none of these settings is set, or after an error.
    pub fn load(&self, layers: &mut Layers) -> Option<Tls> {
        let files = self.files(layers)?;
        let error = match Tls::load(files.clone()) {
            Ok(tls) => return Some(tls),
            Err(error) => error,
        };
        for TlsError { file, why, .. } in files.errors_or(error) {
            let setting = match file {
                TlsFile::Cert => &self.cert,
                TlsFile::Key => &self.key,
                TlsFile::ClientCa => self.client_ca.as_ref().unwrap_or(&self.cert),
            };
            layers.refuse(setting, why);
        }
        None
    }
}

/// The file with the CAs to trust for the broker. It is read again for each connection; this reads it once, to report
/// errors at start.
pub fn amqp_ca_file(layers: &mut Layers, urls: &[AmqpUrl]) -> Option<PathBuf> {
    let path = layers.optional(&settings::AMQP_CA_FILE)?;
    let checked = match urls {
        // an error that was noted with the URL
        [] if layers.is_given(&settings::AMQP_URL) => Ok(()),
        urls if urls.iter().any(AmqpUrl::is_tls) => roots(&path).map(drop),
        _ => Err("expected an --amqp-url that begins with amqps:// as well".to_owned()),
    };
    match checked {
        Ok(()) => Some(path),
        Err(why) => {
            layers.refuse(&settings::AMQP_CA_FILE, why);
            None
        }
    }
}
