//! `GET /metrics`: the metrics in Prometheus's text format.

use actix_web::http::header;
use actix_web::{HttpResponse, web};

use crate::Metrics;
use crate::http::Gateway;

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /metrics`: renders what the actors and the servers have reported, and asks none of them: a part that hangs
/// must not hide the others.
pub async fn metrics(gateway: web::Data<Gateway>, metrics: web::Data<Metrics>) -> HttpResponse {
    gateway.actors.update_ages();
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    response.content_type(TEXT_FORMAT).body(metrics.render())
}
