//! Every setting, in the order in which `--help` shows them, and how their values are read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use user_http_actors::broker::amqp::AmqpUrl;

use super::setting::{Declaration, Setting};
use crate::http::HostName;

/// The largest body that the codec takes, in bytes: its offsets have 32 bits.
const MAX_MAX_BODY: u64 = u32::MAX as u64;

/// Declares each setting as a constant, and all of them as [`ALL`]: one that is declared is one that is read.
macro_rules! settings {
    ($($name:ident: $value:ty = $setting:expr;)*) => {
        $(pub const $name: Setting<$value> = $setting;)*

        /// Every setting.
        pub const ALL: &[Declaration] = &[$($name.declaration()),*];
    };
}

settings! {
    HTTP_BIND: SocketAddr = Setting::new("http-bind", "ADDR", "127.0.0.1:10000", "address of the server for workers", address);
    API_BIND: SocketAddr = Setting::new("api-bind", "ADDR", "127.0.0.1:10001", "address of the server for the farm's services", address);
    WORKER_TOKEN_FILE: PathBuf = file("worker-token-file", "bearer tokens of workers, one a line, each with the USER_ID that it is bound to, if any");
    API_TOKEN_FILE: PathBuf = file("api-token-file", "bearer tokens of the farm's services, one a line");
    API_HOST: HostName = Setting::new("api-host", "NAME", "", "name, beside localhost, that requests to the API server may be for while it listens on loopback without tokens; may be given several times", host).many();
    ALLOW_OPEN_API: bool = Setting::switch("allow-open-api", "let anybody who reaches the API server give orders, beyond this machine too");
    HTTP_TLS_CERT: PathBuf = file("http-tls-cert", "certificate of the server for workers, with its chain, in PEM; with it, that server speaks TLS");
    HTTP_TLS_KEY: PathBuf = file("http-tls-key", "its private key, in PEM");
    API_TLS_CERT: PathBuf = file("api-tls-cert", "certificate of the server for the farm's services, with its chain, in PEM; with it, that server speaks TLS");
    API_TLS_KEY: PathBuf = file("api-tls-key", "its private key, in PEM");
    API_CLIENT_CA: PathBuf = file("api-client-ca", "CA certificates, in PEM; with it, a client of that server must have a certificate of one of them");
    AMQP_URL: AmqpUrl = Setting::new("amqp-url", "URL", "", "RabbitMQ, as amqp://user:password@host:port/vhost, or amqps:// for TLS; without it the user manager takes its messages from the API server", amqp_url).secret().guarded();
    AMQP_CA_FILE: PathBuf = file("amqp-ca-file", "CA certificates, in PEM, of which RabbitMQ's must be, for amqps://; without it, those that the system trusts");
    DATA_DIR: PathBuf = folder("data-dir", "./data", "folder in which messages are kept");
    BLEND_ROOT: PathBuf = folder("blend-root", "./blends", "folder in which .blend files may lie; may be given several times, relative paths are relative to the first").many();
    MAX_BODY: u64 = Setting::new("max-body", "SIZE", "256MiB", "largest body that is taken, below 4GiB", body_size);
    MAX_CONNECTIONS: usize = Setting::new("max-connections", "NUMBER", "10000", "how many connections each server has open at once", number);
    KEEP_ALIVE: Duration = Setting::new("keep-alive", "DURATION", "5s", "how long a connection is kept without a request; a proxy in front has to give its own up sooner", keep_alive);
    MAX_INFLIGHT: u64 = Setting::new("max-inflight", "SIZE", "1GiB", "how much of all bodies together is held in memory at once", size);
    MIN_TRANSFER_RATE: u64 = Setting::new("min-transfer-rate", "SIZE", "16KiB", "how many bytes a second a body and an answer have to make after 30 s", size);
    MAX_BUFFERED: u64 = Setting::new("max-buffered", "SIZE", "1GiB", "how much is buffered for workers", size);
    MAX_OUTBOX: u64 = Setting::new("max-outbox", "SIZE", "4GiB", "how much waits for the user manager", size);
    BUFFER_TTL: Duration = Setting::new("buffer-ttl", "DURATION", "24h", "how long a message is buffered", duration);
    MEMORY: bool = Setting::switch("memory", "keep nothing on disk: a stop loses every message");
    AMQP_EXCHANGE: String = name("amqp-exchange", "USER_HTTP_SERVER_EXCHANGE", "exchange that the communication interface publishes to");
    AMQP_QUEUE: String = name("amqp-queue", "UHTTPSE_CI", "queue consumed, bound to that exchange under its own name");
    AMQP_PUBLISH_EXCHANGE: String = name("amqp-publish-exchange", "COMMUNICATION_INTERFACE_EXCHANGE", "exchange that messages for the user manager are published to");
    AMQP_ROUTING_KEY: String = name("amqp-routing-key", "CIE_USER_HTTP_SERVER", "routing key that they are published with");
    AMQP_AWAIT_QUEUE: String = name("amqp-await-queue", "", "queue behind that exchange, the user manager's for one: nothing is published while it does not exist or has no consumer; may be given several times").many();
    AMQP_SETTLE: Duration = Setting::new("amqp-settle", "DURATION", "10s", "without --amqp-await-queue: how long nothing is published after a lost connection to RabbitMQ, for the farm's services to find it again; 0 for not at all", duration_or_zero);
}

/// The path of a file; there is no default.
const fn file(key: &'static str, help: &'static str) -> Setting<PathBuf> {
    Setting::new(key, "FILE", "", help, path).guarded()
}

/// The path of a folder.
const fn folder(key: &'static str, default: &'static str, help: &'static str) -> Setting<PathBuf> {
    Setting::new(key, "DIR", default, help, path).guarded()
}

/// A name at the broker.
const fn name(key: &'static str, default: &'static str, help: &'static str) -> Setting<String> {
    Setting::new(key, "NAME", default, help, amqp_name)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:10000".to_owned())
}

fn host(text: &str) -> Result<HostName, String> {
    let expected = "expected the name or the address of a host, without scheme, port and path, such as farm.example";
    HostName::parse(text).ok_or_else(|| expected.to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

fn amqp_url(text: &str) -> Result<AmqpUrl, String> {
    AmqpUrl::from_str(text).map_err(|error| error.to_string())
}

/// A short string of AMQP 0-9-1.
fn amqp_name(text: &str) -> Result<String, String> {
    if text.len() <= 255 { Ok(text.to_owned()) } else { Err("expected a name of 1 to 255 bytes".to_owned()) }
}

fn number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "expected a number from 1 on".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    let size = ByteSize::from_str(text).map(|size| size.as_u64());
    size.map_err(|_| "expected a size such as 64MiB".to_owned())
}

fn body_size(text: &str) -> Result<u64, String> {
    let size = size(text).ok().filter(|size| *size <= MAX_MAX_BODY);
    size.ok_or_else(|| "expected a size below 4GiB, such as 64MiB".to_owned())
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a duration such as 10s or 1m, or 0".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "expected a duration such as 10s, 15m or 24h".to_owned())
}

/// Longer than a day is for ever, and nobody means that.
fn keep_alive(text: &str) -> Result<Duration, String> {
    let short = duration(text).ok().filter(|duration| *duration <= Duration::from_secs(86_400));
    short.ok_or_else(|| "expected a duration such as 5s or 2m, a day at the most".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kubernetes puts a Service's name in front of these and gives the result to every pod. A Service
    /// `user-http-server` or `user-http-server-max` must not set anything here.
    #[test]
    fn no_setting_has_the_name_of_a_variable_that_kubernetes_makes_of_a_service() {
        for setting in ALL {
            let name = setting.variable();
            let is_a_services = name.ends_with("_PORT")
                || name.ends_with("_SERVICE_HOST")
                || name.contains("_SERVICE_PORT")
                || ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains(protocol));
            assert!(!is_a_services, "{name}");
        }
    }
}
