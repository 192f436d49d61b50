//! The URL of the database.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// The URL of a PostgreSQL database, with one or several hosts. Shown without its password.
#[derive(Clone)]
pub struct PostgresUrl(Config);

impl PostgresUrl {
    /// Each host by itself, with the text that names it.
    pub(super) fn hosts(&self) -> Vec<(String, Config)> {
        let all = &self.0;
        let of_host = |(number, host): (usize, &Host)| {
            let mut one = Config::new();
            let port = self.port(number);
            match host {
                Host::Tcp(name) => one.host(name),
                Host::Unix(path) => one.host_path(path),
            };
            if let Some(address) = all.get_hostaddrs().get(number) {
                one.hostaddr(*address);
            }
            if let Some(user) = all.get_user() {
                one.user(user);
            }
            if let Some(password) = all.get_password() {
                one.password(password);
            }
            if let Some(database) = all.get_dbname() {
                one.dbname(database);
            }
            if let Some(options) = all.get_options() {
                one.options(options);
            }
            one.port(port).ssl_mode(all.get_ssl_mode()).ssl_negotiation(all.get_ssl_negotiation());
            one.channel_binding(all.get_channel_binding());
            (format!("{}:{port}", name_of(host)), one)
        };
        all.get_hosts().iter().enumerate().map(of_host).collect()
    }

    fn port(&self, host: usize) -> u16 {
        let ports = self.0.get_ports();
        ports.get(host).or(ports.first()).copied().unwrap_or(5432)
    }

    /// Whether connections are encrypted, and the certificate of the database is checked.
    pub fn is_tls(&self) -> bool {
        self.0.get_ssl_mode() == SslMode::Require
    }
}

impl FromStr for PostgresUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected postgres://user:password@host:port/database";
        if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Err(EXPECTED.to_owned());
        }
        // The parser takes all that is before the first @ for user and password, even where the URL has neither, or has
        // an @ in them. What is a part of the password would then be shown as the user, the host or the database.
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        let (credentials, hosts) = rest.split_once('@').unwrap_or(("", rest));
        let (hosts, _) = hosts.split_once('?').unwrap_or((hosts, ""));
        if credentials.contains(['/', '?']) || hosts.contains('@') {
            return Err(format!("{EXPECTED}; in user and password, write / as %2F, ? as %3F and @ as %40"));
        }
        let mut config = Config::from_str(text).map_err(|error| {
            // its text may have parts of the URL, which has a password
            let why =
                std::error::Error::source(&error).map_or_else(String::new, |_| ": it cannot be parsed".to_owned());
            format!("{EXPECTED}{why}")
        })?;
        if config.get_hosts().is_empty() {
            return Err(format!("{EXPECTED}; the host is missing"));
        }
        if config.get_ssl_mode() != SslMode::Require {
            config.ssl_mode(SslMode::Disable);
        }
        Ok(Self(config))
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.0;
        f.write_str("postgres://")?;
        if let Some(user) = config.get_user() {
            write!(f, "{user}{}@", if config.get_password().is_some() { ":***" } else { "" })?;
        }
        for (number, host) in config.get_hosts().iter().enumerate() {
            f.write_str(if number > 0 { "," } else { "" })?;
            write!(f, "{}:{}", name_of(host), self.port(number))?;
        }
        write!(f, "/{}", config.get_dbname().or(config.get_user()).unwrap_or_default())?;
        if self.is_tls() { f.write_str("?sslmode=require") } else { Ok(()) }
    }
}

fn name_of(host: &Host) -> Cow<'_, str> {
    match host {
        Host::Tcp(name) => name.into(),
        Host::Unix(path) => path.to_string_lossy(),
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (text, shown) in [
            ("postgres://farm:secret@one:5433,two:5434/buffer", "postgres://farm:***@one:5433,two:5434/buffer"),
            ("postgresql://farm@[::1]/", "postgres://farm@::1:5432/farm"),
            ("postgres://a:b@h/d?sslmode=require&password=other", "postgres://a:***@h:5432/d?sslmode=require"),
            ("postgres://a@h/d?sslmode=prefer", "postgres://a@h:5432/d"),
        ] {
            let url = PostgresUrl::from_str(text).expect(text);
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
        for wrong in [
            "mysql://a@h/d",
            "postgres:///d",
            "host=a",
            "postgres://a:secret@h:x/d",
            "postgres://h/d?no=1",
            "postgres://h/d?password=secret@1",
            "postgres://?password=secret@h/d",
            "postgres://h:1?password=1@secret",
            "postgres://a:1/1@secret@h/d",
            "postgres://a@b/c:secret@h",
        ] {
            let error = PostgresUrl::from_str(wrong).expect_err(wrong);
            assert!(error.starts_with("expected postgres://") && !error.contains("secret"), "{error}");
        }
    }
}
