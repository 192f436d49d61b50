//! The routes for parked messages, which the broker refuses permanently. An operator publishes or deletes them.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use uuid::Uuid;

use crate::api::Success;
use crate::api::user_manager::{found, message_id};
use crate::http::Gateway;
use crate::http::error::Failure;

const PARKED: &str = "parked message";

/// A parked message in a list.
#[derive(Serialize)]
struct Entry {
    id: Uuid,
    user: String,
    r#type: &'static str,
    /// Bytes of the body.
    size: u64,
    reason: String,
    /// Seconds since 1970.
    since: f64,
}

/// `GET /UserManager/Parked`: the parked messages, oldest first.
pub async fn list(gateway: web::Data<Gateway>) -> HttpResponse {
    let parked = match gateway.actors.parked_messages().await {
        Ok(parked) => parked,
        Err(error) => return Failure::from(error).json(),
    };
    let entries = parked.into_iter().map(|message| Entry {
        id: message.message_id,
        user: message.user_id,
        r#type: message.kind.name(),
        size: message.size,
        reason: message.reason,
        since: message.since_ms as f64 / 1e3,
    });
    HttpResponse::Ok().json(entries.collect::<Vec<_>>())
}

/// `POST /UserManager/Parked/{id}/Publish`: publishes a parked message again.
pub async fn publish(id: web::Path<String>, gateway: web::Data<Gateway>) -> HttpResponse {
    match found(gateway.actors.publish_parked_message(message_id(&id)).await, PARKED, &id) {
        Ok(()) => HttpResponse::Ok().json(Success::new()),
        Err(failure) => failure.json(),
    }
}

/// `DELETE /UserManager/Parked/{id}`: deletes a parked message.
pub async fn delete(id: web::Path<String>, gateway: web::Data<Gateway>) -> HttpResponse {
    match found(gateway.actors.delete_parked_message(message_id(&id)).await, PARKED, &id) {
        Ok(()) => HttpResponse::NoContent().finish(),
        Err(failure) => failure.json(),
    }
}
