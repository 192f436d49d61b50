//! The parsers of the HTTP edge, each from its own file, in the tree in which they name each other: the library shows
//! none of them.
#![allow(dead_code, unused_imports, reason = "the checks use only the parsers")]

#[path = "../../src/http/digest.rs"]
pub mod digest;
#[path = "../../src/http/error.rs"]
pub mod error;
#[path = "../../src/http/connection/framing.rs"]
pub mod framing;
#[path = "../../src/http/connection/head.rs"]
pub mod head;
#[path = "../../src/worker/idempotency.rs"]
pub mod idempotency;
#[path = "../../src/http/prefer.rs"]
pub mod prefer;
#[path = "../../src/http/range.rs"]
pub mod range;
#[path = "../../src/http/request_id.rs"]
pub mod request_id;

pub mod connection {
    pub use super::framing;
}

pub use error::Failure;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// Routes are not checked here.
pub fn is_within(path: &str, folder: &str) -> bool {
    path.starts_with(folder)
}

/// The lines that can be values, as lines of one header.
pub fn lines_of<'a>(name: HeaderName, lines: impl IntoIterator<Item = &'a [u8]>) -> HeaderMap {
    let values = lines.into_iter().filter_map(|line| HeaderValue::from_bytes(line).ok());
    values.map(|value| (name.clone(), value)).collect()
}

/// The status and the text of a failure.
pub fn shown(failure: Failure) -> (u16, String) {
    let text = format!("{failure:?}");
    (failure.json().status().as_u16(), text)
}
