//! A message as a graph of values that point into the received bytes. Both readers make it, and all writers take it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use num_bigint::BigInt;

use super::bounds::{
    BRIEF_LONG_FLOATS, INT_BYTES_PER_HASHED_VALUE, MAX_BODY_BYTES, MAX_INT_DIGITS, MAX_LONG_INT_DIGITS,
    MAX_PEER_INT_DIGITS, MAX_VALUES,
};
use super::error::{grouped, malformed};
use super::source::Source;
use super::text::{CodePoints, MAX_POINT_BYTES, Spelling, to_utf8};
use super::{DecodeError, Effort};

/// The length of the longest float that Python's `repr` writes, in bytes. Parsing more digits may need arithmetic with
/// large integers.
const MAX_REPR_FLOAT_BYTES: usize = "-1.7976931348623157e+308".len();

/// A value, as an index into the nodes of its [`Doc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(u32);

impl NodeId {
    // Every document has these three values, once each.
    pub(super) const NONE: NodeId = NodeId(0);
    pub(super) const TRUE: NodeId = NodeId(1);
    pub(super) const FALSE: NodeId = NodeId(2);

    /// Its index in tables that have one entry for each value.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A position in a container, as an index into the edges of a [`Doc`]. [`EdgeId::END`] comes after the last position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EdgeId(u32);

impl EdgeId {
    pub(super) const END: EdgeId = EdgeId(0);
}

/// The type of a value, and how its content is stored: as a range of the source unless the variant says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    None,
    True,
    False,
    /// The value itself, an `i32`.
    SmallInt,
    /// Decimal digits after an optional minus.
    TextInt,
    /// Two's complement, the lowest byte first.
    BinaryInt,
    /// The value itself, an `f64`.
    Float,
    /// UTF-8.
    Str,
    /// UTF-8 with at least one lone surrogate, encoded as three bytes.
    SurrogateStr,
    /// The inside of a JSON string that has escapes.
    JsonStr,
    /// The codec `raw-unicode-escape`.
    RawUnicodeStr,
    /// ASCII with the escapes of a bytes literal.
    EscapedStr,
    Bytes,
    /// The result of `_codecs.encode`: the index of the encoded str, and the length of the result in bytes.
    EncodedBytes,
    ByteArray,
    List,
    Tuple,
    Dict,
    Set,
    FrozenSet,
    /// A callable that a pickle names; never part of a message.
    Callable,
}

impl Tag {
    /// Python's name of the type, with an article.
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Tag::None => "None",
            Tag::True | Tag::False => "a bool",
            Tag::SmallInt | Tag::TextInt | Tag::BinaryInt => "an int",
            Tag::Float => "a float",
            Tag::Str | Tag::SurrogateStr | Tag::JsonStr | Tag::RawUnicodeStr | Tag::EscapedStr => "a str",
            Tag::Bytes | Tag::EncodedBytes => "a bytes",
            Tag::ByteArray => "a bytearray",
            Tag::List => "a list",
            Tag::Tuple => "a tuple",
            Tag::Dict => "a dict",
            Tag::Set => "a set",
            Tag::FrozenSet => "a frozenset",
            Tag::Callable => "a callable",
        }
    }
}

/// A value. Takes 16 bytes, whatever the length of its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) tag: Tag,
    /// How deep tuples and frozensets are nested in it. Hashing recurses that deep.
    pub(super) hash_depth: u8,
    /// How many values CPython hashes in order to hash this one: 0 if it is unhashable, more than
    /// [`super::bounds::MAX_KEY_VALUES`] if they are too many.
    pub(super) hash_size: u16,
    /// The offset in the source of what makes it: a pickle's opcode, or the first byte of a JSON value.
    at: u32,
    /// A container's first and last edge, or the content's start and end.
    span: [u32; 2],
}

impl Node {
    pub(super) fn at(&self) -> usize {
        self.at as usize
    }

    /// The length of a scalar's content in bytes. If the content is not in the source, the length that it would have.
    pub(super) fn len(&self) -> usize {
        match self.tag {
            Tag::EncodedBytes => self.span[1] as usize,
            Tag::None | Tag::True | Tag::False | Tag::SmallInt | Tag::Float => size_of::<u64>(),
            Tag::List | Tag::Tuple | Tag::Dict | Tag::Set | Tag::FrozenSet | Tag::Callable => 0,
            _ => self.range().len(),
        }
    }

    /// The range of a scalar's content in the source.
    pub(super) fn range(&self) -> Range<usize> {
        self.span[0] as usize..self.span[1] as usize
    }

    pub(super) fn is_container(&self) -> bool {
        matches!(self.tag, Tag::List | Tag::Tuple | Tag::Dict | Tag::Set | Tag::FrozenSet)
    }

    pub(super) fn is_str(&self) -> bool {
        self.spelling().is_some()
    }

    fn spelling(&self) -> Option<Spelling> {
        match self.tag {
            Tag::Str | Tag::SurrogateStr => Some(Spelling::Utf8),
            Tag::JsonStr => Some(Spelling::Json),
            Tag::RawUnicodeStr => Some(Spelling::RawUnicode),
            Tag::EscapedStr => Some(Spelling::Escaped),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    child: NodeId,
    next: EdgeId,
}

/// A message. The items of a dict alternate between key and value. If a key is repeated, its last value counts.
#[derive(Debug)]
pub(super) struct Doc {
    pub(super) source: Source,
    pub(super) root: NodeId,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    /// The digits of all long integers so far; see [`MAX_LONG_INT_DIGITS`].
    long_digits: usize,
    /// The number of floats so far that are longer than [`MAX_REPR_FLOAT_BYTES`].
    long_floats: usize,
    effort: Effort,
}

impl Doc {
    pub(super) fn new(source: Source, effort: Effort) -> Result<Doc, DecodeError> {
        if source.len() > MAX_BODY_BYTES {
            return Err(DecodeError::Malformed(format!(
                "the body has {} bytes; at most {} are accepted",
                grouped(source.len()),
                grouped(MAX_BODY_BYTES)
            )));
        }
        let constant = |tag| Node { tag, hash_depth: 0, hash_size: 1, at: 0, span: [0, 0] };
        Ok(Doc {
            source,
            root: NodeId::NONE,
            nodes: vec![constant(Tag::None), constant(Tag::True), constant(Tag::False)],
            edges: vec![Edge { child: NodeId::NONE, next: EdgeId::END }],
            long_digits: 0,
            long_floats: 0,
            effort,
        })
    }

    /// Adds a value that is made at `at`, with its content in `range` of the source. For a container, which starts
    /// empty, the range is 0..0.
    pub(super) fn add(&mut self, tag: Tag, at: usize, range: Range<usize>) -> Result<NodeId, DecodeError> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(malformed(format!("more than {} values", grouped(MAX_VALUES)), at));
        }
        let hash_size = match tag {
            Tag::List | Tag::Dict | Tag::Set | Tag::ByteArray => 0,
            Tag::TextInt | Tag::BinaryInt => {
                u16::try_from(1 + range.len() / INT_BYTES_PER_HASHED_VALUE).unwrap_or(u16::MAX)
            }
            _ => 1,
        };
        // Lossless: `new` has checked that the source is shorter than 4 GiB.
        let span = [range.start as u32, range.end as u32];
        self.nodes.push(Node { tag, hash_depth: 0, hash_size, at: at as u32, span });
        Ok(NodeId(self.nodes.len() as u32 - 1))
    }

    /// Adds a small int that is made at `at`.
    pub(super) fn add_int(&mut self, at: usize, value: i32) -> Result<NodeId, DecodeError> {
        let id = self.add(Tag::SmallInt, at, 0..0)?;
        self.nodes[id.index()].span[0] = value.cast_unsigned();
        Ok(id)
    }

    /// Adds a float that is made at `at`.
    pub(super) fn add_float(&mut self, at: usize, value: f64) -> Result<NodeId, DecodeError> {
        let id = self.add(Tag::Float, at, 0..0)?;
        let bits = value.to_bits();
        self.nodes[id.index()].span = [(bits >> 32) as u32, bits as u32];
        Ok(id)
    }

    /// Parses a decimal float. `None` if Rust cannot parse it.
    pub(super) fn parse_float(&mut self, text: &[u8]) -> Result<Option<f64>, DecodeError> {
        if text.len() > MAX_REPR_FLOAT_BYTES {
            self.long_floats += 1;
            if self.is_brief() && self.long_floats > BRIEF_LONG_FLOATS {
                return Err(DecodeError::TakesLonger);
            }
        }
        Ok(str::from_utf8(text).ok().and_then(|text| text.parse().ok()))
    }

    /// Adds the result of a call of `_codecs.encode` at `at`: `len` bytes.
    pub(super) fn add_encoded(&mut self, at: usize, text: NodeId, len: usize) -> Result<NodeId, DecodeError> {
        let id = self.add(Tag::EncodedBytes, at, 0..0)?;
        // Lossless: at most as long as a str in the source.
        self.nodes[id.index()].span = [text.0, len as u32];
        Ok(id)
    }

    /// Adds a decimal int that is made at `at`. `range` is the sign, if there is one, and the digits.
    pub(super) fn add_decimal(&mut self, at: usize, range: Range<usize>, digits: usize) -> Result<NodeId, DecodeError> {
        if digits > MAX_INT_DIGITS {
            let (count, bound) = (grouped(digits), grouped(MAX_INT_DIGITS));
            return Err(malformed(format!("integer of {count} digits (at most {bound} are accepted)"), at));
        }
        if digits > MAX_PEER_INT_DIGITS {
            if self.is_brief() {
                return Err(DecodeError::TakesLonger);
            }
            self.long_digits += digits;
        }
        if self.long_digits > MAX_LONG_INT_DIGITS {
            let (each, all) = (grouped(MAX_PEER_INT_DIGITS), grouped(MAX_LONG_INT_DIGITS));
            let what = format!("integers longer than {each} digits have more than {all} digits in total");
            return Err(malformed(what, at));
        }
        self.add(Tag::TextInt, at, range)
    }

    /// Appends `child` to `container`. `at` is the offset to name in an error.
    pub(super) fn append(&mut self, container: NodeId, child: NodeId, at: usize) -> Result<(), DecodeError> {
        if self.edges.len() > MAX_VALUES {
            return Err(malformed(format!("more than {} values in containers", grouped(MAX_VALUES)), at));
        }
        let edge = self.edges.len() as u32;
        self.edges.push(Edge { child, next: EdgeId::END });
        let [first, last] = &mut self.nodes[container.index()].span;
        if *first == 0 {
            *first = edge;
        } else {
            self.edges[*last as usize].next = EdgeId(edge);
        }
        *last = edge;
        Ok(())
    }

    /// Sets what it takes to hash an immutable container.
    pub(super) fn set_hash(&mut self, id: NodeId, depth: u8, size: u16) {
        let node = &mut self.nodes[id.index()];
        (node.hash_depth, node.hash_size) = (depth, size);
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(super) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many positions all containers have together.
    pub(super) fn edge_count(&self) -> usize {
        self.edges.len() - 1
    }

    /// Whether decoding runs on an event loop, and so must not take long.
    pub(super) fn is_brief(&self) -> bool {
        self.effort == Effort::Brief
    }

    /// All values, in the order in which they were added.
    pub(super) fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The bytes of a scalar's content, as a whole.
    pub(super) fn content(&self, id: NodeId) -> Cow<'_, [u8]> {
        self.source.read(self.node(id).range())
    }

    /// The items of a container, in order. For a dict, keys and values alternate.
    pub(super) fn items(&self, container: NodeId) -> impl Iterator<Item = NodeId> {
        let edges = std::iter::successors(Some(self.first(container)), |edge| Some(self.next(*edge)));
        edges.take_while(|edge| *edge != EdgeId::END).map(|edge| self.child(edge))
    }

    /// The first position in a container.
    pub(super) fn first(&self, container: NodeId) -> EdgeId {
        EdgeId(self.node(container).span[0])
    }

    pub(super) fn next(&self, edge: EdgeId) -> EdgeId {
        self.edges[edge.0 as usize].next
    }

    pub(super) fn child(&self, edge: EdgeId) -> NodeId {
        self.edges[edge.0 as usize].child
    }

    /// The position of the value under a str key of a dict. `None` if the key is missing or this is no dict.
    pub(super) fn find(&self, dict: NodeId, key: &str) -> Option<EdgeId> {
        if self.node(dict).tag != Tag::Dict {
            return None;
        }
        let mut found = None;
        let mut edge = self.first(dict);
        while edge != EdgeId::END {
            let value = self.next(edge);
            if self.str_is(self.child(edge), key) {
                found = Some(value);
            }
            edge = self.next(value);
        }
        found
    }

    /// The value under a str key of a dict.
    pub(super) fn get(&self, dict: NodeId, key: &str) -> Option<NodeId> {
        self.find(dict, key).map(|edge| self.child(edge))
    }

    /// Whether a value is a str with this text, however it is encoded.
    pub(super) fn str_is(&self, id: NodeId, text: &str) -> bool {
        // Compared first, so that no long str is read.
        let node = self.node(id);
        let may_be = match node.tag {
            Tag::Str => node.len() == text.len(),
            _ => node.len() <= text.len() * MAX_POINT_BYTES,
        };
        may_be
            && match node.tag {
                Tag::Str => *self.content(id) == *text.as_bytes(),
                _ => self.code_points(id).is_some_and(|points| points.eq(text.chars().map(u32::from))),
            }
    }

    /// The code points of a str, including lone surrogates.
    pub(super) fn code_points(&self, id: NodeId) -> Option<CodePoints<'_>> {
        let spelling = self.node(id).spelling()?;
        Some(CodePoints::new(spelling, self.source.parts(self.node(id).range())))
    }

    /// The characters of a str, with U+FFFD for each lone surrogate.
    pub(super) fn chars_lossy(&self, id: NodeId) -> Option<impl Iterator<Item = char>> {
        Some(self.code_points(id)?.map(|point| char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)))
    }

    /// The text of a str. `None` if it has a lone surrogate, and for any other type.
    pub(super) fn text(&self, id: NodeId) -> Option<String> {
        match self.node(id).tag {
            Tag::Str => String::from_utf8(self.content(id).into_owned()).ok(),
            _ => self.code_points(id)?.map(char::from_u32).collect(),
        }
    }

    /// A str in UTF-8, with lone surrogates encoded as three bytes. Empty for any other type.
    pub(super) fn utf8(&self, id: NodeId) -> Bytes {
        match self.node(id).tag {
            Tag::Str | Tag::SurrogateStr => self.source.slice(self.node(id).range()),
            _ => self.code_points(id).map(to_utf8).unwrap_or_default().into(),
        }
    }

    pub(super) fn float(&self, id: NodeId) -> Option<f64> {
        let node = self.node(id);
        let [high, low] = node.span.map(u64::from);
        (node.tag == Tag::Float).then(|| f64::from_bits(high << 32 | low))
    }

    /// The str from which `_codecs.encode` made these bytes.
    pub(super) fn encoded(&self, id: NodeId) -> Option<NodeId> {
        let node = self.node(id);
        (node.tag == Tag::EncodedBytes).then(|| NodeId(node.span[0]))
    }

    pub(super) fn small_int(&self, id: NodeId) -> Option<i32> {
        let node = self.node(id);
        (node.tag == Tag::SmallInt).then(|| node.span[0].cast_signed())
    }

    /// The value of an int. Takes time that grows with the square of its digits, so the caller has bounded those.
    pub(super) fn int(&self, id: NodeId) -> Option<BigInt> {
        match self.node(id).tag {
            Tag::SmallInt => self.small_int(id).map(BigInt::from),
            Tag::TextInt => BigInt::parse_bytes(&self.content(id), 10),
            Tag::BinaryInt => Some(BigInt::from_signed_bytes_le(&self.content(id))),
            _ => None,
        }
    }
}
