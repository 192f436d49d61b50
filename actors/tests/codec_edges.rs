//! What the codec refuses, and with which errors; its bounds on time and memory; what it must not copy.

use bytes::Bytes;
use user_http_actors::codec::{
    BlendPlaceholder, DecodeError, Format, MAX_INT_DIGITS, OutgoingMessage, PostedMessage, UserMessage,
    decode_communication_interface_message, decode_user_message,
};

const HASH_FLOOD: &str = "dict keys or set items that keep `pickle.loads` busy for more than ";

/// A worker's message as a pickle. These opcodes make its `DATA`.
fn pickle_of(kind: &str, data: &[u8]) -> Vec<u8> {
    let mut body = b"\x80\x04}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c".to_vec();
    body.push(kind.len() as u8);
    body.extend(kind.as_bytes());
    body.extend(b"\x8c\x04DATA");
    body.extend(data);
    body.extend(b"uu.");
    body
}

fn frame(data: &[u8]) -> Result<PostedMessage, DecodeError> {
    decode_user_message(Format::Pickle, pickle_of("FRAME_RENDERED", data))
}

fn completed(data: &[u8]) -> OutgoingMessage {
    forwarded(decode_user_message(Format::Pickle, pickle_of("RENDER_COMPLETED", data)))
}

fn json(data: &str) -> Result<PostedMessage, DecodeError> {
    let body = format!(r#"{{"USER_ID": "u", "MAIN_DATA": {{"TYPE": "RENDER_COMPLETED", "DATA": {data}}}}}"#);
    decode_user_message(Format::Json, body)
}

fn forwarded(message: Result<PostedMessage, DecodeError>) -> OutgoingMessage {
    match message {
        Ok(PostedMessage { message: UserMessage::Forward(message), .. }) => message,
        other => panic!("not forwarded: {other:?}"),
    }
}

fn refusal<T: std::fmt::Debug>(message: Result<T, DecodeError>) -> String {
    match message {
        Err(DecodeError::Malformed(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn every_opcode_that_names_a_class_is_refused_with_that_name() {
    let cases: [(&[u8], &str); 8] = [
        (b"cos\nsystem\n\x8c\x02id\x85R", "names a class (`os.system`)"),
        (b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R", "names a class (`os.system`)"),
        (b"(S'id'\nios\nsystem\n", "names a class (`os.system`)"),
        (b"(cos\nsystem\nS'id'\no", "names a class (`os.system`)"),
        (b"cbuiltins\neval\n)\x81", "names a class (`builtins.eval`)"),
        (b"cos\nsystem\x1b[2J\n", r"names a class (`os.system\u{1b}[2J`)"),
        (b"c__builtin__\nset\n]\x85R", "names a class (`__builtin__.set`)"),
        (b"KaKb\x93", "names a class by a value that is not a str"),
    ];
    for (data, expected) in cases {
        let text = refusal(frame(data));
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn callables_of_plain_values_are_understood_nowhere_else() {
    for data in [
        &b"cbuiltins\nset\n"[..],
        b"]cbuiltins\nset\na",
        b"cbuiltins\nset\n\x85",
        b"cbuiltins\nset\n}b",
        b"cbuiltins\nset\n)\x81",
        b"cbuiltins\nset\n)}\x92",
        b"(cbuiltins\nset\n]o",
        b"cbuiltins\nset\nK\x01R",
        b"cbuiltins\nset\n(K\x01K\x02tR",
        b"cbuiltins\nbytes\nK\x01\x85R",
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
        b"c_codecs\nencode\n\x8c\x01a\x8c\x03rot\x86R",
        b"c_codecs\nencode\n\x8c\x02\xc4\x80\x8c\x06latin1\x86R",
        b"cbuiltins\nset\n]]a\x85R",
        b"]]\x85R",
    ] {
        let text = refusal(frame(data));
        assert!(text.contains("pickle ") || text.contains("unhashable"), "{text}");
    }
}

#[test]
fn what_cpython_refuses_is_refused() {
    let cases: [(&[u8], &str); 31] = [
        (b"\x82\x01", "extension code"),
        (b"Pid\n", "persistent id"),
        (b"\x8c\x02idQ", "persistent id"),
        (b"\x97", "out-of-band buffer"),
        (b"C\x00\x98", "out-of-band buffer"),
        (b"}]K\x01s", "unhashable"),
        (b"}]\x85K\x01s", "unhashable dict key or set item (a tuple)"),
        (b"(]\x91", "unhashable"),
        (b"\x8f(}\x90", "unhashable"),
        (b"}(K\x01u", "key without a value"),
        (b"(K\x01d", "key without a value"),
        (b"}(K\x01K\x02e", "adds items of a list to a dict"),
        (b"K\x01(K\x02e", "adds items of a list to an int"),
        (b"\x8c\x01\xff", "not UTF-8"),
        (b"\x8c\x02\xc0\x80", "not UTF-8"),
        (b"V\\u12\n", "invalid escape"),
        (b"V\\U00110000\n", "invalid escape"),
        (b"S'\\q'\n", "invalid escape"),
        (b"S'a\\xe9'\n", "Python 2 str that is not ASCII"),
        (b"S'a\n", "without quotes"),
        (b"U\x01\xe9", "not ASCII"),
        (b"T\xff\xff\xff\xff", "negative length"),
        (b"\x8b\xff\xff\xff\xff", "negative length"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
        (b"\x96\x00\x00\x00\x00\x01\x00\x00\x00", "truncated"),
        (b"\x95\xff\x00\x00\x00\x00\x00\x00\x00", "truncated"),
        (b"h\x07", "unknown memo number 7"),
        (b"g-1\n", "memo number that is not a decimal integer"),
        (b"I0x10\n", "not written in decimal"),
        (b"F1e400\n", "too large"),
        (b"\x80\x06", "protocol 6"),
    ];
    for (data, expected) in cases {
        let text = refusal(frame(data));
        assert!(text.contains(expected) && text.contains(" at byte "), "{data:?}: {text}");
    }
    for body in [&b""[..], b".", b"(.", b"\x80\x04N", b"0.", b"1.", b"\x85.", b"N(.", b"\xff", b"e."] {
        refusal(decode_user_message(Format::Pickle, Bytes::copy_from_slice(body)));
    }
}

#[test]
fn a_message_cut_short_anywhere_is_refused() {
    let body = pickle_of("FRAME_RENDERED", b"\x95\x08\x00\x00\x00\x00\x00\x00\x00]K\x01aC\x01xa");
    for length in 0..body.len() {
        refusal(decode_user_message(Format::Pickle, Bytes::copy_from_slice(&body[..length])));
    }
    forwarded(decode_user_message(Format::Pickle, body));
}

#[test]
fn nesting_is_bounded_in_every_container_and_format() {
    let inside = |depth: usize| [b"]".repeat(depth), b"a".repeat(depth - 1)].concat();
    forwarded(frame(&inside(254)));
    assert!(refusal(frame(&inside(255))).contains("nesting deeper than 256 at byte "));
    for data in [
        [&b"N"[..], &b"\x85".repeat(400_000)].concat(),
        [b"(".repeat(400_000), b"t".repeat(400_000)].concat(),
        [b"(".repeat(400_000), b"\x91".repeat(400_000)].concat(),
        inside(400_000),
        [&b"}K\x01"[..], &b"\x85".repeat(300), b"K\x01s"].concat(),
    ] {
        assert!(refusal(frame(&data)).contains("nesting deeper than 256"));
    }
    let inside = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    forwarded(json(&inside(254)));
    assert_eq!(refusal(json(&inside(255))), "nesting deeper than 256 at byte 321");
    assert!(refusal(json(&r#"{"a":"#.repeat(400_000))).contains("nesting deeper than 256"));
}

#[test]
fn a_list_filled_after_it_was_put_somewhere_is_measured_as_it_ends() {
    // Each list is appended to the previous one, and filled only afterwards.
    let mut data = b"]r\x00\x00\x00\x00".to_vec();
    for index in 1_u32..=300 {
        data.extend([&b"j"[..], &(index - 1).to_le_bytes(), b"]r", &index.to_le_bytes(), b"a0"].concat());
    }
    assert!(refusal(frame(&data)).contains("nesting deeper than 256"));
}

#[test]
fn a_list_inside_itself_is_forwarded_as_a_pickle() {
    let message = completed(b"]\x94h\x00a");
    assert_eq!(message.format, Format::Pickle);
}

#[test]
fn sharing_that_would_keep_the_peer_hashing_is_refused() {
    let mut data = b"}N".to_vec();
    for _ in 0..60 {
        data.extend(b"2\x86");
    }
    data.extend(b"K\x01s");
    assert!(refusal(frame(&data)).contains("dict key or set item with more than 65,534 values"));

    let mut data = [&b"}("[..], &b"N".repeat(60_000), b"tq\x00K\x01s"].concat();
    data.extend(b"h\x00K\x01s".repeat(300));
    assert!(refusal(frame(&data)).contains(HASH_FLOOD));
}

#[test]
fn keys_of_one_hash_that_would_keep_the_peer_comparing_are_refused() {
    // CPython's hash of an int is its residue modulo 2^61 - 1.
    let int = |index: u32| [b"\x8a\x0c".to_vec(), (u128::from(index) * ((1 << 61) - 1)).to_le_bytes()[..12].to_vec()];
    let ints = |count: u32| (1..=count).map(|index| int(index).concat());
    let dict = |keys: Vec<Vec<u8>>| [b"}(".to_vec(), keys.join(&b"N"[..]), b"Nu".to_vec()].concat();
    forwarded(frame(&dict(ints(1_000).collect())));
    let bound = HASH_FLOOD;
    assert!(refusal(frame(&dict(ints(6_000).collect()))).contains(bound));
    assert!(refusal(frame(&dict(ints(4_000).map(|int| [&int[..], b"K\x01\x86"].concat()).collect()))).contains(bound));
    assert!(
        refusal(frame(&[b"\x8f(", &ints(6_000).collect::<Vec<_>>().concat()[..], b"\x90"].concat())).contains(bound)
    );
    let dropped = [&dict(ints(6_000).collect())[..], b"0N"].concat();
    assert!(refusal(frame(&dropped)).contains(bound), "CPython fills the dict before it drops it");
    let spelled = (1..=6_000_u128).map(|index| format!("L{}L\n", index * ((1 << 61) - 1)).into_bytes());
    assert!(refusal(frame(&dict(spelled.collect()))).contains(bound));

    // Many keys with different hashes are accepted.
    let floats = (1..=100_000).map(|index| [b"G".to_vec(), f64::from(index).to_be_bytes().to_vec()].concat());
    forwarded(frame(&dict(floats.collect())));
    let pairs = (0..50_000_u16).map(|index| [&b"M"[..], &index.to_le_bytes(), b"\x8c\x01a\x86"].concat());
    forwarded(frame(&dict(pairs.collect())));
    let names =
        (0..50_000).map(|index| [format!("X\x05\0\0\0{index:05}").as_bytes(), b"\x8c\x02\xc3\xa9\x86"].concat());
    forwarded(frame(&dict(names.collect())));
}

#[test]
fn a_str_among_keys_that_can_be_chosen_is_asked_for_a_few_times_only() {
    // In one of some hundred runs of CPython, the probe sequence of the str passes all of the ints.
    let ints: Vec<u8> = (0..20_000_i32).flat_map(|int| [&b"J"[..], &int.to_le_bytes(), b"N"].concat()).collect();
    let asked = |times: usize| [b"}(", &ints[..], b"\x8c\x01aq\x01N", &b"h\x01N".repeat(times), b"u"].concat();
    forwarded(frame(&asked(10)));
    assert!(refusal(frame(&asked(20_000))).contains(HASH_FLOOD));
}

#[test]
fn calls_that_would_fill_the_peers_memory_are_refused() {
    let mut data = b"](c_codecs\nencode\n\x94X\x10\x27\x00\x00".to_vec();
    data.extend(vec![b'x'; 10_000]);
    data.extend(b"\x8c\x06latin1\x86\x940");
    data.extend(b"h\x00h\x01R".repeat(10));
    data.extend(b"e");
    assert!(refusal(frame(&data)).contains("more than 4 times its length"));
}

#[test]
fn memo_numbers_are_bounded() {
    forwarded(frame(b"]r\x00\xff\x00\x00"));
    for number in [0x8000_0000_u32, 0xFFFF_FFFF, 0x0010_0000] {
        let data = [&b"]r"[..], &number.to_le_bytes()].concat();
        assert!(refusal(frame(&data)).contains("exceeds the number of values so far by 65,536 or more"));
    }
    assert!(refusal(frame(b"]p99999999999999999999999999\n")).contains("memo number"));
}

#[test]
fn the_number_of_values_is_bounded() {
    let data = [&b"]("[..], &b"N".repeat(4_200_000), b"e"].concat();
    assert!(refusal(frame(&data)).contains("more than 4,194,304 values"));
    let list = format!("[{}0]", "0,".repeat(4_200_000));
    assert!(refusal(json(&list)).contains("more than 4,194,304 values"));
}

#[test]
fn integers_are_bounded_where_they_are_written_in_decimal() {
    let digits = "7".repeat(MAX_INT_DIGITS);
    assert_eq!(forwarded(json(&digits)).format, Format::Pickle, "the peers' json accepts 4,300 digits");
    assert_eq!(forwarded(json(&"7".repeat(4_300))).format, Format::Json);
    forwarded(frame(format!("L{digits}L\n").as_bytes()));
    let many = format!("[{}]", vec![digits.as_str(); 65].join(","));
    assert!(refusal(json(&many)).contains("have more than 4,194,304 digits in total"));
    let text = "integer of 65,537 digits (at most 65,536 are accepted) at byte ";
    assert!(refusal(json(&format!("{digits}7"))).contains(text));
    assert!(refusal(frame(format!("I{digits}7\n").as_bytes())).contains(text));
}

#[test]
fn json_is_read_as_python_reads_it() {
    let body = |data: &str| forwarded(json(data)).body.read_all().expect("in memory");
    let expect = |data: &str| {
        format!(
            r#"{{"TYPE": "MESSAGE_FOR_USER_MANAGER", "DATA": {{"TYPE": "USER_MESSAGE", "DATA": {{"TYPE": "RENDER_COMPLETED", "DATA": {data}, "MESSAGE": {data}, "USER_ID": "u"}}}}}}"#
        )
    };
    assert_eq!(
        body(" [1 ,\n2.50,{\"k\\n\\ud83d\\ude00\":null}]\t"),
        expect(r#"[1, 2.5, {"k\n\ud83d\ude00": null}]"#).as_bytes()
    );
    assert_eq!(body("1E5"), expect("100000.0").as_bytes());
    for data in ["NaN", "[-Infinity]", "1e400"] {
        assert_eq!(forwarded(json(data)).format, Format::Pickle, "{data}");
    }
    for data in [
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "+1",
        "nan",
        "[1,]",
        "{\"a\":1,}",
        "{a:1}",
        "{1:2}",
        "\"a",
        "\"\t\"",
        "\"\\x\"",
        "\"\\ud800\"",
        "\"\\ude00\"",
        "'a'",
        "tru",
        "[1 2]",
        "{\"a\" 1}",
        "",
        "1}",
        "\u{feff}1",
        "\u{a0}1",
        "[}",
        "{]",
    ] {
        let text = refusal(json(data));
        assert!(text.contains(" at byte "), "{data}: {text}");
    }
    assert!(refusal(decode_user_message(Format::Json, Bytes::from_static(b"\"\xff\""))).contains("UTF-8"));
    let half_a_pair = Bytes::from_static(b"\x00\"\xd8\x00\x00\"");
    assert!(refusal(decode_user_message(Format::Json, half_a_pair)).contains("UTF-16"));
}

#[test]
fn what_is_missing_or_of_another_type_is_named_by_its_path() {
    let refused = |body: &str| refusal(decode_user_message(Format::Json, body.to_owned()));
    assert_eq!(refused("[]"), "the body is a list; a dict is expected");
    assert_eq!(refused("{}"), "USER_ID is missing; a str is expected");
    assert_eq!(refused(r#"{"USER_ID": 1}"#), "USER_ID is an int; a str is expected");
    assert_eq!(refused(r#"{"USER_ID": ""}"#), "MAIN_DATA is missing; a dict is expected");
    assert_eq!(refused(r#"{"USER_ID": "", "MAIN_DATA": null}"#), "MAIN_DATA is None; a dict is expected");
    assert_eq!(refused(r#"{"USER_ID": "", "MAIN_DATA": {}}"#), "MAIN_DATA.TYPE is missing; a str is expected");
    assert_eq!(
        refused(r#"{"USER_ID": "", "MAIN_DATA": {"TYPE": "FRAME_RENDERED"}}"#),
        "MAIN_DATA.DATA is missing; a value is expected"
    );
    let decoded = decode_user_message(Format::Json, r#"{"USER_ID": "", "MAIN_DATA": {"TYPE": "TEST"}}"#);
    assert!(matches!(decoded, Ok(PostedMessage { message: UserMessage::Test { .. }, .. })));
}

#[test]
fn a_message_of_an_unknown_type_has_an_error_of_its_own() {
    let decode = |body: &str| decode_communication_interface_message(Format::Json, body.to_owned());
    assert_eq!(decode(r#"{"TYPE": "OTHER"}"#).unwrap_err(), DecodeError::UnknownMessageType);
    assert_eq!(refusal(decode(r#"{"TYPE": 1}"#)), "TYPE is an int; a str is expected");
    for uuid in [String::new(), "x".repeat(4_097)] {
        let body = format!(r#"{{"TYPE": "ADD_BUFFER_MSG", "DATA": {{"BUFFER_UUID": "{uuid}", "BUFFER_MSG": 1}}}}"#);
        assert_eq!(refusal(decode(&body)), "DATA.BUFFER_UUID must be a str of 1 to 4,096 bytes of UTF-8");
    }
}

#[test]
fn a_path_that_no_file_can_have_is_refused_and_the_bound_named() {
    let decode = |path: &str| {
        let data = format!(r#"{{"META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "{path}"}}"#);
        let message = format!(r#"{{"BUFFER_UUID": "id", "BUFFER_MSG": {{"DATA": {data}}}}}"#);
        let body = format!(r#"{{"TYPE": "ADD_BUFFER_MSG", "DATA": {message}}}"#);
        decode_communication_interface_message(Format::Json, body)
    };
    assert!(decode(&"p".repeat(4_096)).is_ok());
    for (path, len) in [("p".repeat(4_097), "4,097"), ("é".repeat(35_000), "70,000")] {
        let expected =
            format!("DATA.BUFFER_MSG.DATA.BINARY_BLEND_FILE is a path of {len} bytes; at most 4,096 are accepted");
        assert_eq!(refusal(decode(&path)), expected);
    }
}

#[test]
fn a_blend_file_belongs_where_its_path_was() {
    let body = r#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "id", "BUFFER_MSG":
        {"DATA": {"META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "/a.blend", "n": 1}}}}"#;
    let stored = decode_communication_interface_message(Format::Json, body).unwrap();
    let before =
        b"\x80\x04}(\x8c\x04DATA}(\x8c\x09META_DATA\x8c\x1cEXTRACT_BLEND_FILE_FROM_PATH\x8c\x11BINARY_BLEND_FILE";
    assert_eq!(stored.message.pickle.read_all().expect("in memory"), [&before[..], b"\x8c\x01nK\x01uu."].concat());
    let placeholder = BlendPlaceholder { offset: before.len() as u64, path: Some("/a.blend".to_owned()) };
    assert_eq!(stored.message.blend, Some(placeholder));
}

#[test]
fn a_large_image_is_passed_on_without_copying() {
    let image = vec![0xA5; 8 << 20];
    let opcodes = [&b"B"[..], &(image.len() as u32).to_le_bytes(), &image].concat();
    let body = Bytes::from(pickle_of("FRAME_RENDERED", &opcodes));
    let received = body.as_ptr_range();
    let message = forwarded(decode_user_message(Format::Pickle, body.clone()));
    let mut copied = 0;
    let count = message.body.for_each_part(|part| {
        copied += if received.contains(&part.as_ptr()) { 0 } else { part.len() };
        Ok(())
    });
    count.expect("in memory");
    assert!(copied < 512, "{copied} bytes were copied");
    let total = message.body.len();
    assert!(total < body.len() as u64 + 256, "{total} bytes for {}", body.len());
}

#[test]
fn memo_numbers_after_a_part_that_is_newly_kept_stay_what_they_were() {
    // DATA, a list, is not memoized. Later values are, and are fetched by their numbers.
    let body = b"\x80\x04}(\x8c\x09MAIN_DATA}(\x8c\x04DATA]K\x07a\x8c\x04TYPE\x8c\x0eFRAME_RENDERED\x94u\
        \x8c\x07USER_ID\x8c\x01u\x940h\x01u.";
    let message = forwarded(decode_user_message(Format::Pickle, Bytes::from_static(body)));
    let out = message.body.read_all().expect("in memory");
    let kept = b"]r\x02\x00\x00\x00K\x07a";
    let renumbered = b"FRAME_RENDEREDr\x00\x00\x00\x00u\x8c\x07USER_ID\x8c\x01ur\x01\x00\x00\x000h\x01u0}";
    for expected in [&kept[..], renumbered] {
        assert!(out.windows(expected.len()).any(|window| window == expected), "{}", out.escape_ascii());
    }
}
