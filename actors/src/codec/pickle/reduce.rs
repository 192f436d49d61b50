//! The few callables that `pickle.dumps` uses for plain values at old protocols. None is ever called: the document gets
//! a node that describes the result.

use std::borrow::Cow;
use std::ops::Range;

use super::container::{check_key, sum_up_hash};
use super::operand::Operands;
use crate::codec::DecodeError;
use crate::codec::bounds::MAX_CALL_GROWTH;
use crate::codec::doc::{Doc, EdgeId, Node, NodeId, Tag};
use crate::codec::error::{MAX_SHOWN_CHARS, malformed, shown};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callable {
    /// `_codecs.encode`: makes bytes at protocols 0 to 2.
    Encode,
    /// `bytes`: makes empty bytes at protocols 0 to 2.
    Bytes,
    /// `bytearray`: at protocols 0 to 4.
    ByteArray,
    /// `set`: at protocols 0 to 3.
    Set,
    /// `frozenset`: at protocols 0 to 3.
    FrozenSet,
}

impl Callable {
    const ALL: [Callable; 5] =
        [Callable::Encode, Callable::Bytes, Callable::ByteArray, Callable::Set, Callable::FrozenSet];

    /// The callable that a node describes.
    pub(super) fn of(node: &Node) -> Callable {
        Callable::ALL[node.range().start]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Callable::Encode => "encode",
            Callable::Bytes => "bytes",
            Callable::ByteArray => "bytearray",
            Callable::Set => "set",
            Callable::FrozenSet => "frozenset",
        }
    }

    /// The modules that it may be named in. CPython maps the names of Python 2 only below protocol 3.
    fn modules(self, protocol: u8) -> &'static [&'static str] {
        match (self, protocol) {
            (Callable::Encode, _) => &["_codecs"],
            (_, 0..3) => &["__builtin__", "builtins"],
            _ => &["builtins"],
        }
    }

    /// The index of the first callable for which `matches(module, name)` holds.
    fn find(protocol: u8, matches: impl Fn(&str, &str) -> bool) -> Option<usize> {
        Callable::ALL
            .iter()
            .position(|callable| callable.modules(protocol).iter().any(|module| matches(module, callable.name())))
    }
}

/// GLOBAL: the callable that its operands name.
pub(super) fn global(operands: &mut Operands, doc: &mut Doc, protocol: u8) -> Result<NodeId, DecodeError> {
    let (module, name) = (operands.line()?, operands.line()?);
    let (module, name) = (start_of(operands, module), start_of(operands, name));
    let known = Callable::find(protocol, |known_module, known_name| {
        *known_module.as_bytes() == *module && *known_name.as_bytes() == *name
    });
    match known {
        Some(index) => doc.add(Tag::Callable, operands.at(), index..index),
        None => Err(refuse_name(ascii(&module), ascii(&name), operands.at())),
    }
}

/// STACK_GLOBAL: the callable that two values on the stack name.
pub(super) fn stack_global(
    doc: &mut Doc,
    module: NodeId,
    name: NodeId,
    protocol: u8,
    at: usize,
) -> Result<NodeId, DecodeError> {
    let known = Callable::find(protocol, |known_module, known_name| {
        doc.str_is(module, known_module) && doc.str_is(name, known_name)
    });
    if let Some(index) = known {
        return doc.add(Tag::Callable, at, index..index);
    }
    match (doc.chars_lossy(module), doc.chars_lossy(name)) {
        (Some(module), Some(name)) => Err(refuse_name(module, name, at)),
        _ => Err(malformed("pickle names a class by a value that is not a str", at)),
    }
}

/// The error for INST, which names a class and makes an instance of it.
pub(super) fn refuse_inst(operands: &mut Operands) -> DecodeError {
    match (operands.line(), operands.line()) {
        (Ok(module), Ok(name)) => {
            let (module, name) = (start_of(operands, module), start_of(operands, name));
            refuse_name(ascii(&module), ascii(&name), operands.at())
        }
        (Err(error), _) | (_, Err(error)) => error,
    }
}

/// The total size of what the calls in a pickle have made so far. Calls may share arguments, so it can exceed the
/// length of the pickle.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// The bytes of byte strings; see [`MAX_CALL_GROWTH`].
    bytes: usize,
    /// The items of lists that have been copied into sets.
    items: usize,
}

impl Calls {
    /// REDUCE: what `callable` returns for the tuple `arguments`.
    pub(super) fn reduce(
        &mut self,
        doc: &mut Doc,
        callable: NodeId,
        arguments: NodeId,
        at: usize,
    ) -> Result<NodeId, DecodeError> {
        let callable = doc.node(callable);
        if callable.tag != Tag::Callable {
            let found = callable.tag.type_name();
            return Err(malformed(format!("pickle calls {found}, which is not callable,"), at));
        }
        let callable = Callable::of(callable);
        match (callable, at_most_two(doc, arguments)) {
            (Callable::Encode, Some([Some(text), Some(encoding)])) if doc.str_is(encoding, "latin1") => {
                let length = self.latin1_length(doc, text, at)?;
                doc.add_encoded(at, text, length)
            }
            (Callable::Bytes, Some([None, None])) => doc.add(Tag::Bytes, at, 0..0),
            (Callable::ByteArray, Some([None, None])) => doc.add(Tag::ByteArray, at, 0..0),
            (Callable::ByteArray, Some([Some(bytes), None]))
                if matches!(doc.node(bytes).tag, Tag::Bytes | Tag::EncodedBytes) =>
            {
                let length = doc.node(bytes).len();
                self.charge(doc, length, at)?;
                doc.add(Tag::ByteArray, at, 0..length)
            }
            // Written by Python 2, and by early releases of Python 3.
            (Callable::ByteArray, Some([Some(text), Some(encoding)])) if doc.str_is(encoding, "latin-1") => {
                let length = self.latin1_length(doc, text, at)?;
                doc.add(Tag::ByteArray, at, 0..length)
            }
            (Callable::Set, Some([Some(list), None])) if doc.node(list).tag == Tag::List => {
                self.set_of(doc, Tag::Set, list, at)
            }
            (Callable::FrozenSet, Some([Some(list), None])) if doc.node(list).tag == Tag::List => {
                self.set_of(doc, Tag::FrozenSet, list, at)
            }
            _ => {
                let name = callable.name();
                let what = format!("pickle calls `{name}` with arguments that `pickle.dumps` never gives it");
                Err(malformed(what, at))
            }
        }
    }

    /// The length of a str in Latin-1, in bytes.
    fn latin1_length(&mut self, doc: &Doc, text: NodeId, at: usize) -> Result<usize, DecodeError> {
        // Many calls may share one str, so it is charged before it is read.
        if doc.node(text).is_str() {
            self.charge(doc, doc.node(text).range().len(), at)?;
        }
        let Some(mut points) = doc.code_points(text) else {
            return Err(malformed("pickle encodes a value that is not a str", at));
        };
        points
            .try_fold(0, |length, point| (point <= 0xFF).then_some(length + 1))
            .ok_or_else(|| malformed("pickle encodes a str in Latin-1 that has other characters", at))
    }

    fn charge(&mut self, doc: &Doc, length: usize, at: usize) -> Result<(), DecodeError> {
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > doc.source.len().saturating_mul(MAX_CALL_GROWTH) {
            let what = format!("calls in the pickle make byte strings of more than {MAX_CALL_GROWTH} times its length");
            return Err(malformed(what, at));
        }
        Ok(())
    }

    /// Makes a set or a frozenset of the items of a list.
    fn set_of(&mut self, doc: &mut Doc, tag: Tag, list: NodeId, at: usize) -> Result<NodeId, DecodeError> {
        let set = doc.add(tag, at, 0..0)?;
        let mut edge = doc.first(list);
        while edge != EdgeId::END {
            self.items += 1;
            if doc.is_brief() && self.items > doc.source.len() {
                return Err(DecodeError::TakesLonger);
            }
            let item = doc.child(edge);
            check_key(doc, item, at)?;
            doc.append(set, item, at)?;
            edge = doc.next(edge);
        }
        if tag == Tag::FrozenSet {
            sum_up_hash(doc, set, at)?;
        }
        Ok(set)
    }
}

/// The items of a tuple. `None` if there are more than two.
fn at_most_two(doc: &Doc, tuple: NodeId) -> Option<[Option<NodeId>; 2]> {
    if doc.node(tuple).tag != Tag::Tuple {
        return None;
    }
    let mut items = doc.items(tuple);
    let first_two = [items.next(), items.next()];
    items.next().is_none().then_some(first_two)
}

/// Refuses a callable that is used as a value.
pub(super) fn check_plain(doc: &Doc, id: NodeId) -> Result<(), DecodeError> {
    let node = doc.node(id);
    match node.tag {
        Tag::Callable => {
            let name = Callable::of(node).name();
            Err(malformed(format!("pickle uses a class (`{name}`) as a value"), node.at()))
        }
        _ => Ok(()),
    }
}

fn refuse_name(module: impl IntoIterator<Item = char>, name: impl IntoIterator<Item = char>, at: usize) -> DecodeError {
    malformed(format!("pickle names a class (`{}.{}`)", shown(module), shown(name)), at)
}

/// The start of a line: enough to tell the known callables' names from any other, and to show it in an error.
fn start_of<'a>(operands: &Operands<'a>, line: Range<usize>) -> Cow<'a, [u8]> {
    operands.source().read(line.start..line.end.min(line.start + MAX_SHOWN_CHARS + 1))
}

fn ascii(name: &[u8]) -> impl Iterator<Item = char> {
    name.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { char::REPLACEMENT_CHARACTER })
}
