//! The requests of the contract.

use super::load::{NUMBER, Request};

/// Leaves `message` under a UUID.
pub fn add_buffer_msg(buffer_uuid: &str, message: &str) -> Request {
    let data = format!(r#"{{"BUFFER_UUID":"{buffer_uuid}","BUFFER_MSG":{message}}}"#);
    Request::post("/CommunicationInterface/AddBufferMsg", &format!(r#"{{"TYPE":"ADD_BUFFER_MSG","DATA":{data}}}"#))
}

/// Leaves a message of so many bytes under a number of its own.
pub fn add(bytes: usize) -> Request {
    add_buffer_msg(NUMBER, &render(bytes))
}

/// Fetches what [`add`] has left under the same number.
pub fn get() -> Request {
    get_of(NUMBER)
}

pub fn get_of(buffer_uuid: &str) -> Request {
    Request::get(&format!("/?bufferUUID={buffer_uuid}"))
}

pub fn test() -> Request {
    Request::post("/", r#"{"USER_ID":"bench","MAIN_DATA":{"TYPE":"TEST","DATA":"hello"}}"#)
}

/// A message of this length, at least about 60 bytes.
pub fn render(bytes: usize) -> String {
    let message = |job: &str| format!(r#"{{"TYPE":"RENDER","DATA":{{"JOB":"{job}","FRAMES":[1,2,3,4]}}}}"#);
    message(&"x".repeat(bytes.saturating_sub(message("").len())))
}

/// A message whose answer has the content of a .blend file in it.
pub fn blend(file: &str) -> String {
    format!(r#"{{"DATA":{{"META_DATA":"EXTRACT_BLEND_FILE_FROM_PATH","BINARY_BLEND_FILE":"{file}"}}}}"#)
}
