//! Administration: operators list what the gateway holds, and discard single messages.
//!
//! A page is `{"messages": […], "next": …}`; `next` is the `after` of the next page. Failures have the form of
//! RFC 9457. Payloads are never shown.

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use user_http_actors::administration::{BufferEntry, OutboxEntry, OutboxEntryState, Page, PageRequest, Requester};
use user_http_actors::{BufferUuid, Error, ErrorKind};
use uuid::Uuid;

use crate::api::user_manager::message_id;
use crate::auth::Bearer;
use crate::http::error::{Failure, Form};
use crate::http::request::Query;
use crate::http::{Gateway, current_request_id, delivery};

/// How many messages a page has without `limit`.
const DEFAULT_LIMIT: usize = 100;

/// How many messages a page may have. An actor makes a page of so many in less than a millisecond.
const MAX_LIMIT: usize = 1_000;

/// The body of a page.
#[derive(Serialize)]
struct List<T> {
    messages: Vec<T>,
    /// The cursor of the next page.
    next: Option<String>,
}

/// A buffered message in a list.
#[derive(Serialize)]
struct BufferedMessage {
    uuid: String,
    bytes: u64,
    age_seconds: f64,
    blend: Option<String>,
    in_delivery: bool,
}

/// An outbox message in a list.
#[derive(Serialize)]
struct OutboxMessage {
    id: Uuid,
    user: String,
    r#type: &'static str,
    bytes: u64,
    age_seconds: f64,
    state: State,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Waiting,
    InFlight,
    Leased,
    Parked,
}

/// `GET /admin/buffer?limit=N&after=CURSOR`: a page of the buffered messages.
pub async fn list_buffer(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    let page = match page_request(&request) {
        Ok(page) => gateway.actors.list_buffer_msgs(page).await.map_err(failure),
        Err(failure) => Err(failure),
    };
    list(page, |BufferEntry { buffer_uuid, bytes, age, blend, in_delivery }| BufferedMessage {
        uuid: buffer_uuid.into(),
        bytes,
        age_seconds: age.as_secs_f64(),
        blend,
        in_delivery,
    })
}

/// `GET /admin/outbox?limit=N&after=CURSOR`: a page of the outbox.
pub async fn list_outbox(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    let page = match page_request(&request) {
        Ok(page) => gateway.actors.list_outbox_messages(page).await.map_err(failure),
        Err(failure) => Err(failure),
    };
    list(page, |OutboxEntry { message_id, user_id, kind, bytes, age, state }| OutboxMessage {
        id: message_id,
        user: user_id,
        r#type: kind.name(),
        bytes,
        age_seconds: age.as_secs_f64(),
        state: match state {
            OutboxEntryState::Waiting => State::Waiting,
            OutboxEntryState::InFlight => State::InFlight,
            OutboxEntryState::Leased => State::Leased,
            OutboxEntryState::Parked => State::Parked,
        },
    })
}

/// `DELETE /admin/buffer/{uuid}`: discards a buffered message.
pub async fn discard_buffered(
    request: HttpRequest,
    uuid: web::Path<String>,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    // the router replaces what is not UTF-8, and the result could be the name of another message
    let is_utf8 = percent_decode_str(request.uri().path()).decode_utf8().is_ok();
    let found = if is_utf8 {
        gateway.actors.discard_buffer_msg(BufferUuid::from(uuid.as_str()), requester(&request)).await
    } else {
        Err(Error::NoBufferMsg)
    };
    discarded(found.map_err(|error| match error {
        Error::NoBufferMsg => Failure::not_found(format!("no message is buffered under {:?}", *uuid)),
        Error::InDelivery => Failure::busy("the message is being delivered; try again when the delivery has ended"),
        error => failure(error),
    }))
}

/// `DELETE /admin/outbox/{id}`: discards a message of the outbox.
pub async fn discard_outbox(request: HttpRequest, id: web::Path<String>, gateway: web::Data<Gateway>) -> HttpResponse {
    let found = gateway.actors.discard_outbox_message(message_id(&id), requester(&request)).await;
    discarded(found.map_err(|error| match error {
        Error::NoSuchMessage => Failure::not_found(format!("the outbox has no message {:?}", *id)),
        error => failure(error),
    }))
}

fn failure(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Busy => Failure::busy(&error.to_string()),
        _ => error.into(),
    }
}

fn list<E, T: Serialize>(page: Result<Page<E>, Failure>, shown: impl FnMut(E) -> T) -> HttpResponse {
    match page {
        Ok(Page { messages, next }) => {
            let messages = messages.into_iter().map(shown).collect();
            delivery::response().json(List { messages, next: next.map(|next| next.to_string()) })
        }
        Err(failure) => failure.in_form(Form::Problem),
    }
}

fn discarded(outcome: Result<(), Failure>) -> HttpResponse {
    match outcome {
        Ok(()) => HttpResponse::NoContent().finish(),
        Err(failure) => failure.in_form(Form::Problem),
    }
}

/// Who sends a request: the label of the token, or else the address.
fn requester(request: &HttpRequest) -> Requester {
    let label = request.extensions().get::<Bearer>().and_then(|bearer| bearer.user_id.clone());
    let name = match (label, request.peer_addr()) {
        (Some(label), _) => format!("token {label:?}"),
        (None, Some(address)) => address.to_string(),
        (None, None) => "an unknown address".to_owned(),
    };
    Requester { name, request_id: current_request_id().unwrap_or_default() }
}

/// The page that a request asks for.
///
/// # Errors
/// 400 if `limit` or `after` is malformed, or given more than once.
fn page_request(request: &HttpRequest) -> Result<PageRequest, Failure> {
    let query = Query::of(request);
    let limit = query.parsed("limit", format_args!("a number from 1 to {MAX_LIMIT}"), |limit| {
        number(limit).filter(|limit| (1..=MAX_LIMIT as u64).contains(limit)).map(|limit| limit as usize)
    })?;
    let after = query.parsed("after", "the \"next\" of an earlier page", cursor)?;
    Ok(PageRequest { after: after.unwrap_or_default(), limit: limit.unwrap_or(DEFAULT_LIMIT) })
}

/// A sequence number as a page writes it: without leading zeros. No store ever reaches 20 digits.
fn cursor(text: &str) -> Option<u64> {
    number(text).filter(|_| text.len() <= 19 && (text == "0" || !text.starts_with('0')))
}

/// A number in digits alone.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}
