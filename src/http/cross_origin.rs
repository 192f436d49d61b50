//! Refuses requests that a web page of another origin makes a browser send.
//!
//! The API server trusts its network, and any page that is open in a browser in that network can send requests to it. A
//! browser names the page's origin in each of them (`Origin`, or at least `Sec-Fetch-Site`), so a request of another
//! origin is refused. A page whose own host name resolves to this machine (DNS rebinding) has the server's own origin.
//! If nothing else protects the server, the `Host` header is checked, because it contains that name.

use std::net::IpAddr;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::dev::ServiceRequest;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::http::uri::Authority;

use crate::http::error::{Failure, Form};
use crate::http::gate::{Gate, impl_transform};

/// How the page that sends a request is related to the server, according to the browser.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// How many characters of a header an answer shows.
const MAX_SHOWN_CHARS: usize = 100;

/// The name or address of a host in its canonical form: in lower case, without a final dot, without the brackets of an
/// IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// Parses a name or an address; `None` for anything else, such as one with a port.
    ///
    /// ```
    /// use user_http_server::HostName;
    ///
    /// assert_eq!(HostName::parse("Farm.Example."), HostName::parse("farm.example"));
    /// assert_eq!(HostName::parse("farm.example:80"), None);
    /// ```
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

    /// Whether this is a loopback name or address. Browsers and resolvers never look up `localhost` and the names below
    /// it (RFC 6761).
    fn is_loopback(&self) -> bool {
        let is_address = self.0.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        is_address || self.0 == "localhost" || self.0.ends_with(".localhost")
    }
}

/// A host and an optional port, as in a `Host` header and after the scheme of an origin.
#[derive(Debug)]
struct HostPort {
    host: HostName,
    port: Option<u16>,
}

impl HostPort {
    fn parse(text: &str) -> Option<Self> {
        let authority: Authority = text.parse().ok().filter(|_| !text.contains('@'))?;
        let port = match text.strip_prefix(authority.host())? {
            // The parser ignores what is between host and port, and after the port.
            "" | ":" => None,
            port => Some(port.strip_prefix(':')?.parse().ok().filter(|_| !port.contains('+'))?),
        };
        Some(Self { host: HostName::parse(authority.host())?, port })
    }
}

/// Middleware that protects routes from web pages: a request that a page of another origin makes a browser send is
/// answered 403. Requests of other programs pass, because these send neither `Origin` nor `Sec-Fetch-Site`.
///
/// [`UserHttpServer`](crate::UserHttpServer) wraps its API server in this middleware; an application that mounts
/// [`configure_api_routes`](crate::configure_api_routes) wraps that scope:
///
/// ```
/// use actix_web::{App, HttpResponse, test, web};
/// use user_http_server::CrossOriginGuard;
///
/// # #[actix_web::main]
/// # async fn main() {
/// let services = web::scope("/farm").wrap(CrossOriginGuard::new()).route("/", web::post().to(HttpResponse::Ok));
/// let app = test::init_service(App::new().service(services)).await;
///
/// let post = || test::TestRequest::post().uri("/farm/").insert_header(("Host", "farm.example"));
/// let of_page = |origin| post().insert_header(("Origin", origin)).to_request();
/// assert_eq!(test::call_service(&app, post().to_request()).await.status(), 200);
/// assert_eq!(test::call_service(&app, of_page("http://farm.example")).await.status(), 200);
/// assert_eq!(test::call_service(&app, of_page("http://evil.example")).await.status(), 403);
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct CrossOriginGuard {
    /// The hosts that a request may be for, in addition to loopback names and addresses. `None` if any host is
    /// accepted.
    hosts: Option<Arc<[HostName]>>,
}

impl CrossOriginGuard {
    /// Refuses requests of pages of another origin.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also refuses requests for a host (`Host` header) that is neither a loopback name or address nor one of `hosts`.
    /// A server that listens on loopback and asks for no token needs this against DNS rebinding.
    ///
    /// ```
    /// use actix_web::{App, HttpResponse, test, web};
    /// use user_http_server::{CrossOriginGuard, HostName};
    ///
    /// # #[actix_web::main]
    /// # async fn main() {
    /// let guard = CrossOriginGuard::new().loopback_hosts_and(HostName::parse("gateway"));
    /// let app = test::init_service(App::new().wrap(guard).route("/", web::get().to(HttpResponse::Ok))).await;
    ///
    /// for (host, status) in [("localhost:8080", 200), ("gateway:8080", 200), ("rebound.example:8080", 403)] {
    ///     let request = test::TestRequest::get().uri("/").insert_header(("Host", host)).to_request();
    ///     assert_eq!(test::call_service(&app, request).await.status(), status);
    /// }
    /// # }
    /// ```
    pub fn loopback_hosts_and(self, hosts: impl IntoIterator<Item = HostName>) -> Self {
        Self { hosts: Some(hosts.into_iter().collect()) }
    }

    fn check(&self, request: &ServiceRequest) -> Result<(), Failure> {
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

impl Gate for CrossOriginGuard {
    fn refuse(&self, request: &ServiceRequest) -> Option<HttpResponse> {
        let failure = self.check(request).err()?;
        Some(failure.in_form(Form::of_route(request.match_info().unprocessed())))
    }
}

impl_transform!(CrossOriginGuard);

fn check_host(request: &ServiceRequest, allowed: &[HostName]) -> Result<(), Failure> {
    // The request line may name the host too (absolute form, as sent to a proxy).
    let target = request.uri().authority().map(|authority| authority.as_str().to_owned());
    // A request that names no host at all (HTTP/1.0) does not come from a browser.
    for host in header_text(request.headers(), &header::HOST).chain(target) {
        let is_allowed =
            HostPort::parse(&host).is_some_and(|named| named.host.is_loopback() || allowed.contains(&named.host));
        if !is_allowed {
            return Err(Failure::forbidden(format!(
                "the request is for host {:?}; without tokens this server accepts only localhost, loopback addresses \
                 and the hosts that --api-host NAME allows",
                shown(&host)
            )));
        }
    }
    Ok(())
}

/// Whether an origin has the host and the port that the request is for. The scheme may differ, because a proxy may
/// terminate TLS.
fn is_own(origin: &str, host: Option<&str>) -> bool {
    let default_port = match origin.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => 80,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => 443,
        _ => return false,
    };
    let page = origin.split_once("://").and_then(|(_, authority)| HostPort::parse(authority));
    let (Some(page), Some(own)) = (page, host.and_then(HostPort::parse)) else { return false };
    page.host == own.host && page.port.unwrap_or(default_port) == own.port.unwrap_or(default_port)
}

fn foreign(whose: &str) -> Failure {
    Failure::forbidden(format!(
        "the request is from a web page {whose}; this server accepts requests of its own pages only; a proxy in \
         front must pass the Host header on"
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
        let is_loopback = |text: &str| HostPort::parse(text).is_some_and(|named| named.host.is_loopback());
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
