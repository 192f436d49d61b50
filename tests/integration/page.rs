//! The status page as a document: its headers, and what it may load.

use crate::harness::{Host, Response, Setup, for_each_host, request};

for_each_host!(the_page_is_one_document_that_may_load_nothing_from_outside);

/// The SHA-256 of the content of an element of the page, as a policy has it.
fn hash_of(html: &str, element: &str) -> String {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let (_, rest) = html.split_once(&format!("<{element}>")).expect("the element");
    let (content, _) = rest.split_once(&format!("</{element}>")).expect("its end");
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(content));
    format!("{element}-src 'sha256-{hash}'")
}

fn the_page_is_one_document_that_may_load_nothing_from_outside(host: Host) {
    let server = Setup::on(host).start();
    let page = request(server.api, "GET", &server.api_path("/"), &[], b"");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")), "{page:?}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"), "{page:?}");
    let policy = page.header("content-security-policy").expect("a policy").to_owned();
    let html = String::from_utf8(page.body).expect("UTF-8");
    for directive in [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "img-src data:",
        &hash_of(&html, "style"),
        &hash_of(&html, "script"),
    ] {
        assert!(policy.split("; ").any(|part| part == directive), "no {directive:?} in {policy}");
    }
    assert_eq!(policy.split("; ").count(), 8, "{policy}");
    let outside = html.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http://") && !outside.contains("https://") && !outside.contains("src="), "{html}");
    assert!(html.contains("data-token=\"none\""));
}

#[test]
fn the_page_of_a_scope_without_a_final_slash_is_redirected_to_the_one_with_it() {
    let server = Setup::on(Host::Embedded).start();
    let answer = request(server.api, "GET", server.api_path("").as_str(), &[], b"");
    let (_, last) = server.api_path("").rsplit_once('/').map(|(_, last)| ((), format!("{last}/"))).expect("a scope");
    assert_eq!((answer.status, answer.header("location")), (308, Some(last.as_str())), "{answer:?}");
}

#[test]
fn the_page_needs_no_token_and_knows_that_its_data_does() {
    for host in [Host::Server, Host::Embedded] {
        let setup = Setup::on(host);
        let tokens = setup.path("tokens");
        std::fs::write(&tokens, "a-token-of-an-operator\n").expect("a token file");
        let server = setup.args(["--api-token-file", tokens.to_str().expect("UTF-8")]).start();
        let get = |path: &str| -> Response { request(server.api, "GET", &server.api_path(path), &[], b"") };
        let page = get("/");
        assert_eq!(page.status, 200, "{page:?}");
        assert!(String::from_utf8_lossy(&page.body).contains("data-token=\"needed\""), "{page:?}");
        assert_eq!(get("/?token=x").status, 200);
        for path in ["/status", "/events", "//", "/index.html"] {
            get(path).failure(401);
        }
        request(server.api, "POST", &server.api_path("/"), &[], b"{}").failure(401);
        assert_ne!(request(server.http, "GET", &server.worker_path("/"), &[], b"").status, 200, "workers have no page");
    }
}
