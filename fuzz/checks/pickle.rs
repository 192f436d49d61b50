//! Pickles of all kinds are read without a panic, and what is made of an accepted one is accepted again.

use user_http_actors::codec::{
    DecodeError, Format, UserMessage, decode_communication_interface_message, decode_user_message,
};

/// Whether a pickle that was passed on is read again, up to the envelope that it does not have. One that is as large
/// or as deep as may be goes beyond a bound with the envelope around it.
fn read_again(pickle: Vec<u8>) {
    let Err(DecodeError::Malformed(error)) = decode_user_message(Format::Pickle, pickle) else {
        // The value passed on is itself a message.
        return;
    };
    let read = ["USER_ID ", "MAIN_DATA", "the body is "].iter().any(|of| error.starts_with(of));
    assert!(read || error.contains("deeper than") || error.contains("more than"), "{error}");
}

/// A worker's message up to the value of its `DATA`.
const HEAD: &[u8] = b"}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x0eFRAME_RENDERED\x8c\x04DATA";

pub fn check(data: &[u8]) {
    for body in [data.to_vec(), [HEAD, data, b"uu."].concat()] {
        if let Ok(UserMessage::Forward(message)) =
            decode_user_message(Format::Pickle, body).map(|posted| posted.message)
            && message.format == Format::Pickle
        {
            read_again(message.body.read_all().expect("in memory").to_vec());
        }
    }
    if let Ok(stored) = decode_communication_interface_message(Format::Pickle, data.to_vec())
        && stored.message.blend.as_ref().is_none_or(|blend| blend.path.is_none())
    {
        read_again(stored.message.pickle.read_all().expect("in memory").to_vec());
    }
}
