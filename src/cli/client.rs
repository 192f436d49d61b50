//! A client of the API server of a running gateway: where the server is, what proves it to be the right one, and how
//! failures read.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches};
use rustls::{AlertDescription, CertificateError};
use serde::Deserialize;
use ureq::config::Config;
use ureq::http::header::AUTHORIZATION;
use ureq::http::{HeaderValue, Uri};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};
use ureq::{Agent, Body};
use user_http_actors::tls::wrong_version;
use user_http_server::auth::first_plain_token;
use user_http_server::config::ApiServer;

use crate::cli::text::quoted;
use crate::cli::{Failure, Invocation, Settings};

mod tls;

use tls::{Credentials, TlsConnector};

/// The settings that say where the API server is and what it asks for.
pub const SETTINGS: Settings =
    Settings::Shown(&["config", "api-bind", "api-tls-cert", "api-tls-key", "api-client-ca", "api-token-file"]);

/// The longest answer that is read, in bytes: a list of a million parked messages.
const MAX_ANSWER: u64 = 1 << 30;

/// The longest `--timeout`. The end of a much longer one could not be computed.
const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

/// The arguments of a subcommand that is a client.
pub fn args(default_timeout: &'static str) -> [Arg; 5] {
    let file =
        |name: &'static str| Arg::new(name).long(name).value_name("FILE").value_parser(clap::value_parser!(PathBuf));
    [
        file("token-file").help(
            "Token file whose first token that is no hash is sent\n\
             [default: the token in USER_HTTP_SERVER_TOKEN, or else --api-token-file]",
        ),
        file("ca-file").help("CA certificates to trust for https, in PEM [default: those of the system]"),
        file("client-cert").requires("client-key").help(
            "Client certificate for https with its chain, in PEM\n\
             [default: with --api-client-ca, the server's own certificate]",
        ),
        file("client-key").requires("client-cert").help("Private key of --client-cert, in PEM"),
        Arg::new("timeout")
            .long("timeout")
            .value_name("DURATION")
            .default_value(default_timeout)
            .value_parser(duration)
            .help("How long to wait for an answer"),
    ]
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok();
    let duration = duration.filter(|duration| !duration.is_zero() && *duration <= MAX_TIMEOUT);
    duration.ok_or_else(|| "expected a duration such as 5s or 1m, at most 1d".to_owned())
}

/// A client of one API server.
pub struct Client {
    /// Its URL, without the slash at the end.
    base: String,
    agent: Agent,
    token: Token,
    trust: String,
    timeout: Duration,
}

/// The token that a client sends.
enum Token {
    Known {
        value: HeaderValue,
        origin: String,
    },
    /// There is none, and the text says why, or how to give one.
    None(String),
}

/// What the server has answered.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Client {
    /// A client of the server at `url`, or else of the one that the configuration describes.
    ///
    /// # Errors
    /// The command line or the configuration is wrong.
    pub fn new(invocation: &Invocation<'_>, url: Option<&String>) -> Result<Self, Failure> {
        let args = invocation.args;
        let server = invocation.layers().api_server()?;
        let base = match url {
            Some(url) => base_of(url).map_err(Failure::Usage)?,
            None => default_base(&server).map_err(Failure::Usage)?,
        };
        let timeout = args.get_one("timeout").copied().unwrap_or(Duration::from_secs(10));
        // Never through a proxy: a gateway is on the same network. Never to another server: that would get the token.
        let config = Config::builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("user-http-server/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(timeout))
            .build();
        let token = Token::find(args, &server)?;
        let tcp = ().chain(TcpConnector::default());
        let (agent, trust) = if base.starts_with("https:") {
            let credentials = Credentials::find(args, &server, url.is_none()).map_err(Failure::Usage)?;
            let trust = credentials.trust();
            let connector = TlsConnector::new(credentials).map_err(Failure::Usage)?;
            (Agent::with_parts(config, tcp.chain(connector), DefaultResolver::default()), trust)
        } else {
            (Agent::with_parts(config, tcp, DefaultResolver::default()), String::new())
        };
        Ok(Self { base, agent, token, trust, timeout })
    }

    /// The URL of the server.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn get(&self, path: &str) -> Result<Answer, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base));
        self.answer(self.authorized(request).call())
    }

    pub fn delete(&self, path: &str) -> Result<Answer, Failure> {
        let request = self.agent.delete(format!("{}{path}", self.base));
        self.answer(self.authorized(request).call())
    }

    pub fn post(&self, path: &str) -> Result<Answer, Failure> {
        let request = self.agent.post(format!("{}{path}", self.base));
        self.answer(self.authorized(request).send_empty())
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Token::Known { value, .. } => request.header(AUTHORIZATION, value),
            Token::None(_) => request,
        }
    }

    fn answer(&self, answer: Result<ureq::http::Response<Body>, ureq::Error>) -> Result<Answer, Failure> {
        let read = answer.and_then(|mut answer| {
            let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec()?;
            Ok(Answer { status: answer.status().as_u16(), body })
        });
        read.map_err(|error| Failure::Failed(format!("no answer from {}: {}", self.base, self.explain(error))))
    }

    /// Why there is no answer.
    fn explain(&self, error: ureq::Error) -> String {
        let error = match error {
            ureq::Error::Io(error) => error,
            ureq::Error::Timeout(_) => return format!("it did not answer within {:?}", self.timeout),
            ureq::Error::HostNotFound => return "there is no host of that name".to_owned(),
            error => return error.to_string(),
        };
        let tls_error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        if let Some(why) = tls_error.and_then(wrong_version) {
            return format!("its certificate is not accepted: {why}");
        }
        match tls_error {
            Some(rustls::Error::InvalidCertificate(
                why @ (CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. }
                | CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }),
            )) => format!("its certificate is not accepted: {why}, and it is not the one in --api-tls-cert"),
            Some(rustls::Error::InvalidCertificate(_)) => {
                format!("its certificate is not trusted: it is neither {}; give its CA with --ca-file", self.trust)
            }
            Some(rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError,
            )) => {
                "it asks for another client certificate; give one that --api-client-ca has issued with --client-cert \
                   and --client-key"
                    .to_owned()
            }
            Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS; use http://".to_owned(),
            Some(why) => format!("the TLS handshake has failed: {why}"),
            None => match error.kind() {
                io::ErrorKind::ConnectionRefused => "nothing listens there; is the gateway running?".to_owned(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    format!("it has closed the connection ({error})")
                }
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    format!("it did not answer within {:?}", self.timeout)
                }
                _ => error.to_string(),
            },
        }
    }

    /// An answer that is no success, in words.
    pub fn refusal(&self, answer: &Answer) -> String {
        let why = match answer.detail() {
            Some(detail) => detail,
            None => "its answer does not say why; is it the API server of a gateway?".to_owned(),
        };
        let advice = match (answer.status, &self.token) {
            (401, Token::None(why)) => format!("; {why}"),
            (401, Token::Known { origin, .. }) => format!("; the token in {origin} is not valid there"),
            _ => String::new(),
        };
        format!("{} answers {}: {why}{advice}", self.base, answer.status)
    }
}

impl Answer {
    /// Why the server refuses, as the forms of failures of the API server say it.
    pub fn detail(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Form {
            #[serde(alias = "ERROR")]
            detail: String,
        }
        serde_json::from_slice::<Form>(&self.body).ok().map(|form| form.detail)
    }
}

impl Token {
    /// The token to send: that of `--token-file`, or of the environment, or else the first one of the server's own
    /// token file that is no hash.
    fn find(args: &ArgMatches, server: &ApiServer) -> Result<Self, Failure> {
        if let Some(file) = args.get_one::<PathBuf>("token-file") {
            return match first_plain_token(file) {
                Ok(Some(token)) => Self::of(&token, &file.display()).map_err(Failure::Usage),
                Ok(None) => Err(Failure::Usage(only_hashes("token-file", file))),
                Err(why) => Err(Failure::Usage(format!("--token-file: {why}"))),
            };
        }
        if let Some(token) = &server.token {
            return Self::of(token, &"USER_HTTP_SERVER_TOKEN").map_err(Failure::Usage);
        }
        let Some(file) = &server.token_file else {
            return Ok(Self::None(GIVE_TOKEN.to_owned()));
        };
        Ok(match first_plain_token(file) {
            Ok(Some(token)) => Self::of(&token, &file.display()).unwrap_or_else(Self::None),
            Ok(None) => Self::None(only_hashes("api-token-file", file)),
            // the server may not ask for one
            Err(why) => Self::None(format!("--api-token-file: {why}; {GIVE_TOKEN}")),
        })
    }

    fn of(token: &str, origin: &dyn ToString) -> Result<Self, String> {
        let origin = origin.to_string();
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| format!("the token in {origin} has characters that cannot be sent"))?;
        value.set_sensitive(true);
        Ok(Self::Known { value, origin })
    }
}

/// How to give a token.
const GIVE_TOKEN: &str = "give a token in a file with --token-file, or in USER_HTTP_SERVER_TOKEN";

fn only_hashes(flag: &str, file: &Path) -> String {
    let file = file.display();
    format!("--{flag} {file} has only hashes (sha256:…), from which no token can be found; {GIVE_TOKEN}")
}

/// The URL of a server, without the slash at the end.
fn base_of(url: &str) -> Result<String, String> {
    // what it names may be a password
    let shown = if url.contains(['@', '?']) { "one with an account or a query".to_owned() } else { quoted(url) };
    let bad = || format!("expected a URL such as http://127.0.0.1:10001, not {shown}");
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_account = uri.authority().is_none_or(|authority| authority.as_str().contains('@'));
    // a client would ask the port of the scheme instead, and tell it the token
    let is_port_wrong = uri.authority().is_none_or(|authority| {
        authority.as_str().len() != authority.host().len() && authority.port_u16().is_none_or(|port| port == 0)
    });
    if !is_http || has_account || is_port_wrong || uri.path().contains('@') || uri.query().is_some() {
        return Err(bad());
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// The URL of the server that the configuration describes.
fn default_base(server: &ApiServer) -> Result<String, String> {
    if server.bind.port() == 0 {
        return Err(format!("the port of --api-bind {} is chosen at the start; give the URL", server.bind));
    }
    let ip = match server.bind.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{}", SocketAddr::new(ip, server.bind.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_asked_on_loopback() {
        for (bind, url) in [
            ("127.0.0.1:10001", "http://127.0.0.1:10001"),
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]:1", "http://[::1]:1"),
            ("192.0.2.1:1", "http://192.0.2.1:1"),
        ] {
            let bind = bind.parse().expect("an address");
            let server = ApiServer { bind, tls: None, token_file: None, token: None };
            assert_eq!(default_base(&server).as_deref(), Ok(url));
        }
    }

    #[test]
    fn a_url_has_a_scheme_and_a_host_and_may_have_a_path() {
        for (url, base) in [
            ("http://127.0.0.1:1", "http://127.0.0.1:1"),
            ("https://farm.example/services/", "https://farm.example/services"),
            ("https://[::1]", "https://[::1]"),
            ("https://[::1]:65535/", "https://[::1]:65535"),
        ] {
            assert_eq!(base_of(url).as_deref(), Ok(base));
        }
        for url in [
            "",
            "127.0.0.1:1",
            "farm.example",
            "/x",
            "ftp://a",
            "http://u:p@a",
            "http://a?b",
            "http:// a",
            "http://a:99999",
            "https://[::1]:65536",
            "http://a:0",
            "http://a:",
        ] {
            assert!(base_of(url).is_err(), "{url}");
        }
        for url in ["http://u:secret@a", "http://https://u:secret@a", "http://a?token=secret", "u:secret@a"] {
            let why = base_of(url).expect_err("an account or a query");
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
