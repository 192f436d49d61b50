//! The id of a request: taken from its `X-Request-Id` or generated, returned in the answer, and known to the log lines
//! that are written while the request is handled.

use actix_http::header::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

/// The header of requests and answers.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id of a client in bytes.
const MAX_GIVEN: usize = 128;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The id of one request.
#[derive(Clone, Debug)]
pub struct RequestId(Source);

#[derive(Clone, Debug)]
enum Source {
    /// 1 to [`MAX_GIVEN`] visible ASCII characters.
    Given(HeaderValue),
    /// A UUID of version 4, as text.
    Generated([u8; Hyphenated::LENGTH]),
}

impl RequestId {
    /// The id in the header, or a new one if there is none or if it is invalid.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(&X_REQUEST_ID);
        match (values.next(), values.next()) {
            (Some(given), None) if is_valid(given.as_bytes()) => Self(Source::Given(given.clone())),
            _ => Self::generate(),
        }
    }

    /// A new id. Its random bits come from the generator of the thread, without a system call: it takes 40 ns, and
    /// `Uuid::new_v4` 620 ns.
    pub fn generate() -> Self {
        // as one number: an array is filled byte by byte, which takes three times as long
        let random = rand::random::<u128>().to_ne_bytes();
        let uuid = uuid::Builder::from_random_bytes(random).into_uuid();
        Self(Source::Generated(text(uuid)))
    }

    /// The id as it is in the header.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Source::Given(value) => value.as_bytes(),
            Source::Generated(text) => text,
        }
    }

    /// Handles the request that has this id. `handling` is moved into the returned future: pass one that is pinned, if
    /// it is large.
    pub fn scope<T>(self, handling: impl Future<Output = T>) -> impl Future<Output = T> {
        CURRENT.scope(self, handling)
    }
}

/// Whether this may be an id: 1 to [`MAX_GIVEN`] visible ASCII characters.
fn is_valid(id: &[u8]) -> bool {
    (1..=MAX_GIVEN).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

fn text(uuid: Uuid) -> [u8; Hyphenated::LENGTH] {
    let mut text = [0; Hyphenated::LENGTH];
    uuid.hyphenated().encode_lower(&mut text);
    text
}

/// The id of the request that the current task handles, for a logger; `None` outside a request.
///
/// [`UserHttpServer`](crate::UserHttpServer) sets it for all its requests.
pub fn current_request_id() -> Option<String> {
    CURRENT.try_with(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(values: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_REQUEST_ID, HeaderValue::from_bytes(value).expect("a value"));
        }
        String::from_utf8(RequestId::of(&headers).as_bytes().to_vec()).expect("ASCII")
    }

    #[test]
    fn an_id_of_1_to_128_visible_characters_is_taken_and_any_other_replaced() {
        let longest = "x".repeat(MAX_GIVEN);
        for given in ["a", "!~", "0b9f3c", &longest] {
            assert_eq!(id_of(&[given.as_bytes()]), given);
        }
        let too_long = "x".repeat(MAX_GIVEN + 1);
        for wrong in [&b""[..], b"a b", b"a\tb", b"\xc3\xa4", too_long.as_bytes()] {
            let id = id_of(&[wrong]);
            assert_eq!(Uuid::parse_str(&id).expect("a UUID").get_version_num(), 4, "{wrong:?}: {id}");
        }
        assert_ne!(id_of(&[b"a", b"a"]), "a", "which of the two is not clear");
        assert_ne!(id_of(&[]), id_of(&[]));
    }

    #[actix_web::test]
    async fn the_id_is_known_while_its_request_is_handled_and_not_outside() {
        let id = RequestId::generate();
        let text = String::from_utf8(id.as_bytes().to_vec()).expect("ASCII");
        assert_eq!(current_request_id(), None);
        let handling = async {
            tokio::task::yield_now().await;
            current_request_id()
        };
        assert_eq!(id.scope(handling).await, Some(text));
        assert_eq!(current_request_id(), None);
    }
}
