//! `user-http-server messages`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use serde_json::{Value, json};

use crate::harness::{
    Connection, Ended, Program, SOON, Server, Setup, add_buffer_msg, eventually, free_address, gateway, post_user_msg,
    request,
};

fn run(server: &Server, args: &[&str]) -> Ended {
    let url = server.api_url("");
    Program::start(gateway(&["messages", "--url", &url]).args(args)).end()
}

#[track_caller]
fn succeed(server: &Server, args: &[&str]) -> String {
    let ended = run(server, args);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}: {ended:?}");
    ended.stdout
}

#[track_caller]
fn json_of(server: &Server, args: &[&str]) -> Value {
    let text = succeed(server, &[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: no JSON ({error}): {text}"))
}

#[track_caller]
fn assert_failed(ended: &Ended, parts: &[&str]) {
    assert_eq!((ended.code, ended.stderr.lines().count()), (Some(1), 1), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
    }
}

fn leave(server: &Server, uuid: &str) {
    assert_eq!(add_buffer_msg(server, uuid, &json!({ "SECRET": "the payload" })).status, 200);
}

/// Posts a message for the user manager, and returns its id.
fn post(server: &Server) -> String {
    assert_eq!(post_user_msg(server, "me", "RENDER_COMPLETED", &json!("the payload")).status, 200);
    let listed = json_of(server, &["list"]);
    let last = listed["outbox"]["messages"].as_array().and_then(|messages| messages.last());
    last.expect("a message")["id"].as_str().expect("an id").to_owned()
}

#[test]
fn messages_are_listed_shown_and_discarded_by_uuid_or_id() {
    let server = Server::start();
    server.blend_file("scene.blend", b"BLENDER");
    leave(&server, "job-1");
    let blend = json!({ "DATA": { "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend" } });
    assert_eq!(add_buffer_msg(&server, "job-2", &blend).status, 200);
    let id = post(&server);

    let listed = succeed(&server, &["list"]);
    let line = |part: &str| {
        let line = listed.lines().find(|line| line.contains(part));
        line.unwrap_or_else(|| panic!("no {part}: {listed}")).to_owned()
    };
    assert_eq!(listed.lines().count(), 4, "{listed}");
    assert!(line("job-1").starts_with("buffer ") && line("job-1").contains(" waiting "), "{listed}");
    assert!(line("job-2").contains("blend scene.blend"), "{listed}");
    assert!(line(&id).starts_with("outbox ") && line(&id).contains("RENDER_COMPLETED from me"), "{listed}");
    let listed = json_of(&server, &["list"]);
    for (name, path) in [("buffer", "/admin/buffer"), ("outbox", "/admin/outbox")] {
        let answer = request(server.api, "GET", path, &[], b"").json();
        let keys = |list: &Value| {
            let messages = list["messages"].as_array().expect("a list").iter();
            messages.map(|message| message.as_object().expect("an object").keys().cloned().collect()).collect()
        };
        let (printed, expected): (Vec<Vec<String>>, Vec<Vec<String>>) = (keys(&listed[name]), keys(&answer));
        assert_eq!((printed, &listed[name]["next"]), (expected, &Value::Null), "{listed}");
    }

    let shown = succeed(&server, &["show", "job-2"]);
    for part in ["uuid    job-2\n", "where   buffer\n", "state   waiting\n", "blend   scene.blend\n", "bytes   "] {
        assert!(shown.contains(part), "no {part:?}: {shown}");
    }
    let shown = succeed(&server, &["show", &id]);
    for part in [&format!("id      {id}\n"), "where   outbox\n", "user    me\n", "type    RENDER_COMPLETED\n"] {
        assert!(shown.contains(part), "no {part:?}: {shown}");
    }
    assert_eq!(json_of(&server, &["show", "job-1"])["uuid"], "job-1");
    assert_eq!(json_of(&server, &["show", &id])["user"], "me");

    assert!(succeed(&server, &["drop", "job-1"]).contains("\"job-1\" is discarded from the buffer"));
    assert!(succeed(&server, &["drop", &id]).contains("is discarded from the outbox"));
    assert_eq!(succeed(&server, &["drop", "job-2", "--json"]), "");
    assert_eq!(succeed(&server, &["list"]).lines().count(), 1, "nothing is left");
    assert_eq!(json_of(&server, &["list"])["outbox"]["messages"], json!([]));
    assert_eq!(succeed(&server, &["parked"]).lines().count(), 1);
    assert_eq!(json_of(&server, &["parked"]), json!([]));
}

#[test]
fn a_message_is_found_whatever_its_uuid_is_and_cannot_write_to_the_terminal() {
    let server = Server::start();
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m";
    for uuid in [hostile, "two\nlines", "a/../b", ".", "..", "%2e", "a b?c#d&e=f+g", "größe", "-", "\u{202e}x", "\"q\\"]
    {
        assert_eq!(
            add_buffer_msg(
                &server,
                uuid,
                &json!({ "DATA": { "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH",
            "BINARY_BLEND_FILE": hostile } })
            )
            .status,
            200,
            "{uuid:?}"
        );
        let mut texts = vec![succeed(&server, &["list"])];
        assert_eq!(texts[0].lines().count(), 2, "{uuid:?}: {texts:?}");
        texts.push(succeed(&server, &["show", "--", uuid]));
        assert_eq!(json_of_behind_dashes(&server, "show", uuid)["uuid"], uuid);
        texts.push(succeed(&server, &["drop", "--", uuid]));
        let again = run(&server, &["drop", "--", uuid]);
        assert_failed(&again, &["no message"]);
        texts.push(again.stderr);
        for text in texts {
            let is_control = |char: char| char.is_control() && char != '\n' || char == '\u{202e}';
            assert!(!text.contains(is_control), "{uuid:?}: {text:?}");
        }
    }
    assert_eq!(post_user_msg(&server, hostile, "RENDER_COMPLETED", &json!(1)).status, 200);
    assert!(!succeed(&server, &["list"]).contains('\u{1b}'));
}

#[track_caller]
fn json_of_behind_dashes(server: &Server, name: &str, uuid: &str) -> Value {
    serde_json::from_str(&succeed(server, &[name, "--json", "--", uuid])).expect("JSON")
}

#[test]
fn a_list_of_many_messages_has_all_of_them() {
    let server = Server::with(&["--memory"]);
    let mut connection = Connection::open(server.api);
    for number in 0..2_500 {
        let data = json!({ "BUFFER_UUID": format!("job-{number}"), "BUFFER_MSG": 1 });
        let body = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": data }).to_string();
        let answer = connection.request("POST", "/CommunicationInterface/AddBufferMsg", &[], body.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(succeed(&server, &["list"]).lines().count(), 2_501);
    let listed = json_of(&server, &["list"]);
    let mut uuids: Vec<_> = listed["buffer"]["messages"].as_array().expect("a list").iter().collect();
    uuids.dedup_by_key(|message| message["uuid"].clone());
    assert_eq!(uuids.len(), 2_500);
    assert!(succeed(&server, &["show", "job-2499"]).contains("job-2499"));
}

#[test]
fn a_reader_that_has_read_enough_is_no_error() {
    let server = Server::with(&["--memory"]);
    // more than a pipe holds
    let long = "x".repeat(4_000);
    (0..50).for_each(|number| leave(&server, &format!("{number}{long}")));
    for args in [&["list"][..], &["list", "--json"]] {
        let mut command = gateway(&["messages", "--url", &server.api_url("")]);
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client");
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        if args.len() == 1 {
            stdout.read_line(&mut first).expect("a line");
            assert!(first.starts_with("WHERE"), "{first}");
        }
        drop(stdout);
        let status = child.wait().expect("a status");
        let mut stderr = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("UTF-8");
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_behind_standard_output_is_a_failure() {
    let server = Server::start();
    let mut command = gateway(&["messages", "list", "--url", &server.api_url("")]);
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let output = command.stdout(full).stderr(Stdio::piped()).output().expect("the client");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("standard output"), "{output:?}");
}

#[test]
fn refusals_of_the_server_are_errors_that_say_why() {
    let server = Server::start();
    for name in ["show", "drop"] {
        assert_failed(&run(&server, &[name, "nothing"]), &["\"nothing\"", "buffer or the outbox", &server.api_url("")]);
    }
    // the server says so itself: 404
    assert_failed(&run(&server, &["publish", "nothing"]), &["404", "nothing"]);

    // one that is being delivered: 409
    server.sparse_blend_file("large.blend", 64 << 20);
    let blend = json!({ "DATA": { "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "large.blend" } });
    assert_eq!(add_buffer_msg(&server, "large", &blend).status, 200);
    let mut worker = Connection::open(server.http);
    worker.send_head("GET", "/?bufferUUID=large", &[]);
    assert_eq!(worker.read_head().status, 200);
    let shown = succeed(&server, &["show", "large"]);
    assert!(shown.contains("in_delivery"), "{shown}");
    let refused = run(&server, &["drop", "large"]);
    assert_failed(&refused, &["409", "being delivered"]);
    let refused = run(&server, &["drop", "large", "--json"]);
    assert_failed(&refused, &["409"]);
    assert_eq!(serde_json::from_str::<Value>(&refused.stdout).expect("JSON")["status"], 409);
    drop(worker);
    eventually("the delivery has ended", SOON, || {
        let ended = run(&server, &["drop", "large"]);
        if ended.code == Some(0) { Ok(()) } else { Err(ended) }
    });

    let nobody = free_address().to_string();
    let ended = Program::start(&mut gateway(&["messages", "list", "--api-bind", &nobody])).end();
    assert_failed(&ended, &[&nobody, "nothing listens there"]);
    // something else listens there
    let url = format!("http://{}", server.http);
    for args in [&["messages", "list", "--url", &url][..], &["messages", "list", "--json", "--url", &url]] {
        let ended = Program::start(&mut gateway(args)).end();
        assert_failed(&ended, &["404"]);
        assert_eq!(ended.stdout, "", "half a list");
    }
}

#[test]
fn an_empty_id_is_refused_before_anybody_is_asked() {
    let nobody = free_address().to_string();
    for name in ["show", "drop", "publish"] {
        let ended = Program::start(&mut gateway(&["messages", name, "", "--api-bind", &nobody])).end();
        assert!(ended.code == Some(2) && ended.stderr.contains("<ID>"), "{name}: {ended:?}");
    }
}

fn a_message() -> Value {
    json!({ "uuid": "x", "bytes": 1, "age_seconds": 1, "blend": null, "in_delivery": false })
}

/// A server that answers each request with the page of its cursor.
fn paging(page: fn(&str) -> Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let mut head = String::new();
            BufReader::new(&socket).read_line(&mut head).expect("a request");
            let path = head.split(' ').nth(1).expect("a path");
            let body = page(path.split_once("&after=").map_or("", |(_, cursor)| cursor)).to_string();
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            socket.write_all(answer.as_bytes()).expect("a client");
        }
    });
    url
}

#[test]
fn a_list_without_an_end_is_an_error() {
    let itself = |_: &str| json!({ "messages": [a_message()], "next": "itself" });
    let earlier = |cursor: &str| json!({ "messages": [a_message()], "next": if cursor == "2" { "1" } else { "2" } });
    let empty = |cursor: &str| json!({ "messages": [], "next": format!("{cursor}x") });
    for (page, why) in [(itself as fn(&str) -> Value, "earlier page"), (earlier, "earlier page"), (empty, "empty page")]
    {
        let url = paging(page);
        for args in [&["list"][..], &["list", "--json"], &["show", "y"]] {
            let ended = Program::start(gateway(&["messages", "--url", &url]).args(args)).end();
            assert_failed(&ended, &["has no end", why, &url]);
        }
    }
}

#[test]
fn the_default_server_is_the_configured_one() {
    let api = free_address().to_string();
    let server = Setup::default().config(&format!("api-bind = {api:?}\n")).start();
    leave(&server, "job-1");
    let file = server.setup().path("config.toml").display().to_string();
    let ended = Program::start(&mut gateway(&["messages", "list", "--config", &file])).end();
    assert!(ended.code == Some(0) && ended.stdout.contains("job-1"), "{ended:?}");
    // no line of the log, in no format
    let ended = Program::start(
        gateway(&["messages", "show", "x", "--config", &file, "--log-format", "json"]).env("RUST_LOG", "trace"),
    )
    .end();
    assert_failed(&ended, &["error: no message"]);
}
