//! The peer of the comparison: actix-web handlers that answer as much and do nothing.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use actix_web::{App, HttpResponse, HttpServer, error, web};
use bytes::Bytes;
use futures::stream;
use serde_json::{Value, json};

/// What tells this program that it is the peer, and the answers of which kind it gives.
pub const FLAG: &str = "--bare";

/// Where the file is.
pub const FILE: &str = "/file";

const CHUNK: u64 = 1 << 20;

/// Serves until the process ends: `GET /` is answered with the status and as many bytes, `GET /file` with the file.
pub fn serve(status: u16, length: usize, file: PathBuf) -> Result<(), Box<dyn Error>> {
    let status = StatusCode::from_u16(status)?;
    let body = Bytes::from(vec![b'x'; length]);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    eprintln!("worker server listening on http://{address}\nAPI server listening on http://{address}");
    // however the program that started this one ends, it closes the pipe
    std::thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let app = move || {
        let (body, file) = (body.clone(), file.clone());
        let answer = move || {
            let answer = HttpResponse::build(status).content_type("application/octet-stream").body(body.clone());
            async { answer }
        };
        App::new()
            .route("/", web::get().to(answer))
            .route("/", web::post().to(receive))
            .route("/CommunicationInterface/AddBufferMsg", web::post().to(add))
            .route(FILE, web::get().to(move || stream_file(file.clone())))
    };
    // as many workers as the product has: actix-web's default
    let server = HttpServer::new(app).listen(listener)?.tcp_nodelay(true).run();
    Ok(actix_web::rt::System::new().block_on(server)?)
}

async fn receive(body: web::Bytes) -> actix_web::Result<HttpResponse> {
    serde_json::from_slice::<Value>(&body).map_err(error::ErrorBadRequest)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    Ok(HttpResponse::Ok().json(json!({ "DATA": "RECEIVED", "TIME": time })))
}

async fn add(body: web::Bytes) -> actix_web::Result<HttpResponse> {
    serde_json::from_slice::<Value>(&body).map_err(error::ErrorBadRequest)?;
    Ok(HttpResponse::Ok().json(json!({ "STATUS": "SUCCESS" })))
}

async fn stream_file(path: PathBuf) -> actix_web::Result<HttpResponse> {
    let opened = web::block(move || File::open(path).and_then(|file| Ok((file.metadata()?.len(), file))));
    let (length, file) = opened.await??;
    let file = Arc::new(file);
    let chunks = stream::try_unfold(0, move |offset| {
        let file = file.clone();
        async move {
            if offset == length {
                return Ok(None);
            }
            let read = web::block(move || {
                let mut chunk = vec![0; CHUNK.min(length - offset) as usize];
                file.read_exact_at(&mut chunk, offset).map(|()| chunk)
            });
            let chunk = Bytes::from(read.await.map_err(io::Error::other)??);
            let next = offset + chunk.len() as u64;
            Ok::<_, io::Error>(Some((chunk, next)))
        }
    });
    Ok(HttpResponse::Ok().content_type("application/octet-stream").body(SizedStream::new(length, Box::pin(chunks))))
}
