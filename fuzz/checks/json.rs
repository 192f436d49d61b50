//! JSON of all kinds is read without a panic; what is written of it is read again, and written the same.

use user_http_actors::codec::{
    DecodeError, Format, UserMessage, decode_communication_interface_message, decode_user_message,
};

/// What is forwarded of a message that a worker has sent as JSON.
fn forwarded(body: Vec<u8>) -> Result<Option<(Format, Vec<u8>)>, DecodeError> {
    Ok(match decode_user_message(Format::Json, body)?.message {
        UserMessage::Forward(message) => Some((message.format, message.body.read_all().expect("in memory").to_vec())),
        _ => None,
    })
}

fn completed(data: &[u8]) -> Vec<u8> {
    [br#"{"USER_ID": "u", "MAIN_DATA": {"TYPE": "RENDER_COMPLETED", "DATA": "#, data, b"}}"].concat()
}

pub fn check(data: &[u8]) {
    let _ = decode_communication_interface_message(Format::Json, data.to_vec());
    let _ = forwarded(data.to_vec());
    let Ok(Some((Format::Json, once))) = forwarded(completed(data)) else { return };
    match forwarded(completed(&once)) {
        Ok(Some((Format::Json, twice))) => {
            let within = |text: &[u8]| twice.windows(text.len()).any(|part| part == text);
            let expected =
                [br#""DATA": "#, &once[..], br#", "MESSAGE": "#, &once[..], br#", "USER_ID": "u"}}}"#].concat();
            assert!(within(&expected), "{}", twice.escape_ascii());
        }
        Ok(other) => panic!("not forwarded as JSON: {other:?}"),
        Err(error) => assert!(error.to_string().contains("deeper than"), "{error}"),
    }
}
