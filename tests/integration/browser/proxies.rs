//! The status page behind nginx, over TLS and below a path prefix.

use serde_json::json;

use super::status_page::add;
use crate::harness::{Front, Kind, Page, Server};

#[test]
fn the_page_works_through_a_tls_proxy_and_below_a_path_prefix() {
    let server = Server::start();
    let below = "location /farm/gateway/ {\n        proxy_pass http://services/;\n    }\n    location / {";
    let configuration = Kind::Nginx.configuration().replacen("location / {", below, 1);
    let front = Front::with(Kind::Nginx, [server.http, server.api], &configuration);
    let url = format!("https://{}/farm/gateway/", front.workers);
    let page = Page::open(&url);
    page.wait_for(&["All is well", "0 messages wait for workers"]);
    add(&server, "id-1", &json!(1));
    page.wait_for(&["1 message waits for workers"]);
    page.assert_clean(&url);
    // a stream, not one request after another
    let requests = "performance.getEntriesByType('resource').filter(entry => entry.name.endsWith('/status')).length";
    assert_eq!(page.evaluate(requests), 0);
}
