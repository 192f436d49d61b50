//! `GET /healthz` and `GET /readyz`: the state of the service, for supervisors and load balancers.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use serde::Serialize;
use user_http_actors::ActorsState;
use user_http_actors::messages::BrokerState;

use crate::http::Gateway;
use crate::http::error::Failure;
use crate::status::{self, StoreHealth};

#[derive(Serialize)]
struct Alive {
    alive: bool,
}

/// `GET /healthz`: answers while the process is alive.
pub async fn healthz() -> HttpResponse {
    now(StatusCode::OK, Alive { alive: true })
}

/// A state that no cache may keep.
fn now(status: StatusCode, state: impl Serialize) -> HttpResponse {
    HttpResponse::build(status).insert_header((header::CACHE_CONTROL, "no-store")).json(state)
}

/// The answer to `GET /readyz`.
#[derive(Serialize)]
struct Readiness {
    /// Whether every part accepts work.
    ready: bool,
    /// The parts that do not, and why; empty if ready.
    not_ready: Vec<String>,
    broker: BrokerState,
    /// Why messages for the user manager wait although the broker is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<String>,
    /// Why frames are answered 503 although the outbox has space (`--frame-ack broker`).
    #[serde(skip_serializing_if = "Option::is_none")]
    frames_refused: Option<&'static str>,
    store: StoreHealth,
    buffer: BufferReport,
    outbox: OutboxReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<ConsumerReport>,
}

#[derive(Serialize)]
struct BufferReport {
    messages: usize,
    bytes: u64,
    in_delivery: usize,
    /// Requests that wait for a message.
    waiting: usize,
    delivered_total: u64,
    expired_total: u64,
    discarded_total: u64,
}

#[derive(Serialize)]
struct OutboxReport {
    messages: usize,
    bytes: u64,
    parked: usize,
    unstored: usize,
    idempotency_keys: usize,
    max_bytes: u64,
    forwarded_total: u64,
    discarded_total: u64,
    test_total: u64,
    unknown_total: u64,
}

#[derive(Serialize)]
struct ConsumerReport {
    connected: bool,
    paused: bool,
    stored_total: u64,
    rejected_total: u64,
}

/// `GET /readyz`: whether the service accepts work, and the state of its parts.
pub async fn readyz(gateway: web::Data<Gateway>) -> HttpResponse {
    match readiness(&gateway).await {
        Ok(readiness) if readiness.ready => now(StatusCode::OK, readiness),
        Ok(readiness) => now(StatusCode::SERVICE_UNAVAILABLE, readiness),
        Err(failure) => failure.json(),
    }
}

async fn readiness(gateway: &Gateway) -> Result<Readiness, Failure> {
    let ActorsState { buffer, outbox, consumer } = gateway.actors.state().await?;
    let not_ready = status::not_ready(Some(&buffer), Some(&outbox));
    let store = status::store_health(Some(&buffer), Some(&outbox));
    Ok(Readiness {
        ready: not_ready.is_empty(),
        not_ready,
        broker: outbox.broker,
        waiting_for: outbox.waiting_for,
        frames_refused: outbox.frames_refused,
        store,
        buffer: BufferReport {
            messages: buffer.messages,
            bytes: buffer.bytes,
            in_delivery: buffer.in_delivery,
            waiting: buffer.waiting,
            delivered_total: buffer.delivered_total,
            expired_total: buffer.expired_total,
            discarded_total: buffer.discarded_total,
        },
        outbox: OutboxReport {
            messages: outbox.messages,
            bytes: outbox.bytes,
            parked: outbox.parked,
            unstored: outbox.unstored,
            idempotency_keys: outbox.idempotency_keys,
            max_bytes: outbox.max_bytes,
            forwarded_total: outbox.forwarded_total,
            discarded_total: outbox.discarded_total,
            test_total: outbox.test_total,
            unknown_total: outbox.unknown_total,
        },
        consumer: consumer.map(|consumer| ConsumerReport {
            connected: consumer.connected,
            paused: consumer.paused,
            stored_total: consumer.stored_total,
            rejected_total: consumer.rejected_total,
        }),
    })
}
