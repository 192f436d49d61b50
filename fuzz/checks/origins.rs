//! What passes as a request of the server's own pages comes from a page that a browser, which reads URLs as WHATWG's
//! standard does, has loaded from this host and port; and what passes as a loopback host is one to a browser.

use std::pin::Pin;

use actix_web::body::BoxBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::rt::SystemRunner;
use actix_web::{App, Error, HttpResponse, test, web};
use url::{Host, Url};
use user_http_server::CrossOriginGuard;

type Answering = Pin<Box<dyn Future<Output = Result<ServiceResponse<BoxBody>, Error>>>>;
type Guarded = Box<dyn Fn(test::TestRequest) -> Answering>;

/// Runs the services of this thread.
struct Servers {
    system: SystemRunner,
    of_any_host: Guarded,
    of_loopback: Guarded,
}

thread_local! {
    /// Never dropped: what a system uses of its thread may be dropped before.
    static SERVERS: &'static Servers = Box::leak(Box::new(Servers::start()));
}

fn guarded(system: &SystemRunner, guard: CrossOriginGuard) -> Guarded {
    let app = App::new().wrap(guard).route("/", web::get().to(HttpResponse::Ok));
    let service = system.block_on(test::init_service(app));
    Box::new(move |request| {
        let answering = service.call(request.to_request());
        Box::pin(async move { answering.await.map(|answer| answer.map_into_boxed_body()) })
    })
}

impl Servers {
    fn start() -> Self {
        let system = actix_web::rt::System::new();
        let of_any_host = guarded(&system, CrossOriginGuard::new());
        let of_loopback = guarded(&system, CrossOriginGuard::new().loopback_hosts_and([]));
        Self { system, of_any_host, of_loopback }
    }
}

/// Whether a request with these headers passes.
fn passes(of: fn(&Servers) -> &Guarded, headers: &[(HeaderName, &[u8])]) -> bool {
    SERVERS.with(|servers| {
        let mut request = test::TestRequest::get().uri("/");
        for (name, value) in headers {
            let Ok(value) = HeaderValue::from_bytes(value) else { return false };
            request = request.append_header((name.clone(), value));
        }
        let answer = servers.system.block_on(of(servers)(request)).expect("an answer");
        assert!([200, 403].contains(&answer.status().as_u16()), "{answer:?}");
        answer.status() == 200
    })
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name == "localhost" || name.ends_with(".localhost")
        }
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.to_canonical().is_loopback(),
    }
}

/// The first line is the host that a request is for, the others are origins.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let host = lines.next().unwrap_or_default();
    let is_served = passes(|servers| &servers.of_loopback, &[(header::HOST, host.as_bytes())]);
    if let (true, Ok(url)) = (is_served, Url::parse(&format!("http://{host}/"))) {
        assert!(url.host().is_some_and(|host| is_loopback(&host)), "{host}");
    }
    for origin in lines {
        let headers = [(header::HOST, host.as_bytes()), (header::ORIGIN, origin.as_bytes())];
        let passes_as_own = passes(|servers| &servers.of_any_host, &headers);
        let (page, server) =
            (Url::parse(origin), Url::parse(&format!("{}://{host}/", origin.split(':').next().unwrap_or_default())));
        if let (true, Ok(page), Ok(server)) = (passes_as_own, page, server) {
            let dotless = |url: &Url| url.host_str().map(|host| host.trim_end_matches('.').to_owned());
            assert_eq!(dotless(&page), dotless(&server), "{origin} {host}");
            assert_eq!(page.port_or_known_default(), server.port_or_known_default(), "{origin} {host}");
        }
        check_page(origin);
    }
}

/// A page that has loaded from this URL may send requests to where it came from.
fn check_page(text: &str) {
    let Ok(page) = Url::parse(text) else { return };
    let Some(host) = page.host_str().filter(|_| ["http", "https"].contains(&page.scheme())) else { return };
    let is_usual = |byte| matches!(byte, b'-' | b'.' | b'_' | b'[' | b']' | b':') || byte.is_ascii_alphanumeric();
    if !host.bytes().all(is_usual) || host.bytes().all(|byte| byte == b'.') {
        return;
    }
    let host = page.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
    let origin = page.origin().ascii_serialization();
    let headers = [(header::HOST, host.as_bytes()), (header::ORIGIN, origin.as_bytes())];
    assert!(passes(|servers| &servers.of_any_host, &headers), "{origin} {host}");
    let headers = [(header::HOST, host.as_bytes()), (header::ORIGIN, b"null".as_slice())];
    assert!(!passes(|servers| &servers.of_any_host, &headers), "null {host}");
}
