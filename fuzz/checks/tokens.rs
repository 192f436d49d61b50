//! A token file makes exactly the tokens valid that its lines name, or is refused without a word of them.

use std::collections::HashMap;
use std::fs;

use user_http_server::auth::{Bearer, Tokens, first_plain_token};

/// What errors say themselves.
const OF_ERRORS: &str = "`user-http-server";

/// The tokens in clear of a sound file, with the user that each is bound to.
fn named(text: &str) -> HashMap<&str, Option<String>> {
    let mut named = HashMap::new();
    for line in text.split('\n').map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_inclusive(char::is_whitespace);
        let token = words.next().unwrap_or_default().trim_end();
        let user: String = words.take_while(|word| word.trim() != "#").collect();
        named.insert(token, Some(user.trim().to_owned()).filter(|user| !user.is_empty()));
    }
    named
}

pub fn check(data: &[u8]) {
    let path = std::env::temp_dir().join(format!("user-http-server-fuzz-{}.tokens", std::process::id()));
    fs::write(&path, data).expect("a temporary file");
    let (read, first) = (Tokens::read(&path), first_plain_token(&path));
    let text = String::from_utf8_lossy(data);
    match &read {
        Ok(tokens) => {
            let text = text.trim_start_matches('\u{feff}');
            let named = named(text);
            let is_hash = |token: &str| token.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sha256:"));
            for (token, user_id) in named.iter().filter(|(token, _)| !is_hash(token)) {
                let bearer = tokens.check(Some(&format!("Bearer {token}")));
                assert_eq!(bearer, Some(Bearer { user_id: user_id.clone() }), "{token:?}");
                assert!(token.len() >= 16, "{token:?}");
                let rest = &token[1..];
                let is_valid = tokens.check(Some(&format!("Bearer {rest}"))).is_some();
                assert_eq!(is_valid, named.contains_key(rest), "{rest:?}");
            }
            for line in text.lines().filter(|line| !named.contains_key(line.trim())) {
                assert_eq!(tokens.check(Some(&format!("Bearer {line}"))), None, "{line:?}");
            }
            let first = first.expect("the file is sound");
            assert_eq!(first.is_none(), named.keys().all(|token| is_hash(token)));
            assert!(first.is_none_or(|first| named.contains_key(first.as_str())));
        }
        Err(error) => {
            let words = text.split_whitespace().filter(|word| word.len() >= 16 && !OF_ERRORS.contains(word));
            let path = path.display().to_string();
            for word in words.filter(|word| !path.contains(word)) {
                assert!(!error.contains(word), "{error}");
            }
        }
    }
    fs::remove_file(&path).expect("it was written");
}
