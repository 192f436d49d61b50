//! JSON as Python's `json` reads it.

use crate::harness::{Farm, frame};

const JSON: &str = "application/json";

/// A worker's message with a JSON text as its `DATA`.
fn body(data: &str) -> Vec<u8> {
    format!(r#"{{"USER_ID": "worker-1", "MAIN_DATA": {{"TYPE": "FRAME_RENDERED", "DATA": {data}}}}}"#).into_bytes()
}

#[test]
fn every_json_text_is_read_as_python_reads_it() {
    let mut farm = Farm::start();
    for data in [
        "NaN",
        "Infinity",
        "-Infinity",
        "[NaN, 1, {\"x\": -Infinity}]",
        r#"{"a": 1, "b": 2, "a": 3}"#,
        r#"{"a": {"x": 1}, "a": {"y": 2}}"#,
        "1e400",
        "-1e400",
        "1E5",
        "1.0",
        "-0",
        "-0.0",
        "0.1e-7",
        "123456789012345678901234567890",
        "1.7976931348623157e308",
        "0.30000000000000004",
        r#""\"\\\/\b\f\n\r\tA\u00e4\ud83d\ude00""#,
        "\"äß€中😀\u{7f}\u{2028}\"",
        " [ 1 ,\t2\r\n] ",
        "{}",
        "[]",
    ] {
        let answer = farm.post_bytes(JSON, &body(data));
        assert_eq!(answer.status, 200, "{data}: {answer:?}");
        let expected = farm.peer.json_loads(data.as_bytes());
        let value = farm.take().value;
        assert!(value.contains(&format!("'DATA': {expected}, 'USER_ID'")), "{data}: expected {expected} in {value}");
    }
}

#[test]
fn a_repeated_keys_last_value_stands_in_the_envelope_too() {
    let mut farm = Farm::start();
    let body = br#"{"USER_ID": 1, "MAIN_DATA": 2, "USER_ID": "u",
        "MAIN_DATA": {"TYPE": 3, "TYPE": "FRAME_RENDERED", "DATA": 4, "DATA": 5}}"#;
    assert_eq!(farm.post_bytes(JSON, body).status, 200);
    assert!(farm.take().value.contains("{'TYPE': 'FRAME_RENDERED', 'DATA': 5, 'USER_ID': 'u'}"));
}

#[test]
fn what_python_refuses_to_read_is_refused() {
    let mut farm = Farm::start();
    for data in [
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e",
        "0x10",
        "nan",
        "-NaN",
        "infinity",
        "True",
        "None",
        "'x'",
        "[1,]",
        "{\"a\": 1,}",
        "{a: 1}",
        "{1: 2}",
        "[1 2]",
        "[1",
        "\"x",
        "\"\n\"",
        "\"\t\"",
        "\"\\x41\"",
        "\"\\u12\"",
        "\"\\u{41}\"",
        "// x\n1",
        "1 /* x */",
        "",
    ] {
        farm.post_bytes(JSON, &body(data)).failure(400);
    }
    farm.post_bytes(JSON, &[b"{\"USER_ID\": \"".as_slice(), b"\xff\xfe", &body("1")[13..]].concat()).failure(400);
    farm.post_bytes(JSON, b"{\"USER_ID\": \"u\", \"MAIN_DATA\": {\"TYPE\": \"TEST\", \"DATA\": \"\xed\xa0\x80\"}}")
        .failure(400);
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_lone_surrogate_is_refused() {
    let mut farm = Farm::start();
    for data in [
        r#""\ud800""#,
        r#""\udc00""#,
        r#""x\ud800y""#,
        r#""\ud800\ud800""#,
        r#""\udc00\ud800""#,
        r#"{"\ud800": 1}"#,
        r#"[{"a": "\udfff"}]"#,
    ] {
        let error = farm.post_bytes(JSON, &body(data)).failure(400);
        assert!(error.contains("surrogate"), "{data}: {error}");
    }
    farm.expect_nothing_for_the_user_manager();
}

#[test]
fn a_nesting_of_200_levels_works_and_what_goes_beyond_a_bound_is_refused_with_the_bound_named() {
    let mut farm = Farm::start();
    for (open, close, levels) in [("[", "]", 197), ("{\"d\":", "}", 197)] {
        let data = format!("{}1{}", open.repeat(levels), close.repeat(levels));
        let answer = farm.post_bytes(JSON, &body(&data));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(farm.take().value.contains(&close.repeat(levels)));
        farm.order_bytes(JSON, order_body(&data).as_bytes());
        assert!(farm.fetch_value("u").contains(&close.repeat(levels)));
    }
    for levels in [100_000, 1_000_000] {
        for data in
            ["[".repeat(levels), format!("{}{}", "[".repeat(levels), "]".repeat(levels)), "{\"\":".repeat(levels)]
        {
            let error = farm.post_bytes(JSON, &body(&data)).failure(400);
            assert!(error.contains("nest") || error.contains("deep") || error.contains("level"), "{error}");
            assert!(error.contains(|c: char| c.is_ascii_digit()), "the bound is named: {error}");
        }
    }
}

fn order_body(message: &str) -> String {
    format!(r#"{{"TYPE": "ADD_BUFFER_MSG", "DATA": {{"BUFFER_UUID": "u", "BUFFER_MSG": {message}}}}}"#)
}

#[test]
fn integers_of_20_000_digits_work_and_what_goes_beyond_a_bound_is_refused_with_the_bound_named() {
    let mut farm = Farm::start();
    let digits = "7".repeat(20_000);
    for data in [digits.clone(), format!("-{digits}")] {
        let answer = farm.post_bytes(JSON, &body(&data));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(farm.take().value.contains(&format!("'DATA': {data}, ")));
        assert_eq!(farm.order_bytes(JSON, order_body(&data).as_bytes()).status, 200);
        assert_eq!(farm.fetch_value("u"), data);
        let completed = String::from_utf8(body(&data)).expect("UTF-8").replace("FRAME_RENDERED", "RENDER_COMPLETED");
        assert_eq!(farm.post_bytes(JSON, completed.as_bytes()).status, 200);
        assert!(farm.take().value.contains(&format!("'DATA': {data}, 'MESSAGE': {data}, ")));
    }
    let error = farm.post_bytes(JSON, &body(&"7".repeat(10_000_000))).failure(400);
    assert!(error.contains("digit") && error.contains(|c: char| c.is_ascii_digit()), "the bound is named: {error}");
}

#[test]
fn the_order_of_keys_is_kept() {
    let mut farm = Farm::start();
    let data = "{'z': 1, 'y': {'b': 1, 'a': 2}, 'x': 3, '10': 4, '9': 5}";
    farm.post_json(&frame("FRAME_RENDERED", data));
    farm.post_json(&frame("RENDER_COMPLETED", data));
    assert!(farm.take().value.contains(data));
    assert!(farm.take().value.contains(data));
}
