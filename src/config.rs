//! Defaults, file, environment and flags, made into one validated [`Config`].

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use user_http_actors::ActorsConfig;
use user_http_actors::broker::amqp::{AmqpConfig, AmqpUrl};

use crate::Limits;
use crate::auth::Tokens;
use crate::tls::Tls;

mod layers;
mod tls;

pub use layers::ConfigError;
use layers::{Layers, Setting};

/// Every setting: a flag, an environment variable and a key of the file, all of one name.
const SETTINGS: &[Setting] = &[
    Setting::new("http-bind", "ADDR", "127.0.0.1:10000", "address of the server for workers"),
    Setting::new("api-bind", "ADDR", "127.0.0.1:10001", "address of the server for the farm's services"),
    Setting::new("worker-token-file", "FILE", "", "bearer tokens of workers, one a line, each with the USER_ID that it is bound to, if any"),
    Setting::new("api-token-file", "FILE", "", "bearer tokens of the farm's services, one a line"),
    Setting::new("allow-open-api", "", "false", "let anybody who reaches the API server give orders, beyond this machine too").switch(),
    Setting::new("http-tls-cert", "FILE", "", "certificate of the server for workers, with its chain, in PEM; with it, that server speaks TLS"),
    Setting::new("http-tls-key", "FILE", "", "its private key, in PEM"),
    Setting::new("api-tls-cert", "FILE", "", "certificate of the server for the farm's services, with its chain, in PEM; with it, that server speaks TLS"),
    Setting::new("api-tls-key", "FILE", "", "its private key, in PEM"),
    Setting::new("api-client-ca", "FILE", "", "CA certificates, in PEM; with it, a client of that server must have a certificate of one of them"),
    Setting::new("amqp-url", "URL", "", "RabbitMQ, as amqp://user:password@host:port/vhost, or amqps:// for TLS; without it the user manager takes its messages from the API server").secret(),
    Setting::new("amqp-ca-file", "FILE", "", "CA certificates, in PEM, of which RabbitMQ's must be, for amqps://; without it, those that the system trusts"),
    Setting::new("data-dir", "DIR", "./data", "folder in which messages are kept"),
    Setting::new("blend-root", "DIR", ".", "folder in which .blend files may lie; may be given several times, relative paths are relative to the first").many(),
    Setting::new("max-body", "SIZE", "256MiB", "largest body that is taken, below 4GiB"),
    Setting::new("max-connections", "NUMBER", "10000", "how many connections each server has open at once"),
    Setting::new("max-inflight", "SIZE", "1GiB", "how much of all bodies together is held in memory at once"),
    Setting::new("min-transfer-rate", "SIZE", "16KiB", "how many bytes a second a body and an answer have to make after 30 s"),
    Setting::new("max-buffered", "SIZE", "1GiB", "how much is buffered for workers"),
    Setting::new("max-outbox", "SIZE", "4GiB", "how much waits for the user manager"),
    Setting::new("buffer-ttl", "DURATION", "24h", "how long a message is buffered"),
    Setting::new("memory", "", "false", "keep nothing on disk: a stop loses every message").switch(),
    Setting::new("amqp-exchange", "NAME", "USER_HTTP_SERVER_EXCHANGE", "exchange that the communication interface publishes to"),
    Setting::new("amqp-queue", "NAME", "UHTTPSE_CI", "queue consumed, bound to that exchange under its own name"),
    Setting::new("amqp-publish-exchange", "NAME", "COMMUNICATION_INTERFACE_EXCHANGE", "exchange that messages for the user manager are published to"),
    Setting::new("amqp-routing-key", "NAME", "CIE_USER_HTTP_SERVER", "routing key that they are published with"),
];

/// The largest body that the codec takes, in bytes: its offsets have 32 bits.
const MAX_MAX_BODY: u64 = u32::MAX as u64;

/// Everything that the service has to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of the server for workers.
    pub http_bind: SocketAddr,
    /// Address of the server for the farm's services.
    pub api_bind: SocketAddr,
    /// Who may ask the server for workers; anybody without.
    pub worker_tokens: Option<Arc<Tokens>>,
    /// Who may ask the server for the farm's services; whoever reaches it without.
    pub api_tokens: Option<Arc<Tokens>>,
    /// TLS of the server for workers.
    pub http_tls: Option<Tls>,
    /// TLS of the server for the farm's services.
    pub api_tls: Option<Tls>,
    /// How many connections each server has open at once.
    pub max_connections: usize,
    /// What requests may take.
    pub limits: Limits,
    /// What the actors have to know.
    pub actors: ActorsConfig,
}

impl Config {
    /// Reads the command line `args` (the program's name first), the environment and the file that one of them names.
    ///
    /// # Errors
    /// See [`ConfigError`]; its text names the setting, where its value comes from and what is accepted.
    pub fn load(
        args: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let layers = Layers::read(SETTINGS, args, environment)?;
        let max_body = |text: &str| size(text).filter(|size| *size <= MAX_MAX_BODY);
        let switch = |key| layers.parse(key, "true or false", |text| text.parse::<bool>().ok());
        let memory = switch("memory")?;
        let data_dir = layers.parse("data-dir", "a folder", path)?;
        let amqp_url = layers.parse_or_why("amqp-url", |text| match text {
            "" => Ok(None),
            url => AmqpUrl::from_str(url).map(Some).map_err(|error| error.to_string()),
        })?;
        let ca_file = tls::amqp_ca_file(&layers, amqp_url.as_ref())?;
        let name = |key| layers.parse(key, "a name of 1 to 255 bytes", amqp_name);
        let amqp = match amqp_url {
            None => None,
            Some(url) => Some(AmqpConfig {
                ca_file,
                own_exchange: name("amqp-exchange")?,
                own_queue: name("amqp-queue")?,
                exchange: name("amqp-publish-exchange")?,
                routing_key: name("amqp-routing-key")?,
                ..AmqpConfig::new(url)
            }),
        };
        let tokens = |key| {
            layers.parse_or_why(key, |text| match text {
                "" => Ok(None),
                file => Tokens::read(Path::new(file)).map(Arc::new).map(Some),
            })
        };
        let api_tokens = tokens("api-token-file")?;
        let open_api = switch("allow-open-api")?;
        let api_tls = tls::API.load(&layers)?;
        let asks_for_certificates = api_tls.as_ref().is_some_and(Tls::asks_for_certificates);
        Ok(Self {
            worker_tokens: tokens("worker-token-file")?,
            http_bind: layers.parse("http-bind", ADDRESS, |text| text.parse().ok())?,
            api_bind: layers.parse_or_why("api-bind", |text| {
                let address: SocketAddr = text.parse().map_err(|_| format!("expected {ADDRESS}"))?;
                let is_guarded =
                    address.ip().is_loopback() || api_tokens.is_some() || open_api || asks_for_certificates;
                if is_guarded { Ok(address) } else { Err(OPEN_API.to_owned()) }
            })?,
            api_tokens,
            http_tls: tls::HTTP.load(&layers)?,
            api_tls,
            max_connections: layers.parse("max-connections", "a number from 1 on", |text| {
                text.parse().ok().filter(|number| *number > 0)
            })?,
            limits: Limits {
                max_body: layers.parse("max-body", "a size below 4GiB, such as 64MiB", max_body)?,
                max_inflight: layers.parse("max-inflight", SIZE, size)?,
                min_transfer_rate: layers.parse("min-transfer-rate", "a size a second, such as 16KiB", size)?,
            },
            actors: ActorsConfig {
                data_dir: (!memory).then_some(data_dir),
                blend_roots: layers.parse_many("blend-root", "a folder", path)?,
                max_buffered: layers.parse("max-buffered", SIZE, size)?,
                buffer_ttl: layers.parse("buffer-ttl", "a duration such as 10s, 15m or 24h", duration)?,
                max_outbox: layers.parse("max-outbox", SIZE, size)?,
                amqp,
            },
        })
    }

    /// TLS of whichever server has it.
    pub fn tls(&self) -> impl Iterator<Item = &Tls> {
        self.http_tls.iter().chain(&self.api_tls)
    }
}

/// Why the API server is not reachable from elsewhere by accident.
const OPEN_API: &str = "whoever reaches this address could leave and take messages; give --api-token-file, \
                        --api-client-ca, or --allow-open-api where only the farm's services reach it";

const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:10000";
const SIZE: &str = "a size such as 64MiB";

fn size(text: &str) -> Option<u64> {
    ByteSize::from_str(text).ok().map(|size| size.as_u64())
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero())
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

/// A short string of AMQP 0-9-1.
fn amqp_name(text: &str) -> Option<String> {
    (1..=255).contains(&text.len()).then(|| text.to_owned())
}
