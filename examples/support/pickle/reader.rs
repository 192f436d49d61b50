//! Executes the opcodes of a pickle.

use std::collections::HashMap;
use std::io::{BufRead, Read, Seek, SeekFrom};

use super::{Bytes, Callable, Node, Result, Span};

const NAMES_A_CLASS: &str = "it names a class or a function";

/// Whether such a str is text or bytes cannot be known.
const PYTHON_2_BYTES: &str = "it contains a Python 2 str that is not ASCII";

/// The stack machine that executes a pickle.
pub(super) struct Reader<R> {
    input: R,
    offset: u64,
    total: u64,
    nodes: Vec<Node>,
    stack: Vec<usize>,
    /// The height of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u64, usize>,
}

impl<R: BufRead + Seek> Reader<R> {
    pub(super) fn new(mut input: R) -> Result<Self> {
        let total = input.seek(SeekFrom::End(0))?;
        input.rewind()?;
        Ok(Self {
            input,
            offset: 0,
            total,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        })
    }

    /// The current offset.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn into_nodes(self) -> Vec<Node> {
        self.nodes
    }

    /// Executes the pickle. Returns the index of the resulting node.
    pub(super) fn run(&mut self) -> Result<usize> {
        loop {
            let [opcode] = self.array()?;
            match opcode {
                b'.' => return self.pop(),
                // PROTO and FRAME do not affect the values.
                0x80 => self.array::<1>().map(drop)?,
                0x95 => self.array::<8>().map(drop)?,

                b'(' => self.marks.push(self.stack.len()),
                b'0' if self.marks.last() == Some(&self.stack.len()) => self.marks.pop().map(drop).unwrap_or_default(),
                b'0' => self.pop().map(drop)?,
                b'1' => self.pop_mark().map(drop)?,
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }

                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'J' => self.int(4, true)?,
                b'K' => self.int(1, false)?,
                b'M' => self.int(2, false)?,
                b'I' => match self.line()?.as_str() {
                    "00" => self.push(Node::Bool(false)),
                    "01" => self.push(Node::Bool(true)),
                    digits => self.decimal(digits),
                },
                b'L' => {
                    let digits = self.line()?;
                    self.decimal(digits.trim_end_matches('L'));
                }
                0x8a => {
                    let length = self.unsigned(1)?;
                    self.int(length, true)?;
                }
                0x8b => {
                    let length = self.unsigned(4)?;
                    self.int(length, true)?;
                }
                b'F' => {
                    self.line()?;
                    self.push(Node::Float);
                }
                b'G' => {
                    self.array::<8>()?;
                    self.push(Node::Float);
                }

                b'V' => {
                    let escaped = self.line()?;
                    self.push(Node::Str(raw_unicode(&escaped)?));
                }
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'C' => self.bytes(1)?,
                b'B' => self.bytes(4)?,
                0x8e | 0x96 => self.bytes(8)?,

                b']' | b')' | 0x8f => self.push(Node::Sequence(Vec::new())),
                b'l' | b't' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Node::Sequence(items));
                }
                0x85..=0x87 => {
                    let first = self.stack.len().checked_sub(usize::from(opcode - 0x84));
                    let items = self.stack.split_off(first.ok_or("the stack is empty")?);
                    self.push(Node::Sequence(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend(items)?;
                }

                b'}' => self.push(Node::Dict(Vec::new())),
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(Vec::new()));
                    self.insert(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.insert(&items)?;
                }

                b'p' => {
                    let key = self.line()?.parse()?;
                    self.remember(key)?;
                }
                b'q' => {
                    let key = self.unsigned(1)?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.unsigned(4)?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'g' => {
                    let key = self.line()?.parse()?;
                    self.recall(key)?;
                }
                b'h' => {
                    let key = self.unsigned(1)?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.unsigned(4)?;
                    self.recall(key)?;
                }

                // Python 2's str; only ASCII is accepted as text.
                b'S' => {
                    let quoted = self.line()?;
                    self.push(Node::Str(unquoted(&quoted)?));
                }
                b'U' => self.ascii(1)?,
                b'T' => self.ascii(4)?,

                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.callable(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.callable(&module, &name)?;
                }
                b'R' => self.call()?,
                b'i' | b'o' | b'b' | 0x81 | 0x92 => return Err(NAMES_A_CLASS.into()),
                other => return Err(format!("opcode {other:#04x} does not occur in plain data").into()),
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|_| "it ends early")?;
        self.offset += N as u64;
        Ok(bytes)
    }

    /// An unsigned little-endian number of this many bytes.
    fn unsigned(&mut self, width: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes[..width as usize]).map_err(|_| "it ends early")?;
        self.offset += width;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The argument of an opcode of protocol 0, in Latin-1.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.offset += self.input.read_until(b'\n', &mut line)? as u64;
        match line.pop() {
            Some(b'\n') => Ok(line.into_iter().map(char::from).collect()),
            _ => Err("it ends early".into()),
        }
    }

    /// The span of the next `len` bytes. It must end within the pickle.
    fn span(&mut self, len: u64) -> Result<Span> {
        if len > self.total - self.offset {
            return Err("it ends early".into());
        }
        let span = Span { offset: self.offset, len };
        self.offset += len;
        Ok(span)
    }

    fn text(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let span = self.span(len)?;
        let mut text = String::new();
        (&mut self.input).take(span.len).read_to_string(&mut text)?;
        self.push(Node::Str(text));
        Ok(())
    }

    fn bytes(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let span = self.span(len)?;
        self.input.seek_relative(i64::try_from(len)?)?;
        self.push(Node::Bytes(Bytes::At(span)));
        Ok(())
    }

    fn ascii(&mut self, width: u64) -> Result<()> {
        self.text(width)?;
        match self.nodes.last() {
            Some(Node::Str(text)) if text.is_ascii() => Ok(()),
            _ => Err(PYTHON_2_BYTES.into()),
        }
    }

    fn pop_text(&mut self) -> Result<String> {
        let top = self.pop()?;
        match &self.nodes[top] {
            Node::Str(text) => Ok(text.clone()),
            _ => Err(NAMES_A_CLASS.into()),
        }
    }

    fn callable(&mut self, module: &str, name: &str) -> Result<()> {
        let callable = match (module, name) {
            ("_codecs", "encode") => Callable::Encode,
            ("__builtin__" | "builtins", "bytes" | "bytearray") => Callable::Bytes,
            ("__builtin__" | "builtins", "set" | "frozenset") => Callable::Set,
            _ => return Err(NAMES_A_CLASS.into()),
        };
        self.push(Node::Callable(callable));
        Ok(())
    }

    /// Makes the value that the callable below its arguments would return.
    fn call(&mut self) -> Result<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Node::Callable(callable), Node::Sequence(arguments)) = (&self.nodes[callable], &self.nodes[arguments])
        else {
            return Err(NAMES_A_CLASS.into());
        };
        let arguments: Vec<&Node> = arguments.iter().map(|argument| &self.nodes[*argument]).collect();
        let made = match (callable, &arguments[..]) {
            (Callable::Encode | Callable::Bytes, [Node::Str(text), Node::Str(encoding)])
                if matches!(encoding.as_str(), "latin1" | "latin-1") =>
            {
                Node::Bytes(Bytes::Made(latin1(text)?))
            }
            (Callable::Bytes, []) => Node::Bytes(Bytes::Made(Vec::new())),
            (Callable::Bytes, [Node::Bytes(bytes)]) => Node::Bytes(bytes.clone()),
            (Callable::Set, [Node::Sequence(items)]) => Node::Sequence(items.clone()),
            _ => return Err("it calls a function in a way that Python never does for plain data".into()),
        };
        self.push(made);
        Ok(())
    }

    /// A little-endian number in two's complement; zero has no bytes.
    fn int(&mut self, width: u64, signed: bool) -> Result<()> {
        if width > 8 {
            self.span(width)?;
            self.input.seek_relative(i64::try_from(width)?)?;
            self.push(Node::BigInt);
            return Ok(());
        }
        let bits = self.unsigned(width)?;
        let unused = 64 - 8 * width as u32;
        let number = match signed && unused < 64 {
            true => ((bits << unused) as i64) >> unused,
            false => bits as i64,
        };
        self.push(Node::Int(number));
        Ok(())
    }

    fn decimal(&mut self, digits: &str) {
        let number = digits.parse();
        self.push(number.map_or(Node::BigInt, Node::Int));
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn top(&self) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(top) if self.stack.len() > floor => Ok(*top),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop(&mut self) -> Result<usize> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<usize>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn extend(&mut self, items: Vec<usize>) -> Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Sequence(all) => all.extend(items),
            _ => return Err("it appends to something that is not a list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[usize]) -> Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Dict(pairs) if items.len().is_multiple_of(2) => {
                pairs.extend(items.chunks(2).map(|pair| (pair[0], pair[1])))
            }
            _ => return Err("it sets items of something that is not a dict".into()),
        }
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let index = self.memo.get(&key).ok_or("it refers to an empty memo entry")?;
        self.stack.push(*index);
        Ok(())
    }
}

/// Encodes text as Latin-1.
fn latin1(text: &str) -> Result<Vec<u8>> {
    let bytes = text.chars().map(u8::try_from).collect::<std::result::Result<_, _>>();
    bytes.map_err(|_| "it encodes text that is not Latin-1".into())
}

/// The text of a Python 2 `repr`, which must be ASCII.
fn unquoted(quoted: &str) -> Result<String> {
    let inside = ['\'', '"'].iter().find_map(|quote| quoted.strip_prefix(*quote)?.strip_suffix(*quote));
    let mut rest = inside.ok_or("a str without quotes")?.chars();
    let mut text = String::new();
    while let Some(char) = rest.next() {
        text.push(match (char, &mut rest) {
            ('\\', rest) => match rest.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(same @ ('\\' | '\'' | '"')) => same,
                _ => return Err(PYTHON_2_BYTES.into()),
            },
            (char, _) if char.is_ascii() => char,
            _ => return Err(PYTHON_2_BYTES.into()),
        });
    }
    Ok(text)
}

/// Text of protocol 0, with `\uXXXX` and `\UXXXXXXXX` for characters beyond Latin-1.
fn raw_unicode(escaped: &str) -> Result<String> {
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let width = match rest.as_bytes().get(1) {
            Some(b'u') => 4,
            Some(b'U') => 8,
            _ => {
                text.push('\\');
                rest = &rest[1..];
                continue;
            }
        };
        let digits = rest.get(2..2 + width).ok_or("a broken escape")?;
        text.push(char::from_u32(u32::from_str_radix(digits, 16)?).ok_or("a lone surrogate")?);
        rest = &rest[2 + width..];
    }
    text.push_str(rest);
    Ok(text)
}
