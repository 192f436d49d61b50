//! The few callables that `pickle.dumps` itself names for plain values at old protocols. None is ever called: what
//! they would make is described.

use super::machine::Machine;
use crate::codec::DecodeError;
use crate::codec::bounds::MAX_CALL_GROWTH;
use crate::codec::doc::{Doc, EdgeId, Node, NodeId, Tag};
use crate::codec::error::{malformed, shown};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callable {
    /// Bytes, at protocols 0 to 2.
    Encode,
    /// Empty bytes, at protocols 0 to 2.
    Bytes,
    /// At protocols 0 to 4.
    ByteArray,
    /// At protocols 0 to 3.
    Set,
    /// At protocols 0 to 3.
    FrozenSet,
}

impl Callable {
    const ALL: [Callable; 5] =
        [Callable::Encode, Callable::Bytes, Callable::ByteArray, Callable::Set, Callable::FrozenSet];

    /// Which one a value in a document is.
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

    /// The modules under which it is found. CPython maps Python 2's names below protocol 3 only.
    fn modules(self, protocol: u8) -> &'static [&'static str] {
        match (self, protocol) {
            (Callable::Encode, _) => &["_codecs"],
            (_, 0..3) => &["__builtin__", "builtins"],
            _ => &["builtins"],
        }
    }
}

impl Machine<'_> {
    pub(super) fn global(&mut self) -> Result<(), DecodeError> {
        let (module, name) = (self.line()?, self.line()?);
        let (module, name) = (&self.source[module], &self.source[name]);
        let known = self
            .callable(|known_module, known_name| known_module.as_bytes() == module && known_name.as_bytes() == name);
        match known {
            Some(index) => self.push_new(Tag::Callable, index..index),
            None => Err(self.refuse_name(ascii(module), ascii(name))),
        }
    }

    pub(super) fn stack_global(&mut self) -> Result<(), DecodeError> {
        let (name, module) = (self.pop()?, self.pop()?);
        let known = self.callable(|known_module, known_name| {
            self.doc.str_is(module, known_module) && self.doc.str_is(name, known_name)
        });
        if let Some(index) = known {
            return self.push_new(Tag::Callable, index..index);
        }
        match (self.doc.chars_lossy(module), self.doc.chars_lossy(name)) {
            (Some(module), Some(name)) => Err(self.refuse_name(module, name)),
            _ => Err(self.refuse("pickle names a class by something that is no str")),
        }
    }

    /// The refusal of INST, which names a class and makes an instance at once.
    pub(super) fn refuse_inst(&mut self) -> DecodeError {
        match (self.line(), self.line()) {
            (Ok(module), Ok(name)) => self.refuse_name(ascii(&self.source[module]), ascii(&self.source[name])),
            (Err(error), _) | (_, Err(error)) => error,
        }
    }

    /// What the callable on the stack makes of the arguments above it.
    pub(super) fn reduce(&mut self) -> Result<(), DecodeError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let callable = self.doc.node(callable);
        if callable.tag != Tag::Callable {
            let found = callable.tag.type_name();
            return Err(self.refuse(format!("pickle calls {found}")));
        }
        let callable = Callable::of(callable);
        match (callable, self.arguments(arguments)) {
            (Callable::Encode, Some([Some(text), Some(encoding)])) if self.doc.str_is(encoding, "latin1") => {
                let length = self.latin1_length(text)?;
                let id = self.doc.add_encoded(self.at, text, length)?;
                self.push(id)
            }
            (Callable::Bytes, Some([None, None])) => self.push_new(Tag::Bytes, 0..0),
            (Callable::ByteArray, Some([None, None])) => self.push_new(Tag::ByteArray, 0..0),
            (Callable::ByteArray, Some([Some(bytes), None]))
                if matches!(self.doc.node(bytes).tag, Tag::Bytes | Tag::EncodedBytes) =>
            {
                let length = self.doc.node(bytes).len();
                self.charge(length)?;
                self.push_new(Tag::ByteArray, 0..length)
            }
            // As Python 2 and the first of Python 3 wrote it.
            (Callable::ByteArray, Some([Some(text), Some(encoding)])) if self.doc.str_is(encoding, "latin-1") => {
                let length = self.latin1_length(text)?;
                self.push_new(Tag::ByteArray, 0..length)
            }
            (Callable::Set, Some([Some(list), None])) if self.doc.node(list).tag == Tag::List => {
                self.set_of(Tag::Set, list)
            }
            (Callable::FrozenSet, Some([Some(list), None])) if self.doc.node(list).tag == Tag::List => {
                self.set_of(Tag::FrozenSet, list)
            }
            _ => {
                let name = callable.name();
                Err(self.refuse(format!("pickle calls `{name}` with other arguments than `pickle.dumps` gives it")))
            }
        }
    }

    /// The number of the callable for which `is` knows module and name.
    fn callable(&self, is: impl Fn(&str, &str) -> bool) -> Option<usize> {
        Callable::ALL
            .iter()
            .position(|callable| callable.modules(self.protocol).iter().any(|module| is(module, callable.name())))
    }

    /// A tuple's items, where these are at most two.
    fn arguments(&self, tuple: NodeId) -> Option<[Option<NodeId>; 2]> {
        if self.doc.node(tuple).tag != Tag::Tuple {
            return None;
        }
        let mut items = [None; 2];
        let mut edge = self.doc.first(tuple);
        for item in &mut items {
            if edge != EdgeId::END {
                *item = Some(self.doc.child(edge));
                edge = self.doc.next(edge);
            }
        }
        (edge == EdgeId::END).then_some(items)
    }

    /// How many bytes a str has in Latin-1.
    fn latin1_length(&mut self, text: NodeId) -> Result<usize, DecodeError> {
        // Counted against the bound before the text is looked at, as it may be shared by many calls.
        if self.doc.node(text).is_str() {
            self.charge(self.doc.node(text).range().len())?;
        }
        let Some(mut points) = self.doc.code_points(text) else {
            return Err(self.refuse("pickle encodes something that is no str"));
        };
        points
            .try_fold(0, |length, point| (point <= 0xFF).then_some(length + 1))
            .ok_or_else(|| self.refuse("pickle makes bytes of a str that is not Latin-1"))
    }

    /// Counts what a call makes; see [`MAX_CALL_GROWTH`].
    fn charge(&mut self, length: usize) -> Result<(), DecodeError> {
        self.called = self.called.saturating_add(length);
        if self.called > self.source.len().saturating_mul(MAX_CALL_GROWTH) {
            return Err(self.refuse(format!("pickle makes bytes of more than {MAX_CALL_GROWTH} times its length")));
        }
        Ok(())
    }

    fn set_of(&mut self, tag: Tag, list: NodeId) -> Result<(), DecodeError> {
        let set = self.doc.add(tag, self.at, 0..0)?;
        self.copy_to_set(list, set)?;
        self.push(set)
    }

    fn refuse_name(&self, module: impl IntoIterator<Item = char>, name: impl IntoIterator<Item = char>) -> DecodeError {
        self.refuse(format!("pickle names a class (`{}.{}`)", shown(module), shown(name)))
    }
}

/// The refusal of a callable that stands where a value should.
pub(super) fn check_plain(doc: &Doc, id: NodeId) -> Result<(), DecodeError> {
    let node = doc.node(id);
    match node.tag {
        Tag::Callable => {
            let name = Callable::of(node).name();
            Err(malformed(format!("pickle names a class (`{name}`) as a value"), node.at()))
        }
        _ => Ok(()),
    }
}

fn ascii(name: &[u8]) -> impl Iterator<Item = char> {
    name.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { char::REPLACEMENT_CHARACTER })
}
