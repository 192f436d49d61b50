//! `/openapi.json` and `/openapi-worker.json`: the descriptions against the servers, in both directions.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{
    Connection, Response, SOON, Server, Setup, eventually, files_below, holds, order_in_json, request,
};

/// Headers of the framing, which no description names.
const FRAMING: [&str; 5] = ["connection", "content-length", "content-type", "date", "transfer-encoding"];

/// What other tests show: it takes a full disk, a broker, or many seconds.
const SHOWN_ELSEWHERE: [(&str, &str); 7] = [
    // connections.rs, limits.rs
    ("TooSlow", "408"),
    // disk.rs, crash/
    ("Failed", "500"),
    ("UnavailableProblem", "503"),
    ("UnavailablePickle", "503"),
    ("GET /readyz", "503"),
    // amqp.rs, actors/tests/administration.rs
    ("DELETE /admin/outbox/{id}", "409"),
    // browsers.rs
    ("ForbiddenProblem", "403"),
];

/// A description, and which of its answers have been seen.
struct Description {
    document: Value,
    /// Statuses by operation, or by the name of a shared response.
    seen: BTreeSet<(String, String)>,
    /// The headers of each.
    headers: BTreeSet<(String, String, String)>,
}

impl Description {
    fn get(server: &Server, path: &str) -> Self {
        let answer = request(server.api, "GET", path, &[], b"");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{answer:?}");
        let document = answer.json();
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")), "{document}");
        Self { document, seen: BTreeSet::new(), headers: BTreeSet::new() }
    }

    fn operations(&self) -> Vec<(String, String, Value)> {
        let paths = self.document["paths"].as_object().expect("paths");
        let of_path = |(path, item): (&String, &Value)| {
            let operations = item.as_object().expect("operations").iter();
            operations.map(|(method, of)| (method.to_uppercase(), path.clone(), of.clone())).collect::<Vec<_>>()
        };
        paths.iter().flat_map(of_path).collect()
    }

    /// A described response, and the name under which it is counted as seen.
    fn response(&self, operation: &str, response: &Value) -> (String, Value) {
        match response["$ref"].as_str() {
            Some(reference) => {
                let name = reference.rsplit('/').next().expect("a name");
                (name.to_owned(), self.document["components"]["responses"][name].clone())
            }
            None => (operation.to_owned(), response.clone()),
        }
    }

    /// Checks that an answer is described, and counts it as seen.
    #[track_caller]
    fn see(&mut self, method: &str, path: &str, answer: &Response) {
        let operation = format!("{method} {path}");
        let status = answer.status.to_string();
        let responses = &self.document["paths"][path][method.to_lowercase()]["responses"];
        let described = &responses[&status];
        assert!(described.is_object(), "{operation} does not describe {status}: {answer:?}");
        let (name, described) = self.response(&operation, described);
        for (header, _) in answer.headers.iter().filter(|(header, _)| !FRAMING.contains(&header.as_str())) {
            let headers = described["headers"].as_object().expect("headers");
            let known = headers.keys().find(|known| known.eq_ignore_ascii_case(header));
            let known = known.unwrap_or_else(|| panic!("{operation} {status} does not describe {header}: {answer:?}"));
            self.headers.insert((name.clone(), status.clone(), known.clone()));
        }
        if let Some(media_type) = answer.header("content-type").filter(|_| method != "HEAD") {
            let media_type = media_type.split(';').next().unwrap_or_default();
            let content = described["content"].as_object();
            let known = content.is_some_and(|content| content.contains_key(media_type));
            assert!(known, "{operation} {status} does not describe {media_type}: {answer:?}");
        }
        self.seen.insert((name, status));
    }

    /// Checks that every described status and header has been seen.
    #[track_caller]
    fn assert_all_seen(&self) {
        let mut missing = BTreeSet::new();
        for (method, path, operation) in self.operations() {
            for status in operation["responses"].as_object().expect("responses").keys() {
                // an answer to HEAD is one to GET without its body
                let method = if method == "HEAD" { "GET" } else { &method };
                let of_get = &self.document["paths"][&path][method.to_lowercase()]["responses"][status];
                let (name, described) = self.response(&format!("{method} {path}"), of_get);
                if SHOWN_ELSEWHERE.contains(&(name.as_str(), status.as_str())) {
                    continue;
                }
                if !self.seen.contains(&(name.clone(), status.clone())) {
                    missing.insert(format!("{method} {path} {status}"));
                    continue;
                }
                for header in described["headers"].as_object().expect("headers").keys() {
                    if !self.headers.contains(&(name.clone(), status.clone(), header.clone())) {
                        missing.insert(format!("{name} {status} {header}"));
                    }
                }
            }
        }
        assert!(missing.is_empty(), "described, and not seen: {missing:#?}");
    }
}

/// A request of an operation: the method, the path in the description, the target, headers and body.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8]);

fn order(uuid: &str, message: &Value) -> Vec<u8> {
    order_in_json(uuid, message).into_bytes()
}

fn frame(kind: &str, len: usize) -> Vec<u8> {
    json!({ "USER_ID": "u", "MAIN_DATA": { "TYPE": kind, "DATA": "x".repeat(len) } }).to_string().into_bytes()
}

/// A target for a path of the description.
fn target(path: &str) -> String {
    path.replace("{id}", "00000000-0000-4000-8000-000000000000").replace("{uuid}", "x").replace("{digest}", "0")
}

/// Refusals that do not depend on the route: each is provoked on every operation.
fn see_refusals(description: &mut Description, open: SocketAddr, guarded: SocketAddr, has_guard: bool) {
    for (method, path, operation) in description.operations() {
        let to = target(&path);
        let long = "x".repeat(20_000);
        let heads = [
            format!("{method} {to} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            format!("{method} {to} HTTP/1.1\r\nHost: localhost\r\nA: {long}\r\n\r\n"),
        ];
        for head in heads {
            let mut connection = Connection::open(open);
            connection.send(head.as_bytes());
            description.see(if method == "HEAD" { "GET" } else { &method }, &path, &connection.read_response());
        }
        if has_guard {
            let answer = request(open, &method, &to, &[("Origin", "https://evil.example")], b"");
            assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
            description.see(&method, &path, &answer);
        }
        let answer = request(guarded, &method, &to, &[], b"");
        let needs_token = operation["responses"]["401"].is_object();
        assert_eq!(answer.status == 401, needs_token, "{method} {path}: {answer:?}");
        description.see(&method, &path, &answer);
        // the methods that are not described are not there
        let answer = request(open, "PATCH", &to, &[], b"");
        let item = description.document["paths"][&path].as_object().expect("operations");
        let described: BTreeSet<String> = item.keys().map(|method| method.to_uppercase()).collect();
        let allowed: BTreeSet<String> =
            answer.header("allow").unwrap_or_default().split(", ").map(str::to_owned).collect();
        assert_eq!((answer.status, allowed), (405, described), "{path}: {answer:?}");
    }
}

/// A server with tokens on both of its servers.
fn guarded() -> Server {
    let setup = Setup::default();
    let file = setup.path("tokens");
    fs::write(&file, format!("{}\n{} bound\n", "a".repeat(32), "b".repeat(32))).expect("a token file");
    let file = file.to_str().expect("UTF-8").to_owned();
    setup.args(["--api-token-file", &file, "--worker-token-file", &file]).start()
}

#[test]
fn the_worker_server_answers_as_described() {
    let server = Server::with(&["--max-body", "1MiB"]);
    let mut description = Description::get(&server, "/openapi-worker.json");
    let guarded = guarded();
    see_refusals(&mut description, server.http, guarded.http, false);
    server.blend_file("scene.blend", b"a scene");
    let file = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend" });
    let large = json!({ "DATA": { "META_DATA": file["META_DATA"], "BINARY_BLEND_FILE": "large.blend" } });
    server.sparse_blend_file("large.blend", 64 << 20);
    for (uuid, message) in [("plain", json!("a message")), ("file", json!({ "DATA": file })), ("large", large)] {
        let path = "/CommunicationInterface/AddBufferMsg";
        assert_eq!(request(server.api, "POST", path, &[], &order(uuid, &message)).status, 200);
    }
    let mut delivery = Connection::open(server.http);
    delivery.send_head("GET", "/?bufferUUID=large", &[]);
    assert_eq!(delivery.read_head().status, 200);
    let by_reference = [("Prefer", "blend-reference"), ("Range", "bytes=0-0")];
    let referred = request(server.http, "GET", "/?bufferUUID=file", &[by_reference[0]], b"");
    let text = String::from_utf8_lossy(&referred.body);
    let start = text.find("/blends/").unwrap_or_else(|| panic!("{referred:?}"));
    let blend = text[start..start + "/blends/".len() + 64].to_owned();
    description.see("GET", "/", &referred);
    let again = request(
        server.api,
        "POST",
        "/CommunicationInterface/AddBufferMsg",
        &[],
        &order("file", &json!({ "DATA": file })),
    );
    assert_eq!(again.status, 200);
    let (frame, test, much) = (frame("FRAME_RENDERED", 10), frame("TEST", 10), vec![b'x'; 2 << 20]);
    let key = [("Idempotency-Key", "one")];
    let range = [("Range", "bytes=1-2")];
    let past = [("Range", "bytes=9999-")];
    let other = [("If-Match", "\"x\"")];
    let cases: &[Case] = &[
        ("GET", "/", "/?bufferUUID=large", &[], b""),
        ("GET", "/", "/?bufferUUID=file", &by_reference, b""),
        ("GET", "/", "/?bufferUUID=plain", &range, b""),
        ("GET", "/", "/?bufferUUID=plain", &past, b""),
        ("GET", "/", "/?bufferUUID=plain", &other, b""),
        ("HEAD", "/", "/?bufferUUID=plain", &[], b""),
        ("HEAD", "/", "/?bufferUUID=plain", &other, b""),
        ("HEAD", "/", "/?bufferUUID=nothing", &[], b""),
        ("GET", "/", "/?bufferUUID=plain", &[], b""),
        ("GET", "/blends/{digest}", &blend, &[], b""),
        ("GET", "/blends/{digest}", &blend, &range, b""),
        ("GET", "/blends/{digest}", &blend, &past, b""),
        ("GET", "/blends/{digest}", &blend, &other, b""),
        ("GET", "/blends/{digest}", &blend, &[("If-None-Match", "*")], b""),
        ("HEAD", "/blends/{digest}", &blend, &[], b""),
        ("GET", "/blends/{digest}", "/blends/0", &[], b""),
        ("POST", "/", "/", &[], &test),
        ("POST", "/", "/", &[], &frame),
        ("POST", "/", "/", &key, &frame),
        ("POST", "/", "/", &key, &frame),
        ("POST", "/", "/", &key, &test),
        ("POST", "/", "/", &[], b"{"),
        ("POST", "/", "/", &[], &much),
        ("POST", "/", "/", &[("Content-Encoding", "gzip")], b"x"),
    ];
    for (method, path, target, headers, body) in cases {
        let answer = match (*method, *path) {
            ("GET", "/blends/{digest}") if headers.first().is_some_and(|(name, _)| *name == "If-None-Match") => {
                let mut connection = Connection::open(server.http);
                connection.send_head(method, target, headers);
                connection.read_head()
            }
            _ => request(server.http, method, target, headers, body),
        };
        description.see(method, path, &answer);
    }
    let bound = format!("Bearer {}", "b".repeat(32));
    description.see("POST", "/", &request(guarded.http, "POST", "/", &[("Authorization", &bound)], &test));
    let narrow = Server::with(&["--max-inflight", "1KB"]);
    description.see("POST", "/", &request(narrow.http, "POST", "/", &[], &much));
    description.assert_all_seen();
}

#[test]
fn the_api_server_answers_as_described() {
    let server = Server::with(&["--max-body", "8MiB"]);
    let mut description = Description::get(&server, "/openapi.json");
    let guarded = guarded();
    see_refusals(&mut description, server.api, guarded.api, true);
    server.sparse_blend_file("large.blend", 64 << 20);
    let large = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "large.blend" });
    let (plain, large, much) =
        (order("plain", &json!(1)), order("large", &json!({ "DATA": large })), vec![b'x'; 9 << 20]);
    let add = "/CommunicationInterface/AddBufferMsg";
    for (headers, body) in [
        (&[][..], &plain),
        (&[], &large),
        (&[], &b"{".to_vec()),
        (&[], &much),
        (&[("Content-Encoding", "gzip")], &plain),
    ] {
        description.see("POST", add, &request(server.api, "POST", add, headers, body));
    }
    let mut delivery = Connection::open(server.http);
    delivery.send_head("GET", "/?bufferUUID=large", &[]);
    assert_eq!(delivery.read_head().status, 200);
    // each of these becomes a parked message, because its body cannot be read
    for _ in 0..2 {
        assert_eq!(request(server.http, "POST", "/", &[], &frame("FRAME_RENDERED", 4 << 20)).status, 200);
    }
    let bodies = files_below(&server.setup().data_dir().join("outbox"));
    let bodies: Vec<_> =
        bodies.into_iter().filter(|(path, _)| path.extension().is_some_and(|of| of == "body")).collect();
    assert_eq!(bodies.len(), 2, "{bodies:?}");
    for (path, _) in &bodies {
        fs::OpenOptions::new().write(true).truncate(true).open(path).expect("a body file");
    }
    let parked = eventually("two messages are parked", SOON, || {
        let mut connection = Connection::open(server.api);
        connection.send_head("GET", "/UserManager/NextMessage", &[]);
        let _ = connection.try_read_response();
        let listed = request(server.api, "GET", "/UserManager/Parked", &[], b"");
        let ids: Vec<String> = listed
            .json()
            .as_array()
            .expect("a list")
            .iter()
            .map(|of| of["id"].as_str().expect("an id").to_owned())
            .collect();
        holds(ids.len() == 2, listed).map(|()| ids)
    });
    for kind in ["FRAME_RENDERED", "RENDER_COMPLETED", "FRAME_RENDERED"] {
        assert_eq!(request(server.http, "POST", "/", &[], &frame(kind, 10)).status, 200);
    }
    let next = request(server.api, "GET", "/UserManager/NextMessage", &[], b"");
    description.see("GET", "/UserManager/NextMessage", &next);
    let id = next.header("message-id").expect("an id").to_owned();
    let outbox = request(server.api, "GET", "/admin/outbox", &[], b"").json();
    let last = outbox["messages"].as_array().expect("a list").last().expect("a message")["id"].clone();
    let last = format!("/admin/outbox/{}", last.as_str().expect("an id"));
    let (delete, delete_parked) = (format!("/UserManager/Messages/{id}"), format!("/UserManager/Parked/{}", parked[0]));
    let unreadable = format!("/admin/outbox/{}", parked[1]);
    let publish = format!("/UserManager/Parked/{}/Publish", parked[1]);
    let (message, parked, published) =
        ("/UserManager/Messages/{id}", "/UserManager/Parked/{id}", "/UserManager/Parked/{id}/Publish");
    let cases: &[(&str, &str, &str)] = &[
        ("DELETE", message, &delete),
        ("DELETE", message, &delete),
        ("GET", "/UserManager/Parked", "/UserManager/Parked"),
        ("HEAD", "/UserManager/Parked", "/UserManager/Parked"),
        ("DELETE", parked, &delete_parked),
        ("DELETE", parked, &delete_parked),
        ("POST", published, &publish),
        // it would be offered to the user manager again
        ("DELETE", "/admin/outbox/{id}", &unreadable),
        ("POST", published, &publish),
        ("GET", "/admin/buffer", "/admin/buffer"),
        ("HEAD", "/admin/buffer", "/admin/buffer"),
        ("GET", "/admin/buffer", "/admin/buffer?limit=0"),
        ("DELETE", "/admin/buffer/{uuid}", "/admin/buffer/large"),
        ("DELETE", "/admin/buffer/{uuid}", "/admin/buffer/plain"),
        ("DELETE", "/admin/buffer/{uuid}", "/admin/buffer/plain"),
        ("GET", "/admin/outbox", "/admin/outbox"),
        ("HEAD", "/admin/outbox", "/admin/outbox"),
        ("GET", "/admin/outbox", "/admin/outbox?after=x"),
        ("DELETE", "/admin/outbox/{id}", &last),
        ("DELETE", "/admin/outbox/{id}", &last),
        ("GET", "/UserManager/NextMessage", "/UserManager/NextMessage?wait=x"),
        ("GET", "/UserManager/NextMessage", "/UserManager/NextMessage"),
        ("GET", "/UserManager/NextMessage", "/UserManager/NextMessage"),
        ("GET", "/UserManager/NextMessage", "/UserManager/NextMessage"),
        ("HEAD", "/UserManager/NextMessage", "/UserManager/NextMessage"),
        ("GET", "/", "/"),
        ("HEAD", "/", "/"),
        ("GET", "/healthz", "/healthz"),
        ("HEAD", "/healthz", "/healthz"),
        ("GET", "/readyz", "/readyz"),
        ("HEAD", "/readyz", "/readyz"),
        ("GET", "/openapi.json", "/openapi.json"),
        ("HEAD", "/openapi.json", "/openapi.json"),
        ("GET", "/openapi-worker.json", "/openapi-worker.json"),
        ("HEAD", "/openapi-worker.json", "/openapi-worker.json"),
        ("GET", "/docs", "/docs"),
        ("HEAD", "/docs", "/docs"),
        ("GET", "/docs/{file}", "/docs/viewer.js"),
        ("GET", "/docs/{file}", "/docs/viewer.css"),
        ("GET", "/docs/{file}", "/docs/nothing"),
        ("HEAD", "/docs/{file}", "/docs/viewer.js"),
        ("GET", "/metrics", "/metrics"),
        ("HEAD", "/metrics", "/metrics"),
        ("GET", "/status", "/status"),
        ("HEAD", "/status", "/status"),
        ("HEAD", "/events", "/events"),
    ];
    for (method, path, target) in cases {
        description.see(method, path, &request(server.api, method, target, &[], b""));
    }
    let mut events = Connection::open(server.api);
    events.send_head("GET", "/events", &[]);
    description.see("GET", "/events", &events.read_head());
    let published = Server::with(&["--amqp-url", "amqp://127.0.0.1:1/"]);
    for (method, path, target) in
        [("GET", "/UserManager/NextMessage", "/UserManager/NextMessage"), ("DELETE", message, &delete)]
    {
        description.see(method, path, &request(published.api, method, target, &[], b""));
    }
    let narrow = Server::with(&["--max-inflight", "1KB"]);
    description.see("POST", add, &request(narrow.api, "POST", add, &[], &vec![b'x'; 5_000]));
    description.assert_all_seen();
}

#[test]
fn the_viewer_loads_nothing_from_outside_and_needs_no_token() {
    let server = guarded();
    let page = request(server.api, "GET", "/docs", &[], b"");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")), "{page:?}");
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let mut loaded = 0;
    for attribute in ["src=\"", "href=\""] {
        for part in text.split(attribute).skip(1) {
            let target = part.split('"').next().expect("a value");
            if target == "data:," {
                continue;
            }
            // relative, so that it works below a prefix too
            assert!(target.starts_with("docs/"), "{target}");
            let file = request(server.api, "GET", &format!("/{target}"), &[], b"");
            assert_eq!(file.status, 200, "{target}: {file:?}");
            assert!(!file.body.is_empty() && file.header("x-content-type-options") == Some("nosniff"), "{target}");
            loaded += 1;
        }
    }
    assert_eq!(loaded, 4, "{text}");
    let policy = page.header("content-security-policy").expect("a policy");
    for directive in policy.split("; ") {
        let sources = directive.split(' ').skip(1);
        let is_own = |source: &str| ["'none'", "'self'", "'unsafe-inline'", "data:"].contains(&source);
        assert!(sources.clone().count() > 0 && sources.clone().all(is_own), "{directive}");
        assert!(!directive.starts_with("script-src") || !directive.contains("unsafe"), "{directive}");
    }
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert_eq!(request(server.api, "GET", "/openapi.json", &[], b"").status, 401, "the descriptions need one");
    assert_eq!(request(server.api, "GET", "/docsx", &[], b"").status, 401);
}
