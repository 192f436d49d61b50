//! The URL of the broker: address and account.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::{Host, Url};

/// The port registered for AMQP without TLS.
const DEFAULT_PORT: u16 = 5672;
/// The port registered for AMQP with TLS.
const DEFAULT_TLS_PORT: u16 = 5671;
/// The name and the password of RabbitMQ's default user.
const DEFAULT_CREDENTIAL: &str = "guest";
const DEFAULT_VHOST: &str = "/";
/// AMQP 0-9-1 sends a vhost as a short string: one byte of length.
const MAX_VHOST_BYTES: usize = 255;
/// All characters that a part of a URL must escape: all but the "unreserved" ones of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `amqp://USER:PASSWORD@HOST:PORT/VHOST`, as [RabbitMQ reads it](https://www.rabbitmq.com/docs/uri-spec), or
/// `amqps://` for TLS.
///
/// The defaults are `guest` for user and password, `localhost`, port 5672 (5671 with TLS) and the vhost `/`.
/// Neither `Debug` nor `Display` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    pub(super) tls: bool,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
}

/// Why a text is not a valid [`AmqpUrl`]. Quotes nothing that could be part of a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; expected amqp://USER:PASSWORD@HOST:PORT/VHOST (amqps:// for TLS), with each / ? # @ : and % in a part \
     percent-encoded"
)]
pub struct AmqpUrlError(String);

impl AmqpUrlError {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl FromStr for AmqpUrl {
    type Err = AmqpUrlError;

    fn from_str(text: &str) -> Result<Self, AmqpUrlError> {
        let url = Url::parse(text).map_err(|error| AmqpUrlError::new(format!("not a valid URL: {error}")))?;
        let tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            // Not quoted: the scheme of "secret@host:5672/" is everything before the colon.
            _ => return Err(AmqpUrlError::new("the scheme is neither amqp nor amqps")),
        };
        if url.cannot_be_a_base() {
            return Err(AmqpUrlError::new(format!("the // after {}: is missing", url.scheme())));
        }
        refuse_other_parts(&url)?;
        let user = match url.username() {
            "" => DEFAULT_CREDENTIAL.to_owned(),
            user => decode("user", user)?,
        };
        let password = match url.password() {
            None => DEFAULT_CREDENTIAL.to_owned(),
            Some(password) => decode("password", password)?,
        };
        let host = match url.host() {
            None | Some(Host::Domain("")) => "localhost".to_owned(),
            Some(Host::Domain(name)) => decode("host", name)?,
            // Without the brackets of the URL.
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(Host::Ipv4(address)) => address.to_string(),
        };
        let port = url.port().unwrap_or(if tls { DEFAULT_TLS_PORT } else { DEFAULT_PORT });
        Ok(Self { tls, user, password, host, port, vhost: vhost(url.path())? })
    }
}

impl AmqpUrl {
    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The vhost.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Host and port, as they are written in a URL.
    pub fn address(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    /// Whether the connection uses TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

/// Refuses a query and a fragment. If one of them, or the path, contains an `@`, the password has an unescaped
/// character, so nothing is quoted.
fn refuse_other_parts(url: &Url) -> Result<(), AmqpUrlError> {
    let after_host = [Some(url.path()), url.query(), url.fragment()];
    if after_host.iter().flatten().any(|part| part.contains('@')) {
        return Err(AmqpUrlError::new("there is an @ after the host"));
    }
    if url.fragment().is_some() {
        return Err(AmqpUrlError::new("there is a # in it"));
    }
    match url.query_pairs().next() {
        Some((name, _)) => Err(AmqpUrlError::new(format!("query parameters are not supported, but there is {name:?}"))),
        None => Ok(()),
    }
}

fn vhost(path: &str) -> Result<String, AmqpUrlError> {
    let vhost = match path.strip_prefix('/').unwrap_or(path) {
        "" => DEFAULT_VHOST.to_owned(),
        vhost if vhost.contains('/') => {
            return Err(AmqpUrlError::new("there is more than one / after the host; one in a vhost is written %2F"));
        }
        vhost => decode("vhost", vhost)?,
    };
    if vhost.len() > MAX_VHOST_BYTES {
        return Err(AmqpUrlError::new(format!("the vhost is longer than {MAX_VHOST_BYTES} bytes")));
    }
    Ok(vhost)
}

fn decode(part: &str, encoded: &str) -> Result<String, AmqpUrlError> {
    match percent_decode_str(encoded).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(AmqpUrlError::new(format!("the {part} is not UTF-8 once percent-decoded"))),
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |part| utf8_percent_encode(part, ESCAPED);
        let scheme = if self.tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}:***@{}/{}", escaped(&self.user), self.address(), escaped(&self.vhost))
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AmqpUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> AmqpUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refusal(text: &str) -> String {
        text.parse::<AmqpUrl>().expect_err(text).to_string()
    }

    #[test]
    fn the_vhost_is_read_as_rabbitmq_reads_it() {
        for (text, vhost) in [
            ("amqp://h", "/"),
            ("amqp://h/", "/"),
            ("amqp://h/%2f", "/"),
            ("amqp://h/%2F", "/"),
            ("amqp://h/x", "x"),
            ("amqp://h/a%2Fb", "a/b"),
            ("amqp://h/%C3%BC", "ü"),
        ] {
            assert_eq!(parsed(text).vhost, vhost, "{text}");
        }
        assert!(refusal("amqp://h/a/b").contains("%2F"));
        assert!(refusal(&format!("amqp://h/{}", "v".repeat(256))).contains("255 bytes"));
    }

    #[test]
    fn what_is_left_out_has_rabbitmqs_presets() {
        let url = parsed("amqp://");
        assert_eq!((url.user.as_str(), url.password.as_str()), ("guest", "guest"));
        assert_eq!((url.host.as_str(), url.port), ("localhost", 5672));
        assert_eq!((parsed("amqps://h").port, parsed("amqps://h:1").port), (5671, 1));
        assert_eq!(parsed("amqps://h").to_string(), "amqps://guest:***@h:5671/%2F");
        assert_eq!(parsed("amqp://[::1]:5673").host, "::1");
        assert_eq!(parsed("amqp://[::1]:5673").to_string(), "amqp://guest:***@[::1]:5673/%2F");
    }

    #[test]
    fn credentials_are_percent_decoded() {
        let url = parsed("amqp://us%40er:p%2Fa%3As%25%C3%9F+@h");
        assert_eq!((url.user.as_str(), url.password.as_str()), ("us@er", "p/a:s%ß+"));
        assert!(refusal("amqp://u:%ff@h").contains("the password is not UTF-8"));
    }

    #[test]
    fn the_password_is_never_shown() {
        let url = parsed("amqp://user:secret@h:1/v");
        assert_eq!(url.to_string(), "amqp://user:***@h:1/v");
        assert_eq!(format!("{url:?}"), "AmqpUrl(amqp://user:***@h:1/v)");
    }

    #[test]
    fn a_refusal_says_what_is_accepted_and_nothing_of_the_password() {
        for text in [
            "user:secret@h",
            "secret@h",
            "secret",
            "amqps:user:secret@h",
            "http://user:secret@h",
            "amqp:user:secret@h",
            "amqp://user:secret/x@h",
            "amqp://user:1/secret@h",
            "amqp://user:1?secret@h",
            "amqp://user:1#secret@h",
            "amqp://user:secret#x@h",
            "amqp://user:secret@h#x",
            "amqp://user:secret@h/a/b",
            "amqp://user:secret@h:99999",
            "amqp://user:secret@h:port",
            "amqp://user:secret@h x",
            "amqp://user:secret%ff@h",
            "amqp://user:secret@h?heartbeat=10",
        ] {
            let refusal = refusal(text);
            assert!(!refusal.contains("secret"), "{text}: {refusal}");
            assert!(refusal.contains("amqp://USER:PASSWORD@HOST:PORT/VHOST"), "{text}: {refusal}");
        }
        assert!(refusal("amqp://h?heartbeat=10").contains("\"heartbeat\""));
    }
}
