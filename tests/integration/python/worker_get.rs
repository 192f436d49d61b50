//! `GET /?bufferUUID=ID` on the workers' server.

use crate::harness::{Farm, request};

#[test]
fn a_buffered_message_is_answered_as_one_pickle_with_content_length() {
    let mut farm = Farm::start();
    farm.leave("id-1", "{'TYPE': 'RENDER_FRAMES', 'DATA': {'FRAMES': [1, 2, 3]}}");
    let answer = farm.ask("GET", "id-1", &[]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    assert_eq!(answer.content_length(), answer.body.len() as u64);
    assert_eq!(answer.body.last(), Some(&b'.'), "one pickle, and nothing after its STOP");
    let value = farm.peer.loads(&answer.body);
    assert_eq!(value, "{'TYPE': 'RENDER_FRAMES', 'DATA': {'FRAMES': [1, 2, 3]}}");
}

#[test]
fn every_json_value_arrives_as_its_python_twin() {
    let mut farm = Farm::start();
    for (number, value) in [
        "{'z': 1, 'a': 2, 'm': {'y': [], 'b': {}}}",
        "[1, [2, [3, []]], {}]",
        "'text: äß€中😀 \\x00 \\u2028 \\\\ \"'",
        "''",
        "0",
        "-1",
        "[255, 256, 65535, 65536, 2147483647, 2147483648, -2147483648, -2147483649]",
        "[9223372036854775807, 9223372036854775808, -9223372036854775808, -9223372036854775809]",
        "10 ** 400",
        "-(10 ** 5000)",
        "[0.1, -0.0, 1e308, 5e-324, 1.0, 123456789.125]",
        "True",
        "False",
        "None",
        "{'': {'': None}}",
        "'x' * 300",
        "'ä' * 70000",
    ]
    .into_iter()
    .enumerate()
    {
        let uuid = format!("id-{number}");
        farm.leave(&uuid, value);
        let expected = farm.peer.show(value);
        assert_eq!(farm.fetch_value(&uuid), expected, "{value}");
    }
}

#[test]
fn a_message_with_any_other_meta_data_is_delivered_as_it_is() {
    let mut farm = Farm::start();
    farm.blend_file("scene.blend", b"the file");
    let data =
        |meta_data: &str| format!("{{'DATA': {{'META_DATA': {meta_data}, 'BINARY_BLEND_FILE': 'scene.blend'}}}}");
    for (number, meta_data) in
        ["'NONE'", "None", "''", "0", "['EXTRACT_BLEND_FILE_FROM_PATH']", "'extract_blend_file_from_path'"]
            .into_iter()
            .enumerate()
    {
        let uuid = format!("id-{number}");
        farm.leave(&uuid, &data(meta_data));
        assert_eq!(farm.fetch_value(&uuid), data(meta_data));
    }
    farm.leave("id", "{'DATA': {'BINARY_BLEND_FILE': 'scene.blend'}}");
    assert_eq!(farm.fetch_value("id"), "{'DATA': {'BINARY_BLEND_FILE': 'scene.blend'}}");
}

#[test]
fn a_message_that_is_no_dict_or_has_no_data_is_delivered_as_it_is() {
    let mut farm = Farm::start();
    farm.blend_file("scene.blend", b"the file");
    for (number, value) in [
        "['META_DATA', 'EXTRACT_BLEND_FILE_FROM_PATH']",
        "'EXTRACT_BLEND_FILE_FROM_PATH'",
        "7",
        "None",
        "{}",
        "{'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': 'scene.blend'}",
        "{'DATA': None}",
        "{'DATA': ['EXTRACT_BLEND_FILE_FROM_PATH']}",
        "{'DATA': {'DATA': {'META_DATA': 'EXTRACT_BLEND_FILE_FROM_PATH', 'BINARY_BLEND_FILE': 'scene.blend'}}}",
    ]
    .into_iter()
    .enumerate()
    {
        let uuid = format!("id-{number}");
        farm.leave(&uuid, value);
        assert_eq!(farm.fetch_value(&uuid), value);
    }
}

#[test]
fn nothing_under_the_id_is_answered_no_buffer_message() {
    let mut farm = Farm::start();
    farm.leave("id-1", "1");
    farm.expect_no_message("id-2");
    farm.expect_no_message("ID-1");
    farm.expect_no_message("id-1 ");
}

#[test]
fn a_delivered_message_is_not_there_again() {
    let mut farm = Farm::start();
    farm.leave("id-1", "'once'");
    assert_eq!(farm.fetch_value("id-1"), "'once'");
    farm.expect_no_message("id-1");
    farm.leave("id-1", "'again'");
    assert_eq!(farm.fetch_value("id-1"), "'again'");
}

#[test]
fn no_buffer_uuid_or_two_are_an_error() {
    let mut farm = Farm::start();
    farm.leave("id-1", "1");
    for path in [
        "/",
        "/?",
        "/?other=id-1",
        "/?bufferuuid=id-1",
        "/?bufferUUID=id-1&bufferUUID=id-1",
        "/?bufferUUID=id-1&bufferUUID=",
    ] {
        let answer = request(farm.http, "GET", path, &[], b"");
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"), "{path}");
        let value = farm.peer.loads(&answer.body);
        assert!(value.starts_with("{'message': ") && value.contains("bufferUUID"), "{path}: {value}");
    }
    assert_eq!(farm.fetch_value("id-1"), "1", "none of these has delivered it");
}

#[test]
fn a_buffer_uuid_may_be_any_string() {
    let mut farm = Farm::start();
    for uuid in ["a b+c&d=e%f/g?h#i", "äß€中😀", "../../etc/passwd", "x".repeat(2000).as_str()] {
        farm.leave(uuid, "'here'");
        assert_eq!(farm.fetch_value(uuid), "'here'", "{uuid}");
    }
}

#[test]
fn other_parameters_of_the_query_are_ignored() {
    let mut farm = Farm::start();
    farm.leave("id-1", "1");
    let answer = request(farm.http, "GET", "/?x=1&bufferUUID=id-1&x=2", &[], b"");
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn head_gives_the_size_and_delivers_nothing() {
    let mut farm = Farm::start();
    farm.leave("id-1", "'x' * 1000");
    let head = farm.ask("HEAD", "id-1", &[]);
    assert_eq!(head.status, 200, "{head:?}");
    assert_eq!(farm.ask("HEAD", "id-1", &[]).content_length(), head.content_length());
    let answer = farm.ask("GET", "id-1", &[]);
    assert_eq!(answer.body.len() as u64, head.content_length());
    assert_eq!(answer.header("etag"), head.header("etag"));
    assert_eq!(farm.ask("HEAD", "id-1", &[]).status, 400);
}

#[test]
fn head_gives_the_size_with_the_blend_file() {
    let mut farm = Farm::start();
    farm.blend_file("scene.blend", &[7; 100_000]);
    farm.leave_blend("id-1", "scene.blend");
    let head = farm.ask("HEAD", "id-1", &[]);
    assert_eq!(farm.ask("GET", "id-1", &[]).body.len() as u64, head.content_length());
}

#[test]
fn a_connection_serves_one_message_after_another() {
    let mut farm = Farm::start();
    let mut connection = crate::harness::Connection::open(farm.http);
    for round in 0..20 {
        farm.leave("id-1", &round.to_string());
        let answer = connection.request("GET", "/?bufferUUID=id-1", &[], b"");
        assert_eq!(farm.peer.loads(&answer.body), round.to_string());
        assert_eq!(connection.request("GET", "/?bufferUUID=id-1", &[], b"").status, 400);
    }
}
