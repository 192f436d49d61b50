//! Bearer tokens (RFC 6750): the file that lists them, and the middleware that checks requests.

mod middleware;
mod tokens;

pub use middleware::Authentication;
pub(crate) use middleware::TokenNeeded;
pub use tokens::{Bearer, Tokens, first_plain_token, new_token};
