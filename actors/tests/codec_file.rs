//! Bodies in files: the codec makes of them what it makes of bodies in memory, and reads no more than it must.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;
use user_http_actors::codec::{Body, DecodeError, Format, UserMessage, decode_user_message};
use user_http_actors::payload::{Payload, Piece};

#[path = "../../fuzz/checks/windows.rs"]
mod windows;

use windows::{body_file, compare, compare_in_messages, decode_both, new_file};

/// A worker's message in JSON with two strings, escapes, numbers and words.
const JSON: &str = r#" {"USER_ID": "\u00fc\ud83d\ude00é😀", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA":
    [-0.5e-7, 12345678901234567890, 0, -1, true, false, null, "\\\"\/\b\f\n\r\t", "", {"é": [], "k": {}}, 1.5E+3]}} "#;

/// A worker's pickle with an opcode of each kind that has an operand, between frames.
const PICKLE: &[u8] =
    b"\x80\x05\x95\x6b\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x07USER_ID\x94X\x03\x00\x00\x00\xed\xa0\xbd\
    \x8c\x09MAIN_DATA}q\x07(\x8c\x04TYPE\x8c\x10RENDER_COMPLETED\x8d\x04\x00\x00\x00\x00\x00\x00\x00DATA\
    ](K\x01M\x01\x02J\x01\x02\x03\x04I01\nI-12\nL34L\nF1.5e3\nG\x3f\xf8\0\0\0\0\0\0\
    Va\\u00e9\\\\\nS'a\\x41\\''\nU\x01aT\x01\x00\x00\x00b\x8a\x02\x01\xff\x8b\x01\x00\x00\x00\x05p9\nr\x0a\x00\x00\x00\
    C\x01xB\x02\x00\x00\x00xy\x8e\x01\x00\x00\x00\x00\x00\x00\x00z\x96\x01\x00\x00\x00\x00\x00\x00\x00w\
    c_codecs\nencode\nX\x02\x00\x00\x00\xc3\xa9\x8c\x06latin1\x86Rcbuiltins\nset\n](K\x05K\x06e\x85R\
    \x8c\x08builtins\x8c\x09frozenset\x93](\x8c\x01aN\x88e\x85R}(K\x01K\x02\x85K\x03\x85K\x04\x8c\x01ah\x07u0\
    g9\nj\x0a\x00\x00\x00euu.";

fn cut_anywhere(format: Format, message: &[u8]) {
    for length in 0..=message.len() {
        compare(format, &message[..length]);
    }
}

#[test]
fn a_message_cut_anywhere_gives_the_same_from_a_file() {
    let utf16: Vec<u8> = JSON.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let utf32: Vec<u8> = JSON.chars().flat_map(|char| u32::from(char).to_le_bytes()).collect();
    let marked = [b"\xef\xbb\xbf", JSON.as_bytes()].concat();
    for message in [JSON.as_bytes(), &utf16, &utf32, &marked] {
        let [posted, _] = decode_both(Format::Json, message.to_vec().into());
        assert!(posted.is_ok(), "{posted:?}");
        cut_anywhere(Format::Json, message);
    }
    let [posted, _] = decode_both(Format::Pickle, PICKLE.to_vec().into());
    assert!(posted.is_ok(), "{posted:?}");
    cut_anywhere(Format::Pickle, PICKLE);
}

#[test]
fn a_message_with_any_byte_changed_gives_the_same_from_a_file() {
    for (format, message) in [(Format::Json, JSON.as_bytes()), (Format::Pickle, PICKLE)] {
        for at in 0..message.len() {
            for byte in [0, b'"', b'\\', 0xED, 0xFF] {
                let mut changed = message.to_vec();
                changed[at] = byte;
                compare(format, &changed);
            }
        }
    }
}

#[test]
fn what_crosses_the_border_of_a_window_is_seen_whole() {
    // whatever its size, each window ends within one of these at some offset
    let units: [&[u8]; 16] = [
        "é".as_bytes(),
        "日".as_bytes(),
        "😀".as_bytes(),
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xed\xa0",
        b"\xf0\x9f\x98",
        b"\xff",
        br"\ud83d\ude00",
        br"\ud83d\u0041",
        br"\ud83d",
        br"\u00e9",
        br"\U0001f600",
        br"\\",
        br#"\""#,
        br"\x41",
        b"\x01",
    ];
    for unit in units {
        for before in [0, 1, 2, 3, 5, 4_085, 4_090, 4_095] {
            let content = [&b"x".repeat(before), unit, b"y", unit].concat();
            let length = (content.len() as u32).to_le_bytes();
            compare_in_messages(Format::Json, &[b"\"", &content[..], b"\""].concat());
            for opcode in [&b"X"[..], b"T", b"B"] {
                compare_in_messages(Format::Pickle, &[opcode, &length, &content].concat());
            }
            compare_in_messages(Format::Pickle, &[b"V", &content[..], b"\n"].concat());
            compare_in_messages(Format::Pickle, &[b"S'", &content[..], b"'\n"].concat());
        }
    }
}

#[test]
fn what_is_wrong_with_a_body_has_the_same_remedy_from_a_file() {
    let long = "x".repeat(5_000);
    let bodies = [
        String::new(),
        " \n".repeat(3_000),
        format!("{}{JSON}", " ".repeat(5_000)),
        format!("USER_ID={long}"),
        format!("<html>{long}"),
        format!("--{long}\r\nContent-Disposition: form-data"),
        format!("(dp0\n{long}."),
        format!("eyJVU0VSX0lEIjogIm1lIn0{long}"),
        format!(r#""{}""#, JSON.escape_default()),
        format!(r#""  {{\"USER_ID\": \"{long}\"}}""#),
        format!(r#""(dp0\n{long}.""#),
        format!(r#""c={long}\n.""#),
        format!(r#""{long}""#),
        "\x1f".to_owned(),
    ];
    for body in &bodies {
        for format in [Format::Json, Format::Pickle] {
            compare(format, body.as_bytes());
        }
        let length = (body.len() as u32).to_le_bytes();
        compare(Format::Pickle, &[b"B", &length[..], body.as_bytes(), b"."].concat());
    }
    for magic in [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"\x78\x9c", b"\x89PNG", b"BLENDER", b"\x80\x04", b"\x80\x05."]
    {
        for format in [Format::Json, Format::Pickle] {
            compare(format, magic);
            compare(format, &[magic, long.as_bytes()].concat());
        }
    }
}

/// A string of text, sequences that are not one byte long, and long runs.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let unit = prop_oneof![
        4 => "\\PC{0,12}".prop_map(String::into_bytes),
        2 => prop::sample::select(vec![
            &br"\ud83d\ude00"[..], br"\ud83d", br"\u00e9", br"\n", br"\\", br"\x41", br#"\""#, b"\xed\xa0\xbd", b"\xf0\x9f",
        ]).prop_map(<[u8]>::to_vec),
        1 => (0..9_000_usize).prop_map(|length| vec![b'z'; length]),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(unit, 0..6).prop_map(|units| units.concat())
}

fn json() -> impl Strategy<Value = Vec<u8>> {
    let scalar = prop_oneof![
        content().prop_map(|content| [b"\"", &content[..], b"\""].concat()),
        "-?[0-9]{1,40}(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?".prop_map(String::into_bytes),
        prop::sample::select(vec!["null", "true", "NaN", "-Infinity", "tru", "-", "01"])
            .prop_map(|word| word.as_bytes().to_vec()),
    ];
    scalar.prop_recursive(3, 24, 5, |value| {
        let key = content().prop_map(|content| [b"\"", &content[..], b"\": "].concat());
        prop_oneof![
            prop::collection::vec(value.clone(), 0..5)
                .prop_map(|items| [b"[", &items.join(&b", "[..])[..], b"]"].concat()),
            prop::collection::vec((key, value), 0..5).prop_map(|items| {
                let items: Vec<Vec<u8>> = items.into_iter().map(|(key, value)| [key, value].concat()).collect();
                [b"{", &items.join(&b","[..])[..], b"}"].concat()
            }),
        ]
    })
}

fn pickle() -> impl Strategy<Value = Vec<u8>> {
    let counted = (prop::sample::select(b"XBT\x8b".to_vec()), content())
        .prop_map(|(opcode, content)| [&[opcode][..], &(content.len() as u32).to_le_bytes(), &content].concat());
    let line = (prop::sample::select(b"VSILF".to_vec()), content()).prop_map(|(opcode, content)| {
        let quote: &[u8] = if opcode == b'S' { b"'" } else { b"" };
        [&[opcode][..], quote, &content, quote, b"\n"].concat()
    });
    let number = ("[ILF]", "-?[0-9]{1,5000}L?").prop_map(|(opcode, digits)| format!("{opcode}{digits}\n").into_bytes());
    let memoized =
        prop::sample::select(vec![&b"]\x94h\x00"[..], b"K\x01r\x09\0\0\0j\x09\0\0\0\x86", b"\x94", b"p3\ng3\n"]);
    let scalar = prop_oneof![counted, line, number, memoized.prop_map(<[u8]>::to_vec)];
    scalar.prop_recursive(3, 24, 5, |value| {
        let key = content().prop_map(|content| [&b"X"[..], &(content.len() as u32).to_le_bytes(), &content].concat());
        prop_oneof![
            prop::collection::vec(value.clone(), 0..5).prop_map(|items| [b"](", &items.concat()[..], b"e"].concat()),
            prop::collection::vec(value.clone(), 0..5).prop_map(|items| [b"(", &items.concat()[..], b"\x91"].concat()),
            prop::collection::vec((key, value), 0..5).prop_map(|items| {
                let items: Vec<Vec<u8>> = items.into_iter().map(|(key, value)| [key, value].concat()).collect();
                [b"}(", &items.concat()[..], b"u"].concat()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_the_same_from_a_file(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        windows::check(&bytes);
    }

    #[test]
    fn any_json_gives_the_same_from_a_file(value in json()) {
        compare_in_messages(Format::Json, &value);
    }

    #[test]
    fn any_pickle_gives_the_same_from_a_file(value in pickle()) {
        compare_in_messages(Format::Pickle, &value);
    }
}

/// The bytes that this thread has read from files.
fn read_so_far() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").expect("the statistics of this thread");
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("the bytes that it has read");
    read.parse().expect("a number")
}

/// The largest amount of memory that this process has had, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the state of this process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
    peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn forwarded(body: Body, format: Format) -> Payload {
    match decode_user_message(format, body).map(|posted| posted.message) {
        Ok(UserMessage::Forward(message)) => message.body,
        other => panic!("not forwarded: {other:?}"),
    }
}

fn in_memory(payload: &Payload) -> u64 {
    let Payload::Pieces(pieces) = payload else { panic!("no pieces: {payload:?}") };
    pieces.iter().filter(|piece| matches!(piece, Piece::Memory(_))).map(Piece::len).sum()
}

const LARGE: usize = 64 << 20;

/// A file with a worker's message: `head`, [`LARGE`] times `filler`, and `tail`.
fn large_file(head: &[u8], filler: u8, tail: &[u8]) -> (Body, TempDir) {
    let (mut file, folder) = new_file();
    file.append(head).expect("space");
    let part = vec![filler; 1 << 20];
    for _ in 0..LARGE / part.len() {
        file.append(&part).expect("space");
    }
    file.append(tail).expect("space");
    (file.finish().into(), folder)
}

#[test]
fn the_image_in_a_frame_is_not_read() {
    let head = b"\x80\x04}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x0eFRAME_RENDERED\x8c\x04DATAB";
    let (body, _folder) = large_file(&[&head[..], &(LARGE as u32).to_le_bytes()].concat(), b'x', b"uu.");
    let before = read_so_far();
    let payload = forwarded(body, Format::Pickle);
    let read = read_so_far() - before;
    assert!(read < 64 << 10, "{read} bytes were read");
    assert!(payload.len() > LARGE as u64 && in_memory(&payload) < 1_000, "{payload:?}");
}

#[test]
fn a_long_string_is_never_in_memory_whole() {
    let json = br#"{"USER_ID": "u", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA": ""#;
    let (body, _folder) = large_file(json, b'x', b"\"}}");
    let opcodes = b"}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x10RENDER_COMPLETED\x8c\x04DATAX";
    let (pickled, _folder) = large_file(&[&opcodes[..], &(LARGE as u32).to_le_bytes()].concat(), b'y', b"uu.");
    let before = peak_memory();
    for (body, format) in [(body, Format::Json), (pickled, Format::Pickle)] {
        let payload = forwarded(body, format);
        let more = peak_memory() - before;
        assert!(more < LARGE as u64 / 4, "{format}: {more} bytes of memory");
        assert!(payload.len() > 2 * LARGE as u64 && in_memory(&payload) < 1_000, "{format}: {payload:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_says_nothing_about_the_message() {
    let check = |damage: fn(&Path), why: &str| {
        // the last would be refused because of its start
        let class = [&b"\x80\x04cos\nsystem\n"[..], &[b'x'; 5_000]].concat();
        for (format, message) in [(Format::Json, JSON.as_bytes()), (Format::Pickle, PICKLE), (Format::Pickle, &class)] {
            let (file, _folder) = body_file(message);
            damage(file.path());
            for made in decode_both(format, file.into()) {
                let Err(DecodeError::Unreadable(text)) = made else { panic!("{why}: {made:?}") };
                assert!(text.contains(why), "{text}");
            }
        }
    };
    check(|path| fs::remove_file(path).expect("it is there"), "No such file");
    check(
        |path| {
            fs::remove_file(path).expect("it is there");
            fs::create_dir(path).expect("its name is free");
        },
        // a directory, or too short, as the file system has it
        "",
    );
    check(
        |path| {
            let file = fs::File::options().write(true).open(path).expect("it is there");
            let length = file.metadata().expect("a file").len();
            file.set_len(length - 1).expect("a shorter file");
        },
        "shorter",
    );
}
