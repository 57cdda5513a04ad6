//! A bare tensor as `torch.save` writes it: a stored zip with a pickle and one storage. Nothing is ever executed.

use fewstep_tensor::{DType, Element, Tensor, bf16};

use crate::{Error, Result};

const ALIGN: usize = 64;
const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
/// Directory entries that are looked at; a bare tensor's file has five or six.
const ENTRIES_MAX: usize = 64;

fn bad(reason: impl Into<String>) -> Error {
    Error::Tensor(format!("not a tensor saved by torch.save: {}", reason.into()))
}

/// The tensor in a file of `torch.save(tensor)`: bf16, f32, f64, or f16 (widened to f32); contiguous, little-endian.
///
/// # Errors
/// If it is truncated, compressed, or holds anything else than one tensor.
pub fn decode_tensor(bytes: &[u8]) -> Result<Tensor> {
    let entries = directory(bytes)?;
    let file = |suffix: &str| {
        let ends = |name: &str| name.split_once('/').is_some_and(|(_, rest)| rest == suffix);
        entries.iter().find(|(name, _)| ends(name)).map(|(_, data)| *data)
    };
    if file("byteorder").is_some_and(|order| order != b"little") {
        return Err(bad("it is big-endian: save it on a little-endian machine"));
    }
    let header = pickle::read(file("data.pkl").ok_or_else(|| bad("no data.pkl"))?)?;
    let data = file(&format!("data/{}", header.key)).ok_or_else(|| bad(format!("no data/{}", header.key)))?;
    let element = match header.storage.as_str() {
        "FloatStorage" => 4,
        "DoubleStorage" => 8,
        _ => 2,
    };
    let count = header.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let size = count.and_then(|n| n.checked_mul(element)).ok_or_else(|| bad("its shape overflows"))?;
    let start = header.offset.checked_mul(element).ok_or_else(|| bad("its offset overflows"))?;
    let end = start.checked_add(size).filter(|&end| end <= data.len());
    let data = end.map(|end| &data[start..end]).ok_or_else(|| {
        bad(format!("shape {:?} needs {size} bytes, its storage has {}", header.shape, data.len()))
    })?;
    if !is_contiguous(&header.shape, &header.strides) {
        return Err(bad("it is not contiguous: save x.contiguous()"));
    }
    Ok(match header.storage.as_str() {
        "BFloat16Storage" => cast(data, &header.shape, bf16::from_le_bytes),
        "FloatStorage" => cast(data, &header.shape, f32::from_le_bytes),
        "DoubleStorage" => cast(data, &header.shape, f64::from_le_bytes),
        "HalfStorage" => cast(data, &header.shape, half_to_f32),
        other => return Err(bad(format!("elements of {other}; convert it to bf16 or f32"))),
    })
}

fn half_to_f32(b: [u8; 2]) -> f32 {
    let h = u16::from_le_bytes(b);
    let (sign, exponent, mantissa) = (u32::from(h >> 15) << 31, (h >> 10) & 31, f32::from(h & 1023));
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1024.0 + mantissa) * 2f32.powi(i32::from(e) - 25),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

fn cast<T: Element, const N: usize>(data: &[u8], shape: &[usize], f: impl Fn([u8; N]) -> T) -> Tensor {
    let (chunks, _) = data.as_chunks::<N>();
    Tensor::cpu_with(shape, |out: &mut [T]| out.iter_mut().zip(chunks).for_each(|(o, &c)| *o = f(c)))
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut want = 1;
    let fits = |(&d, &s): (&usize, &usize)| {
        let ok = d == 1 || s == want;
        want *= d;
        ok
    };
    shape.contains(&0) || shape.len() == strides.len() && shape.iter().zip(strides).rev().all(fits)
}

fn le(bytes: &[u8], at: usize, n: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(n)?)?;
    Some(field.iter().rev().fold(0, |v, &b| v << 8 | usize::from(b)))
}

/// The stored files of a zip, by name.
fn directory(bytes: &[u8]) -> Result<Vec<(&str, &[u8])>> {
    let tail = bytes.len().saturating_sub(22 + 65535);
    let end = (tail..bytes.len().saturating_sub(21)).rev().find(|&i| le(bytes, i, 4) == Some(END as usize));
    let end = end.ok_or_else(|| bad("no zip directory: it is truncated or no zip"))?;
    let read = || {
        let (count, mut at) = (le(bytes, end + 10, 2)?, le(bytes, end + 16, 4)?);
        let mut files = Vec::new();
        for _ in 0..count.min(ENTRIES_MAX) {
            let method = le(bytes, at + 10, 2)?;
            let size = le(bytes, at + 24, 4)?;
            let [name, extra, comment] = [le(bytes, at + 28, 2)?, le(bytes, at + 30, 2)?, le(bytes, at + 32, 2)?];
            let local = le(bytes, at + 42, 4)?;
            if le(bytes, at, 4)? != CENTRAL as usize || le(bytes, local, 4)? != LOCAL as usize || method != 0 {
                return None;
            }
            let start = local + 30 + le(bytes, local + 26, 2)? + le(bytes, local + 28, 2)?;
            let data = bytes.get(start..start.checked_add(size)?)?;
            files.push((std::str::from_utf8(bytes.get(at + 46..at + 46 + name)?).ok()?, data));
            at += 46 + name + extra + comment;
        }
        Some(files)
    };
    read().ok_or_else(|| bad("its zip directory is damaged, or its files are compressed"))
}

/// The file that `torch.save(tensor)` would write; the same bytes for the same tensor.
///
/// # Errors
/// If the file would not fit in 4 GiB.
pub fn encode_tensor(tensor: &Tensor) -> Result<Vec<u8>> {
    fn bytes<T: Element, const N: usize>(t: &Tensor, f: impl Fn(T) -> [u8; N]) -> Result<Vec<u8>> {
        Ok(t.as_slice::<T>()?.iter().flat_map(|&x| f(x)).collect())
    }
    let (storage, data) = match tensor.dtype() {
        DType::Bf16 => ("BFloat16Storage", bytes(tensor, bf16::to_le_bytes)?),
        DType::F32 => ("FloatStorage", bytes(tensor, f32::to_le_bytes)?),
        DType::F64 => ("DoubleStorage", bytes(tensor, f64::to_le_bytes)?),
    };
    if data.len() > (u32::MAX as usize) - 4096 {
        return Err(Error::Tensor("a tensor beyond 4 GiB does not fit in a .pt member; use safetensors".into()));
    }
    let pickle = pickle::write(storage, tensor.shape());
    let files: [(&str, &[u8]); 4] = [
        ("archive/data.pkl", &pickle),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &data),
        ("archive/version", b"3\n"),
    ];
    Ok(zip(&files))
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let at = out.len();
        let pad = (at + 30 + name.len() + 4).next_multiple_of(ALIGN) - (at + 30 + name.len() + 4);
        // Version, flags, method, time and date (1980-01-01), checksum, sizes, and the length of the name.
        let mut common = [0u8; 24];
        common[8..10].copy_from_slice(&0x21u16.to_le_bytes());
        common[10..14].copy_from_slice(&crc32(data).to_le_bytes());
        common[14..18].copy_from_slice(&(data.len() as u32).to_le_bytes());
        common[18..22].copy_from_slice(&(data.len() as u32).to_le_bytes());
        common[22..24].copy_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend(LOCAL.to_le_bytes());
        out.extend(common);
        out.extend((pad as u16 + 4).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(*b"FB");
        out.extend((pad as u16).to_le_bytes());
        out.resize(out.len() + pad, b'Z');
        out.extend(*data);
        central.extend(CENTRAL.to_le_bytes());
        central.extend([0, 0]);
        central.extend(common);
        central.extend([0; 12]);
        central.extend((at as u32).to_le_bytes());
        central.extend(name.as_bytes());
    }
    let (start, count) = (out.len() as u32, (files.len() as u16).to_le_bytes());
    out.extend(&central);
    out.extend(END.to_le_bytes());
    out.extend([0; 4]);
    out.extend(count);
    out.extend(count);
    out.extend((central.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(data: &[u8]) -> u32 {
    crc32fast::hash(data)
}

mod pickle {
    //! The pickle of one tensor: `_rebuild_tensor_v2(storage, offset, shape, strides, …)` and nothing else.

    use super::bad;
    use crate::Result;

    pub struct Header {
        pub storage: String,
        pub key: String,
        pub offset: usize,
        pub shape: Vec<usize>,
        pub strides: Vec<usize>,
    }

    #[derive(Clone)]
    enum Value {
        Mark,
        Int(usize),
        Text(String),
        Global(String),
        Tuple(Vec<Value>),
        Persistent(Vec<Value>),
        Built(Vec<Value>),
        Other,
    }

    const STACK_MAX: usize = 256;

    pub fn read(bytes: &[u8]) -> Result<Header> {
        let built = run(bytes)?;
        let parts = || {
            let [Value::Persistent(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(strides), ..] =
                &built[..]
            else {
                return None;
            };
            let [Value::Text(_), Value::Global(kind), Value::Text(key), ..] = &storage[..] else { return None };
            let ints = |values: &[Value]| {
                let int = |v: &Value| if let Value::Int(i) = v { Some(*i) } else { None };
                values.iter().map(int).collect::<Option<Vec<_>>>()
            };
            let storage = kind.strip_prefix("torch ")?.to_string();
            let (shape, strides) = (ints(shape)?, ints(strides)?);
            Some(Header { storage, key: key.clone(), offset: *offset, shape, strides })
        };
        parts().ok_or_else(|| bad("its pickle is not that of one tensor"))
    }

    fn run(bytes: &[u8]) -> Result<Vec<Value>> {
        let (mut stack, mut memo, mut at) = (Vec::new(), Vec::new(), 0);
        let ended = || bad("its pickle ends early");
        loop {
            let op = *bytes.get(at).ok_or_else(ended)?;
            at += 1;
            let int = |n: usize| super::le(bytes, at, n).ok_or_else(ended);
            let mut taken = 0;
            match op {
                0x80 | b'q' => taken = 1,
                b'r' => taken = 4,
                b'(' => stack.push(Value::Mark),
                b'K' | b'M' | b'J' => {
                    taken = [1, 2, 4][(op == b'M') as usize + 2 * (op == b'J') as usize];
                    stack.push(Value::Int(int(taken)?));
                }
                b'X' => {
                    let len = int(4)?;
                    taken = 4 + len;
                    let text = bytes.get(at + 4..at + taken).ok_or_else(ended)?;
                    stack.push(Value::Text(String::from_utf8_lossy(text).into_owned()));
                }
                b'c' => {
                    let mut lines = bytes[at..].splitn(3, |&b| b == b'\n');
                    let (Some(module), Some(name), Some(_)) = (lines.next(), lines.next(), lines.next()) else {
                        return Err(ended());
                    };
                    taken = module.len() + name.len() + 2;
                    stack.push(Value::Global(global(module, name)?));
                }
                b'h' => {
                    taken = 1;
                    stack.push(memo.get(int(1)?).cloned().ok_or_else(ended)?);
                }
                b')' => stack.push(Value::Tuple(Vec::new())),
                b'}' | 0x88 | 0x89 | b'N' => stack.push(Value::Other),
                b't' => {
                    let mark = stack.iter().rposition(|v| matches!(v, Value::Mark)).ok_or_else(ended)?;
                    let items = stack.split_off(mark + 1);
                    stack[mark] = Value::Tuple(items);
                }
                0x85..=0x87 => {
                    let first = stack.len().checked_sub(usize::from(op - 0x84)).ok_or_else(ended)?;
                    let items = stack.split_off(first);
                    stack.push(Value::Tuple(items));
                }
                b'Q' => match stack.pop() {
                    Some(Value::Tuple(items)) => stack.push(Value::Persistent(items)),
                    _ => return Err(ended()),
                },
                b'R' => reduce(&mut stack)?,
                b'.' => {
                    let Some(Value::Built(items)) = stack.pop() else { return Err(bad("it holds no bare tensor")) };
                    return Ok(items);
                }
                other => return Err(bad(format!("pickle opcode {:?} at byte {}: refused", char::from(other), at - 1))),
            }
            if matches!(op, b'q' | b'r') {
                // The memo is written in order by torch.save; it is only looked up within a tensor.
                memo.push(stack.last().cloned().ok_or_else(ended)?);
            }
            at += taken;
            if stack.len() > STACK_MAX || memo.len() > STACK_MAX {
                return Err(bad("its pickle is too deep for one tensor"));
            }
        }
    }

    fn global(module: &[u8], name: &[u8]) -> Result<String> {
        let global = format!("{} {}", String::from_utf8_lossy(module), String::from_utf8_lossy(name));
        let storage = global.starts_with("torch ") && global.ends_with("Storage");
        match global.as_str() {
            "torch._utils _rebuild_tensor_v2" | "collections OrderedDict" => Ok(global),
            _ if storage => Ok(global),
            _ => Err(bad(format!("opcode GLOBAL names '{global}': code in a pickle is never run, refused"))),
        }
    }

    fn reduce(stack: &mut Vec<Value>) -> Result<()> {
        let made = match (stack.pop(), stack.pop()) {
            (Some(Value::Tuple(items)), Some(Value::Global(name))) => match name.as_str() {
                "torch._utils _rebuild_tensor_v2" => Value::Built(items),
                "collections OrderedDict" if items.is_empty() => Value::Other,
                _ => return Err(bad(format!("opcode REDUCE calls '{name}': refused"))),
            },
            _ => return Err(bad("its pickle ends early")),
        };
        stack.push(made);
        Ok(())
    }

    pub fn write(storage: &str, shape: &[usize]) -> Vec<u8> {
        fn int(out: &mut Vec<u8>, i: usize) {
            out.push(b'J');
            out.extend((i as u32).to_le_bytes());
        }
        fn text(out: &mut Vec<u8>, s: &str) {
            out.push(b'X');
            out.extend((s.len() as u32).to_le_bytes());
            out.extend(s.as_bytes());
        }
        let mut out = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{storage}\n").as_bytes());
        text(&mut out, "0");
        text(&mut out, "cpu");
        int(&mut out, shape.iter().product());
        out.extend(*b"tQ");
        int(&mut out, 0);
        out.push(b'(');
        shape.iter().for_each(|&d| int(&mut out, d));
        out.extend(*b"t(");
        (0..shape.len()).for_each(|i| int(&mut out, shape[i + 1..].iter().product()));
        out.extend(*b"t\x89ccollections\nOrderedDict\n)RtR.");
        out
    }
}
