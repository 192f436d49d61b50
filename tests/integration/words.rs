//! The errors for bodies that were sent in a wrong form: they name the form, and say how to send the body correctly.

use crate::harness::{Farm, Peer, frame, request};

const PICKLE: &str = "application/octet-stream";
const JSON: &str = "application/json";
const MESSAGE: &[u8] = br#"{"USER_ID": "me", "MAIN_DATA": {"TYPE": "TEST", "DATA": "hello"}}"#;

/// Checks that both servers refuse a body under each of these content types, with an error that contains all parts.
#[track_caller]
fn assert_refused(farm: &Farm, content_types: &[&str], body: &[u8], parts: &[&str]) {
    for content_type in content_types {
        for answer in [farm.post_bytes(content_type, body), farm.order_bytes(content_type, body)] {
            let error = answer.failure(400);
            for part in parts {
                assert!(error.contains(part), "no {part:?} for {content_type}: {error}");
            }
        }
    }
}

/// The bytes that a Python expression evaluates to.
fn bytes(peer: &mut Peer, expression: &str) -> Vec<u8> {
    let pickle = peer.dumps(&format!("({expression}).hex()"), 0);
    let text = peer.loads(&pickle);
    let digits = text.trim_matches('\'').as_bytes();
    let digit = |at: usize| char::from(digits[at]).to_digit(16).expect("a hexadecimal digit") as u8;
    (0..digits.len() / 2).map(|at| digit(2 * at) << 4 | digit(2 * at + 1)).collect()
}

#[test]
fn the_error_for_json_under_the_content_type_of_pickles_names_the_right_one() {
    let farm = Farm::start();
    let marked = [b"\xef\xbb\xbf", MESSAGE].concat();
    for body in [MESSAGE, b" [1]", &marked] {
        assert_refused(&farm, &[PICKLE], body, &["looks like JSON", "Content-Type: application/json"]);
    }
    for content_type in [JSON, "application/x-www-form-urlencoded", "text/plain", "multipart/form-data"] {
        assert_eq!(farm.post_bytes(content_type, MESSAGE).status, 200, "{content_type}");
    }
}

#[test]
fn a_form_is_called_a_form() {
    let farm = Farm::start();
    let multipart = b"--------------------------6ad1b0b8ae33e9c4\r\nContent-Disposition: form-data; name=\"file\"; \
        filename=\"frame.pickle\"\r\nContent-Type: application/octet-stream\r\n\r\n\x80\x04}.\r\n\
        --------------------------6ad1b0b8ae33e9c4--\r\n";
    let types = ["multipart/form-data; boundary=------------------------6ad1b0b8ae33e9c4", JSON, PICKLE];
    assert_refused(&farm, &types, multipart, &["multipart/form-data", "curl -F", "--data-binary @FILE"]);
    let fields = b"USER_ID=me&MAIN_DATA=TYPE&MAIN_DATA=DATA";
    let types = ["application/x-www-form-urlencoded", JSON, PICKLE];
    assert_refused(&farm, &types, fields, &["application/x-www-form-urlencoded", "send JSON", "json="]);
}

#[test]
fn a_compressed_body_that_says_so_is_answered_415_with_what_is_accepted() {
    let farm = Farm::start();
    for encoding in ["gzip", "zstd", "br", "identity, gzip"] {
        let headers = [("Content-Type", JSON), ("Content-Encoding", encoding)];
        let answer = request(farm.http, "POST", "/", &headers, b"\x1f\x8b");
        assert_eq!(answer.header("accept-encoding"), Some("identity"), "{answer:?}");
        let error = answer.failure(415);
        assert!(error.contains(encoding) && error.contains("send the body without one"), "{error}");
    }
}

#[test]
fn the_error_for_bytes_of_python_2_says_how_to_send_them() {
    let farm = Farm::start();
    // Python 2.7's pickles of {'IMAGE': '\x89PNG\r\n'}, at its three protocols.
    let images: [&[u8]; 3] = [
        b"(dp0\nS'IMAGE'\np1\nS'\\x89PNG\\r\\n'\np2\ns.",
        b"}q\x00U\x05IMAGEq\x01U\x06\x89PNG\r\nq\x02s.",
        b"\x80\x02}q\x00U\x05IMAGEq\x01U\x06\x89PNG\r\nq\x02s.",
    ];
    for body in images {
        assert_refused(&farm, &[PICKLE], body, &["Python 2 str that is not ASCII", "bytearray", "unicode"]);
    }
    // Its pickles of {'USER_ID': 'u', 'MAIN_DATA': {'TYPE': 'FRAME_RENDERED', 'DATA': bytearray('\x89PNG')}}.
    for body in [
        &b"(dp0\nS'MAIN_DATA'\np1\n(dp2\nS'DATA'\np3\nc__builtin__\nbytearray\np4\n(V\x89PNG\np5\nS'latin-1'\np6\ntp7\n\
           Rp8\nsS'TYPE'\np9\nS'FRAME_RENDERED'\np10\nssS'USER_ID'\np11\nS'u'\np12\ns."[..],
        b"\x80\x02}q\x00(U\tMAIN_DATAq\x01}q\x02(U\x04DATAq\x03c__builtin__\nbytearray\nq\x04X\x05\x00\x00\x00\xc2\x89PNG\
          q\x05U\x07latin-1q\x06\x86q\x07Rq\x08U\x04TYPEq\x09U\x0eFRAME_RENDEREDq\nuU\x07USER_IDq\x0bU\x01uq\x0cu.",
    ] {
        let answer = farm.post_bytes(PICKLE, body);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn what_is_no_message_at_all_is_called_by_its_name() {
    let farm = Farm::start();
    let both = [JSON, PICKLE];
    for body in [&b""[..], b" \r\n"] {
        assert_refused(&farm, &both, body, &["the body is empty", "JSON", "Content-Type: application/octet-stream"]);
    }
    assert_refused(&farm, &both, b"<!DOCTYPE html><html></html>", &["HTML"]);
    assert_refused(&farm, &both, b"<?xml version=\"1.0\"?><a/>", &["XML"]);
    assert_refused(&farm, &both, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &["a PNG image, not a message", "as a pickle"]);
    assert_refused(&farm, &both, b"\xff\xd8\xff\xe0\0\x10JFIF", &["a JPEG image"]);
    assert_refused(&farm, &both, b"BLENDER-v400", &["a .blend file"]);
    // JSON may be in UTF-16.
    let utf16: Vec<u8> = MESSAGE.iter().flat_map(|byte| [*byte, 0]).collect();
    assert_eq!(farm.post_bytes(JSON, &utf16).status, 200);
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn the_error_for_a_pickle_under_another_content_type_names_the_right_one() {
        let mut farm = Farm::start();
        for protocol in 0..=5 {
            let body = farm.peer.dumps(&frame("FRAME_RENDERED", "b'pixels'"), protocol);
            for content_type in [JSON, "text/plain", "application/x-www-form-urlencoded", "application/python-pickle"] {
                let parts = ["looks like a pickle", "Content-Type: application/octet-stream", "DATA_FORMAT: BYTES"];
                assert_refused(&farm, &[content_type], &body, &parts);
            }
            assert_eq!(farm.post_bytes(PICKLE, &body).status, 200);
        }
    }

    #[test]
    fn the_error_for_a_compressed_or_encoded_body_asks_for_the_plain_one() {
        let mut farm = Farm::start();
        let json = String::from_utf8(MESSAGE.to_vec()).expect("UTF-8");
        let pickle = format!("__import__('pickle').dumps({})", frame("FRAME_RENDERED", "b'pixels'"));
        for of in [format!("{json:?}.encode()"), pickle] {
            for (module, name) in [("gzip", "gzip"), ("bz2", "bzip2"), ("lzma", "xz"), ("zlib", "zlib")] {
                let body = bytes(&mut farm.peer, &format!("__import__('{module}').compress({of})"));
                assert_refused(&farm, &[JSON, PICKLE], &body, &["compressed", name, "send it uncompressed"]);
            }
            for function in ["b64encode", "urlsafe_b64encode", "encodebytes"] {
                let body = bytes(&mut farm.peer, &format!("__import__('base64').{function}({of})"));
                assert_refused(&farm, &[JSON, PICKLE], &body, &["base64", "send the decoded bytes"]);
            }
        }
        assert_refused(&farm, &[JSON, PICKLE], b"\x28\xb5\x2f\xfd\x04\x00rest", &["compressed (zstd)"]);
    }

    #[test]
    fn the_error_for_a_message_that_is_encoded_twice_says_so() {
        let mut farm = Farm::start();
        let json = String::from_utf8(MESSAGE.to_vec()).expect("UTF-8");
        let twice = serde_json::to_vec(&json).expect("JSON");
        assert_refused(&farm, &[JSON], &twice, &["the body is a str", "contains JSON", "once, not twice"]);
        let twice = farm.peer.dumps(&format!("__import__('pickle').dumps({})", frame("TEST", "1")), 4);
        assert_refused(&farm, &[PICKLE], &twice, &["the body is a bytes", "contains a pickle", "once, not twice"]);
    }
}
