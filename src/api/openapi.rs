//! `GET /openapi.json` and `GET /openapi-worker.json`: what both servers offer, in OpenAPI 3.1.
//!
//! `openapi/services.json` and `openapi/workers.json` are kept by hand. Tests compare them with the routes, in both
//! directions, and with answers (`tests/integration/openapi.rs`).

use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::header;
use bytes::Bytes;
use serde_json::{Map, Value};

/// A description as it is sent.
static SERVICES: LazyLock<Bytes> = LazyLock::new(|| complete(include_str!("openapi/services.json")));
static WORKERS: LazyLock<Bytes> = LazyLock::new(|| complete(include_str!("openapi/workers.json")));

/// The responses of `GET` that `HEAD` never has: it ignores `Range`.
const OF_RANGES: [&str; 2] = ["206", "416"];

/// `GET /openapi.json`: the API server.
pub async fn services() -> HttpResponse {
    send(&SERVICES)
}

/// `GET /openapi-worker.json`: the worker server.
pub async fn workers() -> HttpResponse {
    send(&WORKERS)
}

fn send(document: &Bytes) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.content_type("application/json").insert_header((header::CACHE_CONTROL, "no-cache"));
    response.body(document.clone())
}

/// Adds what follows from the rest: the version of the program, and `HEAD` wherever there is `GET`.
fn complete(text: &str) -> Bytes {
    // A test shows that the text is JSON.
    let mut document: Value = serde_json::from_str(text).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let shared = document["components"]["responses"].clone();
    let paths = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    for path in paths.filter_map(Value::as_object_mut) {
        if let Some(get) = path.get("get") {
            let head = head_of(get, &shared);
            path.insert("head".to_owned(), head);
        }
    }
    Bytes::from(document.to_string())
}

/// The operation `HEAD` beside this `GET`: its answers have no body. `shared` are the responses that it refers to.
fn head_of(get: &Value, shared: &Value) -> Value {
    let mut head = get.clone();
    let name = get["operationId"].as_str().unwrap_or_default();
    head["operationId"] = format!("{name}Head").into();
    head["summary"] = "As GET, without the body. Delivers and leases nothing.".into();
    if let Some(responses) = head["responses"].as_object_mut() {
        responses.retain(|status, _| !OF_RANGES.contains(&status.as_str()));
        for response in responses.values_mut() {
            if let Some(reference) = response["$ref"].as_str() {
                *response = shared[reference.rsplit('/').next().unwrap_or_default()].clone();
            }
            response.as_object_mut().into_iter().for_each(|response| drop(response.remove("content")));
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The methods of each path of a document.
    fn described(document: &Bytes) -> BTreeSet<(String, String)> {
        let document: Value = serde_json::from_slice(document).expect("JSON");
        let paths = document["paths"].as_object().expect("paths").iter();
        let of_path = |(path, item): (&String, &Value)| {
            let methods = item.as_object().expect("operations").keys();
            methods.map(|method| (path.clone(), method.to_uppercase())).collect::<Vec<_>>()
        };
        paths.flat_map(of_path).collect()
    }

    /// The routes of a table, with paths as the documents write them.
    fn registered(routes: impl Iterator<Item = (&'static str, &'static str)>) -> BTreeSet<(String, String)> {
        let of_route = |(path, methods): (&str, &str)| {
            let path = if path.is_empty() { "/".to_owned() } else { path.replace(":.*}", "}") };
            methods.split(", ").map(|method| (path.clone(), method.to_owned())).collect::<Vec<_>>()
        };
        routes.flat_map(of_route).collect()
    }

    #[test]
    fn the_documents_describe_exactly_the_routes() {
        let services = registered(crate::api::routes().iter().map(|route| (route.path, route.allowed)));
        assert_eq!(described(&SERVICES), services);
        let workers = registered(crate::worker::ROUTES.iter().copied());
        assert_eq!(described(&WORKERS), workers);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_every_answer_has_the_id_of_the_request() {
        for document in [&SERVICES, &WORKERS] {
            let document: Value = serde_json::from_slice(document).expect("JSON");
            let mut names = BTreeSet::new();
            for (path, item) in document["paths"].as_object().expect("paths") {
                for (method, operation) in item.as_object().expect("operations") {
                    let name = operation["operationId"].as_str().expect("a name");
                    assert!(names.insert(name.to_owned()), "{name} twice");
                    for (status, response) in operation["responses"].as_object().expect("responses") {
                        let shared = response["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
                        let response = shared.map_or(response, |shared| &document["components"]["responses"][shared]);
                        assert!(response["headers"]["X-Request-Id"].is_object(), "{method} {path} {status}");
                        assert!(response["description"].is_string(), "{method} {path} {status}");
                        assert!(method != "head" || response.get("content").is_none(), "{path} {status}");
                    }
                }
            }
        }
    }
}
