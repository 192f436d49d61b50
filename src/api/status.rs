//! `GET /status` and `GET /events`: the data of the status page, once or as a stream.

use std::pin::{Pin, pin};
use std::time::Duration;

use actix_web::http::{Method, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::Bytes;
use futures::future::{self, Either};
use futures::stream;

use crate::http::error::Failure;
use crate::http::slow_reader::ReaderWatch;
use crate::http::{Gateway, request};
use crate::status::Subscription;

/// How long a stream lasts; then the page opens another one. So one that was opened with a token that has been revoked
/// since, or that nobody reads, ends.
const STREAM_LIFETIME: Duration = Duration::from_secs(600);

/// `GET /status`: the state of everything, as JSON.
pub async fn status(gateway: web::Data<Gateway>) -> HttpResponse {
    response().json(gateway.status.report().await)
}

/// `GET /events`: the same as server-sent events, one for each change.
pub async fn events(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    let mut response = response();
    response.content_type("text/event-stream").insert_header(("X-Accel-Buffering", "no"));
    if request.method() == Method::HEAD {
        return response.streaming(stream::empty::<Result<Bytes, actix_web::Error>>());
    }
    let Some(subscription) = gateway.status.subscribe() else { return Failure::too_many_streams().json() };
    let hung_up = request::hung_up(&request);
    let events = Events {
        subscription,
        ended: Box::pin(async { drop(tokio::time::timeout(STREAM_LIFETIME, hung_up).await) }),
        watch: ReaderWatch::start(&request, gateway.limits),
    };
    response.streaming(stream::unfold(events, async |mut events| {
        Some((Ok::<_, actix_web::Error>(events.next().await?), events))
    }))
}

fn response() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    response
}

/// The stream of one page.
struct Events {
    subscription: Subscription,
    /// Resolves when the client has hung up, or when the stream has lasted long enough.
    ended: Pin<Box<dyn Future<Output = ()>>>,
    watch: Option<ReaderWatch>,
}

impl Events {
    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let next = pin!(self.subscription.next());
        let Either::Left((Some(report), _)) = future::select(next, &mut self.ended).await else { return None };
        let event = Bytes::from([b"event: status\ndata: ", &report[..], b"\n\n"].concat());
        self.watch.iter().for_each(|watch| watch.hand_over(event.len() as u64));
        Some(event)
    }
}
