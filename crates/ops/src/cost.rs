//! What an op costs, from shapes alone.

use fewstep_tensor::DType;

use crate::{Error, Result};

/// Shape and dtype of a tensor that need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The extents of the axes.
    pub shape: Vec<usize>,
    /// The element type.
    pub dtype: DType,
}

impl Meta {
    /// A tensor of this shape.
    pub fn new(shape: &[usize], dtype: DType) -> Self {
        Meta { shape: shape.to_vec(), dtype }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }
}

/// Which rule of an op runs.
#[derive(Clone, Copy, Debug)]
pub enum Rule<'a> {
    /// `forward`.
    Forward,
    /// `jvp` with these tangents present.
    Jvp(&'a [bool]),
    /// `vjp` with these cotangents wanted.
    Vjp(&'a [bool]),
}

impl Rule<'_> {
    /// How often a product that is linear in each of the inputs `factors` is formed: once forward, once more for each
    /// tangent, once for each cotangent.
    pub fn products(self, factors: &[usize]) -> f64 {
        let among = |set: &[bool]| factors.iter().filter(|&&i| set.get(i) == Some(&true)).count() as f64;
        match self {
            Rule::Forward => 1.0,
            Rule::Jvp(moving) => 1.0 + among(moving),
            Rule::Vjp(wanted) => among(wanted),
        }
    }

    /// Passes over the elements: one forward and backward, two with tangents.
    pub fn passes(self) -> f64 {
        if matches!(self, Rule::Jvp(_)) { 2.0 } else { 1.0 }
    }
}

/// What a rule of an op makes and does.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// The op's output.
    pub y: Meta,
    /// Statistics that the forward rule keeps for the vjp.
    pub kept: Vec<Meta>,
    /// Floating-point operations of the rule; a multiply-add counts two.
    pub flops: f64,
    /// Tensor memory that the CPU rule takes and gives back, in bytes, what it returns aside.
    pub scratch: usize,
    /// Whether y is the first input's memory under another shape: such an op moves nothing.
    pub shares: bool,
    /// Inputs by which the op's derivative is the identity: their cotangent is ȳ itself, and so is a lone tangent.
    pub passes: Vec<usize>,
    /// Inputs whose cotangent is added to a sum without memory of its own.
    pub adds: Vec<usize>,
}

impl Cost {
    /// An op that makes y, with so many operations.
    pub fn new(y: Meta, flops: f64) -> Self {
        Cost { y, kept: Vec::new(), flops, scratch: 0, shares: false, passes: Vec::new(), adds: Vec::new() }
    }

    /// An op that does `each` operations for every element of y in a pass.
    pub fn elementwise(y: Meta, each: f64, rule: Rule<'_>) -> Self {
        let flops = each * y.len() as f64 * rule.passes();
        Cost::new(y, flops)
    }

    /// The first input under another shape.
    pub fn view(y: Meta) -> Self {
        Cost { shares: true, passes: vec![0], ..Cost::new(y, 0.0) }
    }
}

/// The inputs of an op as an array.
///
/// # Errors
/// If there are more or fewer.
pub fn inputs<'x, const N: usize>(op: &'static str, x: &'x [&'x Meta]) -> Result<[&'x Meta; N]> {
    x.try_into().map_err(|_| Error::input(op, format!("{N} inputs"), x.len()))
}
