//! The pickle of a dictionary of tensors, read without running anything.
//!
//! A pickle is a program for a stack machine that may call any function of Python. This machine knows the opcodes and
//! the globals that `torch.save` needs for a dictionary of tensors, and refuses everything else by name:
//!
//! | global | meaning |
//! |---|---|
//! | `collections.OrderedDict` | a dictionary; called without arguments |
//! | `torch._utils._rebuild_tensor_v2` | a tensor: storage, offset, shape, strides, and two values without effect |
//! | `torch.FloatStorage` and others | a number format, in the persistent id of a storage |
//!
//! Source: the opcodes of Python's `pickletools`, protocols 2 to 5.

use bundle::dtype::ElementType;
use std::collections::HashMap;

/// The longest tuple that is read: arguments and shapes.
const MAX_TUPLE: usize = 8;
/// The longest name of a storage. torch numbers them.
const MAX_KEY: usize = 32;

/// Why a pickle is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is damaged.
    Damaged(String),
    /// It holds something else than tensors, which is named.
    Foreign(String),
}

/// The bytes that tensors are views of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    /// The number format.
    pub(super) element: ElementType,
    /// Its name in the archive.
    pub(super) key: String,
    /// The number of elements.
    pub(super) elements: u64,
}

/// A tensor of a pickle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PickledTensor {
    pub(super) storage: Storage,
    /// Position of the first element in the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    /// The distance of two elements along each axis, in elements; one for each extent.
    pub(super) strides: Vec<usize>,
}

/// Reads a pickle of a dictionary from names to tensors, in its order.
pub(super) fn state_dict(pickle: &[u8]) -> Result<Vec<(String, PickledTensor)>, Refusal> {
    let mut machine = Machine { rest: pickle, ..Machine::default() };
    let root = machine.run()?;
    let Value::Dictionary(root) = root else {
        return Err(Refusal::Foreign(format!("{} instead of a dictionary", root.kind())));
    };
    let mut names = HashMap::new();
    let mut tensors = Vec::with_capacity(machine.dictionaries[root].len());
    for (key, value) in &machine.dictionaries[root] {
        let Value::Text(key) = key else {
            return Err(Refusal::Foreign(format!("a key that is {}, not a name", key.kind())));
        };
        let name = &machine.texts[*key];
        let Value::Tensor(tensor) = value else {
            return Err(Refusal::Foreign(format!("{} under the name {name}", value.kind())));
        };
        if names.insert(name.as_str(), ()).is_some() {
            return Err(damaged(format!("the name {name} occurs twice")));
        }
        tensors.push((name.clone(), machine.tensors[*tensor].clone()));
    }
    Ok(tensors)
}

/// A value on the stack. What is not a number is in the list of its kind, so that values are small and nothing is nested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    None,
    Boolean,
    Integer(i64),
    Text(usize),
    Tuple(usize),
    Dictionary(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

impl Value {
    fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Boolean => "a boolean",
            Self::Integer(_) => "a number",
            Self::Text(_) => "a text",
            Self::Tuple(_) => "a tuple",
            Self::Dictionary(_) => "a dictionary",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// A class or function that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    Storage(ElementType),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        let element = match (module, name) {
            ("collections", "OrderedDict") => return Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => return Some(Self::RebuildTensor),
            ("torch", "FloatStorage") => ElementType::F32,
            ("torch", "HalfStorage") => ElementType::F16,
            ("torch", "BFloat16Storage") => ElementType::Bf16,
            ("torch", "LongStorage") => ElementType::I64,
            ("torch", "IntStorage") => ElementType::I32,
            ("torch", "CharStorage") => ElementType::I8,
            ("torch", "ByteStorage") => ElementType::U8,
            ("torch", "BoolStorage") => ElementType::Bool,
            _ => return None,
        };
        Some(Self::Storage(element))
    }
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    /// Heights of the stack that opcodes have marked.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    texts: Vec<String>,
    tuples: Vec<Vec<Value>>,
    dictionaries: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<PickledTensor>,
}

fn damaged(why: impl Into<String>) -> Refusal {
    Refusal::Damaged(why.into())
}

impl Machine<'_> {
    /// Runs the program and returns its result.
    fn run(&mut self) -> Result<Value, Refusal> {
        if self.byte()? != b'\x80' {
            return Err(damaged("it does not begin with a protocol"));
        }
        let protocol = self.byte()?;
        if !(2..=5).contains(&protocol) {
            return Err(Refusal::Foreign(format!("the pickle protocol {protocol}; 2 to 5 are read")));
        }
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                break;
            }
            self.step(opcode)?;
        }
        let result = self.pop()?;
        if self.stack.is_empty() && self.marks.is_empty() && self.rest.is_empty() {
            Ok(result)
        } else {
            Err(damaged("values or bytes are left at its end"))
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Refusal> {
        match opcode {
            // FRAME: its length has no effect.
            b'\x95' => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            b'\x88' | b'\x89' => self.stack.push(Value::Boolean),
            b'J' => self.push_integer(4)?,
            // BININT1 and BININT2 have no sign.
            b'K' => self.push_natural(1)?,
            b'M' => self.push_natural(2)?,
            b'\x8a' => {
                let width = self.byte()?;
                self.push_integer(width.into())?;
            }
            b'X' => self.push_text(4)?,
            b'\x8c' => self.push_text(1)?,
            b')' => self.push_tuple(Vec::new()),
            b'\x85' => self.push_last(1)?,
            b'\x86' => self.push_last(2)?,
            b'\x87' => self.push_last(3)?,
            b't' => {
                let items = self.since_mark()?;
                self.push_tuple(items);
            }
            b'}' => self.push_dictionary(),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.last_dictionary()?.push((key, value));
            }
            b'u' => {
                let items = self.since_mark()?;
                let (pairs, odd) = items.as_chunks::<2>();
                if !odd.is_empty() {
                    return Err(damaged("a key has no value"));
                }
                self.last_dictionary()?.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            b'q' => self.remember(1)?,
            b'r' => self.remember(4)?,
            b'\x94' => {
                let value = self.top()?;
                self.memo.insert(self.memo.len() as u64, value);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(&module, &name)?;
            }
            b'\x93' => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(name), Value::Text(module)) = (name, module) else {
                    return Err(damaged("the name of a global is not a text"));
                };
                let (name, module) = (self.texts[name].clone(), self.texts[module].clone());
                self.push_global(&module, &name)?;
            }
            b'Q' => self.push_storage()?,
            b'R' => self.call()?,
            b'b' => self.set_attributes()?,
            other => return Err(Refusal::Foreign(format!("the opcode {}", name_of(other)))),
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Refusal> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| damaged("it is cut off"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        Ok(self.take(1)?[0])
    }

    /// Reads a little-endian number of at most 8 bytes, without a sign.
    fn natural(&mut self, width: usize) -> Result<u64, Refusal> {
        Ok(self.take(width)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn line(&mut self) -> Result<String, Refusal> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it is cut off"))?;
        let line = std::str::from_utf8(self.take(end)?).map(str::to_owned);
        self.take(1)?;
        line.ok().ok_or_else(|| damaged("the name of a global is not UTF-8"))
    }

    fn pop(&mut self) -> Result<Value, Refusal> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let popped = if self.stack.len() > floor { self.stack.pop() } else { None };
        popped.ok_or_else(|| damaged("a value is missing on its stack"))
    }

    fn top(&self) -> Result<Value, Refusal> {
        self.stack.last().copied().ok_or_else(|| damaged("a value is missing on its stack"))
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, Refusal> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing on its stack"))?;
        Ok(self.stack.split_off(mark))
    }

    fn push_natural(&mut self, width: usize) -> Result<(), Refusal> {
        let number = self.natural(width)?.cast_signed();
        self.stack.push(Value::Integer(number));
        Ok(())
    }

    /// Reads a number with a sign, of any width that fits.
    fn push_integer(&mut self, width: usize) -> Result<(), Refusal> {
        if width > 8 {
            return Err(damaged(format!("a number has {width} bytes")));
        }
        let unused = 64 - 8 * u32::try_from(width).unwrap_or(0);
        let number = self.natural(width)?.checked_shl(unused).unwrap_or(0).cast_signed();
        self.stack.push(Value::Integer(number.checked_shr(unused).unwrap_or(0)));
        Ok(())
    }

    fn push_text(&mut self, width: usize) -> Result<(), Refusal> {
        let length = usize::try_from(self.natural(width)?).unwrap_or(usize::MAX);
        let text = std::str::from_utf8(self.take(length)?).map(str::to_owned);
        self.stack.push(Value::Text(self.texts.len()));
        self.texts.push(text.ok().ok_or_else(|| damaged("a text is not UTF-8"))?);
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Tuple(self.tuples.len()));
        self.tuples.push(items);
    }

    fn push_last(&mut self, count: usize) -> Result<(), Refusal> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push_tuple(items);
        Ok(())
    }

    fn push_dictionary(&mut self) {
        self.stack.push(Value::Dictionary(self.dictionaries.len()));
        self.dictionaries.push(Vec::new());
    }

    fn last_dictionary(&mut self) -> Result<&mut Vec<(Value, Value)>, Refusal> {
        match self.top()? {
            Value::Dictionary(index) => Ok(&mut self.dictionaries[index]),
            other => Err(damaged(format!("items are added to {}", other.kind()))),
        }
    }

    fn remember(&mut self, width: usize) -> Result<(), Refusal> {
        let (number, value) = (self.natural(width)?, self.top()?);
        self.memo.insert(number, value);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), Refusal> {
        let number = self.natural(width)?;
        let value = self.memo.get(&number).copied();
        self.stack
            .push(value.ok_or_else(|| damaged(format!("it recalls value {number}, which it has not kept")))?);
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), Refusal> {
        let global = Global::named(module, name);
        let global = global.ok_or_else(|| Refusal::Foreign(format!("the global {module}.{name}")))?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// Returns a copy of a short tuple. A long one could be copied often.
    fn pop_tuple(&mut self, of: &str) -> Result<Vec<Value>, Refusal> {
        match self.pop()? {
            Value::Tuple(index) if self.tuples[index].len() > MAX_TUPLE => {
                Err(damaged(format!("{of} has {} values", self.tuples[index].len())))
            }
            Value::Tuple(index) => Ok(self.tuples[index].clone()),
            other => Err(damaged(format!("{of} is {}, not a tuple", other.kind()))),
        }
    }

    /// BINPERSID: `("storage", class, key, device, elements)`.
    fn push_storage(&mut self) -> Result<(), Refusal> {
        let id = self.pop_tuple("a persistent id")?;
        let [
            Value::Text(what),
            Value::Global(class),
            Value::Text(key),
            Value::Text(_),
            Value::Integer(count),
        ] = id.as_slice()
        else {
            return Err(damaged("a persistent id is not that of a storage"));
        };
        let Global::Storage(element) = class else {
            return Err(damaged("a persistent id has no storage class"));
        };
        let what = &self.texts[*what];
        if what != "storage" {
            return Err(Refusal::Foreign(format!("the persistent id {what}")));
        }
        let elements =
            u64::try_from(*count).ok().ok_or_else(|| damaged(format!("a storage has {count} elements")))?;
        let key = self.texts[*key].clone();
        if key.len() > MAX_KEY {
            return Err(damaged(format!("the name of a storage has {} bytes", key.len())));
        }
        self.stack.push(Value::Storage(self.storages.len()));
        self.storages.push(Storage { element: *element, key, elements });
        Ok(())
    }

    /// REDUCE: the call of a global.
    fn call(&mut self) -> Result<(), Refusal> {
        let arguments = self.pop_tuple("a list of arguments")?;
        let callee = self.pop()?;
        match (callee, arguments.as_slice()) {
            (Value::Global(Global::OrderedDict), []) => self.push_dictionary(),
            (
                Value::Global(Global::RebuildTensor),
                [
                    Value::Storage(storage),
                    Value::Integer(offset),
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    ..,
                ],
            ) if (6..=7).contains(&arguments.len()) => {
                let offset = u64::try_from(*offset)
                    .ok()
                    .ok_or_else(|| damaged("a tensor begins before its storage"))?;
                let (shape, strides) = (self.extents(*shape)?, self.extents(*strides)?);
                if shape.len() != strides.len() {
                    return Err(damaged("a tensor has not as many strides as extents"));
                }
                let storage = self.storages[*storage].clone();
                self.stack.push(Value::Tensor(self.tensors.len()));
                self.tensors.push(PickledTensor { storage, offset, shape, strides });
            }
            (Value::Global(Global::Storage(element)), _) => {
                return Err(Refusal::Foreign(format!("a call of the storage class of {element}")));
            }
            (Value::Global(_), _) => return Err(damaged("a call has unexpected arguments")),
            (other, _) => return Err(damaged(format!("{} is called", other.kind()))),
        }
        Ok(())
    }

    fn extents(&self, tuple: usize) -> Result<Vec<usize>, Refusal> {
        let axes = self.tuples[tuple].len();
        if axes > MAX_TUPLE {
            return Err(damaged(format!("a tensor has {axes} axes; the maximum is {MAX_TUPLE}")));
        }
        let extent = |value: &Value| match value {
            Value::Integer(extent) => usize::try_from(*extent).ok(),
            _ => None,
        };
        let extents = self.tuples[tuple].iter().map(extent).collect::<Option<Vec<_>>>();
        extents.ok_or_else(|| damaged("the shape or the strides of a tensor are not natural numbers"))
    }

    /// BUILD: torch gives its dictionary the attribute `_metadata`, which has no effect on tensors.
    fn set_attributes(&mut self) -> Result<(), Refusal> {
        match (self.pop()?, self.top()?) {
            (Value::Dictionary(_), Value::Dictionary(_)) => Ok(()),
            (_, other) => Err(Refusal::Foreign(format!("attributes of {}", other.kind()))),
        }
    }
}

/// The name of an opcode that is refused.
fn name_of(opcode: u8) -> String {
    let name = match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'G' => "BINFLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'a' => "APPEND",
        b'd' => "DICT",
        b'e' => "APPENDS",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        b']' => "EMPTY_LIST",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'\x80' => "PROTO",
        b'\x81' => "NEWOBJ",
        b'\x82' => "EXT1",
        b'\x83' => "EXT2",
        b'\x84' => "EXT4",
        b'\x8b' => "LONG4",
        b'\x8d' => "BINUNICODE8",
        b'\x8e' => "BINBYTES8",
        b'\x8f' => "EMPTY_SET",
        b'\x90' => "ADDITEMS",
        b'\x91' => "FROZENSET",
        b'\x92' => "NEWOBJ_EX",
        b'\x96' => "BYTEARRAY8",
        b'\x97' => "NEXT_BUFFER",
        b'\x98' => "READONLY_BUFFER",
        other => return format!("0x{other:02x}"),
    };
    name.to_owned()
}
