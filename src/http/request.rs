//! What handlers need from a request besides its body: its format, its query, and whether its client still waits.

use std::fmt::Display;
use std::pin::pin;
use std::time::Duration;

use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpMessage, HttpRequest, web};
use futures::FutureExt;
use futures::future::{self, Either};
use user_http_actors::codec::Format;

use crate::http::connection::Client;
use crate::http::embedding::Socket;
use crate::http::error::Failure;

/// The longest `wait` of a request for a message, in seconds. Fixed by the wire contract.
pub const MAX_WAIT: u32 = 60;

/// The format of the body: a pickle under `application/octet-stream`, else JSON.
pub fn format(headers: &HeaderMap) -> Format {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/octet-stream") { Format::Pickle } else { Format::Json }
}

/// The decoded query of a request.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(request: &HttpRequest) -> Self {
        let query = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
        Self(query.map(web::Query::into_inner).unwrap_or_default())
    }

    /// The values of a parameter, in order.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that is a number of seconds from 0 to `max`; `None` without the parameter.
    ///
    /// # Errors
    /// 400 if it is anything else, or given more than once.
    pub fn seconds(&self, name: &str, max: u32, notation: Notation) -> Result<Option<Duration>, Failure> {
        let expected = format_args!("a decimal number of seconds from 0 to {max}");
        self.parsed(name, expected, |value| seconds(value, max, notation))
    }

    /// The value of a parameter that `parse` accepts; `None` without the parameter. `expected` describes the values
    /// that are accepted.
    ///
    /// # Errors
    /// 400 if it is anything else, or given more than once.
    pub fn parsed<T>(
        &self,
        name: &str,
        expected: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let mut values = self.values(name);
        let wrong = match (values.next(), values.count()) {
            (None, _) => return Ok(None),
            (Some(value), 0) => match parse(value) {
                Some(value) => return Ok(Some(value)),
                None => format!("not {value:?}"),
            },
            (Some(_), more) => format!("not {} times", more + 1),
        };
        Err(Failure::bad_request(format!("{name} must be given once, as {expected}, {wrong}")))
    }
}

/// How a number of seconds is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// Digits and a point.
    Decimal,
    /// As programs print floating-point numbers: also with a sign and an exponent.
    Float,
}

fn seconds(value: &str, max: u32, notation: Notation) -> Option<Duration> {
    if notation == Notation::Decimal && !value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let seconds = value.parse().ok().filter(|seconds| (0.0..=f64::from(max)).contains(seconds))?;
    Some(Duration::from_secs_f64(seconds))
}

/// Resolves when the client of `request` has closed its sending side or the connection is broken: the client no longer
/// waits for its answer.
///
/// Never resolves in an application's own server that does not [remember](crate::remember_socket) the socket.
pub fn hung_up(request: &HttpRequest) -> impl Future<Output = ()> + use<> {
    let client = request.extensions().get::<Client>().cloned();
    let socket = Socket::of(request);
    async move {
        match (client, socket) {
            (Some(client), _) => client.hung_up().await,
            (None, Some(socket)) => socket.hung_up().await,
            (None, None) => future::pending().await,
        }
    }
}

/// The output of `waiting`, which takes at most about the time `wait`; `None` if the client of `request` hangs up
/// during a `wait` that is not zero. See [`unless_hung_up`].
pub async fn wait_unless_hung_up<T>(
    request: &HttpRequest,
    wait: Duration,
    waiting: impl Future<Output = T>,
) -> Option<T> {
    if wait.is_zero() { Some(waiting.await) } else { unless_hung_up(request, waiting).await }
}

/// The output of `waiting`, or `None` if the client of `request` hangs up before it. What `waiting` holds is dropped
/// then, and so is its output.
pub async fn unless_hung_up<T>(request: &HttpRequest, waiting: impl Future<Output = T>) -> Option<T> {
    let mut hung_up = pin!(hung_up(request));
    let output = match future::select(pin!(waiting), hung_up.as_mut()).await {
        Either::Left((output, _)) => output,
        Either::Right(_) => return None,
    };
    // The client may have hung up before there was an output. The event loop reports that only in its next round.
    tokio::task::yield_now().await;
    hung_up.now_or_never().is_none().then_some(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_decimal_number_within_its_bound_is_a_number_of_seconds() {
        for (value, milliseconds) in
            [("0", 0), ("60", 60_000), ("60.000", 60_000), ("0.25", 250), (".5", 500), ("5.", 5_000), ("007", 7_000)]
        {
            for notation in [Notation::Decimal, Notation::Float] {
                let expected = Some(Duration::from_millis(milliseconds));
                assert_eq!(seconds(value, 60, notation), expected, "{value}");
            }
        }
        let huge = "9".repeat(400);
        for value in [
            "", ".", "-1", "-0", "+1", "1e1", "1E1", "inf", "infinity", "nan", "NaN", " 1", "1 ", "1s", "1,5", "1_0",
            "0x1", "1.2.3", "60.1", "61", "\u{661}", &huge,
        ] {
            assert_eq!(seconds(value, 60, Notation::Decimal), None, "{value:?}");
        }
        // what Python prints
        assert_eq!(seconds("5e-05", 60, Notation::Float), Some(Duration::from_micros(50)));
        for value in ["", "-1", "inf", "nan", " 1", "1s", "60.1", "6.1e1"] {
            assert_eq!(seconds(value, 60, Notation::Float), None, "{value:?}");
        }
    }
}
