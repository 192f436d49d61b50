//! What the API server takes from web pages: its own requests only.
//!
//! It trusts its network, and any page that is open in a browser there can send it requests. A browser says of each
//! which page it is from (`Origin`, or at least `Sec-Fetch-Site`), so a request of another page is refused. A page whose
//! own name resolves to this machine (DNS rebinding) passes for the server's own; where nothing else guards the server,
//! the `Host` header gives that name away.

use std::net::IpAddr;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::http::uri::Authority;

use crate::http::error::Failure;

/// A browser's word for how the page that sends a request is related to the server.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// How many characters of a header an answer repeats.
const MAX_SHOWN_CHARS: usize = 100;

/// The name or address of a host, of which each has one spelling: in lower case, without a dot at its end, without
/// the brackets of an IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// Reads a name or an address; none of anything else, such as one with a port.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self(address.to_canonical().to_string()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        is_name.then(|| Self(name.to_ascii_lowercase()))
    }

    /// Whether it is this machine for whoever resolves it: browsers and resolvers ask nobody for `localhost` and what
    /// is below it (RFC 6761).
    fn is_loopback(&self) -> bool {
        let is_address = self.0.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        is_address || self.0 == "localhost" || self.0.ends_with(".localhost")
    }
}

/// A host and a port, if it has one, as a `Host` header has them and an origin behind its scheme.
#[derive(Debug)]
struct Place {
    host: HostName,
    port: Option<u16>,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let authority: Authority = text.parse().ok().filter(|_| !text.contains('@'))?;
        let port = match text.strip_prefix(authority.host())? {
            // what stands between a host and its port, and behind them, is not looked at by the parser
            "" | ":" => None,
            port => Some(port.strip_prefix(':')?.parse().ok().filter(|_| !port.contains('+'))?),
        };
        Some(Self { host: HostName::parse(authority.host())?, port })
    }
}

/// Tells a web page's requests from others'.
#[derive(Clone, Debug)]
pub struct PageGuard {
    /// Beside loopback, the hosts by whose name the server may be asked; none where any is taken.
    hosts: Option<Arc<[HostName]>>,
}

impl PageGuard {
    /// Refuses requests of other servers' pages; where the server is `trusting`, because it listens on loopback and
    /// asks for no token, those for another host than loopback and `hosts` too.
    pub fn new(trusting: bool, hosts: Vec<HostName>) -> Self {
        Self { hosts: trusting.then(|| hosts.into()) }
    }

    /// Lets a request pass, or says why not (403).
    pub fn check(&self, request: &HttpRequest) -> Result<(), Failure> {
        let headers = request.headers();
        if let Some(allowed) = &self.hosts {
            check_host(request, allowed)?;
        }
        if headers.contains_key(header::ORIGIN) {
            let own = header_text(headers, &header::HOST).next();
            return match header_text(headers, &header::ORIGIN).find(|origin| !is_own(origin, own.as_deref())) {
                Some(origin) => Err(foreign(&format!("of {:?}", shown(&origin)))),
                None => Ok(()),
            };
        }
        if header_text(headers, &SEC_FETCH_SITE).any(|site| site.eq_ignore_ascii_case("cross-site")) {
            return Err(foreign("of another site (Sec-Fetch-Site: cross-site)"));
        }
        Ok(())
    }
}

fn check_host(request: &HttpRequest, allowed: &[HostName]) -> Result<(), Failure> {
    // a proxy's client may name the host in the request's first line
    let target = request.uri().authority().map(|authority| authority.as_str().to_owned());
    // without any (HTTP/1.0) it is no browser's request
    for host in header_text(request.headers(), &header::HOST).chain(target) {
        let is_allowed =
            Place::parse(&host).is_some_and(|place| place.host.is_loopback() || allowed.contains(&place.host));
        if !is_allowed {
            return Err(Failure::forbidden(format!(
                "the request is for host {:?}, and without tokens this server takes only those for localhost or a \
                 loopback address; --api-host NAME allows another",
                shown(&host)
            )));
        }
    }
    Ok(())
}

/// Whether an origin has the host and the port that the request is for. The scheme may be another: that of a proxy.
fn is_own(origin: &str, host: Option<&str>) -> bool {
    let default_port = match origin.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => 80,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => 443,
        _ => return false,
    };
    let page = origin.split_once("://").and_then(|(_, place)| Place::parse(place));
    let (Some(page), Some(own)) = (page, host.and_then(Place::parse)) else { return false };
    page.host == own.host && page.port.unwrap_or(default_port) == own.port.unwrap_or(default_port)
}

fn foreign(whose: &str) -> Failure {
    Failure::forbidden(format!(
        "the request is from a web page {whose}, and this server takes those of its own pages only; behind a proxy, the \
         proxy has to pass the Host header on"
    ))
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> {
    headers.get_all(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_the_servers_own_where_host_and_port_are_those_that_were_asked() {
        for (origin, host) in [
            ("http://127.0.0.1:10001", "127.0.0.1:10001"),
            ("https://127.0.0.1:10001", "127.0.0.1:10001"),
            ("http://[::1]:10001", "[::1]:10001"),
            ("http://[::1]:10001", "[0:0:0:0:0:0:0:1]:10001"),
            ("http://LocalHost:10001", "localhost.:10001"),
            ("http://farm.example", "farm.example"),
            ("http://farm.example", "farm.example:80"),
            ("https://farm.example", "farm.example:443"),
            ("https://farm.example:443", "farm.example"),
            ("https://farm.example:8443", "farm.example:8443"),
        ] {
            assert!(is_own(origin, Some(host)), "{origin} for {host}");
        }
    }

    #[test]
    fn any_other_origin_is_foreign() {
        for (origin, host) in [
            ("null", "null"),
            ("", "127.0.0.1:10001"),
            ("127.0.0.1:10001", "127.0.0.1:10001"),
            ("http://127.0.0.1:10000", "127.0.0.1:10001"),
            ("http://127.0.0.1", "127.0.0.1:10001"),
            ("http://localhost:10001", "127.0.0.1:10001"),
            ("http://farm.example", "farm.example:443"),
            ("http://farm.example.evil.example", "farm.example"),
            ("http://evil.example@farm.example", "farm.example"),
            ("http://farm.example@evil.example", "farm.example"),
            ("http://farm.example/", "farm.example.evil"),
            ("ftp://farm.example", "farm.example"),
            ("file://", ""),
            ("chrome-extension://farm.example", "farm.example"),
            ("http://farm.example http://evil.example", "farm.example"),
        ] {
            assert!(!is_own(origin, Some(host)), "{origin} for {host}");
        }
        assert!(!is_own("http://farm.example", None));
    }

    #[test]
    fn loopback_has_many_spellings_and_some_that_only_look_like_it() {
        let is_loopback = |text: &str| Place::parse(text).is_some_and(|place| place.host.is_loopback());
        for text in [
            "localhost",
            "LOCALHOST:1",
            "localhost.",
            "status.localhost:80",
            "127.0.0.1",
            "127.1.2.3:10001",
            "[::1]",
            "[::1]:10001",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_loopback(text), "{text}");
        }
        for text in [
            "",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "localhost:80.evil.example",
            "localhost:80:90",
            "localhost:+80",
            "localhost:99999",
            "[::1].evil.example",
            "[::1]evil.example:80",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "0.0.0.0",
            "10.0.0.1",
            "[::]",
            "[fe80::1]",
            "local host",
        ] {
            assert!(!is_loopback(text), "{text}");
        }
    }

    #[test]
    fn a_host_name_has_no_scheme_port_or_path() {
        assert_eq!(HostName::parse("Farm.Example."), HostName::parse("farm.example"));
        assert_eq!(HostName::parse("[::1]"), HostName::parse("::1"));
        for wrong in ["", ".", "farm.example:80", "http://farm.example", "farm.example/x", "*", "a b", "färm.example"]
        {
            assert_eq!(HostName::parse(wrong), None, "{wrong:?}");
        }
    }
}
