//! `GET` and `HEAD /?bufferUUID=…`: a worker fetches a buffered message.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use user_http_actors::blend::{BlendDigest, BlendFile};
use user_http_actors::codec::{self, BlendPlaceholder};
use user_http_actors::digest::MessageDigest;
use user_http_actors::lease::{BufferMsgView, LeasedBufferMsg};
use user_http_actors::payload::Payload;
use user_http_actors::{BufferUuid, Error};

use crate::http::Gateway;
use crate::http::delivery::{self, DeliveryBody, LengthOnly, MAX_SINGLE_WRITE, Shown, Source, total_len};
use crate::http::digest::{self, Algorithm, REPR_DIGEST};
use crate::http::error::Failure;
use crate::http::prefer;
use crate::http::range;
use crate::http::request::{self, MAX_WAIT, Notation, Query};
use crate::status::Sent;

const PICKLE: &str = "application/octet-stream";

/// The preference for a reference in place of a .blend file.
const BLEND_REFERENCE: &str = "blend-reference";

/// `GET /?bufferUUID=…`: delivers the message that is buffered under this UUID.
pub async fn get_data_from_server(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    deliver(&request, &gateway).await.unwrap_or_else(Failure::pickle)
}

async fn deliver(request: &HttpRequest, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let Wanted { uuid, wait } = Wanted::of(request)?;
    let seen = range::resumed(request.headers()).map(str::to_owned);
    let leasing = async {
        let LeasedBufferMsg { view, lease } =
            gateway.actors.lease_buffer_msg(uuid.clone(), MAX_SINGLE_WRITE, wait, seen).await?;
        Ok::<_, Failure>((Answer::new(request, gateway, &uuid, view).await?, lease))
    };
    // a client that hangs up while it waits would lose the message
    let leased = request::wait_unless_hung_up(request, wait, leasing).await;
    let (answer, mut lease) = leased.unwrap_or_else(|| Err(Failure::hung_up()))?;
    let mut response = answer.head(request)?;
    let Answer { sources, etag, .. } = answer;
    let len = total_len(&sources);
    let selected = delivery::select(request, &mut response, "message", len, &etag)?;
    lease.begin(&etag, len, selected.start, range::if_range(request.headers(), &etag) == Some(true));
    let lease = Shown::new(lease, gateway, request, Sent::Message, uuid.as_str(), selected.end - selected.start);
    Ok(response.body(DeliveryBody::new(request, gateway.limits, sources, selected, lease)))
}

/// `HEAD /?bufferUUID=…`: the size and version of the message. Delivers nothing.
pub async fn head_data_from_server(request: HttpRequest, gateway: web::Data<Gateway>) -> HttpResponse {
    describe(&request, &gateway).await.unwrap_or_else(Failure::pickle)
}

async fn describe(request: &HttpRequest, gateway: &Gateway) -> Result<HttpResponse, Failure> {
    let Wanted { uuid, wait } = Wanted::of(request)?;
    let looking = async {
        let view = gateway.actors.peek_buffer_msg(uuid.clone(), wait).await?;
        Answer::new(request, gateway, &uuid, view).await
    };
    let seen = request::wait_unless_hung_up(request, wait, looking).await;
    let answer = seen.unwrap_or_else(|| Err(Failure::hung_up()))?;
    Ok(answer.head(request)?.body(LengthOnly(total_len(&answer.sources))))
}

/// The message that a request asks for.
struct Wanted {
    uuid: BufferUuid,
    /// How long to wait for it.
    wait: Duration,
}

impl Wanted {
    fn of(request: &HttpRequest) -> Result<Self, Failure> {
        let query = Query::of(request);
        let mut uuids = query.values("bufferUUID");
        let uuid = match (uuids.next(), uuids.next()) {
            (Some(uuid), None) => uuid.into(),
            (None, _) => return Err(Failure::bad_request("bufferUUID is missing; request /?bufferUUID=ID")),
            (Some(_), Some(_)) => {
                let text = "bufferUUID is given more than once; a request fetches one message";
                return Err(Failure::bad_request(text));
            }
        };
        Ok(Self { uuid, wait: query.seconds("wait", MAX_WAIT, Notation::Decimal)?.unwrap_or_default() })
    }
}

/// A message as it is sent.
struct Answer {
    sources: Vec<Source>,
    etag: String,
    /// The value of `Repr-Digest`; `None` if the message has a blend reference.
    digest: Option<String>,
    /// Whether it has a reference in place of a .blend file.
    by_reference: bool,
}

impl Answer {
    async fn new(
        request: &HttpRequest,
        gateway: &Gateway,
        uuid: &BufferUuid,
        view: BufferMsgView,
    ) -> Result<Self, Failure> {
        let BufferMsgView { version, payload, blend, digest } = view;
        let payload = payload.verified(&gateway.hashing).await.map_err(|error| {
            log::error!("message {uuid:?} stays in the buffer, but is not sent: {error}");
            Error::Unreadable
        })?;
        let len = payload.len();
        let Some(placeholder) = blend else {
            let digest = match digest {
                Some(digest) => repr_digest(&digest, &payload, gateway).await,
                None => None,
            };
            let sources = vec![Source::Payload(payload, 0, len)];
            return Ok(Self { sources, etag: format!("\"{version}\""), digest, by_reference: false });
        };
        let file = Arc::new(gateway.actors.open_blend_file(&placeholder).await?);
        let reference = match prefer::has(request.headers(), BLEND_REFERENCE) {
            true => refer(request, gateway, &placeholder, &file).await?,
            false => None,
        };
        let by_reference = reference.is_some();
        let mut sources = vec![Source::Payload(payload.clone(), 0, placeholder.offset)];
        let etag = match reference {
            Some(digest) => {
                let path = format!("{}/blends/{digest}", request.path().trim_end_matches('/'));
                sources.push(Source::Bytes(codec::file_reference(&digest.to_string(), file.len(), &path)));
                format!("\"{version}-{digest}\"")
            }
            None => {
                let etag = format!("\"{version}-{}\"", file.version());
                sources.extend([Source::Bytes(codec::bytes_header(file.len())), Source::Blend(file)]);
                etag
            }
        };
        sources.push(Source::Payload(payload, placeholder.offset, len));
        Ok(Self { sources, etag, digest: None, by_reference })
    }

    /// The head of the answer to `request`, as for the whole message.
    ///
    /// # Errors
    /// `If-Match` names another version.
    fn head(&self, request: &HttpRequest) -> Result<HttpResponseBuilder, Failure> {
        if !range::if_match(request.headers(), &self.etag) {
            return Err(Failure::precondition_failed("message", &self.etag));
        }
        let mut response = delivery::response();
        response.insert_header((header::ETAG, self.etag.as_str()));
        if let Some(digest) = &self.digest {
            response.insert_header((REPR_DIGEST, digest.as_str()));
        }
        response.insert_header((header::ACCEPT_RANGES, "bytes")).content_type(PICKLE);
        if self.by_reference {
            response.insert_header(("Preference-Applied", BLEND_REFERENCE)).insert_header((header::VARY, "Prefer"));
        }
        Ok(response)
    }
}

/// The value of `Repr-Digest` for a message. `None` if the message cannot be read: its delivery will say why.
async fn repr_digest(digest: &MessageDigest, payload: &Payload, gateway: &Gateway) -> Option<String> {
    match digest.get(payload, &gateway.hashing).await {
        Ok(digest) => Some(digest::member(Algorithm::Sha256, &digest)),
        Err(error) => {
            log::warn!("no digest of a message: {error}");
            None
        }
    }
}

/// The digest to send in place of a .blend file. `None` if the disk has no space to remember that it was handed out:
/// messages must flow then, too, so the file itself is sent.
async fn refer(
    request: &HttpRequest,
    gateway: &Gateway,
    placeholder: &BlendPlaceholder,
    file: &Arc<BlendFile>,
) -> Result<Option<BlendDigest>, Failure> {
    // The digest of a large file takes a while. A client that no longer waits for it must not keep the message.
    let referring = gateway.actors.refer_to_blend_file(placeholder, file);
    let referred = request::unless_hung_up(request, referring).await.ok_or_else(Failure::hung_up)?;
    match referred {
        Ok(digest) => Ok(Some(digest)),
        Err(Error::Store(error)) if !error.is_final() => {
            log::warn!("a .blend file is sent in place of a reference to it: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
