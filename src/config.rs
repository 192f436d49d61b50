//! The configuration: flags, environment, file and defaults make one validated [`Config`].
//!
//! ```
//! use user_http_server::Config;
//!
//! # fn main() -> Result<(), user_http_server::config::ConfigError> {
//! let args = ["gateway", "--max-body", "64MiB"].map(Into::into);
//! let environment = [("USER_HTTP_SERVER_KEEP_ALIVE".into(), "1m".into())];
//! let config = Config::load(args, environment)?;
//! assert_eq!((config.limits.max_body, config.keep_alive.as_secs()), (64 << 20, 60));
//!
//! let error = Config::load(["gateway", "--max-body", "0"].map(Into::into), []).expect_err("not a size");
//! assert!(error.to_string().starts_with("--max-body \"0\" on the command line: expected"));
//! # Ok(())
//! # }
//! ```

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use user_http_actors::ActorsConfig;
use user_http_actors::blend::{DEFAULT_MAX_OPEN_BLEND_FILES, check_root};
use user_http_actors::broker::amqp::AmqpConfig;
use user_http_actors::publisher::FrameAck;

use crate::auth::Tokens;
use crate::http::HostName;
use crate::tls::Tls;
use crate::{Limits, RecentEvents};

mod error;
mod layers;
mod setting;
mod settings;
mod tls;

pub use error::ConfigError;
use layers::Layers;
use setting::Setting;

/// The configuration of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of the worker server.
    pub http_bind: SocketAddr,
    /// Address of the API server.
    pub api_bind: SocketAddr,
    /// The tokens that the worker server accepts; `None` if it asks for none.
    pub worker_tokens: Option<Arc<Tokens>>,
    /// The tokens that the API server accepts; `None` if it asks for none.
    pub api_tokens: Option<Arc<Tokens>>,
    /// The host names, in addition to localhost, under which clients may address the API server while it listens on
    /// loopback without tokens.
    pub api_hosts: Vec<HostName>,
    /// TLS of the worker server; `None` for plain HTTP.
    pub http_tls: Option<Tls>,
    /// TLS of the API server; `None` for plain HTTP.
    pub api_tls: Option<Tls>,
    /// How many connections each server may have open at the same time.
    pub max_connections: usize,
    /// How long an idle connection stays open. A proxy in front must close its own idle connections earlier.
    pub keep_alive: Duration,
    /// The format of log lines, for the program that writes them.
    pub log_format: LogFormat,
    /// The limits of requests.
    pub limits: Limits,
    /// The configuration of the actors.
    pub actors: ActorsConfig,
    /// The recent events for the status page: filled by the logger of the process, if that passes its records on.
    /// Empty after [`Config::load`].
    pub events: RecentEvents,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object on each line, for programs.
    Json,
}

impl Config {
    /// Reads the command line `args` (the program's name first), the environment, and the file that one of them names.
    ///
    /// # Errors
    /// See [`ConfigError`]. Its text names the setting, where its value was given, and what would be accepted.
    pub fn load(
        args: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let layers = Layers::read(settings::ALL, args, environment)?;
        let amqp_url = layers.optional(&settings::AMQP_URL)?;
        let ca_file = tls::amqp_ca_file(&layers, amqp_url.as_ref())?;
        let amqp = match amqp_url {
            None => None,
            Some(url) => Some(AmqpConfig {
                ca_file,
                consume_exchange: layers.one(&settings::AMQP_EXCHANGE)?,
                consume_queue: layers.one(&settings::AMQP_QUEUE)?,
                publish_exchange: layers.one(&settings::AMQP_PUBLISH_EXCHANGE)?,
                routing_key: layers.one(&settings::AMQP_ROUTING_KEY)?,
                await_queues: layers.many(&settings::AMQP_AWAIT_QUEUE)?,
                settle: layers.one(&settings::AMQP_SETTLE)?,
                url,
            }),
        };
        let frame_ack = layers.one(&settings::FRAME_ACK)?;
        if frame_ack == FrameAck::Broker && amqp.is_none() {
            return Err(layers.bad_value(&settings::FRAME_ACK, NO_BROKER.to_owned()));
        }
        let api_tokens = tokens(&layers, &settings::API_TOKEN_FILE)?;
        let api_tls = tls::API.load(&layers)?;
        let (api_bind, open_api) = (layers.one(&settings::API_BIND)?, layers.one(&settings::ALLOW_OPEN_API)?);
        let is_guarded = api_bind.ip().is_loopback()
            || api_tokens.is_some()
            || open_api
            || api_tls.as_ref().is_some_and(Tls::requires_client_certificate);
        if !is_guarded {
            return Err(layers.bad_value(&settings::API_BIND, OPEN_API.to_owned()));
        }
        let (data_dir, memory) = (layers.one(&settings::DATA_DIR)?, layers.one(&settings::MEMORY)?);
        Ok(Self {
            http_bind: layers.one(&settings::HTTP_BIND)?,
            api_bind,
            worker_tokens: tokens(&layers, &settings::WORKER_TOKEN_FILE)?,
            api_tokens,
            api_hosts: layers.many(&settings::API_HOST)?,
            http_tls: tls::HTTP.load(&layers)?,
            api_tls,
            max_connections: layers.one(&settings::MAX_CONNECTIONS)?,
            keep_alive: layers.one(&settings::KEEP_ALIVE)?,
            log_format: layers.one(&settings::LOG_FORMAT)?,
            limits: Limits {
                max_body: layers.one(&settings::MAX_BODY)?,
                max_inflight: layers.one(&settings::MAX_INFLIGHT)?,
                max_upload_space: layers.one(&settings::MAX_UPLOAD_SPACE)?,
                min_transfer_rate: layers.one(&settings::MIN_TRANSFER_RATE)?,
            },
            actors: ActorsConfig {
                data_dir: (!memory).then_some(data_dir),
                blend_roots: layers.many_checked(&settings::BLEND_ROOT, |folder| {
                    check_root(folder).map_err(|error| format!("expected a directory that can be opened: {error}"))
                })?,
                private_files: layers.files().to_vec(),
                max_open_blend_files: DEFAULT_MAX_OPEN_BLEND_FILES,
                max_buffered: layers.one(&settings::MAX_BUFFERED)?,
                buffer_ttl: layers.one(&settings::BUFFER_TTL)?,
                max_outbox: layers.one(&settings::MAX_OUTBOX)?,
                amqp,
                frame_ack,
            },
            events: RecentEvents::default(),
        })
    }

    /// The TLS of each server that speaks it.
    pub fn tls(&self) -> impl Iterator<Item = &Tls> {
        self.http_tls.iter().chain(&self.api_tls)
    }
}

/// The error for an API server that would be open to the network by accident.
const OPEN_API: &str = "anybody who can reach this address could leave and fetch messages; give --api-token-file, \
                        --api-client-ca, or --allow-open-api if only the farm's services can reach it";

const NO_BROKER: &str = "without a broker nothing confirms frames; give --amqp-url, or frame-ack \"stored\"";

/// Reads the tokens of one server, if it has any.
fn tokens(layers: &Layers, setting: &Setting<PathBuf>) -> Result<Option<Arc<Tokens>>, ConfigError> {
    let Some(file) = layers.optional(setting)? else { return Ok(None) };
    let tokens = Tokens::read(&file).map_err(|why| layers.bad_value(setting, why))?;
    Ok(Some(Arc::new(tokens)))
}
