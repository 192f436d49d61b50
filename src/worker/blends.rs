//! `GET` and `HEAD /blends/SHA256`: a worker fetches a .blend file that a message referred to.

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use user_http_actors::ReferredBlendFile;
use user_http_actors::blend::BlendDigest;

use crate::http::Gateway;
use crate::http::delivery::{self, DeliveryBody, LengthOnly, NoLease, Shown, Source};
use crate::http::digest::{self, Algorithm, REPR_DIGEST};
use crate::http::error::Failure;
use crate::http::range;
use crate::status::Sent;

/// The content of this URL never changes, and workers fetch it with tokens.
const CACHE_CONTROL: &str = "private, max-age=31536000, immutable";

/// `GET /blends/SHA256`: the file, or a range of it. `HEAD`: its length.
pub async fn get_blend_file(
    request: HttpRequest,
    digest: web::Path<String>,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    send(&request, &digest, &gateway).await.unwrap_or_else(Failure::json)
}

async fn send(request: &HttpRequest, name: &str, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let sha256: BlendDigest = name.parse().map_err(|why| Failure::not_found(format!("{why}, not {name:?}")))?;
    let ReferredBlendFile { file, permit } = gateway.actors.open_referred_blend_file(sha256).await?;
    let (len, etag) = (file.len(), format!("\"{sha256}\""));
    if !range::if_match(request.headers(), &etag) {
        return Err(Failure::precondition_failed("file", &etag));
    }
    let mut response = HttpResponse::Ok();
    response.insert_header((header::ETAG, etag.as_str())).insert_header((header::CACHE_CONTROL, CACHE_CONTROL));
    if !range::if_none_match(request.headers(), &etag) {
        return Ok(response.status(StatusCode::NOT_MODIFIED).finish());
    }
    response.insert_header((REPR_DIGEST, digest::member(Algorithm::Sha256, sha256.as_bytes())));
    response.insert_header((header::ACCEPT_RANGES, "bytes")).content_type("application/octet-stream");
    if request.method() == Method::HEAD {
        return Ok(response.body(LengthOnly(len)));
    }
    let selected = delivery::select(request, &mut response, "file", len, &etag)?;
    let total = selected.end - selected.start;
    let lease = Shown::new(NoLease(permit), gateway, request, Sent::Blend, name, total);
    Ok(response.body(DeliveryBody::new(request, gateway.limits, vec![Source::Blend(file)], selected, lease)))
}
