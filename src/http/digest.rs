//! Digests of bodies, and the headers that carry them: `Content-Digest` and `Repr-Digest` (RFC 9530).

use actix_web::http::header::{HeaderMap, HeaderName};
use sfv::{BareItem, DictSerializer, Dictionary, Item, KeyRef, ListEntry, Parser, key_ref};
use sha2::{Digest, Sha256, Sha512};

use crate::http::error::Failure;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
/// The header of an answer.
pub const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// A hash algorithm that the gateway computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name in a header.
    fn key(self) -> &'static KeyRef {
        const SHA_256: &KeyRef = key_ref("sha-256");
        const SHA_512: &KeyRef = key_ref("sha-512");
        match self {
            Self::Sha256 => SHA_256,
            Self::Sha512 => SHA_512,
        }
    }

    /// The length of a digest in bytes.
    fn len(self) -> usize {
        match self {
            Self::Sha256 => Sha256::output_size(),
            Self::Sha512 => Sha512::output_size(),
        }
    }

    fn named(key: &KeyRef) -> Option<Self> {
        [Self::Sha256, Self::Sha512].into_iter().find(|algorithm| algorithm.key() == key)
    }
}

/// Computes digests of bytes that come part by part.
#[derive(Clone, Debug, Default)]
pub struct Hasher {
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

/// The digests that a [`Hasher`] has computed.
#[derive(Clone, Debug)]
pub struct Digests {
    sha256: Option<[u8; 32]>,
    sha512: Option<[u8; 64]>,
}

impl Hasher {
    /// Computes these digests, or none.
    pub fn of(algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        let mut hasher = Self::default();
        for algorithm in algorithms {
            match algorithm {
                Algorithm::Sha256 => drop(hasher.sha256.get_or_insert_default()),
                Algorithm::Sha512 => drop(hasher.sha512.get_or_insert_default()),
            }
        }
        hasher
    }

    /// Whether it computes nothing.
    pub fn is_idle(&self) -> bool {
        self.sha256.is_none() && self.sha512.is_none()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.iter_mut().for_each(|sha256| sha256.update(bytes));
        self.sha512.iter_mut().for_each(|sha512| sha512.update(bytes));
    }

    /// The digests of all bytes.
    pub fn finish(self) -> Digests {
        Digests {
            sha256: self.sha256.map(|sha256| sha256.finalize().into()),
            sha512: self.sha512.map(|sha512| sha512.finalize().into()),
        }
    }
}

impl Digests {
    /// The SHA-256; `None` if the [`Hasher`] did not compute it.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    /// The digest of this algorithm; `None` if the [`Hasher`] did not compute it.
    pub fn get(&self, algorithm: Algorithm) -> Option<&[u8]> {
        match algorithm {
            Algorithm::Sha256 => self.sha256.as_ref().map(|digest| &digest[..]),
            Algorithm::Sha512 => self.sha512.as_ref().map(|digest| &digest[..]),
        }
    }
}

/// The digests that the headers of a request name for its body.
///
/// The gateway accepts no content encoding, and a request never carries a part of a representation. So content and
/// representation are the same bytes, and both headers are checked against them.
#[derive(Clone, Debug)]
pub struct Expected(Vec<Named>);

/// A digest in a header.
#[derive(Clone, Debug)]
struct Named {
    header: &'static str,
    algorithm: Algorithm,
    digest: Vec<u8>,
}

impl Expected {
    /// Those of these headers.
    ///
    /// # Errors
    /// 400 if one of the two is malformed.
    pub fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let mut expected = Vec::new();
        for (name, header) in [(CONTENT_DIGEST, "Content-Digest"), (REPR_DIGEST, "Repr-Digest")] {
            // several lines are one value, with commas between them
            let lines: Vec<&[u8]> = headers.get_all(name).map(|line| line.as_bytes()).collect();
            if !lines.is_empty() {
                let named = parse(header, &lines.join(&b", "[..]));
                expected.extend(named.map_err(|why| Failure::malformed_digest(header, &why))?);
            }
        }
        Ok(Self(expected))
    }

    /// Their algorithms.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.0.iter().map(|named| named.algorithm)
    }

    /// Compares them with those of the received bytes.
    ///
    /// # Errors
    /// 400 if one differs, with both.
    pub fn check(&self, received: &Digests) -> Result<(), Failure> {
        for Named { header, algorithm, digest } in &self.0 {
            let computed = received.get(*algorithm).unwrap_or_default();
            if digest != computed {
                let [named, computed] = [digest, computed].map(|digest| member(*algorithm, digest));
                return Err(Failure::digest_mismatch(header, &named, &computed));
            }
        }
        Ok(())
    }
}

/// The digests of known algorithms in the value of a header; or what is wrong with it.
fn parse(header: &'static str, value: &[u8]) -> Result<Vec<Named>, String> {
    let members: Dictionary = Parser::new(value).parse().map_err(|error| error.to_string())?;
    let mut expected = Vec::new();
    for (key, member) in members {
        let ListEntry::Item(Item { bare_item: BareItem::ByteSequence(digest), .. }) = member else {
            return Err(format!("the value of {key} is not a byte sequence"));
        };
        let Some(algorithm) = Algorithm::named(&key) else { continue };
        if digest.len() != algorithm.len() {
            let (len, right) = (digest.len(), algorithm.len());
            return Err(format!("the value of {key} has {len} bytes instead of {right}"));
        }
        expected.push(Named { header, algorithm, digest });
    }
    Ok(expected)
}

/// A digest as a member of a header: `sha-256=:…:`.
pub fn member(algorithm: Algorithm, digest: &[u8]) -> String {
    let mut dictionary = DictSerializer::new();
    dictionary.bare_item(algorithm.key(), digest);
    // a dictionary with a member is never empty
    dictionary.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    /// The SHA-256 of no bytes.
    const EMPTY: &str = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";

    fn expected(lines: &[&str]) -> Result<Expected, Failure> {
        let line = |line: &&str| (REPR_DIGEST, HeaderValue::from_bytes(line.as_bytes()).expect("a header"));
        Expected::of(&lines.iter().map(line).collect())
    }

    #[test]
    fn digests_are_those_of_the_standard_and_take_its_form() {
        let mut hasher = Hasher::of([Algorithm::Sha256, Algorithm::Sha512, Algorithm::Sha256]);
        hasher.update(b"{\"hello\": ");
        hasher.update(b"\"world\"}\n");
        let digests = hasher.finish();
        // RFC 9530, appendix B.1 and B.2
        for (algorithm, text) in [
            (Algorithm::Sha256, "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"),
            (
                Algorithm::Sha512,
                "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:",
            ),
        ] {
            let digest = digests.get(algorithm).expect("it was asked for");
            assert_eq!(member(algorithm, digest), text);
            expected(&[text]).expect("well-formed").check(&digests).expect("a match");
        }
        let failure = expected(&[EMPTY]).expect("well-formed").check(&digests).expect_err("other bytes");
        let text = format!("{failure:?}");
        assert!(text.contains(EMPTY) && text.contains("sha-256=:RK/0qy18"), "{text}");
        let none = Hasher::of([]);
        assert!(none.is_idle() && none.finish().get(Algorithm::Sha256).is_none());
    }

    #[test]
    fn lines_of_a_header_are_one_dictionary_whose_unknown_algorithms_and_parameters_are_ignored() {
        let md5 = "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:";
        for (lines, count) in [
            (&[""][..], 0),
            (&[md5], 0),
            (&[md5, EMPTY], 1),
            (&[&format!("{EMPTY};a=1;b, {md5}")], 1),
            // of several members with a name, the last one counts
            (&["sha-256=:AAAA:", EMPTY], 1),
            (&["sha-256=1", EMPTY], 1),
        ] {
            let expected = expected(lines).unwrap_or_else(|failure| panic!("{lines:?}: {failure:?}"));
            assert_eq!(expected.algorithms().count(), count, "{lines:?}");
            expected.check(&Hasher::of([Algorithm::Sha256]).finish()).expect("the digest of no bytes");
        }
    }

    #[test]
    fn what_is_not_a_dictionary_of_byte_sequences_of_the_right_length_is_malformed() {
        for lines in [
            &["sha-256"][..],
            &["sha-256="],
            &["sha-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="],
            &["sha-256=\"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\""],
            &["sha-256=(:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:)"],
            &["sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuF:"],
            &["sha-256=:AAAA:"],
            &["sha-256=::"],
            &["sha-512=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"],
            &["SHA-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"],
            &["md5=1"],
            &[EMPTY, "???"],
            &[",", EMPTY],
            &["sha-256=:\u{e9}:"],
        ] {
            let failure = expected(lines).expect_err("malformed");
            assert!(format!("{failure:?}").contains("Repr-Digest"), "{lines:?}: {failure:?}");
        }
    }
}
