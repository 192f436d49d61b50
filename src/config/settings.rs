//! Every setting, in the order of `--help`, and how its text is parsed.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use user_http_actors::broker::amqp::{AmqpUrl, MAX_SETTLE, QueueType};
use user_http_actors::postgres::PostgresUrl;
use user_http_actors::publisher::FrameAck;

use super::LogFormat;
use super::setting::{Declaration, Setting};
use crate::http::HostName;

/// The largest body that the codec can handle, in bytes: its offsets have 32 bits.
const MAX_MAX_BODY: u64 = u32::MAX as u64;

/// Declares each setting as a constant, and lists all of them in [`ALL`], so that no setting is declared but never
/// read.
macro_rules! settings {
    ($($heading:literal { $($name:ident: $value:ty = $setting:expr;)* })*) => {
        $($(pub const $name: Setting<$value> = $setting.under($heading);)*)*

        /// Every setting.
        pub const ALL: &[Declaration] = &[$($($name.declaration(),)*)*];
    };
}

settings! {
    "Servers" {
        HTTP_BIND: SocketAddr = Setting::new(
            "http-bind",
            "ADDR",
            "127.0.0.1:10000",
            "Address of the worker server",
            address,
        );
        API_BIND: SocketAddr = Setting::new(
            "api-bind",
            "ADDR",
            "127.0.0.1:10001",
            "Address of the API server, for the farm's services. Without tokens and client certificates it\n\
             must be a loopback address",
            address,
        );
        API_HOST: HostName = Setting::new(
            "api-host",
            "NAME",
            "",
            "Host name, in addition to localhost, under which clients may address the API server while it\n\
             listens on loopback without tokens",
            host,
        ).many_separated_by(split_hosts);
        ALLOW_OPEN_API: bool = Setting::switch(
            "allow-open-api",
            "Allow the API server on any address without tokens and client certificates",
        );
        MAX_CONNECTIONS: usize = Setting::new(
            "max-connections",
            "NUMBER",
            "10000",
            "Number of open connections per server; further ones wait",
            number,
        );
        KEEP_ALIVE: Duration = Setting::new(
            "keep-alive",
            "DURATION",
            "5s",
            "Time after which an idle connection is closed, at most 1d. A proxy in front must close its own\n\
             idle connections earlier",
            keep_alive,
        );
    }
    "Log" {
        LOG_FORMAT: LogFormat = Setting::new(
            "log-format",
            "text|json",
            "text",
            "Format of the log on standard error: text, or one JSON object on each line",
            log_format,
        );
    }
    "Authentication" {
        WORKER_TOKEN_FILE: PathBuf = file(
            "worker-token-file",
            "Bearer tokens of workers, one per line; a USER_ID after a token binds it to that worker",
        );
        API_TOKEN_FILE: PathBuf = file("api-token-file", "Bearer tokens of the farm's services, one per line");
    }
    "TLS" {
        HTTP_TLS_CERT: PathBuf = file(
            "http-tls-cert",
            "Certificate of the worker server with its chain, in PEM; turns TLS on",
        );
        HTTP_TLS_KEY: PathBuf = file("http-tls-key", "Private key of the worker server, in PEM");
        API_TLS_CERT: PathBuf = file(
            "api-tls-cert",
            "Certificate of the API server with its chain, in PEM; turns TLS on",
        );
        API_TLS_KEY: PathBuf = file("api-tls-key", "Private key of the API server, in PEM");
        API_CLIENT_CA: PathBuf = file(
            "api-client-ca",
            "CA certificates, in PEM: clients of the API server must present a certificate that one of them issued",
        );
    }
    "RabbitMQ" {
        AMQP_URL: AmqpUrl = Setting::new(
            "amqp-url",
            "URL",
            "",
            "Broker, as amqp://user:password@host:port/vhost, or amqps:// for TLS; or a node of a cluster, whose\n\
             nodes are tried in turn. Without it the user manager fetches its messages from the API server",
            amqp_url,
        ).many_separated_by(split_urls).secret(masked_amqp_url).guarded();
        AMQP_CA_FILE: PathBuf = file(
            "amqp-ca-file",
            "CA certificates, in PEM, to trust for amqps:// instead of those of the system",
        );
        AMQP_EXCHANGE: String = name(
            "amqp-exchange",
            "USER_HTTP_SERVER_EXCHANGE",
            "Exchange that the communication interface publishes to",
        );
        AMQP_QUEUE: String = name(
            "amqp-queue",
            "UHTTPSE_CI",
            "Queue to consume from; bound to that exchange under its own name",
        );
        AMQP_QUEUE_TYPE: QueueType = Setting::new(
            "amqp-queue-type",
            "classic|quorum",
            "",
            "Type of that queue: on one node, or replicated in a cluster; without it an existing queue of any\n\
             type is used, and a new one has the broker's default type",
            QueueType::from_str,
        );
        AMQP_PUBLISH_EXCHANGE: String = name(
            "amqp-publish-exchange",
            "COMMUNICATION_INTERFACE_EXCHANGE",
            "Exchange to publish messages for the user manager to",
        );
        AMQP_ROUTING_KEY: String = name("amqp-routing-key", "CIE_USER_HTTP_SERVER", "Routing key to publish them with");
        AMQP_AWAIT_QUEUE: String = name(
            "amqp-await-queue",
            "",
            "Queue behind that exchange, such as the user manager's: publish only while it exists and has a\n\
             consumer",
        ).many();
        AMQP_SETTLE: Duration = Setting::new(
            "amqp-settle",
            "DURATION",
            "10s",
            "Without --amqp-await-queue: how long to publish nothing after a lost connection, so that the farm's\n\
             services can reconnect first, at most 1d; 0 for none",
            settle,
        );
        FRAME_ACK: FrameAck = Setting::new(
            "frame-ack",
            "stored|broker",
            "stored",
            "What a 200 for a frame means: stored here or confirmed by the broker, whichever comes first, or\n\
             confirmed by the broker; while it confirms nothing, frames are then answered 503",
            frame_ack,
        );
    }
    "Messages" {
        DATA_DIR: PathBuf = folder("data-dir", "./data", "Directory in which messages are stored");
        MEMORY: bool = Setting::switch("memory", "Store messages in memory only: a restart loses all of them");
        BUFFER_STORE: PostgresUrl = Setting::new(
            "buffer-store",
            "URL",
            "",
            "PostgreSQL database for the messages that wait for workers, as\n\
             postgres://user:password@host:port/database. Gateways with the same one act as one. Without it\n\
             these messages are in the data directory",
            postgres_url,
        ).secret(masked_postgres_url).guarded();
        POSTGRES_REQUIRE_SYNC: u32 = Setting::new(
            "postgres-require-sync",
            "NUMBER",
            "0",
            "Number of synchronous standbys that the database must have; with fewer, messages for workers are\n\
             answered 503",
            standbys,
        );
        BLEND_ROOT: PathBuf = folder(
            "blend-root",
            "./blends",
            "Directory from which .blend files may be sent; relative paths in messages start at the first one",
        ).many();
        MAX_BUFFERED: u64 = Setting::new(
            "max-buffered",
            "SIZE",
            "1GiB",
            "Capacity for messages that wait for workers",
            size,
        );
        BUFFER_TTL: Duration = Setting::new(
            "buffer-ttl",
            "DURATION",
            "24h",
            "Time after which a message that no worker has fetched is discarded",
            duration,
        );
        MAX_OUTBOX: u64 = Setting::new(
            "max-outbox",
            "SIZE",
            "4GiB",
            "Capacity for messages that wait for the user manager",
            size,
        );
    }
    "Limits of requests" {
        MAX_BODY: u64 = Setting::new("max-body", "SIZE", "256MiB", "Largest request body, less than 4GiB", body_size);
        MAX_INFLIGHT: u64 = Setting::new(
            "max-inflight",
            "SIZE",
            "1GiB",
            "Memory for all request bodies at the same time",
            positive_size,
        );
        MAX_UPLOAD_SPACE: u64 = Setting::new(
            "max-upload-space",
            "SIZE",
            "64GiB",
            "Disk space for all request bodies that are being received",
            positive_size,
        );
        MIN_TRANSFER_RATE: u64 = Setting::new(
            "min-transfer-rate",
            "SIZE",
            "16KiB",
            "Minimum transfer rate of request and response bodies, per second, after a grace period of 30 s",
            rate,
        );
    }
}

/// The path of a file, without a default.
const fn file(key: &'static str, help: &'static str) -> Setting<PathBuf> {
    Setting::new(key, "FILE", "", help, path).guarded()
}

/// The path of a directory.
const fn folder(key: &'static str, default: &'static str, help: &'static str) -> Setting<PathBuf> {
    Setting::new(key, "DIR", default, help, path).guarded()
}

/// The name of an exchange, a queue or a routing key.
const fn name(key: &'static str, default: &'static str, help: &'static str) -> Setting<String> {
    Setting::new(key, "NAME", default, help, amqp_name)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:10000".to_owned())
}

fn host(text: &str) -> Result<HostName, String> {
    let expected = "expected a host name or address without scheme, port and path, such as farm.example or [::1]";
    HostName::parse(text).ok_or_else(|| expected.to_owned())
}

/// Splits a list at the colons before a scheme. Within a URL there is no `//` but that of its own scheme.
fn split_urls(list: &str) -> Vec<String> {
    let mut urls = Vec::new();
    let mut rest = list;
    while let Some(end) = [":amqp://", ":amqps://"].iter().filter_map(|next| rest.find(next)).min() {
        urls.push(rest[..end].to_owned());
        rest = &rest[end + 1..];
    }
    urls.push(rest.to_owned());
    urls
}

/// Splits a list at its colons, except those of IPv6 addresses.
fn split_hosts(list: &str) -> Vec<String> {
    let mut parts: Vec<&str> = list.split(':').collect();
    let mut hosts = Vec::new();
    while !parts.is_empty() {
        // The longest address that starts here.
        let address = (2..=parts.len()).rev().map(|len| (len, parts[..len].join(":"))).find(|(_, text)| {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            bare.parse::<Ipv6Addr>().is_ok()
        });
        let (len, host) = address.unwrap_or_else(|| (1, parts[0].to_owned()));
        hosts.push(host);
        parts.drain(..len);
    }
    hosts
}

fn path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

fn amqp_url(text: &str) -> Result<AmqpUrl, String> {
    AmqpUrl::from_str(text).map_err(|error| error.to_string())
}

fn masked_amqp_url(text: &str) -> Option<String> {
    Some(AmqpUrl::from_str(text).ok()?.to_string())
}

fn postgres_url(text: &str) -> Result<PostgresUrl, String> {
    text.parse()
}

fn masked_postgres_url(text: &str) -> Option<String> {
    Some(PostgresUrl::from_str(text).ok()?.to_string())
}

fn standbys(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|number| *number <= 100).ok_or_else(|| "expected a number from 0 to 100".to_owned())
}

/// A short string of AMQP 0-9-1.
fn amqp_name(text: &str) -> Result<String, String> {
    if text.len() <= 255 { Ok(text.to_owned()) } else { Err("expected a name of 1 to 255 bytes".to_owned()) }
}

fn frame_ack(text: &str) -> Result<FrameAck, String> {
    match text {
        "stored" => Ok(FrameAck::Stored),
        "broker" => Ok(FrameAck::Broker),
        _ => Err("expected stored or broker".to_owned()),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json".to_owned()),
    }
}

fn number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "expected a number of at least 1".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    let size = ByteSize::from_str(text).map(|size| size.as_u64());
    size.map_err(|_| "expected a size such as 64MiB".to_owned())
}

fn positive_size(text: &str) -> Result<u64, String> {
    let size = size(text).ok().filter(|size| *size > 0);
    size.ok_or_else(|| "expected a size of at least 1 byte, such as 64MiB".to_owned())
}

fn body_size(text: &str) -> Result<u64, String> {
    let size = positive_size(text).ok().filter(|size| *size <= MAX_MAX_BODY);
    size.ok_or_else(|| "expected a size of at least 1 byte and less than 4GiB, such as 64MiB".to_owned())
}

/// At least 1 byte per second: without a minimum, a client that stops reading would keep its message leased forever.
fn rate(text: &str) -> Result<u64, String> {
    positive_size(text).map_err(|_| "expected a size of at least 1 byte, such as 16KiB, for each second".to_owned())
}

fn settle(text: &str) -> Result<Duration, String> {
    let settle = humantime::parse_duration(text).ok().filter(|settle| *settle <= MAX_SETTLE);
    settle.ok_or_else(|| "expected a duration such as 10s or 1m, at most 1d, or 0".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "expected a duration such as 10s, 15m or 24h".to_owned())
}

fn keep_alive(text: &str) -> Result<Duration, String> {
    let short = duration(text).ok().filter(|duration| *duration <= Duration::from_secs(86_400));
    short.ok_or_else(|| "expected a duration such as 5s or 2m, at most 1d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::setting::Kind;

    /// Kubernetes sets variables in every pod whose names begin with the name of a Service. A Service
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

    /// The flag and the default of each setting, in their order.
    #[test]
    fn the_book_has_each_setting_with_its_default() {
        let book = include_str!("../../docs/configuration.md");
        let code = |cell: &str| cell.split('`').nth(1).map(str::to_owned);
        let rows = book.lines().filter(|line| line.starts_with("| `--"));
        let shown: Vec<(String, String)> = rows
            .map(|row| {
                let cells: Vec<&str> = row.split(" | ").collect();
                let flag = code(cells[0]).and_then(|flag| flag.split(' ').next().map(str::to_owned));
                (flag.expect("a flag"), code(cells[1]).unwrap_or_else(|| cells[1].to_owned()))
            })
            .collect();
        let declared: Vec<(String, String)> = ALL
            .iter()
            .map(|setting| {
                let default = match (setting.default, setting.kind) {
                    (_, Kind::Switch) => "off",
                    ("", _) => "none",
                    (default, _) => default,
                };
                (format!("--{}", setting.key), default.to_owned())
            })
            .collect();
        assert_eq!(shown, declared);
        for setting in ALL.iter().filter(|setting| matches!(setting.kind, Kind::Many(_))) {
            let row = book.lines().find(|line| line.starts_with(&format!("| `--{} ", setting.key)));
            assert!(row.is_some_and(|row| row.to_lowercase().contains("repeatable")), "{}", setting.key);
        }
    }

    #[test]
    fn every_default_is_accepted() {
        assert!(crate::config::Layers::read(&[], []).config().is_ok());
    }

    #[test]
    fn a_list_of_brokers_is_split_before_each_scheme() {
        for (list, urls) in [
            ("amqp://a", &["amqp://a"][..]),
            (
                "amqp://u:p@a:1/%2f:amqps://b:amqp://[::1]:5672",
                &["amqp://u:p@a:1/%2f", "amqps://b", "amqp://[::1]:5672"],
            ),
            ("amqp://a::amqp://b", &["amqp://a:", "amqp://b"]),
            ("secret", &["secret"]),
            ("", &[""]),
        ] {
            assert_eq!(split_urls(list), urls, "{list}");
        }
    }

    #[test]
    fn a_list_of_hosts_may_have_ipv6_addresses_with_and_without_brackets() {
        for (list, hosts) in [
            ("farm.example", &["farm.example"][..]),
            ("farm.example:gateway", &["farm.example", "gateway"]),
            ("::1", &["::1"]),
            ("[::1]", &["[::1]"]),
            ("fe80::1:2:3", &["fe80::1:2:3"]),
            ("farm.example:[fe80::1]:gateway", &["farm.example", "[fe80::1]", "gateway"]),
            ("[fe80::1]:[fe80::2]", &["[fe80::1]", "[fe80::2]"]),
            ("farm.example:fe80::1", &["farm.example", "fe80::1"]),
            ("2001:db8::1:10.0.0.1:gateway", &["2001:db8::1:10.0.0.1", "gateway"]),
            ("10.0.0.1:10.0.0.2", &["10.0.0.1", "10.0.0.2"]),
        ] {
            assert_eq!(split_hosts(list), hosts, "{list}");
            assert!(hosts.iter().all(|text| host(text).is_ok()), "{list}");
        }
        for wrong in ["x::y", "a:", ":a", "[::1", "[::1]x:a", "http://a"] {
            assert!(split_hosts(wrong).iter().any(|text| API_HOST.parse(text).is_err()), "{wrong}");
        }
    }
}
