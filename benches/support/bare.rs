//! The peer of the small requests: actix-web handlers that read and parse as much, answer as much, and do nothing.

use std::error::Error;
use std::net::TcpListener;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::http::{StatusCode, header};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, error, web};
use bytes::Bytes;
use serde_json::{Value, json};

/// The argument that makes a benchmark's program the peer, followed by the kind of answers.
pub const FLAG: &str = "--bare";

/// Serves until the process ends, where the arguments are those of the peer: `GET /` is answered with the status and
/// as many bytes.
pub fn serve_if_asked() -> Result<bool, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, flag, status, length] = arguments.as_slice() else { return Ok(false) };
    if flag != FLAG {
        return Ok(false);
    }
    serve(StatusCode::from_u16(status.parse()?)?, length.parse()?)?;
    Ok(true)
}

fn serve(status: StatusCode, length: usize) -> Result<(), Box<dyn Error>> {
    let body = Bytes::from(vec![b'x'; length]);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    eprintln!("worker server listening on http://{address}\nAPI server listening on http://{address}");
    let app = move || {
        let body = body.clone();
        let answer = move || {
            let mut answer = HttpResponse::build(status);
            if status == StatusCode::OK {
                // as the product's
                answer
                    .insert_header((header::ETAG, "\"1-19a1b2c3d4e\""))
                    .insert_header((header::ACCEPT_RANGES, "bytes"));
            }
            let answer = answer.content_type("application/octet-stream").body(body.clone());
            async { answer }
        };
        App::new()
            .app_data(web::PayloadConfig::new(256 << 20))
            .route("/", web::get().to(answer))
            .route("/", web::post().to(receive))
            .route("/CommunicationInterface/AddBufferMsg", web::post().to(add))
    };
    // as many workers as the product has: actix-web's default
    let server = HttpServer::new(app).listen(listener)?.tcp_nodelay(true).run();
    Ok(actix_web::rt::System::new().block_on(server)?)
}

async fn receive(request: HttpRequest, body: web::Bytes) -> actix_web::Result<HttpResponse> {
    // Rust has no pickle parser in common use
    if request.headers().get("content-type").is_some_and(|kind| kind == "application/json") {
        serde_json::from_slice::<Value>(&body).map_err(error::ErrorBadRequest)?;
    }
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    Ok(HttpResponse::Ok().json(json!({ "DATA": "RECEIVED", "TIME": time })))
}

async fn add(body: web::Bytes) -> actix_web::Result<HttpResponse> {
    serde_json::from_slice::<Value>(&body).map_err(error::ErrorBadRequest)?;
    Ok(HttpResponse::Ok().json(json!({ "STATUS": "SUCCESS" })))
}
