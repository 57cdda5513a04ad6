//! Tensors on NVIDIA GPUs: their memory, copies, and kernels that take tensors.

pub use fewstep_cuda::Convolution;
use fewstep_cuda::{Buffer, Element, Operand, Product};
pub use fewstep_cuda::{Error as CudaError, Gpu, Source, Variant, cache_problem, compile_for, memory, profile};
pub use fewstep_cuda::{TensorMap, Tiling};

use crate::{DType, Device, Error, Result, Tensor};

/// Device memory of one tensor, or why there is none: operations that cannot fail leave the error here, and the first use
/// returns it.
#[derive(Debug)]
pub struct CudaStorage {
    ordinal: usize,
    len: usize,
    memory: fewstep_cuda::Result<Buffer>,
}

impl CudaStorage {
    pub(crate) fn new(ordinal: usize, dtype: DType, len: usize) -> Result<Self> {
        let memory = Buffer::new(&Gpu::open(ordinal)?, len * dtype.size())?;
        Ok(CudaStorage { ordinal, len, memory: Ok(memory) })
    }

    /// Memory that could not be had.
    pub(crate) fn failed(ordinal: usize, len: usize, e: Error) -> Self {
        let e = match e {
            Error::Cuda(e) => e,
            other => fewstep_cuda::Error::Call { call: "a tensor", reason: other.to_string() },
        };
        CudaStorage { ordinal, len, memory: Err(e) }
    }

    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn buffer(&self) -> Result<&Buffer> {
        self.memory.as_ref().map_err(|e| Error::Cuda(e.clone()))
    }
}

/// The GPU that emulated kernels run on: the host, slowly, with every access checked.
#[cfg(feature = "emulator")]
pub const EMULATED: Device = Device::Cuda(fewstep_cuda::EMULATED);

/// The GPU of a device.
///
/// # Errors
/// If the device is none, or cannot be opened.
pub fn gpu(device: Device) -> Result<Gpu> {
    match device {
        Device::Cuda(ordinal) => Ok(Gpu::open(ordinal)?),
        Device::Cpu => Err(Error::Device { op: "gpu", expected: Device::Cuda(0), got: device }),
    }
}

impl Tensor {
    /// The address of the first element on the GPU; 0 where there is none.
    ///
    /// # Errors
    /// If the tensor is on the host, or its memory could not be had.
    pub fn address(&self) -> Result<u64> {
        let (storage, offset) = self.cuda("address")?;
        let base = storage.buffer()?.address();
        Ok(if base == 0 { 0 } else { base + (offset * self.dtype().size()) as u64 })
    }

    /// Whether the first element lies at a multiple of so many bytes; of a tensor on a GPU.
    pub fn is_aligned(&self, bytes: u64) -> bool {
        self.address().is_ok_and(|a| a.is_multiple_of(bytes))
    }
}

/// Numbers beside tensors that kernels read: sizes, indices, addresses.
#[derive(Debug)]
pub struct Table(Buffer);

impl Table {
    /// A copy of these on a GPU.
    ///
    /// # Errors
    /// If the device is none, has no memory for them, or the copy fails.
    pub fn new<T: bytemuck::NoUninit>(device: Device, numbers: &[T]) -> Result<Self> {
        Ok(Table(Buffer::from_host(&gpu(device)?, bytemuck::cast_slice(numbers))?))
    }
}

pub(crate) fn upload(t: &Tensor, ordinal: usize) -> Result<Tensor> {
    let storage = CudaStorage::new(ordinal, t.dtype(), t.len())?;
    storage.buffer()?.upload(0, &t.le_bytes())?;
    Ok(Tensor::from_cuda(storage, t.shape(), t.dtype()))
}

pub(crate) fn download(t: &Tensor) -> Result<Tensor> {
    fn to_host<T: crate::Element>(t: &Tensor) -> Result<Tensor> {
        let (storage, offset) = t.cuda("download")?;
        let (buffer, mut copied) = (storage.buffer()?, Ok(()));
        let host = Tensor::cpu_with(t.shape(), |out: &mut [T]| {
            copied = buffer.download(offset * size_of::<T>(), bytemuck::cast_slice_mut(out));
        });
        copied?;
        Ok(host)
    }
    match t.dtype() {
        DType::F32 => to_host::<f32>(t),
        DType::F64 => to_host::<f64>(t),
        DType::Bf16 => to_host::<half::bf16>(t),
    }
}

/// A copy of its own on the same GPU.
pub(crate) fn copy(t: &Tensor) -> Result<Tensor> {
    cat(&[t], t.shape())
}

pub(crate) fn cat(parts: &[&Tensor], shape: &[usize]) -> Result<Tensor> {
    let (first, mut at) = (parts[0], 0);
    let all = Tensor::empty(shape, first.dtype(), first.device())?;
    for part in parts {
        if part.dtype() != first.dtype() {
            return Err(Error::DType { op: "cat", expected: first.dtype(), got: part.dtype() });
        }
        if part.device() != first.device() {
            return Err(Error::DeviceMismatch { op: "cat", a: first.device(), b: part.device() });
        }
        let ((from, start), bytes) = (part.cuda("cat")?, part.len() * part.dtype().size());
        all.cuda("cat")?.0.buffer()?.copy_from(at, from.buffer()?, start * part.dtype().size(), bytes)?;
        at += bytes;
    }
    Ok(all)
}

/// The name of a dtype in CUDA C++.
fn element_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F64 => "double",
        DType::Bf16 => "bf16",
    }
}

/// A kernel about to start on tensors of one GPU: its extents and the values of its parameters, in their order.
pub struct Launch<'a> {
    inner: fewstep_cuda::Launch<'a>,
    failed: Option<Error>,
}

impl<'a> Launch<'a> {
    /// A kernel of a source, compiled with `ELEMENT` for a dtype: one block of one warp, until told otherwise.
    ///
    /// # Errors
    /// If the device is no GPU or cannot be opened.
    pub fn new(device: Device, source: &'a Source, dtype: DType, kernel: &'static str) -> Result<Self> {
        let inner = fewstep_cuda::Launch::new(&gpu(device)?, source, kernel).define("ELEMENT", element_name(dtype));
        Ok(Launch { inner, failed: None })
    }

    fn with(self, f: impl FnOnce(fewstep_cuda::Launch<'a>) -> fewstep_cuda::Launch<'a>) -> Self {
        Launch { inner: f(self.inner), failed: self.failed }
    }

    /// Defines a macro for the source: another value is another compilation.
    pub fn define(self, name: &str, value: impl ToString) -> Self {
        self.with(|l| l.define(name, value))
    }

    /// Blocks along x, y and z. Without any the launch does nothing.
    pub fn grid(self, grid: [usize; 3]) -> Self {
        self.with(|l| l.grid(grid))
    }

    /// Threads of a block.
    pub fn threads(self, threads: usize) -> Self {
        self.with(|l| l.threads(threads))
    }

    /// Bytes of dynamic shared memory of a block.
    pub fn shared(self, bytes: usize) -> Self {
        self.with(|l| l.shared(bytes))
    }

    /// A pointer to a tensor's first element.
    pub fn tensor(mut self, t: &Tensor) -> Self {
        let address = t.address().unwrap_or_else(|e| {
            self.failed.get_or_insert(e);
            0
        });
        self.with(|l| l.address(address))
    }

    /// A pointer to a tensor's first element, null without one.
    pub fn optional(self, t: Option<&Tensor>) -> Self {
        match t {
            Some(t) => self.tensor(t),
            None => self.with(|l| l.address(0)),
        }
    }

    /// A pointer to a table's first number.
    pub fn table(self, table: &Table) -> Self {
        self.with(|l| l.address(table.0.address()))
    }

    /// An `i64`.
    pub fn size(self, size: usize) -> Self {
        self.with(|l| l.size(size))
    }

    /// A `double`.
    pub fn real(self, x: f64) -> Self {
        self.with(|l| l.real(x))
    }

    /// An `int`, 1 or 0.
    pub fn flag(self, flag: bool) -> Self {
        self.with(|l| l.flag(flag))
    }

    /// A `u32`.
    pub fn word(self, word: u32) -> Self {
        self.with(|l| l.word(word))
    }

    /// A tensor map, by value.
    pub fn map(self, map: TensorMap) -> Self {
        self.with(|l| l.map(map))
    }

    /// The parameters and extents of a kernel made of `map_elements`: its outputs and inputs of one dtype and length, where it
    /// takes none null, their length, and whether all allow 16-byte accesses.
    pub fn map_elements(self, y: &[Option<&Tensor>], x: &[Option<&Tensor>]) -> Self {
        let all = || y.iter().chain(x).flatten();
        let (n, each) = all().next().map_or((0, 1), |t| (t.len(), ACCESS / t.dtype().size()));
        let aligned = all().all(|t| t.is_aligned(ACCESS as u64));
        let launch = y.iter().chain(x).fold(self, |launch, t| launch.optional(*t));
        launch.grid([n.div_ceil(THREADS * each), 1, 1]).threads(THREADS).size(n).flag(aligned)
    }

    /// Starts the kernel.
    ///
    /// # Errors
    /// If a tensor has no memory on a GPU, the source does not compile, or the driver refuses. Errors of the kernel itself
    /// come with a later call.
    pub fn run(self) -> Result<()> {
        match self.failed {
            Some(e) => Err(e),
            None => Ok(self.inner.run()?),
        }
    }
}

/// A factor of a matrix product, as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    /// The elements.
    pub tensor: &'a Tensor,
    /// Whether it is used transposed.
    pub transposed: bool,
}

/// c (+)= a·b (+ bias) with a [m, k], b [k, n], c [m, n], dense and row-major. Factors are of one dtype, c of that or the
/// wide one; accumulates in the wide dtype. The bias `[n]` has the dtype of the factors.
///
/// # Errors
/// If dtypes do not fit, tensors are not on one GPU, or the library refuses.
pub fn multiply(
    extents: [usize; 3],
    a: Factor<'_>,
    b: Factor<'_>,
    bias: Option<&Tensor>,
    c: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let product = Product { accumulate, ..product("multiply", extents, a, b, bias, c)? };
    Ok(gpu(c.device())?.multiply(&product)?)
}

/// c = gelu(a·b + bias), by the hyperbolic tangent, of the sum before it is rounded; the rounded sum goes to `before`, if there
/// is one, and does not change the bits of c. As [`multiply`], all in bf16, and n a multiple of [`GELU_COLUMNS`].
///
/// # Errors
/// As [`multiply`].
pub fn multiply_gelu(
    extents: [usize; 3],
    a: Factor<'_>,
    b: Factor<'_>,
    bias: Option<&Tensor>,
    before: Option<&Tensor>,
    c: &Tensor,
) -> Result<()> {
    const NAME: &str = "multiply_gelu";
    let before_or_c = before.unwrap_or(c);
    if let Some(t) = [c, before_or_c].into_iter().find(|t| t.dtype() != DType::Bf16) {
        return Err(Error::DType { op: NAME, expected: DType::Bf16, got: t.dtype() });
    }
    if before_or_c.len() != c.len() || !extents[1].is_multiple_of(GELU_COLUMNS) {
        let expected = format!("{:?}, columns by {GELU_COLUMNS}", c.shape());
        return Err(Error::shape(NAME, expected, before_or_c.shape()));
    }
    let before_gelu = before.map(Tensor::address).transpose()?;
    let product = Product { gelu: true, before_gelu, ..product(NAME, extents, a, b, bias, c)? };
    Ok(gpu(c.device())?.multiply(&product)?)
}

/// What the columns of a product must be a multiple of for [`multiply_gelu`].
pub const GELU_COLUMNS: usize = 8;

fn product(
    name: &'static str,
    [m, n, k]: [usize; 3],
    a: Factor<'_>,
    b: Factor<'_>,
    bias: Option<&Tensor>,
    c: &Tensor,
) -> Result<Product> {
    let factors = a.tensor.dtype();
    for t in [b.tensor, bias.unwrap_or(b.tensor)] {
        if t.dtype() != factors {
            return Err(Error::DType { op: name, expected: factors, got: t.dtype() });
        }
    }
    if c.dtype() != factors && c.dtype() != factors.wide() {
        return Err(Error::DType { op: name, expected: factors.wide(), got: c.dtype() });
    }
    if (a.tensor.len(), b.tensor.len(), c.len()) != (m * k, k * n, m * n) {
        return Err(Error::shape(name, format!("[{m}, {k}] by [{k}, {n}] into [{m}, {n}]"), c.shape()));
    }
    let operand = |f: Factor<'_>| Ok::<_, Error>(Operand { address: f.tensor.address()?, transposed: f.transposed });
    Ok(Product {
        m,
        n,
        k,
        a: operand(a)?,
        b: operand(b)?,
        c: c.address()?,
        factors: element_type(factors),
        result: element_type(c.dtype()),
        accumulate: false,
        bias: bias.map(Tensor::address).transpose()?,
        gelu: false,
        before_gelu: None,
    })
}

/// Y (+)= W∗X of bf16 tensors on one GPU, where [`Gpu::convolves`] takes the shape.
///
/// # Errors
/// If dtypes, extents or alignment do not fit, or the library fails.
pub fn convolve(c: &Convolution, x: &Tensor, w: &Tensor, y: &Tensor) -> Result<()> {
    const NAME: &str = "convolve";
    let ([b, _, _, i], [oh, ow, o], [kh, kw]) = (c.input, c.output, c.kernel);
    let lengths = [c.input.iter().product(), o * kh * kw * i, b * oh * ow * o];
    for (t, len) in [x, w, y].into_iter().zip(lengths) {
        if t.dtype() != DType::Bf16 {
            return Err(Error::DType { op: NAME, expected: DType::Bf16, got: t.dtype() });
        }
        if t.len() != len || !t.is_aligned(ACCESS as u64) {
            return Err(Error::shape(NAME, format!("{len} aligned elements for {c:?}"), t.shape()));
        }
    }
    Ok(gpu(y.device())?.convolve(c, [x.address()?, w.address()?, y.address()?])?)
}

fn element_type(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F64 => Element::F64,
        DType::Bf16 => Element::Bf16,
    }
}

const ARITH: Source = Source::new("arith", &[include_str!("arith.cu")]);
const CONVERT: Source = Source::new("convert", &[include_str!("convert.cu")]);

/// Threads of an elementwise block.
const THREADS: usize = 256;
/// Bytes of one access.
const ACCESS: usize = 16;
/// Elements that a thread converts.
const CONVERTED: usize = 8;
/// Elements that a block sums; fixed, so that a sum is always formed in one order.
const PIECE: usize = 16 * 1024;
/// The number of the kernel's function for a·b.
pub(crate) const PRODUCTS: u32 = 3;
/// Terms that one launch of `combine` takes.
const TERMS: usize = 8;

pub(crate) fn full(shape: &[usize], value: f64, dtype: DType, ordinal: usize) -> Result<Tensor> {
    let t = Tensor::empty(shape, dtype, Device::Cuda(ordinal))?;
    if value == 0.0 && value.is_sign_positive() {
        zero(&t, 0, t.len())?;
        return Ok(t);
    }
    arith(&t, "fill")?.map_elements(&[Some(&t)], &[]).real(value).run()?;
    Ok(t)
}

/// Sets `len` elements from `start` to zero.
pub(crate) fn zero(t: &Tensor, start: usize, len: usize) -> Result<()> {
    let ((storage, offset), size) = (t.cuda("zero")?, t.dtype().size());
    Ok(storage.buffer()?.zero((offset + start) * size, len * size)?)
}

fn arith(t: &Tensor, kernel: &'static str) -> Result<Launch<'static>> {
    Launch::new(t.device(), &ARITH, t.dtype(), kernel)
}

pub(crate) fn convert(t: &Tensor, dtype: DType) -> Result<Tensor> {
    let to = Tensor::empty(t.shape(), dtype, t.device())?;
    let launch = Launch::new(t.device(), &CONVERT, t.dtype(), "convert")?.define("TO", element_name(dtype));
    let launch = launch.grid([t.len().div_ceil(THREADS * CONVERTED), 1, 1]).threads(THREADS);
    launch.tensor(&to).tensor(t).size(t.len()).flag(aligned(&[&to, t])).run()?;
    Ok(to)
}

/// Whether all tensors allow 16-byte accesses from their first element on.
fn aligned(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.is_aligned(ACCESS as u64))
}

/// a + b or a − b, into `y` of their shape, which may be one of them.
pub(crate) fn add_or_sub(kernel: &'static str, a: &Tensor, b: &Tensor, y: &Tensor) -> Result<()> {
    arith(a, kernel)?.map_elements(&[Some(y)], &[Some(a), Some(b)]).run()
}

/// Σᵢ cᵢ·xᵢ with f64 coefficients [samples] on the GPU.
pub(crate) fn combine(terms: &[(Tensor, &Tensor)]) -> Result<Tensor> {
    let first = terms[0].1;
    if terms.len() > TERMS {
        return Err(Error::shape("combine", format!("at most {TERMS} terms on a GPU"), &[terms.len()]));
    }
    let samples = first.shape().first().copied().unwrap_or(1);
    let row = first.len() / samples.max(1);
    let y = Tensor::empty(first.shape(), first.dtype(), first.device())?;
    let each = ACCESS / first.dtype().size();
    let pieces = row.div_ceil(THREADS * each);
    let whole = row.is_multiple_of(each) && terms.iter().all(|(_, x)| aligned(&[x]));
    let mut launch = arith(first, "combine")?.grid([samples * pieces, 1, 1]).threads(THREADS).tensor(&y);
    for i in 0..TERMS {
        launch = launch.optional(terms.get(i).map(|(c, _)| c)).optional(terms.get(i).map(|(_, x)| *x));
    }
    launch.size(row).size(pieces).flag(whole).run()?;
    Ok(y)
}

/// Coefficients of several terms [samples] each, sent in one copy.
pub(crate) fn coefficients(lists: &[&[f64]], device: Device) -> Result<Vec<Tensor>> {
    let samples = lists.first().map_or(0, |c| c.len());
    let all = Tensor::from_vec(lists.concat(), &[lists.len() * samples])?.to_device(device)?;
    (0..lists.len()).map(|i| all.narrow(i * samples, samples)).collect()
}

/// Σ over each of `samples` equal parts of x, [samples] f64 on the GPU: a function of `Term` by its number, or with `other`
/// of products.
pub(crate) fn sums(x: &Tensor, samples: usize, (what, by): (u32, f64), other: Option<&Tensor>) -> Result<Tensor> {
    let row = x.len() / samples.max(1);
    let pieces = row.div_ceil(PIECE);
    let partials = Tensor::empty(&[samples, pieces], DType::F64, x.device())?;
    let whole = (row * x.dtype().size()).is_multiple_of(ACCESS) && aligned(&[x, other.unwrap_or(x)]);
    let launch =
        arith(x, "sum")?.grid([samples * pieces, 1, 1]).threads(THREADS).tensor(&partials).tensor(x).optional(other);
    launch.real(by).word(what).size(row).size(PIECE).flag(whole).run()?;
    let sums = Tensor::empty(&[samples], DType::F64, x.device())?;
    let launch = arith(x, "add_pieces")?.grid([samples, 1, 1]).threads(THREADS);
    launch.tensor(&sums).tensor(&partials).size(pieces).run()?;
    Ok(sums)
}

pub(crate) fn normal(
    stream: &crate::random::Stream,
    first: u64,
    shape: &[usize],
    dtype: DType,
    device: Device,
) -> Result<Tensor> {
    let y = Tensor::empty(shape, dtype, device)?;
    let samples = shape.first().copied().unwrap_or(1);
    let row = y.len() / samples.max(1);
    let pieces = row.div_ceil(4 * THREADS);
    let (key, iteration, purpose) = stream.counter();
    let launch = arith(&y, "normal")?.grid([samples * pieces, 1, 1]).threads(THREADS).tensor(&y).size(row).size(pieces);
    launch.word(first as u32).word(key[0]).word(key[1]).word(iteration).word(purpose).run()?;
    Ok(y)
}
