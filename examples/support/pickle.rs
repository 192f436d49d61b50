//! Reads a pickle of plain data without loading its byte strings.
//!
//! A message may contain a .blend file of several GiB, a frame an image of 50 MiB. So a byte string is read as a
//! [`Span`], its position in the pickle, from which it can be copied. Everything else, usually a few hundred bytes,
//! becomes a [`Document`]. A pickle that names a class or a function is refused, except the few that Python uses to
//! write bytes and sets at old protocols; those are understood, never called.

#[path = "pickle/reader.rs"]
mod reader;

use std::io::{BufRead, Seek};

use reader::Reader;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The position of a byte string in the pickle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub offset: u64,
    pub len: u64,
}

/// A byte string.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// A part of the pickle.
    At(Span),
    /// Decoded from text, since protocols 0 to 2 have no byte strings.
    Made(Vec<u8>),
}

/// The callables with which Python writes values that an old protocol does not have.
#[derive(Clone, Copy, Debug)]
enum Callable {
    /// `_codecs.encode(text, "latin1")`: bytes.
    Encode,
    /// `bytes()`, or `bytearray(…)` of nothing, bytes, or a text and "latin-1".
    Bytes,
    /// `set(list)` and `frozenset(list)`.
    Set,
}

/// A value. It refers to others by index, because a pickle may contain the same list or dict more than once.
#[derive(Clone, Debug)]
enum Node {
    None,
    Bool(bool),
    Int(i64),
    BigInt,
    Float,
    Str(String),
    Bytes(Bytes),
    /// A list, a tuple or a set.
    Sequence(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Callable(Callable),
}

pub struct Document {
    nodes: Vec<Node>,
    root: usize,
}

#[derive(Clone, Copy)]
pub struct Value<'a> {
    document: &'a Document,
    index: usize,
}

impl Document {
    pub fn read(input: impl BufRead + Seek) -> Result<Self> {
        let mut reader = Reader::new(input)?;
        let root =
            reader.run().map_err(|error| format!("not a readable pickle: {error}, near byte {}", reader.offset()))?;
        Ok(Self { nodes: reader.into_nodes(), root })
    }

    pub fn root(&self) -> Value<'_> {
        Value { document: self, index: self.root }
    }
}

impl<'a> Value<'a> {
    fn node(self) -> &'a Node {
        &self.document.nodes[self.index]
    }

    fn at(self, index: usize) -> Self {
        Self { index, ..self }
    }

    /// The value of a dict under a key; the last one if the key is repeated, as in Python.
    pub fn get(self, key: &str) -> Option<Self> {
        let Node::Dict(pairs) = self.node() else { return None };
        let found = pairs.iter().rev().find(|(name, _)| self.at(*name).as_str() == Some(key));
        found.map(|(_, value)| self.at(*value))
    }

    pub fn path(self, keys: &[&str]) -> Option<Self> {
        keys.iter().try_fold(self, |value, key| value.get(key))
    }

    pub fn as_str(self) -> Option<&'a str> {
        match self.node() {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_int(self) -> Option<i64> {
        match self.node() {
            Node::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_bytes(self) -> Option<&'a Bytes> {
        match self.node() {
            Node::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn items(self) -> Option<impl Iterator<Item = Value<'a>>> {
        match self.node() {
            Node::Sequence(items) => Some(items.iter().map(move |item| self.at(*item))),
            _ => None,
        }
    }

    /// A description for error texts.
    pub fn describe(self) -> String {
        match self.node() {
            Node::None => "None".into(),
            Node::Bool(truth) => if *truth { "True" } else { "False" }.into(),
            Node::Int(number) => number.to_string(),
            Node::BigInt => "an int beyond 64 bits".into(),
            Node::Float => "a float".into(),
            Node::Str(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Node::Bytes(Bytes::At(span)) => format!("{} bytes", span.len),
            Node::Bytes(Bytes::Made(bytes)) => format!("{} bytes", bytes.len()),
            Node::Sequence(items) => format!("a sequence of {}", items.len()),
            Node::Dict(pairs) => format!("a dict of {}", pairs.len()),
            Node::Callable(_) => "a function".into(),
        }
    }
}
