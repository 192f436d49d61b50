//! What is made of a message grows no faster than the message, and takes no longer.

use std::time::Duration;

use user_http_actors::codec::{
    DecodeError, Format, OutgoingMessage, UserMessage, decode_communication_interface_message, decode_user_message,
};

/// How much processor time any of the small bodies here may take in the slowest profile. Without bounds they could take
/// minutes to days.
const SOON: Duration = Duration::from_secs(20);

/// The processor time of this thread: unlike the clock, it does not depend on what else runs on the machine.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the statistics of this thread");
    let nanoseconds = stat.split(' ').next().and_then(|field| field.parse().ok()).expect("its time on a processor");
    Duration::from_nanos(nanoseconds)
}

fn body_of(kind: &str, data: &[u8]) -> Vec<u8> {
    let mut body = b"\x80\x04}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c".to_vec();
    body.push(kind.len() as u8);
    body.extend([kind.as_bytes(), b"\x8c\x04DATA", data, b"uu."].concat());
    body
}

fn forwarded(body: Vec<u8>) -> OutgoingMessage {
    match decode_user_message(Format::Pickle, body).map(|posted| posted.message) {
        Ok(UserMessage::Forward(message)) => message,
        other => panic!("not forwarded: {other:?}"),
    }
}

/// A list of two of the list before, so many times over: 2^`levels` lists without sharing.
fn doubled(levels: u32) -> Vec<u8> {
    let mut data = b"]".to_vec();
    for number in (0..levels).map(u32::to_le_bytes) {
        data.extend([&b"r"[..], &number, b"0](j", &number, b"j", &number, b"e"].concat());
    }
    data
}

/// A list of one value, `count` times.
fn repeated(value: &[u8], count: usize) -> Vec<u8> {
    [b"](", value, b"q\x01", &b"h\x01".repeat(count), b"e"].concat()
}

#[test]
fn sharing_that_would_fill_the_outbox_goes_as_a_pickle() {
    for levels in 1..30 {
        let body = body_of("RENDER_COMPLETED", &doubled(levels));
        let size = body.len();
        let message = forwarded(body);
        let made = message.body.len() as usize;
        // the data stand in it twice
        assert!(made <= 2 * (16 * size + (64 << 10)) + 1_000, "{made} bytes of {size}");
        let format = if levels < 14 { Format::Json } else { Format::Pickle };
        assert_eq!(message.format, format, "{levels}: {made} bytes of {size}");
    }
}

#[test]
fn names_that_dicts_share_still_go_as_json() {
    // as `pickle.dumps` writes 10,000 dicts of the same keys
    let item = b"}(h\x01G\x3f\xf8\0\0\0\0\0\0h\x02K\x07h\x03\x88u";
    let names =
        b"X\x18\0\0\0average_sample_durationsq\x010X\x12\0\0\0finished_frame_numq\x020X\x0d\0\0\0is_successfulq\x030";
    let data = [&names[..], b"](", &item.repeat(10_000), b"e"].concat();
    assert_eq!(forwarded(body_of("RENDER_COMPLETED", &data)).format, Format::Json);
}

#[test]
fn a_long_encoding_of_a_short_value_is_not_read_again_for_each_use() {
    let long_float = [&b"F1."[..], &b"0".repeat(1 << 20), b"\n"].concat();
    let padded_int = [&b"\x8b\xcc\x10\0\0"[..], &[0; 4_300]].concat();
    let escaped = [&b"V"[..], &b"\\U0000002e".repeat(100_000), b"\n"].concat();
    for value in [long_float, padded_int, escaped] {
        for kind in ["RENDER_COMPLETED", "TEST"] {
            let body = body_of(kind, &repeated(&value, 400_000));
            let start = processor_time();
            decode_user_message(Format::Pickle, body).expect("taken");
            let spent = processor_time() - start;
            assert!(spent < SOON, "{spent:?}");
        }
    }
}

#[test]
fn one_list_made_into_many_sets_is_counted_as_often_as_it_is_copied() {
    let sets = |count: usize| {
        let items: Vec<u8> = (0..1_000_u16).flat_map(|item| [&b"M"[..], &item.to_le_bytes()].concat()).collect();
        let list = [&b"]("[..], &items, b"e\x85q\x010"].concat();
        let calls = b"h\x02h\x01R".repeat(count);
        let data = [&b"](cbuiltins\nset\nq\x020"[..], &list, &calls, b"e"].concat();
        decode_user_message(Format::Pickle, body_of("FRAME_RENDERED", &data))
    };
    sets(100).expect("few copies");
    let refused = sets(3_000);
    let Err(DecodeError::Malformed(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("keep `pickle.loads` busy for more than"), "{text}");
}

#[test]
fn a_pickle_made_of_json_is_at_most_three_times_as_long() {
    let items = [
        "1.0",
        "1e1",
        "NaN",
        "0",
        "[]",
        "{}",
        "\"\"",
        "null",
        "-1",
        "99999999999",
        "\"\u{65e5}\"",
        "{\"\":1}",
        "-Infinity",
    ];
    for item in items {
        let list = vec![item; 50_000].join(",");
        let body = format!(r#"{{"TYPE":"ADD_BUFFER_MSG","DATA":{{"BUFFER_UUID":"u","BUFFER_MSG":[{list}]}}}}"#);
        let size = body.len();
        let stored = decode_communication_interface_message(Format::Json, body).expect("stored");
        let made = stored.message.pickle.len() as usize;
        assert!(made <= 3 * size, "{item}: {made} bytes of {size}");
    }
}
