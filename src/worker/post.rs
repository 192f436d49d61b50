//! `POST /`: a worker sends a message for the user manager.

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use serde::Serialize;

use crate::auth::Bearer;
use crate::http::error::Failure;
use crate::http::{Gateway, body, request};

/// The body of the answer.
#[derive(Serialize)]
struct Received {
    #[serde(rename = "DATA")]
    data: &'static str,
    #[serde(rename = "TIME")]
    time: f64,
}

/// `POST /`: receives a message from a worker.
pub async fn send_data_to_server(
    request: HttpRequest,
    payload: web::Payload,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    receive(&request, payload, &gateway).await.unwrap_or_else(Failure::json)
}

async fn receive(request: &HttpRequest, payload: web::Payload, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let body = body::read(request, payload, gateway, gateway.actors.outbox_bodies()).await?;
    let bearer = request.extensions().get::<Bearer>().cloned().unwrap_or_default();
    let format = request::format(request.headers());
    gateway.actors.handle_user_message(bearer.user_id.as_deref(), format, body).await?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    Ok(HttpResponse::Ok().json(Received { data: "RECEIVED", time }))
}
