//! Text from outside forges no line of the log, and steers no terminal that shows it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::harness::{Farm, SOON, Setup, hex};

const PICKLE: &str = "application/octet-stream";
const JSON: &str = "application/json";

/// What a terminal, an editor or a log shipper may take for more than a character.
const STEERING: &str = "a\n[2026-01-01T00:00:00Z ERROR forged] b\r\nc\rd\0e\x07f\x08g\x1b[2J\x1b]0;title\x07\x0b\x0c\x7f\
     \u{80}\u{85}\u{9b}31m\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}h\u{2029}i\u{202a}\u{202e}j\u{2066}\u{2069}\u{feff}k\
     \u{e0001}\u{fff9}";

/// Sends bytes and reads what the server answers, if anything.
fn throw(to: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).expect("the server to accept");
    stream.set_read_timeout(Some(SOON)).expect("a read timeout");
    // The server may have answered and closed before all is sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Checks that every line is one that the server has begun, and plain text.
fn check(log: &str) {
    for line in log.lines() {
        let begun = line.strip_prefix("[20").and_then(|rest| rest.split_once(' ')).map(|(_, rest)| rest);
        let level = begun.and_then(|rest| rest.split(' ').next());
        assert!(matches!(level, Some("INFO" | "WARN" | "ERROR")), "a line that the server has not begun: {line:?}");
        // Bytes that are not UTF-8 arrive here as U+FFFD.
        let wrong = line.chars().find(|char| {
            char.is_control()
                || matches!(char, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
                || matches!(char, '\u{feff}' | '\u{fff9}'..='\u{fffd}' | '\u{e0000}'..='\u{e007f}')
        });
        assert_eq!(wrong, None, "{line:?}");
        assert!(!line.starts_with("[2026-01-01"), "{line:?}");
    }
}

fn post(farm: &mut Farm, message: &Value, status: u16) {
    let text = message.to_string();
    assert_eq!(farm.post_bytes(JSON, text.as_bytes()).status, status, "{text}");
    // Raw in a pickle, where JSON has escapes.
    let value = format!("__import__('json').loads(bytes.fromhex('{}'))", hex(text.as_bytes()));
    let pickle = farm.peer.dumps(&value, 4);
    assert_eq!(farm.post_bytes(PICKLE, &pickle).status, status, "{text}");
}

#[test]
fn no_field_of_a_message_forges_a_log_line() {
    let mut farm = Farm::of(Setup::default().args(["--buffer-ttl", "1s"]));
    let test = |data: Value| json!({ "USER_ID": STEERING, "MAIN_DATA": { "TYPE": "TEST", "DATA": data } });
    post(&mut farm, &test(json!(STEERING)), 200);
    post(&mut farm, &test(json!({ STEERING: [STEERING, { "key": STEERING }] })), 200);
    post(&mut farm, &json!({ "USER_ID": STEERING, "MAIN_DATA": { "TYPE": STEERING } }), 200);
    post(&mut farm, &json!({ "USER_ID": 1, STEERING: STEERING }), 400);
    for kind in ["FRAME_RENDERED", "RENDER_COMPLETED"] {
        post(&mut farm, &json!({ "USER_ID": STEERING, "MAIN_DATA": { "TYPE": kind, "DATA": STEERING } }), 200);
    }
    let class = format!("c{}\n{}\n.", STEERING.replace('\n', ""), STEERING.replace('\n', ""));
    farm.post_bytes(PICKLE, class.as_bytes()).failure(400);

    let blend = json!({ "DATA": { "META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": STEERING } });
    let order = json!({ "TYPE": "ADD_BUFFER_MSG", "DATA": { "BUFFER_UUID": STEERING, "BUFFER_MSG": blend } });
    assert_eq!(farm.order_bytes(JSON, order.to_string().as_bytes()).status, 200);
    assert_eq!(farm.fetch(STEERING).status, 400, "there is no such file");
    farm.order_bytes(JSON, json!({ "TYPE": STEERING, "DATA": STEERING }).to_string().as_bytes()).failure(400);

    farm.wait_for_log("has expired");
    let log = farm.log();
    check(&log);
    let logged = log.lines().filter(|line| line.contains("ERROR forged] b") && line.contains("title")).count();
    assert!(logged >= 7, "each is logged, on one line: {log}");
}

#[test]
fn no_head_of_a_request_forges_a_log_line() {
    let farm = Farm::start();
    let encoded: String = STEERING.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let line = STEERING.replace(['\n', '\r'], "");
    let mut heads = Vec::new();
    for target in [&line, &encoded, STEERING] {
        for method in ["GET", "POST", "DELETE", "BREW"] {
            heads.push(format!("{method} /{target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"));
            heads.push(format!("{method} /?bufferUUID={target}&{target} HTTP/1.1\r\nHost: x\r\n\r\n"));
            heads.push(format!("{method} /UserManager/Messages/{target} HTTP/1.1\r\nHost: x\r\n\r\n"));
            heads.push(format!("{method} /UserManager/Parked/{target}/Publish HTTP/1.1\r\nHost: x\r\n\r\n"));
        }
        heads.push(format!("GET /UserManager/NextMessage?wait={target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        heads.push(format!("{target} / HTTP/1.1\r\nHost: x\r\n\r\n"));
        heads.push(format!("GET / HTTP/1.1{target}\r\nHost: x\r\n\r\n"));
        for name in [
            "Host",
            "Content-Type",
            "Content-Encoding",
            "Content-Length",
            "Transfer-Encoding",
            "Range",
            "Expect",
            "User-Agent",
            "X-Forwarded-For",
            "Connection",
        ] {
            heads.push(format!("POST / HTTP/1.1\r\n{name}: {target}\r\nContent-Length: 2\r\n\r\n{{}}"));
            heads.push(format!("GET /?bufferUUID=x HTTP/1.1\r\nHost: x\r\n{name}: {target}\r\n\r\n"));
        }
        heads.push(format!("GET / HTTP/1.1\r\n{target}: x\r\n\r\n"));
        heads.push(format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{target}\r\n{target}"));
    }
    for head in &heads {
        for to in [farm.http, farm.api] {
            throw(to, head.as_bytes());
            // Latin-1, so that control characters beyond ASCII are single bytes.
            throw(to, &head.chars().map(|char| u8::try_from(u32::from(char)).unwrap_or(b'?')).collect::<Vec<_>>());
        }
    }
    let last = json!({ "USER_ID": "u", "MAIN_DATA": { "TYPE": "TEST", "DATA": "the last" } }).to_string();
    assert_eq!(farm.post_bytes(JSON, last.as_bytes()).status, 200);
    farm.wait_for_log("the last");
    check(&farm.log());
}
