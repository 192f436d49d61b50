//! Bearer tokens (RFC 6750): read from a file, kept as SHA-256, compared in constant time.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::watch;

/// What a line begins with that has the token's SHA-256 instead of the token.
const HASHED: &str = "sha256:";

/// The shortest token that is taken: as many characters as 96 random bits have in base 64.
const MIN_TOKEN_CHARS: usize = 16;

/// How many random bytes a new token has.
const TOKEN_BYTES: usize = 32;

type Hash = [u8; 32];

#[derive(Clone, Debug)]
struct Token {
    hash: Hash,
    user_id: Option<String>,
}

/// Who has shown a valid token: anybody, or the worker of one `USER_ID`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bearer {
    /// The only `USER_ID` that its messages may claim.
    pub user_id: Option<String>,
}

/// The valid tokens of one server, as its file says; read again by [`Tokens::reload`].
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    current: watch::Sender<Vec<Token>>,
}

impl Tokens {
    /// Reads a file with one token a line: the token or `sha256:` and its hash in hexadecimal digits, then, for a
    /// worker, the `USER_ID` that it is bound to, if any. Empty lines and lines that begin with `#` say nothing.
    ///
    /// # Errors
    /// A text that names the file, the line and what is wrong with it; never the token.
    pub fn read(path: &Path) -> Result<Self, String> {
        let (current, _) = watch::channel(parse_file(path)?);
        Ok(Self { path: path.to_owned(), current })
    }

    /// Reads the file again. Where it is bad, the tokens stay as they are.
    pub fn reload(&self) {
        match parse_file(&self.path) {
            Ok(tokens) => {
                log::info!("{} tokens read from {}", tokens.len(), self.path.display());
                self.current.send_replace(tokens);
            }
            Err(error) => log::error!("the tokens stay as they are: {error}"),
        }
    }

    /// Whose token an `Authorization` header carries.
    pub fn check(&self, authorization: Option<&str>) -> Option<Bearer> {
        let (scheme, token) = authorization?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let hash: Hash = Sha256::digest(token.trim().as_bytes()).into();
        let tokens = self.current.borrow();
        // all are compared, so that the time says nothing of which it was
        let mut found = u32::MAX;
        for (at, token) in tokens.iter().enumerate() {
            let equal: Choice = token.hash.ct_eq(&hash);
            found.conditional_assign(&(at as u32), equal);
        }
        tokens.get(found as usize).map(|token| Bearer { user_id: token.user_id.clone() })
    }
}

fn parse_file(path: &Path) -> Result<Vec<Token>, String> {
    let place = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read the token file {place}: {error}"))?;
    let mut tokens = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        tokens.push(parse_line(line).map_err(|why| format!("{place}, line {}: {why}", at + 1))?);
    }
    if tokens.is_empty() {
        return Err(format!("{place} has no token; `user-http-server token` makes one"));
    }
    Ok(tokens)
}

fn parse_line(line: &str) -> Result<Token, String> {
    let (token, user_id) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let hash = match token.strip_prefix(HASHED) {
        Some(digits) => parse_hash(digits).ok_or("after sha256: 64 hexadecimal digits are expected")?,
        None if token.len() < MIN_TOKEN_CHARS => {
            return Err(format!(
                "a token has at least {MIN_TOKEN_CHARS} characters; `user-http-server token` makes one"
            ));
        }
        None => Sha256::digest(token.as_bytes()).into(),
    };
    let user_id = Some(user_id.trim()).filter(|user_id| !user_id.is_empty()).map(str::to_owned);
    Ok(Token { hash, user_id })
}

fn parse_hash(digits: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(hash)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new token, and the line of a token file that stands for it without telling it.
pub fn new_token() -> (String, String) {
    let token = hexadecimal(&rand::random::<[u8; TOKEN_BYTES]>());
    let line = format!("{HASHED}{}", hexadecimal(&Sha256::digest(token.as_bytes())));
    (token, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Result<Tokens, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("writable");
        Tokens::read(file.path())
    }

    #[test]
    fn a_token_is_known_in_clear_and_by_its_hash() {
        let (token, line) = new_token();
        for text in [&token, &line, &format!("# mine\n\n  {line}  \nanother-token-of-somebody\n")] {
            let tokens = tokens(text).expect("a sound file");
            assert_eq!(tokens.check(Some(&format!("Bearer {token}"))), Some(Bearer::default()));
            assert_eq!(tokens.check(Some(&format!("bearer  {token} "))), Some(Bearer::default()));
            for wrong in [None, Some(""), Some("Bearer"), Some("Bearer "), Some(token.as_str()), Some(line.as_str())] {
                assert_eq!(tokens.check(wrong), None, "{wrong:?}");
            }
            assert_eq!(tokens.check(Some(&format!("Basic {token}"))), None);
            assert_eq!(tokens.check(Some(&format!("Bearer {line}"))), None);
        }
    }

    #[test]
    fn a_token_may_be_bound_to_a_user() {
        let tokens = tokens("first-token-0123456789 worker 7\nother-token-0123456789\n").expect("a sound file");
        let bearer = tokens.check(Some("Bearer first-token-0123456789")).expect("valid");
        assert_eq!(bearer.user_id.as_deref(), Some("worker 7"));
        assert_eq!(tokens.check(Some("Bearer other-token-0123456789")), Some(Bearer::default()));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_without_its_tokens() {
        for (text, why) in [
            ("# nothing\n", "has no token"),
            ("fine-token-0123456789\nshort", "line 2: a token has at least 16 characters"),
            ("sha256:12", "line 1: after sha256: 64 hexadecimal digits"),
            ("sha256:zz00000000000000000000000000000000000000000000000000000000000000", "64 hexadecimal digits"),
        ] {
            let error = tokens(text).expect_err("a bad file");
            assert!(error.contains(why) && !error.contains("fine-token"), "{error}");
        }
        assert!(Tokens::read(Path::new("/nowhere/tokens")).expect_err("no file").contains("/nowhere/tokens"));
    }
}
