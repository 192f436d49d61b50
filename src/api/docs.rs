//! `GET /docs`: a viewer of the descriptions of both servers. It loads nothing from outside.
//!
//! `docs/swagger-ui/` has files of the package `swagger-ui-dist` 5.35.0 (Apache-2.0), as they are there.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};

use crate::http::not_found;

/// What the page may load. Swagger UI sets styles of single elements.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files of the page: name, type, content.
const FILES: [(&str, &str, &str); 4] = [
    ("viewer.js", "text/javascript; charset=utf-8", include_str!("docs/viewer.js")),
    ("viewer.css", "text/css; charset=utf-8", include_str!("docs/viewer.css")),
    ("swagger-ui-bundle.js", "text/javascript; charset=utf-8", include_str!("docs/swagger-ui/swagger-ui-bundle.js")),
    ("swagger-ui.css", "text/css; charset=utf-8", include_str!("docs/swagger-ui/swagger-ui.css")),
];

/// `GET /docs`: the page.
pub async fn page() -> HttpResponse {
    send("text/html; charset=utf-8", include_str!("docs/page.html"))
}

/// `GET /docs/{file}`: a file that the page loads.
pub async fn file(request: HttpRequest, name: web::Path<String>) -> HttpResponse {
    match FILES.iter().find(|(known, ..)| *known == name.as_str()) {
        Some((_, content_type, content)) => send(content_type, content),
        None => not_found(request).await,
    }
}

fn send(content_type: &'static str, content: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(content_type)
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(content)
}
