//! `POST /CommunicationInterface/AddBufferMsg`: the communication interface leaves a message for a worker.

use actix_web::{HttpRequest, HttpResponse, web};

use crate::api::Success;
use crate::http::error::Failure;
use crate::http::{Gateway, body, request};

/// `POST /CommunicationInterface/AddBufferMsg`: buffers a message for a worker.
pub async fn add_buffer_msg(request: HttpRequest, payload: web::Payload, gateway: web::Data<Gateway>) -> HttpResponse {
    add(&request, payload, &gateway).await.unwrap_or_else(Failure::json)
}

async fn add(request: &HttpRequest, payload: web::Payload, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let read = body::read(request, payload, gateway, gateway.actors.buffer_bodies()).await;
    let body = read.inspect_err(|failure| gateway.actors.count_refused_buffer_msg(failure.refusal()))?;
    let format = request::format(request.headers());
    gateway.actors.handle_communication_interface_message(format, body).await?;
    Ok(HttpResponse::Ok().json(Success::new()))
}
