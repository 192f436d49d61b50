//! A URL with a password is read or refused, shown without it, and read the same from how it is shown.

use std::fmt::Debug;
use std::str::FromStr;

use user_http_actors::broker::amqp::AmqpUrl;
use user_http_actors::postgres::PostgresUrl;

/// No input has this by chance.
const PASSWORD: &str = "Kq7vPassword";

/// How a URL is shown, and how that is shown once it is read again; `None` if it is refused.
fn shown<U>(text: &str) -> Option<(String, String)>
where
    U: FromStr<Err: ToString> + ToString + Debug,
{
    let (shown, again) = match text.parse::<U>() {
        Ok(url) => {
            let shown = url.to_string();
            let again = shown.parse::<U>().map_or_else(|error| error.to_string(), |url| url.to_string());
            assert!(!format!("{url:?}").contains(PASSWORD), "{url:?}");
            (shown, again)
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("expected ") && !error.contains(PASSWORD), "{error}");
            return None;
        }
    };
    assert!(!shown.contains(PASSWORD) && !again.contains(PASSWORD), "{shown}");
    Some((shown, again))
}

/// Whether everything in it is shown as it would be written: it is for people, and escapes little.
fn is_plain(shown: &str) -> bool {
    let is_word = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) && !text.is_empty()
    };
    let rest = shown.strip_suffix("?sslmode=require").unwrap_or(shown);
    let parts = rest.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
    parts.is_some_and(|(authority, last)| {
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("user", authority));
        let mut names = hosts.split(',').map(|host| host.split_once(':').map_or("", |(name, _)| name));
        is_word(user.strip_suffix(":***").unwrap_or(user)) && names.all(is_word) && (is_word(last) || last == "%2F")
    })
}

/// The first line stands before the password, the others behind it.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (before, behind) = text.split_once('\n').unwrap_or((&text, "@h"));
    if text.contains(PASSWORD) {
        return;
    }
    // without the @ behind it, it is no password
    let end = if behind.contains('@') { "" } else { "@h" };
    let amqp =
        ["amqp", "amqps"].map(|scheme| shown::<AmqpUrl>(&format!("{scheme}://{before}:{PASSWORD}{end}{behind}")));
    let postgres = [
        shown::<PostgresUrl>(&format!("postgres://{before}:{PASSWORD}{end}{behind}")),
        shown::<PostgresUrl>(&format!("postgresql://{before}?password={PASSWORD}{behind}")),
    ];
    let alone = [shown::<AmqpUrl>(&text), shown::<PostgresUrl>(&text)];
    for (shown, again) in amqp.into_iter().chain(postgres).chain(alone).flatten() {
        assert!(again == shown || !is_plain(&shown), "{shown} is read as {again}");
    }
}
