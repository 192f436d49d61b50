//! Failures: a table from causes to statuses and headers, and the two formats in which a failure is sent.

use std::time::Duration;

use actix_web::http::header::{self, HeaderName};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpResponse, HttpResponseBuilder};
use serde::Serialize;
use user_http_actors::metrics::Refusal;
use user_http_actors::store::StoreError;
use user_http_actors::{Error, ErrorKind};

use crate::http::is_within;

/// `Retry-After` for a message that is being delivered to another connection, in seconds.
const BUSY_RETRY_AFTER: u32 = 1;

/// `Retry-After` for a request that exceeds a capacity, in seconds. Capacity comes back as fast as messages are
/// fetched, and a client that retries too early costs no more than one refused request.
const CAPACITY_RETRY_AFTER: u32 = 5;

/// A failure to be sent to the client.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    text: String,
    /// A header that goes with the status.
    header: Option<(HeaderName, String)>,
}

#[derive(Serialize)]
struct JsonForm<'a> {
    #[serde(rename = "STATUS")]
    status: &'static str,
    #[serde(rename = "ERROR")]
    error: &'a str,
}

/// RFC 9457, without a type of its own: the status says what kind of problem it is.
#[derive(Serialize)]
struct ProblemForm<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
}

#[derive(Serialize)]
struct PickleForm<'a> {
    message: &'a str,
}

/// The JSON form in which a route sends its failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The contract's, `{"STATUS": "FAILED", "ERROR": …}`.
    Contract,
    /// Problem details (RFC 9457), of the routes that are newer than the contract.
    Problem,
}

/// The paths of routes that are newer than the contract, and of those below them.
const NEWER: [&str; 4] = ["/admin", "/docs", "/openapi.json", "/openapi-worker.json"];

impl Form {
    /// The form of the failures of the route with this path or pattern.
    pub fn of_route(path: &str) -> Self {
        let is_newer = NEWER.iter().any(|newer| is_within(path, newer));
        if is_newer { Self::Problem } else { Self::Contract }
    }
}

impl Failure {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), header: None }
    }

    fn with(self, name: HeaderName, value: impl Into<String>) -> Self {
        Self { header: Some((name, value.into())), ..self }
    }

    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    pub fn method_not_allowed(method: &Method, allowed: &'static str) -> Self {
        let text = format!("{method} is not allowed here, only {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, text).with(header::ALLOW, allowed)
    }

    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    /// The message is in use; a retry may succeed.
    pub fn busy(text: &str) -> Self {
        Self::new(StatusCode::CONFLICT, text).with(header::RETRY_AFTER, BUSY_RETRY_AFTER.to_string())
    }

    pub fn unauthorized() -> Self {
        let text = "a valid token is needed: Authorization: Bearer TOKEN";
        let realm = "Bearer realm=\"user-http-server\"";
        Self::new(StatusCode::UNAUTHORIZED, text).with(header::WWW_AUTHENTICATE, realm)
    }

    pub fn too_large(limit: u64) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than the limit of {limit} bytes"))
    }

    fn no_capacity(text: &str) -> Self {
        let retry_after = CAPACITY_RETRY_AFTER.to_string();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text).with(header::RETRY_AFTER, retry_after)
    }

    pub fn too_much_inflight() -> Self {
        Self::no_capacity("too many bytes are being received at the same time; retry later")
    }

    pub fn too_many_streams() -> Self {
        Self::no_capacity("as many status pages are open as may be; close one, or retry later")
    }

    pub fn too_many_uploads() -> Self {
        Self::no_capacity("request bodies take all the disk space that they may take while they arrive; retry later")
    }

    pub fn too_slow(rate: u64) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, format!("the body arrives more slowly than {rate} bytes a second"))
    }

    pub fn head_too_large(limit: usize) -> Self {
        let text = format!("the head of the request is longer than {limit} bytes");
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text)
    }

    pub fn too_many_headers(limit: usize) -> Self {
        let text = format!("the request has more than {limit} headers");
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text)
    }

    pub fn head_too_slow(limit: Duration) -> Self {
        let text = format!("the head of the request did not arrive within {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, text)
    }

    pub fn head_broken_off() -> Self {
        Self::bad_request("the connection ended within the head of the request; expected an empty line at its end")
    }

    pub fn hung_up() -> Self {
        let text = "the client closed its sending side, or sent 16 KiB or more ahead, while it waited for a message; \
                    keep it open, and send the next request after the answer";
        Self::bad_request(text)
    }

    pub fn tls_required() -> Self {
        Self::bad_request("this port speaks TLS, but the request is plain HTTP; use https://")
    }

    pub fn content_encoding(encoding: &str) -> Self {
        let text = format!("content encoding {encoding:?} is not supported; send the body without one");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).with(header::ACCEPT_ENCODING, "identity")
    }

    pub fn malformed_digest(header: &str, why: &str) -> Self {
        let right = "it must be a list of ALGORITHM=:BASE64:, as in RFC 9530";
        Self::bad_request(format!("{header} is malformed ({why}); {right}"))
    }

    /// `named` and `computed` are in the form of the header.
    pub fn digest_mismatch(header: &str, named: &str, computed: &str) -> Self {
        let text =
            format!("the body has changed on its way: {header} is {named}, but the received bytes have {computed}");
        Self::bad_request(text)
    }

    /// `what` is the message or the file.
    pub fn range_not_satisfiable(what: &str, len: u64) -> Self {
        let text = format!("the range starts after the end of the {what}, which has {len} bytes");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, text).with(header::CONTENT_RANGE, format!("bytes */{len}"))
    }

    /// `what` is the message or the file.
    pub fn precondition_failed(what: &str, etag: &str) -> Self {
        let text = format!("If-Match does not name the current version of the {what}, {etag}; fetch it from the start");
        Self::new(StatusCode::PRECONDITION_FAILED, text).with(header::ETAG, etag)
    }

    /// What a message is counted as whose body cannot be received because of this failure.
    pub fn refusal(&self) -> Refusal {
        match self.status {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
            StatusCode::SERVICE_UNAVAILABLE => Refusal::NoCapacity,
            StatusCode::INTERNAL_SERVER_ERROR => Refusal::Unavailable,
            _ => Refusal::Transfer,
        }
    }

    /// As JSON, `{"STATUS": "FAILED", "ERROR": …}`.
    pub fn json(self) -> HttpResponse {
        self.builder().json(JsonForm { status: "FAILED", error: &self.text })
    }

    /// As problem details (RFC 9457).
    fn problem(self) -> HttpResponse {
        let title = self.status.canonical_reason().unwrap_or_default();
        let form = ProblemForm { r#type: "about:blank", title, status: self.status.as_u16(), detail: &self.text };
        let mut response = self.builder();
        // `json` keeps it
        response.content_type("application/problem+json");
        response.json(form)
    }

    /// As JSON of this form.
    pub fn in_form(self, form: Form) -> HttpResponse {
        match form {
            Form::Contract => self.json(),
            Form::Problem => self.problem(),
        }
    }

    /// As a pickle, `{"message": …}`.
    pub fn pickle(self) -> HttpResponse {
        let form = PickleForm { message: &self.text };
        match serde_pickle::to_vec(&form, serde_pickle::SerOptions::new()) {
            Ok(body) => self.builder().content_type("application/octet-stream").body(body),
            Err(error) => {
                log::error!("cannot pickle an answer: {error}");
                HttpResponse::InternalServerError().finish()
            }
        }
    }

    fn builder(&self) -> HttpResponseBuilder {
        let mut response = HttpResponse::build(self.status);
        if let Some((name, value)) = &self.header {
            response.insert_header((name, value.as_str()));
        }
        response
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (status, retry_after) = match error.kind() {
            ErrorKind::Request => (StatusCode::BAD_REQUEST, None),
            ErrorKind::Forbidden => (StatusCode::FORBIDDEN, None),
            ErrorKind::Absent => match error {
                Error::NoSuchMessage | Error::NoSuchBlendFile => (StatusCode::NOT_FOUND, None),
                _ => (StatusCode::BAD_REQUEST, None),
            },
            ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, None),
            ErrorKind::Conflict => (StatusCode::UNPROCESSABLE_ENTITY, None),
            ErrorKind::Busy => (StatusCode::BAD_REQUEST, Some(BUSY_RETRY_AFTER)),
            ErrorKind::NoCapacity | ErrorKind::Service => (StatusCode::SERVICE_UNAVAILABLE, Some(CAPACITY_RETRY_AFTER)),
            ErrorKind::Setup => (StatusCode::CONFLICT, None),
        };
        let text = match &error {
            // The cause names files of this machine, so it is only logged.
            Error::Store(cause) => {
                log::error!("{cause}");
                match cause {
                    StoreError::NoSpace(_) => "no space left for messages".to_owned(),
                    StoreError::Busy(_) => "no file descriptor or memory left for the message store".to_owned(),
                    StoreError::TooLarge { .. } => cause.to_string(),
                    StoreError::Failed(_) | StoreError::Gone(_) => "the message store has failed".to_owned(),
                    StoreError::Database(_) => "the database of messages does not work at the moment".to_owned(),
                }
            }
            _ => error.to_string(),
        };
        let failure = Self::new(status, text);
        match retry_after {
            Some(seconds) => failure.with(header::RETRY_AFTER, seconds.to_string()),
            None => failure,
        }
    }
}
