//! The status page in a browser.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{
    Connection, Host, Page, SOON, Scheme, Server, Setup, add_buffer_msg, eventually, for_each_host, free_address,
    holds, post_user_msg,
};

for_each_host!(the_page_shows_what_is_held_and_a_delivery_as_it_goes_on);

/// A .blend file of which three quarters do not fit into the buffers of a socket: the kernel may give it 36 MiB.
const LARGE: u64 = 128 << 20;

/// Markup that would change the page, and load something, if it were not shown as text.
const MARKUP: &str = "<img src=//evil.example/x onerror=\"document.title='evil'\"><b>bold</b>";

pub fn add(server: &Server, uuid: &str, message: &Value) {
    assert_eq!(add_buffer_msg(server, uuid, message).status, 200);
}

fn post(server: &Server, user: &str, kind: &str) {
    assert_eq!(post_user_msg(server, user, kind, &json!([1, 2, 3])).status, 200);
}

/// A delivery of a large message, of which the worker has read the first quarter.
fn deliver_quarter(server: &Server, uuid: &str, encoded: &str) -> Connection {
    server.sparse_blend_file("scene.blend", LARGE);
    let data = json!({ "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend" });
    add(server, uuid, &json!({ "TYPE": "RENDER", "DATA": data }));
    let mut worker = Connection::open(server.http);
    worker.send_head("GET", &server.worker_path(&format!("/?bufferUUID={encoded}")), &[]);
    assert_eq!(worker.read_head().status, 200);
    worker.read_exact(LARGE as usize / 4);
    worker
}

/// What an element shows.
fn shown(page: &Page, id: &str) -> String {
    page.evaluate(&format!("document.getElementById('{id}').textContent")).as_str().expect("a text").to_owned()
}

#[track_caller]
fn wait_for_shown(page: &Page, id: &str, text: &str) {
    eventually(&format!("{id} is {text:?}"), SOON, || {
        let shown = shown(page, id);
        holds(shown == text, shown)
    });
}

fn the_page_shows_what_is_held_and_a_delivery_as_it_goes_on(host: Host) {
    let server = Setup::on(host).start();
    let page = Page::open(&server.api_url("/"));
    page.wait_for(&["All is well", "without a broker", "No worker is receiving a message"]);
    let uuid = "0f4c2e9b-6d10-4b7e-9a53-0c5d7e8f9a1b";
    let mut worker = deliver_quarter(&server, uuid, uuid);
    for number in 0..3 {
        add(&server, &format!("id-{number}"), &json!(number));
    }
    post(&server, "worker-1", "FRAME_RENDERED");
    wait_for_shown(&page, "buffer-messages", "4");
    wait_for_shown(&page, "outbox-messages", "1");
    let text = page.wait_for(&["0f4c2e9b…", "127.0.0.1:", "MiB of 128 MiB"]);
    assert!(!text.contains(uuid), "the UUID is shortened: {text}");
    let percent = |text: &str| -> u32 {
        let (before, _) = text.split_once(" % – ").unwrap_or_else(|| panic!("no percentage: {text}"));
        before
            .rsplit(|character: char| !character.is_ascii_digit())
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a number")
    };
    for least in [24, 42] {
        eventually("what the worker has read is sent", SOON, || {
            let percent = percent(&page.text());
            holds((least..100).contains(&percent), percent)
        });
        worker.read_exact(LARGE as usize / 4 - (8 << 20));
    }
    drop(worker);
    page.wait_for(&["No worker is receiving a message"]);
    eventually("the charts have two lines each", SOON, || {
        let lines = page.evaluate("document.querySelectorAll('.chart .line').length");
        holds(lines == 4, lines)
    });
    let origin = server.api_url("/");
    page.assert_clean(&origin);
    assert_eq!(page.evaluate("document.title"), "All is well – gateway");
}

#[test]
fn markup_in_names_is_shown_as_text() {
    let server = Server::start();
    let page = Page::open(&server.api_url("/"));
    let encoded: String = MARKUP.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let _worker = deliver_quarter(&server, MARKUP, &encoded);
    post(&server, MARKUP, "TEST");
    page.wait_for(&["<img src…", "TEST from \"<img src=//evil.example/x onerror="]);
    assert_eq!(page.evaluate("document.querySelectorAll('img, b').length"), 0);
    assert_eq!(page.evaluate("document.title"), "All is well – gateway");
    page.assert_clean(&server.api_url("/"));
}

#[test]
fn the_page_says_that_the_gateway_has_gone_and_reconnects_after_a_restart() {
    let address = free_address();
    let mut server = Server::with(&["--api-bind", &address.to_string()]);
    add(&server, "id-1", &json!(1));
    let page = Page::open(&server.api_url("/"));
    wait_for_shown(&page, "buffer-messages", "1");
    server.kill9();
    let text = page.wait_for(&["No connection to the gateway since", "may be out of date", "Unknown: no connection"]);
    assert!(!text.contains("All is well"), "{text}");
    assert_eq!(page.evaluate("document.getElementById('content').className"), "stale");
    server.restart();
    page.wait_for(&["The gateway has restarted. Connected again at", "All is well"]);
    wait_for_shown(&page, "buffer-messages", "1");
    assert_eq!(page.evaluate("document.getElementById('content').className"), "");
    // a stop is announced by the gateway itself
    server.stop();
    page.wait_for(&["No connection to the gateway since"]);
}

#[test]
fn the_page_asks_for_a_token_and_uses_it() {
    let setup = Setup::default();
    let tokens = setup.path("tokens");
    fs::write(&tokens, "a-token-of-an-operator\n").expect("a token file");
    let server = setup.args(["--api-token-file", tokens.to_str().expect("UTF-8")]).start();
    let page = Page::open(&server.api_url("/"));
    let text = page.wait_for(&["An API token is needed"]);
    assert!(!text.contains("Messages for workers"), "{text}");
    page.assert_accessible();
    page.fill("Token of the API server", "a-token-of-an-operator");
    page.press("Enter");
    page.wait_for(&["All is well", "Messages for workers"]);
    page.assert_clean(&server.api_url("/"));
    // kept in this tab
    page.evaluate("location.reload()");
    page.wait_for(&["All is well"]);

    let other = Page::open(&server.api_url("/"));
    other.wait_for(&["An API token is needed"]);
    other.fill("Token of the API server", "guessed");
    other.click("Show the status");
    other.wait_for(&["does not accept this token"]);
    assert_eq!(other.evaluate("sessionStorage.length"), 0);
    other.fill("Token of the API server", "a-token-of-an-operator");
    other.click("Show the status");
    other.wait_for(&["All is well"]);
}

#[test]
fn the_page_is_accessible_in_light_and_dark_and_fits_a_phone() {
    let well = Server::start();
    let _worker =
        deliver_quarter(&well, "0f4c2e9b-6d10-4b7e-9a53-0c5d7e8f9a1b", "0f4c2e9b-6d10-4b7e-9a53-0c5d7e8f9a1b");
    post(&well, &"w".repeat(300), "TEST");
    let away = Server::with(&["--amqp-url", "amqp://guest:guest@127.0.0.1:1/%2f"]);
    post(&away, "worker-1", "FRAME_RENDERED");
    for (server, headline) in [(&well, "All is well"), (&away, "user-http-server doctor")] {
        for (scheme, width) in [(Scheme::Light, 1_100), (Scheme::Dark, 1_100), (Scheme::Dark, 360)] {
            let page = Page::open_as(&server.api_url("/"), scheme, width);
            page.wait_for(&[headline]);
            page.assert_accessible();
            let needed = page.evaluate("document.documentElement.scrollWidth").as_u64().expect("a width");
            assert!(needed <= u64::from(width), "{scheme:?}: {needed} of {width} pixels");
        }
    }
}

#[test]
fn the_page_is_operable_with_the_keyboard_and_is_announced_once() {
    let server = Server::start();
    for number in 0..20 {
        post(&server, &format!("worker-{number}"), "TEST");
    }
    let page = Page::open(&server.api_url("/"));
    page.wait_for(&["All is well", "Show all"]);
    page.press("Tab");
    assert_eq!(page.evaluate("document.activeElement.textContent"), "Skip to the content");
    page.evaluate("document.getElementById('all-events').focus()");
    page.press("Enter");
    let text = page.wait_for(&["Show fewer", "worker-0"]);
    assert!(text.contains("worker-19"), "{text}");
    assert_eq!(page.evaluate("document.getElementById('all-events').getAttribute('aria-expanded')"), "true");
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(page.evaluate(outline), "solid", "the focus is visible");
    // numbers change, and a screen reader is not told each time
    assert_eq!(shown(&page, "announcement"), "All is well");
    add(&server, "id-1", &json!(1));
    wait_for_shown(&page, "buffer-messages", "1");
    assert_eq!(shown(&page, "announcement"), "All is well");
}

#[test]
fn more_pages_than_may_have_a_stream_show_the_state_nevertheless() {
    let server = Server::with(&["--max-connections", "8"]);
    let pages = [(); 3].map(|()| Page::open(&server.api_url("/")));
    add(&server, "id-1", &json!(1));
    for page in &pages {
        page.wait_for(&["All is well"]);
        wait_for_shown(page, "buffer-messages", "1");
    }
}
