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
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Command;
use user_http_actors::ActorsConfig;
use user_http_actors::blend::{DEFAULT_MAX_OPEN_BLEND_FILES, check_root};
use user_http_actors::broker::amqp::AmqpConfig;
use user_http_actors::postgres::PostgresConfig;
use user_http_actors::publisher::FrameAck;

use crate::auth::Tokens;
use crate::http::HostName;
use crate::tls::{Tls, TlsFiles};
use crate::{Limits, RecentEvents};

mod check;
mod error;
mod layers;
mod setting;
mod settings;
mod tls;

pub use error::ConfigError;
pub use layers::{GivenValues, Layers, Origin, flags};
use setting::Setting;
pub use setting::without_password;

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
    /// Whether the API server may listen on any address without tokens and client certificates.
    pub allow_open_api: bool,
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
    /// The first one that is found; [`Layers`] finds all. Its text names the setting, where its value was given, and
    /// what would be accepted.
    pub fn load(
        args: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let command = Command::new("user-http-server").version(env!("CARGO_PKG_VERSION")).args(flags());
        let matches = command.try_get_matches_from(args).map_err(ConfigError::CommandLine)?;
        let mut layers = Layers::read(&[&matches], environment);
        layers.warnings().iter().for_each(|warning| log::warn!("{warning}"));
        layers.config().map_err(|mut errors| errors.remove(0))
    }

    /// Whether the API server may listen on this address: without tokens, client certificates and
    /// [`allow_open_api`](Self::allow_open_api) it must be a loopback address.
    ///
    /// # Errors
    /// Why not, and what would be right.
    pub fn check_api_address(&self, address: SocketAddr) -> Result<(), &'static str> {
        let is_guarded = address.ip().is_loopback()
            || self.api_tokens.is_some()
            || self.allow_open_api
            || self.api_tls.as_ref().is_some_and(Tls::requires_client_certificate);
        if is_guarded { Ok(()) } else { Err(OPEN_API) }
    }

    /// The TLS of each server that speaks it.
    pub fn tls(&self) -> impl Iterator<Item = &Tls> {
        self.http_tls.iter().chain(&self.api_tls)
    }
}

impl Layers {
    /// The configuration.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn config(&mut self) -> Result<Config, Vec<ConfigError>> {
        let config = read(self);
        self.finish(config)
    }

    /// The data directory of a gateway with this configuration; `None` if it stores messages in memory only.
    ///
    /// # Errors
    /// What is wrong with these settings, and what cannot be read of the others. Their values are not looked at.
    pub fn data_dir(&mut self) -> Result<Option<PathBuf>, Vec<ConfigError>> {
        let data_dir = self.one(&settings::DATA_DIR);
        let memory = self.one(&settings::MEMORY);
        self.finish(data_dir.zip(memory).map(|(data_dir, memory)| (!memory).then_some(data_dir)))
    }

    /// How to reach the API server of a gateway with this configuration.
    ///
    /// # Errors
    /// What is wrong with these settings, and what cannot be read of the others. Their values are not looked at.
    pub fn api_server(&mut self) -> Result<ApiServer, Vec<ConfigError>> {
        let token = self.client_token();
        let server = self.one(&settings::API_BIND).map(|bind| ApiServer {
            bind,
            tls: tls::API.files(self),
            token_file: self.optional(&settings::API_TOKEN_FILE),
            token,
        });
        self.finish(server)
    }
}

/// What a client has to know of the API server of a gateway on the same machine.
#[derive(Clone)]
pub struct ApiServer {
    /// The address that it is bound to.
    pub bind: SocketAddr,
    /// Its certificate and key, and the CA of its clients; `None` if it speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The file with the tokens that it accepts.
    pub token_file: Option<PathBuf>,
    /// The token to send, from the variable `USER_HTTP_SERVER_TOKEN`.
    pub token: Option<String>,
}

impl fmt::Debug for ApiServer {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bind, tls, token_file, token: _ } = self;
        let mut shown = f.debug_struct("ApiServer");
        shown.field("bind", bind).field("tls", tls).field("token_file", token_file).finish_non_exhaustive()
    }
}

/// Reads every setting, and notes what is wrong. `None` only if a setting has neither a value nor a default.
fn read(layers: &mut Layers) -> Option<Config> {
    let amqp_urls = layers.many(&settings::AMQP_URL);
    let ca_file = tls::amqp_ca_file(layers, &amqp_urls);
    if amqp_urls.windows(2).any(|urls| urls[0].vhost() != urls[1].vhost()) {
        layers.refuse(&settings::AMQP_URL, OTHER_VHOST.to_owned());
    }
    let mut amqp_urls = amqp_urls.into_iter();
    let amqp = match amqp_urls.next() {
        None => None,
        Some(url) => Some(AmqpConfig {
            further_urls: amqp_urls.collect(),
            queue_type: layers.optional(&settings::AMQP_QUEUE_TYPE),
            ca_file,
            consume_exchange: layers.one(&settings::AMQP_EXCHANGE)?,
            consume_queue: layers.one(&settings::AMQP_QUEUE)?,
            publish_exchange: layers.one(&settings::AMQP_PUBLISH_EXCHANGE)?,
            routing_key: layers.one(&settings::AMQP_ROUTING_KEY)?,
            await_queues: layers.many(&settings::AMQP_AWAIT_QUEUE),
            settle: layers.one(&settings::AMQP_SETTLE)?,
            url,
        }),
    };
    let frame_ack = layers.one(&settings::FRAME_ACK)?;
    if frame_ack == FrameAck::Broker && !layers.is_given(&settings::AMQP_URL) {
        layers.refuse(&settings::FRAME_ACK, NO_BROKER.to_owned());
    }
    let api_tokens = tokens(layers, &settings::API_TOKEN_FILE);
    let api_tls = tls::API.load(layers);
    let (http_bind, api_bind) = (layers.one(&settings::HTTP_BIND)?, layers.one(&settings::API_BIND)?);
    let allow_open_api = layers.one(&settings::ALLOW_OPEN_API)?;
    // a token file that cannot be read is an error of its own
    let is_guarded = api_bind.ip().is_loopback()
        || allow_open_api
        || layers.is_given(&settings::API_TOKEN_FILE)
        || layers.is_given(&settings::API_CLIENT_CA);
    if !is_guarded {
        layers.refuse(&settings::API_BIND, OPEN_API.to_owned());
    }
    if overlap(http_bind, api_bind) {
        let why = format!("the worker server has this address too (--http-bind {http_bind}); give each its own port");
        layers.refuse(&settings::API_BIND, why);
    }
    let require_sync = layers.one(&settings::POSTGRES_REQUIRE_SYNC)?;
    let shared_buffer = layers.optional(&settings::BUFFER_STORE).map(|url| PostgresConfig { url, require_sync });
    if require_sync > 0 && !layers.is_given(&settings::BUFFER_STORE) {
        layers.refuse(&settings::POSTGRES_REQUIRE_SYNC, NO_DATABASE.to_owned());
    }
    let (data_dir, memory) = (layers.one(&settings::DATA_DIR)?, layers.one(&settings::MEMORY)?);
    Some(Config {
        http_bind,
        api_bind,
        worker_tokens: tokens(layers, &settings::WORKER_TOKEN_FILE),
        api_tokens,
        api_hosts: layers.many(&settings::API_HOST),
        allow_open_api,
        http_tls: tls::HTTP.load(layers),
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
                check_root(folder).map_err(|error| {
                    format!("expected a directory that can be opened: {error}; create it, or give another")
                })
            }),
            private_files: layers.files().to_vec(),
            max_open_blend_files: DEFAULT_MAX_OPEN_BLEND_FILES,
            shared_buffer,
            max_buffered: layers.one(&settings::MAX_BUFFERED)?,
            buffer_ttl: layers.one(&settings::BUFFER_TTL)?,
            max_outbox: layers.one(&settings::MAX_OUTBOX)?,
            amqp,
            frame_ack,
        },
        events: RecentEvents::default(),
    })
}

/// Whether two sockets cannot listen on these addresses at the same time.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // an IPv6 socket on all addresses takes the port of IPv4 too
    let covers = |all: SocketAddr, other: SocketAddr| match all.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && other.ip().to_canonical().is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    let is_same_host = one.ip().to_canonical() == other.ip().to_canonical();
    one.port() != 0 && one.port() == other.port() && (is_same_host || covers(one, other) || covers(other, one))
}

/// The error for an API server that would be open to the network by accident.
const OPEN_API: &str = "anybody who can reach this address could leave and fetch messages; give --api-token-file, \
                        --api-client-ca, or --allow-open-api if only the farm's services can reach it";

const OTHER_VHOST: &str = "the nodes of a cluster have the same vhosts; give each --amqp-url the same one";
const NO_BROKER: &str = "without a broker nothing confirms frames; give --amqp-url, or frame-ack \"stored\"";

const NO_DATABASE: &str = "without a database there are no standbys; give --buffer-store as well";

/// Reads the tokens of one server, if it has any.
fn tokens(layers: &mut Layers, setting: &Setting<PathBuf>) -> Option<Arc<Tokens>> {
    let file = layers.optional(setting)?;
    match Tokens::read(&file) {
        Ok(tokens) => Some(Arc::new(tokens)),
        Err(why) => {
            layers.refuse(setting, why);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_on_the_same_port_are_refused_only_if_they_would_meet() {
        for (one, other, meet) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "[::]:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
        ] {
            let [one, other] = [one, other].map(|text| text.parse().expect("an address"));
            assert_eq!((overlap(one, other), overlap(other, one)), (meet, meet), "{one} and {other}");
        }
    }
}
