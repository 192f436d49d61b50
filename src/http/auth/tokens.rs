//! The valid tokens of a server: read from a file, stored as SHA-256, compared in constant time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::watch;
use user_http_actors::small_file;

/// The prefix of a SHA-256 that replaces a token in the file.
const HASHED: &str = "sha256:";

/// The shortest token that is accepted: the length of 96 random bits in base 64.
const MIN_TOKEN_CHARS: usize = 16;

/// The length of a new token in random bytes.
const TOKEN_BYTES: usize = 32;

type Hash = [u8; 32];

#[derive(Clone, Debug)]
struct Token {
    hash: Hash,
    user_id: Option<String>,
}

/// The owner of a valid token. [`Authentication`](crate::auth::Authentication) puts it into the extensions of a
/// request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bearer {
    /// The `USER_ID` that the token is bound to: messages sent with it must have this one.
    pub user_id: Option<String>,
}

/// The valid tokens of one server, as listed in its file.
///
/// ```
/// use user_http_server::auth::{Bearer, Tokens, new_token};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (token, hash) = new_token();
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), format!("{hash} worker-7\n"))?;
/// let tokens = Tokens::read(file.path())?;
///
/// let bearer = tokens.check(Some(&format!("Bearer {token}")));
/// assert_eq!(bearer, Some(Bearer { user_id: Some("worker-7".to_owned()) }));
/// assert_eq!(tokens.check(Some(&format!("Bearer {hash}"))), None);
///
/// // tokens that are removed from the file are invalid after the next reload
/// std::fs::write(file.path(), "")?;
/// tokens.reload();
/// assert_eq!(tokens.check(Some(&format!("Bearer {token}"))), None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    current: watch::Sender<Vec<Token>>,
    /// Locked from before the file is read until its tokens are valid. So of two concurrent reloads, the later one
    /// wins.
    reloading: Mutex<()>,
}

impl Tokens {
    /// Reads a UTF-8 file with one token per line: the token, or `sha256:` and its hash in hexadecimal digits; then,
    /// optionally, the `USER_ID` that it is bound to. A line that begins with `#` is a comment. Within a line, a
    /// comment begins with a `#` that has white space on both sides.
    ///
    /// # Errors
    /// A text that names the file, the line, and what is wrong; never the token. A file without tokens is an error.
    pub fn read(path: &Path) -> Result<Self, String> {
        let tokens = parse_file(path)?;
        if tokens.is_empty() {
            return Err(format!("{} has no token; `user-http-server token` prints a new one", path.display()));
        }
        let (current, _) = watch::channel(tokens);
        Ok(Self { path: path.to_owned(), current, reloading: Mutex::new(()) })
    }

    /// Reads the file again. If that fails, the tokens stay valid; if the file has no token, none is valid any more.
    pub fn reload(&self) {
        let _reloading = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.display();
        match parse_file(&self.path) {
            Ok(tokens) => {
                match tokens.len() {
                    0 => log::warn!("{path} has no tokens any more: every request that needs one is refused"),
                    number => log::info!("{number} tokens read from {path}"),
                }
                self.current.send_replace(tokens);
            }
            Err(error) => log::error!("cannot reload the tokens, the previous ones stay valid: {error}"),
        }
    }

    /// The owner of the token in an `Authorization` header; `None` if there is no valid token.
    pub fn check(&self, authorization: Option<&str>) -> Option<Bearer> {
        let (scheme, token) = authorization?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let hash: Hash = Sha256::digest(token.trim().as_bytes()).into();
        let tokens = self.current.borrow();
        // Compares all of them, so that the time does not depend on which one matches.
        let mut found = u32::MAX;
        for (at, token) in tokens.iter().enumerate() {
            let equal: Choice = token.hash.ct_eq(&hash);
            found.conditional_assign(&(at as u32), equal);
        }
        tokens.get(found as usize).map(|token| Bearer { user_id: token.user_id.clone() })
    }
}

/// The first token of a token file that a client can send. `None` if the file has only hashes of tokens.
///
/// # Errors
/// As [`Tokens::read`], up to that token.
pub fn first_plain_token(path: &Path) -> Result<Option<String>, String> {
    for (at, line) in read_text(path)?.lines().enumerate() {
        let bad = |why: String| format!("{}, line {}: {why}", path.display(), at + 1);
        if parse_line(line.trim()).map_err(bad)?.is_none() {
            continue;
        }
        let token = line.split_whitespace().next().filter(|token| hash_digits(token).is_none());
        if token.is_some() {
            return Ok(token.map(str::to_owned));
        }
    }
    Ok(None)
}

fn read_text(path: &Path) -> Result<String, String> {
    small_file::read_text(path).map_err(|error| format!("cannot read the token file {}: {error}", path.display()))
}

fn parse_file(path: &Path) -> Result<Vec<Token>, String> {
    let path_shown = path.display();
    let text = read_text(path)?;
    let mut tokens = Vec::new();
    let mut seen = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        let bad = |why: String| format!("{path_shown}, line {number}: {why}");
        let Some(token) = parse_line(line.trim()).map_err(bad)? else { continue };
        if let Some((first, user_id)) = seen.get(&token.hash) {
            if *user_id == token.user_id {
                continue;
            }
            return Err(bad(format!(
                "the token of line {first} again, for another USER_ID; a token can be bound to only one"
            )));
        }
        seen.insert(token.hash, (number, token.user_id.clone()));
        tokens.push(token);
    }
    Ok(tokens)
}

/// Parses a trimmed line; `None` if it is empty or a comment.
fn parse_line(line: &str) -> Result<Option<Token>, String> {
    let Some(line) = without_comment(line)? else { return Ok(None) };
    if line.contains(|char: char| char.is_control() && char != '\t') {
        return Err(
            "a line must not have control characters except tabs; put each token on a line of its own".to_owned()
        );
    }
    let (token, user_id) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let hash = match hash_digits(token) {
        Some(digits) => parse_hash(digits).ok_or("after sha256: 64 hexadecimal digits are expected")?,
        None if token.len() < MIN_TOKEN_CHARS => {
            return Err(format!(
                "a token has at least {MIN_TOKEN_CHARS} characters; `user-http-server token` prints a new one"
            ));
        }
        None => match token.chars().position(|char| !char.is_ascii_graphic()) {
            Some(at) => {
                return Err(format!(
                    "a token consists of visible ASCII characters; character {} of this one is not",
                    at + 1
                ));
            }
            None => Sha256::digest(token.as_bytes()).into(),
        },
    };
    let user_id = user_id.trim();
    Ok(Some(Token { hash, user_id: Some(user_id.to_owned()).filter(|user_id| !user_id.is_empty()) }))
}

/// The part of a line before a comment; `None` if there is nothing.
fn without_comment(line: &str) -> Result<Option<&str>, String> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let sign = line.match_indices('#').map(|(at, _)| at).find(|at| line[..*at].ends_with(char::is_whitespace));
    let Some(at) = sign else { return Ok(Some(line)) };
    match line[at + 1..].chars().next() {
        // It could be part of the USER_ID.
        Some(next) if !next.is_whitespace() => {
            Err("put a space after the # of a comment; no word of a USER_ID may begin with #".to_owned())
        }
        _ => Ok(Some(line[..at].trim_end())),
    }
}

/// The digits of a hash that stands in place of a token.
fn hash_digits(token: &str) -> Option<&str> {
    let (start, digits) = token.split_at_checked(HASHED.len())?;
    start.eq_ignore_ascii_case(HASHED).then_some(digits)
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

/// A new token, and its hash as a token file may list it instead of the token.
pub fn new_token() -> (String, String) {
    let token = hexadecimal(&rand::random::<[u8; TOKEN_BYTES]>());
    let line = format!("{HASHED}{}", hexadecimal(&Sha256::digest(token.as_bytes())));
    (token, line)
}

#[cfg(test)]
mod tests {
    use std::fs;

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

    /// The `USER_ID` that the token in a line is bound to.
    fn binding(line: &str) -> Option<String> {
        let tokens = tokens(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        let bearer = tokens.check(Some("Bearer first-token-0123456789")).unwrap_or_else(|| panic!("{line:?}"));
        bearer.user_id
    }

    #[test]
    fn a_token_may_be_bound_to_a_user() {
        let tokens = tokens("first-token-0123456789 worker 7\nother-token-0123456789\n").expect("a sound file");
        let bearer = tokens.check(Some("Bearer first-token-0123456789")).expect("valid");
        assert_eq!(bearer.user_id.as_deref(), Some("worker 7"));
        assert_eq!(tokens.check(Some("Bearer other-token-0123456789")), Some(Bearer::default()));
        assert_eq!(binding("first-token-0123456789 worker#7").as_deref(), Some("worker#7"));
    }

    #[test]
    fn a_token_of_16_characters_is_long_enough_and_one_of_15_is_not() {
        let token = "sixteen-letters!";
        let tokens_of = |length: usize| tokens(&token[..length]);
        let bearer = tokens_of(16).expect("a sound file").check(Some(&format!("Bearer {token}")));
        assert_eq!(bearer, Some(Bearer::default()));
        assert!(tokens_of(15).expect_err("too short").contains("at least 16 characters"));
    }

    #[test]
    fn a_comment_is_no_user() {
        for line in [
            "first-token-0123456789 # of the first",
            "first-token-0123456789\t#\tof the first",
            "first-token-0123456789 #",
            "# one\n#two\n # three\nfirst-token-0123456789",
        ] {
            assert_eq!(binding(line), None, "{line:?}");
        }
        assert_eq!(binding("first-token-0123456789 worker 7 # of the first # and last").as_deref(), Some("worker 7"));
        let hashed = format!("{HASHED}{} # mine", hexadecimal(&Sha256::digest(b"first-token-0123456789")));
        assert_eq!(binding(&hashed), None);
    }

    #[test]
    fn what_editors_and_shells_put_into_a_file_is_not_part_of_a_token() {
        for text in [
            "\u{feff}first-token-0123456789 anna\n",
            "\u{feff}# a comment\r\nfirst-token-0123456789 anna\r\n",
            "\u{feff}\u{feff}first-token-0123456789 anna",
            "  first-token-0123456789   anna  \r\n\r\n",
            "first-token-0123456789 anna\nfirst-token-0123456789 anna # again\n",
        ] {
            assert_eq!(binding(text).as_deref(), Some("anna"), "{text:?}");
        }
        let upper = format!("SHA256:{}", hexadecimal(&Sha256::digest(b"first-token-0123456789")).to_uppercase());
        assert_eq!(binding(&upper), None);
    }

    #[test]
    fn errors_name_what_is_wrong_with_a_file_but_not_its_tokens() {
        for (text, why) in [
            ("# nothing\n", "has no token"),
            ("fine-token-0123456789\nshort", "line 2: a token has at least 16 characters"),
            ("sha256:12", "line 1: after sha256: 64 hexadecimal digits"),
            ("sha256:zz00000000000000000000000000000000000000000000000000000000000000", "64 hexadecimal digits"),
            ("fine-token-0123456789 #7", "line 1: put a space after the #"),
            ("fine-token-0123456789 worker #7", "line 1: put a space after the #"),
            ("fine-token-0123456789\n\nfine-token-0123456789 anna", "line 3: the token of line 1 again"),
            ("fine-token-0123456789 berta\nfine-token-0123456789 anna", "line 2: the token of line 1 again"),
            ("fine-token-0123456789\rfine-token-0123456788", "line 1: a line must not have control characters"),
            ("# a\n\u{feff}fine-token-0123456789", "line 2: a token consists of visible ASCII characters; character 1"),
            ("fine-token-01234\u{200b}56789", "line 1: a token consists of visible ASCII characters; character 17"),
        ] {
            let error = tokens(text).expect_err("a bad file");
            assert!(error.contains(why) && !error.contains("fine-token"), "{error}");
        }
        assert!(Tokens::read(Path::new("/nowhere/tokens")).expect_err("no file").contains("/nowhere/tokens"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), b"\xff\xfef\0i\0n\0e\0").expect("writable");
        assert!(Tokens::read(file.path()).expect_err("UTF-16").contains("save it as UTF-8"));
    }
}
