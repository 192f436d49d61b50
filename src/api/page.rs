//! `GET /`: the status page. It is one document without any outside resource, and holds no data.

use std::sync::LazyLock;

use actix_web::http::header;
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::auth::TokenNeeded;
use crate::http::digest::{self, Algorithm};

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = concat!(
    include_str!("page/words.js"),
    include_str!("page/document.js"),
    include_str!("page/parts.js"),
    include_str!("page/charts.js"),
    include_str!("page/parked.js"),
    include_str!("page/connection.js"),
);

/// The page with the attribute that says whether the API needs a token, and what a browser may do with it.
struct Page {
    open: Bytes,
    with_token: Bytes,
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let open = include_str!("page/index.html").replace("{style}", STYLE).replace("{script}", SCRIPT);
    let with_token = open.replacen("data-token=\"none\"", "data-token=\"needed\"", 1);
    let policy = format!(
        "default-src 'none'; connect-src 'self'; style-src '{}'; script-src '{}'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        source_hash(STYLE),
        source_hash(SCRIPT)
    );
    Page { open: open.into(), with_token: with_token.into(), policy }
});

/// The hash by which a policy allows an inline style or script.
fn source_hash(source: &str) -> String {
    let member = digest::member(Algorithm::Sha256, &Sha256::digest(source));
    format!("sha256-{}", member.trim_start_matches("sha-256=:").trim_end_matches(':'))
}

/// `GET /`: the page. Its own requests are relative, so a path without a final slash, as of a scope in an application,
/// is redirected to one with it.
pub async fn page(request: HttpRequest) -> HttpResponse {
    if let Some((_, last)) = request.path().rsplit_once('/')
        && !last.is_empty()
    {
        // relative too: a proxy in front may have removed a prefix
        return HttpResponse::PermanentRedirect().insert_header((header::LOCATION, format!("{last}/"))).finish();
    }
    let needs_token = request.extensions().contains::<TokenNeeded>();
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CONTENT_SECURITY_POLICY, PAGE.policy.as_str()))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .body(if needs_token { PAGE.with_token.clone() } else { PAGE.open.clone() })
}
