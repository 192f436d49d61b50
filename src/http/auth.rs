//! Bearer tokens (RFC 6750): the file that has them, and the check of requests.

mod middleware;
mod tokens;

pub(crate) use middleware::{Audience, authenticate};
pub use tokens::{Bearer, Tokens, new_token};
