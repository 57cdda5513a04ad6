//! The machine that reads a pickle of tensors. It builds a tree of values and knows no way to run anything.
//!
//! Opcodes: Python's `pickletools.py`, protocols 2 to 5. Values live in one list and name each other by place, so that
//! neither deep nor cyclic pickles cost a stack or a leak; each opcode adds at most one value.

use std::collections::HashMap;

use fewstep_tensor::Stored;

/// A value's place in the list.
pub(super) type Id = u32;

/// A storage of elements: a member of the archive.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub key: Id,
    pub element: Element,
}

/// Element types that a storage or a tensor may have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Element {
    /// One with a counterpart.
    Known(Stored),
    /// Bytes, whose type the tensor says.
    Untyped,
    /// One without, such as `float8_e4m3fn`.
    Other(String),
}

/// A tensor: a strided view of a storage.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub storage: Id,
    pub element: Element,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// What holds no tensor: none, floats, bytes, objects of no interest.
    Opaque,
    Bool,
    Int(i64),
    Text(String),
    /// Tuples, lists and sets.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Callable(Callable),
    Element(Element),
    Storage(Box<Storage>),
    Tensor(Box<View>),
}

/// The callables that are known. None is called: what they would make is made here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Callable {
    Dict,
    TensorV2,
    TensorV3,
    Parameter,
    /// Gives its first argument: `torch.Size`, sets.
    First,
    /// Gives something without tensors.
    Opaque,
}

/// What a pickle may name.
fn global(module: &str, name: &str) -> Option<Value> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Value::Callable(Callable::Dict),
        ("torch._utils", "_rebuild_tensor_v2") => Value::Callable(Callable::TensorV2),
        ("torch._utils", "_rebuild_tensor_v3") => Value::Callable(Callable::TensorV3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Value::Callable(Callable::Parameter)
        }
        ("torch", "Size") | ("builtins" | "__builtin__", "set" | "frozenset") => Value::Callable(Callable::First),
        ("torch", "device") | ("_codecs", "encode") | ("_io", "BytesIO") => Value::Callable(Callable::Opaque),
        ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Value::Element(Element::Untyped),
        ("torch", name) => Value::Element(element(name)?),
        _ => return None,
    })
}

/// The element type of a dtype's or a storage class's name in the module `torch`.
fn element(name: &str) -> Option<Element> {
    Some(Element::Known(match name {
        "FloatStorage" | "float32" => Stored::F32,
        "DoubleStorage" | "float64" => Stored::F64,
        "BFloat16Storage" | "bfloat16" => Stored::Bf16,
        "HalfStorage" | "float16" => Stored::F16,
        "LongStorage" | "int64" => Stored::I64,
        "IntStorage" | "int32" => Stored::I32,
        "ShortStorage" | "int16" => Stored::I16,
        "CharStorage" | "int8" => Stored::I8,
        "ByteStorage" | "uint8" => Stored::U8,
        "BoolStorage" | "bool" => Stored::Bool,
        _ => {
            let known =
                ["float8_", "complex", "Complex", "uint", "float4_", "quint", "qint", "QInt", "QUInt", "Float8_"];
            return known.iter().any(|k| name.starts_with(k)).then(|| Element::Other(name.to_string()));
        }
    }))
}

/// Why a pickle was not read.
#[derive(Debug)]
pub(super) enum Fault {
    /// It ends early, or its opcodes do not fit together.
    Damaged(String),
    /// It asks for this, which is not done.
    Refused(String),
}

type Result<T> = std::result::Result<T, Fault>;

fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Fault::Damaged(what.into()))
}

enum Slot {
    Mark,
    Value(Id),
}

/// The machine: values, stack and memo.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Slot>,
    memo: HashMap<u64, Id>,
}

/// Reads a pickle; gives its values and the place of the outermost.
pub(super) fn read(bytes: &[u8]) -> Result<(Vec<Value>, Id)> {
    let mut m = Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
    loop {
        let opcode = m.u8()?;
        if opcode == b'.' {
            let root = m.pop()?;
            return Ok((m.values, root));
        }
        m.step(opcode)?;
    }
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.protocol(),
            0x95 => self.take(8).map(drop),
            b'(' => {
                self.stack.push(Slot::Mark);
                Ok(())
            }
            b'0' => self.stack.pop().map(drop).ok_or(Fault::Damaged("an empty stack".into())),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(Slot::Value(top));
                Ok(())
            }
            b'N' => self.push(Value::Opaque),
            0x88 | 0x89 => self.push(Value::Bool),
            b'K' | b'M' | b'J' | 0x8a | 0x8b => self.integer(opcode),
            b'G' => self.take(8).map(drop).and_then(|()| self.push(Value::Opaque)),
            b'X' | 0x8c | 0x8d | b'T' | b'U' => self.text(opcode),
            b'B' | b'C' | 0x8e | 0x96 => self.data(opcode),
            b')' | b']' | 0x8f => self.push(Value::Sequence(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' | b'l' | 0x91 => self.pop_mark().and_then(|items| self.push(Value::Sequence(items))),
            0x85..=0x87 => self.small_tuple(usize::from(opcode - 0x84)),
            b'd' => self.pop_mark().and_then(|items| self.push(Value::Dict(pairs(&items)))),
            b'a' => self.pop().and_then(|item| self.extend(vec![item])),
            b'e' | 0x90 => self.pop_mark().and_then(|items| self.extend(items)),
            b's' | b'u' => self.set_items(opcode),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            other => Err(Fault::Refused(format!("the opcode {}", opcode_name(other)))),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len());
        let Some(end) = end else { return damaged("it ends early") };
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }

    fn u8(&mut self) -> Result<u8> {
        self.take(1).map(|b| b[0])
    }

    /// A little-endian number of `n` ≤ 8 bytes.
    fn number(&mut self, n: usize) -> Result<u64> {
        let mut wide = [0u8; 8];
        wide[..n].copy_from_slice(self.take(n)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// Bytes whose length stands before them in `n` bytes.
    fn counted(&mut self, n: usize) -> Result<&'a [u8]> {
        let len = self.number(n)?;
        usize::try_from(len).map_or_else(|_| damaged("it ends early"), |len| self.take(len))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().position(|&b| b == b'\n') else { return damaged("it ends early") };
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).or_else(|_| damaged("a name is not UTF-8"))
    }

    fn push(&mut self, v: Value) -> Result<()> {
        let Ok(id) = Id::try_from(self.values.len()) else { return damaged("it holds too many values") };
        self.values.push(v);
        self.stack.push(Slot::Value(id));
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        match self.stack.pop() {
            Some(Slot::Value(id)) => Ok(id),
            _ => damaged("a value is missing on the stack"),
        }
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(Slot::Value(id)) => Ok(*id),
            _ => damaged("a value is missing on the stack"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let Some(mark) = self.stack.iter().rposition(|s| matches!(s, Slot::Mark)) else {
            return damaged("a mark is missing on the stack");
        };
        let items = self.stack.drain(mark..).filter_map(|s| if let Slot::Value(id) = s { Some(id) } else { None });
        Ok(items.collect())
    }

    fn protocol(&mut self) -> Result<()> {
        match self.u8()? {
            2..=5 => Ok(()),
            n => Err(Fault::Refused(format!("pickle protocol {n}"))),
        }
    }

    fn integer(&mut self, opcode: u8) -> Result<()> {
        let n = match opcode {
            b'K' => self.number(1)? as i64,
            b'M' => self.number(2)? as i64,
            b'J' => i64::from(self.number(4)? as u32 as i32),
            long => {
                let bytes = self.counted(if long == 0x8a { 1 } else { 4 })?;
                if bytes.len() > 8 {
                    // No extent is so large; a hash or an identifier may be.
                    return self.push(Value::Opaque);
                }
                let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                i64::from_le_bytes(wide)
            }
        };
        self.push(Value::Int(n))
    }

    fn text(&mut self, opcode: u8) -> Result<()> {
        let bytes = self.counted(match opcode {
            b'X' | b'T' => 4,
            0x8d => 8,
            _ => 1,
        })?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Value::Text(text.to_string())),
            // Strings of Python 2 may hold any bytes.
            Err(_) if matches!(opcode, b'T' | b'U') => self.push(Value::Opaque),
            Err(_) => damaged("a text is not UTF-8"),
        }
    }

    fn data(&mut self, opcode: u8) -> Result<()> {
        self.counted(match opcode {
            b'B' => 4,
            b'C' => 1,
            _ => 8,
        })?;
        self.push(Value::Opaque)
    }

    fn small_tuple(&mut self, n: usize) -> Result<()> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Sequence(items))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()? as usize;
        match &mut self.values[top] {
            Value::Sequence(all) => {
                all.extend(items);
                Ok(())
            }
            _ => damaged("items for what is no list"),
        }
    }

    fn set_items(&mut self, opcode: u8) -> Result<()> {
        let items = if opcode == b's' {
            let (value, key) = (self.pop()?, self.pop()?);
            vec![key, value]
        } else {
            self.pop_mark()?
        };
        let top = self.top()? as usize;
        match &mut self.values[top] {
            Value::Dict(all) => {
                all.extend(pairs(&items));
                Ok(())
            }
            _ => damaged("items for what is no dictionary"),
        }
    }

    fn memo(&mut self, opcode: u8) -> Result<()> {
        let key = match opcode {
            b'q' | b'h' => self.number(1)?,
            0x94 => self.memo.len() as u64,
            _ => self.number(4)?,
        };
        if matches!(opcode, b'h' | b'j') {
            let Some(&id) = self.memo.get(&key) else { return damaged("it recalls what it never noted") };
            self.stack.push(Slot::Value(id));
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<()> {
        let (module, name) = if opcode == b'c' {
            (self.line()?.to_string(), self.line()?.to_string())
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (&self.values[module as usize], &self.values[name as usize]) {
                (Value::Text(m), Value::Text(n)) => (m.clone(), n.clone()),
                _ => return damaged("a name is no text"),
            }
        };
        match global(&module, &name) {
            Some(v) => self.push(v),
            None => Err(Fault::Refused(format!("'{module}.{name}'"))),
        }
    }

    /// ('storage', class, key, location, length) → a storage.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Some(&[_, class, key, ..]) = self.sequence(id) else { return damaged("a storage is not described") };
        match (&self.values[class as usize], &self.values[key as usize]) {
            (Value::Element(e), Value::Text(_)) => {
                let element = e.clone();
                self.push(Value::Storage(Box::new(Storage { key, element })))
            }
            _ => damaged("a storage is not described"),
        }
    }

    fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.values.get(id as usize) {
            Some(Value::Sequence(items)) => Some(items),
            _ => None,
        }
    }

    fn reduce(&mut self) -> Result<()> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let Value::Callable(callable) = self.values[callable as usize] else {
            return Err(Fault::Refused("a call of what is no known function (REDUCE)".into()));
        };
        let Some(args) = self.sequence(args).map(<[Id]>::to_vec) else { return damaged("a call without arguments") };
        match (callable, args.as_slice()) {
            (Callable::Dict, []) => self.push(Value::Dict(Vec::new())),
            (Callable::Dict, &[items]) => self.dict_of(items),
            (Callable::TensorV2, &[storage, offset, shape, stride, ..]) => {
                self.view(storage, offset, shape, stride, None)
            }
            (Callable::TensorV3, &[storage, offset, shape, stride, _, _, dtype, ..]) => {
                self.view(storage, offset, shape, stride, Some(dtype))
            }
            (Callable::Parameter | Callable::First, &[first, ..]) => {
                self.stack.push(Slot::Value(first));
                Ok(())
            }
            (Callable::First, []) => self.push(Value::Sequence(Vec::new())),
            (Callable::Opaque, _) => self.push(Value::Opaque),
            _ => damaged("a call with the wrong number of arguments"),
        }
    }

    /// OrderedDict([[key, value], …]), as Python 2 wrote it.
    fn dict_of(&mut self, items: Id) -> Result<()> {
        let items = self.sequence(items).unwrap_or(&[]);
        let pairs = items.iter().map(|&pair| match self.sequence(pair) {
            Some(&[key, value]) => Ok((key, value)),
            _ => damaged("a dictionary of what are no pairs"),
        });
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        self.push(Value::Dict(pairs))
    }

    fn view(&mut self, storage: Id, offset: Id, shape: Id, stride: Id, dtype: Option<Id>) -> Result<()> {
        let Value::Storage(s) = &self.values[storage as usize] else { return damaged("a tensor without a storage") };
        let element = match dtype.map(|d| &self.values[d as usize]) {
            None => s.element.clone(),
            Some(Value::Element(e)) => e.clone(),
            Some(_) => return damaged("a tensor without an element type"),
        };
        let (offset, shape, stride) = (self.extent(offset)?, self.extents(shape)?, self.extents(stride)?);
        if shape.len() != stride.len() {
            return damaged("a tensor with more extents than strides, or fewer");
        }
        self.push(Value::Tensor(Box::new(View { storage, element, offset, shape, stride })))
    }

    fn extent(&self, id: Id) -> Result<usize> {
        match self.values[id as usize] {
            Value::Int(n) if n >= 0 => Ok(n as usize),
            Value::Int(n) => damaged(format!("a negative extent, stride or offset ({n})")),
            _ => damaged("an extent that is no number"),
        }
    }

    fn extents(&self, id: Id) -> Result<Vec<usize>> {
        let Some(items) = self.sequence(id) else { return damaged("extents that are no tuple") };
        if items.len() > MAX_AXES {
            return damaged(format!("a tensor of {} axes", items.len()));
        }
        items.iter().map(|&i| self.extent(i)).collect()
    }

    /// Attributes: those of an ordered dictionary are of no interest (versions of modules); others are not set.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        let top = self.top()? as usize;
        match self.values[top] {
            Value::Dict(_) => Ok(()),
            _ => Err(Fault::Refused("the opcode BUILD on what is no dictionary".into())),
        }
    }
}

/// PyTorch's own limit.
const MAX_AXES: usize = 64;

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items.chunks_exact(2).map(|p| (p[0], p[1])).collect()
}

fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        b'P' => "PERSID",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'g' => "GET",
        b'p' => "PUT",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("0x{opcode:02x}"),
    };
    name.into()
}
