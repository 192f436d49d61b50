//! What handlers need from a request besides its body: its format, its query, and whether its client still waits.

use std::future;

use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpMessage, HttpRequest, web};
use user_http_actors::codec::Format;

use crate::http::connection::Client;

/// The format of the body: a pickle under `application/octet-stream`, else JSON.
pub fn format(headers: &HeaderMap) -> Format {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/octet-stream") { Format::Pickle } else { Format::Json }
}

/// The decoded values of a query parameter, in order.
pub fn query_values(request: &HttpRequest, name: &str) -> Vec<String> {
    let query = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    let pairs = query.map(web::Query::into_inner).unwrap_or_default();
    pairs.into_iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
}

/// Resolves when the client of `request` has closed its sending side or the connection is broken: the client no longer
/// waits for its answer.
///
/// Never resolves in an application's own server: there the handler is dropped instead.
pub async fn hung_up(request: &HttpRequest) {
    let client = request.extensions().get::<Client>().cloned();
    match client {
        Some(client) => client.hung_up().await,
        None => future::pending().await,
    }
}
