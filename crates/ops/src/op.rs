use std::fmt::Debug;

use fewstep_tensor::{DType, Device, Tensor, arith};

use crate::{Cost, Dual, Error, Meta, Result, Rule};

/// What a forward rule returns.
#[derive(Clone, Debug)]
pub struct Output {
    /// The op's value.
    pub y: Tensor,
    /// Statistics that the vjp reads and that are cheaper kept than recomputed (log-sum-exp, reciprocal norms).
    pub kept: Vec<Tensor>,
}

impl From<Tensor> for Output {
    fn from(y: Tensor) -> Self {
        Output { y, kept: Vec::new() }
    }
}

/// An operation y = f(x₁, …, xₙ), defined by three rules. No rule has a default: a missing one does not compile.
///
/// The rules of one op agree bit for bit on the primal: `jvp` returns exactly the `y` of `forward`.
pub trait Op: Debug + Send + Sync {
    /// The op's name in messages and profiles.
    fn name(&self) -> &'static str;

    /// y = f(x).
    ///
    /// # Errors
    /// If the inputs do not fit the op; the message names the invariant.
    fn forward(&self, x: &[&Tensor]) -> Result<Output>;

    /// y alone, bit for bit that of `forward`: for who keeps nothing.
    ///
    /// # Errors
    /// As `forward`.
    fn value(&self, x: &[&Tensor]) -> Result<Tensor> {
        Ok(self.forward(x)?.y)
    }

    /// (y, ẏ) with ẏ = Σᵢ ∂f/∂xᵢ·ẋᵢ, computed together. A missing tangent is zero and costs nothing.
    ///
    /// # Errors
    /// As `forward`.
    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual>;

    /// x̄ᵢ = (∂f/∂xᵢ)ᵀ·ȳ for every input that is wanted, `None` for the others.
    ///
    /// # Errors
    /// If the cotangent's shape is not the output's.
    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>>;

    /// As `vjp`, each cotangent added to `sums[i]` where there is one: gradients that add up over passes. No rule of its own; an
    /// op that forms a cotangent by a product adds it in place, without memory for the cotangent itself. ȳ is given away, so that
    /// its memory can be free as soon as it has been read.
    ///
    /// # Errors
    /// As `vjp`, or if a sum has another shape than its input.
    fn vjp_onto(
        &self,
        saved: &Saved,
        y_bar: Tensor,
        wanted: &[bool],
        sums: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        add_onto(sums, self.vjp(saved, &y_bar, wanted)?)
    }

    /// What a rule costs on inputs of these shapes and dtypes; refuses what `forward` refuses. It is what `plan` knows of
    /// the op, and the suite holds output and statistics against `forward`.
    ///
    /// # Errors
    /// If the inputs do not fit the op.
    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost>;

    /// What a tape keeps for `vjp`.
    fn memory(&self) -> Memory;
}

/// Adds cotangents to sums, in the sums' dtype; those without a sum stay as they are.
pub(crate) fn add_onto(sums: Vec<Option<Tensor>>, bars: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
    let add = |(sum, bar): (Option<Tensor>, Option<Tensor>)| match (sum, bar) {
        (Some(mut sum), Some(bar)) => {
            let bar = bar.to_dtype(sum.dtype());
            arith::add_assign(&mut sum, &bar)?;
            Ok(Some(sum))
        }
        (sum, bar) => Ok(sum.or(bar)),
    };
    sums.into_iter().zip(bars).map(add).collect()
}

/// What a tape keeps of an op: the values that its vjp reads. Shapes and statistics it keeps always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    inputs: bool,
    but: Option<usize>,
    output: bool,
    expensive: bool,
}

impl Memory {
    /// No value: the vjp reads shapes alone.
    pub const NOTHING: Memory = Memory { inputs: false, but: None, output: false, expensive: false };
    /// Every input.
    pub const INPUTS: Memory = Memory { inputs: true, ..Memory::NOTHING };
    /// Every input and the output, which is worth keeping also where all else is computed again: attention.
    pub const EXPENSIVE: Memory = Memory { output: true, expensive: true, ..Memory::INPUTS };

    /// Every input but one.
    pub const fn inputs_but(i: usize) -> Memory {
        Memory { but: Some(i), ..Memory::INPUTS }
    }

    /// Whether the value of input `i` is kept.
    pub(crate) fn keeps(self, i: usize) -> bool {
        self.inputs && self.but != Some(i)
    }

    /// Whether the output is kept.
    pub(crate) fn keeps_output(self) -> bool {
        self.output
    }

    /// Whether the output survives recomputation of all but attention.
    pub(crate) fn survives_recomputation(self) -> bool {
        self.expensive
    }
}

#[derive(Debug)]
struct SavedInput {
    shape: Vec<usize>,
    dtype: DType,
    value: Option<Tensor>,
}

/// What a forward rule left for the vjp.
#[derive(Debug)]
pub struct Saved {
    op: &'static str,
    inputs: Vec<SavedInput>,
    output: Option<Tensor>,
    kept: Vec<Tensor>,
}

impl Saved {
    /// Keeps of a forward pass what the op declares to read.
    pub fn of(op: &dyn Op, x: &[&Tensor], output: &Output) -> Self {
        let memory = op.memory();
        let inputs = x
            .iter()
            .enumerate()
            .map(|(i, &t)| SavedInput {
                shape: t.shape().to_vec(),
                dtype: t.dtype(),
                value: memory.keeps(i).then(|| t.clone()),
            })
            .collect();
        let y = memory.output.then(|| output.y.clone());
        Saved { op: op.name(), inputs, output: y, kept: output.kept.clone() }
    }

    /// The same on another device.
    ///
    /// # Errors
    /// If a copy fails.
    pub(crate) fn to_device(&self, device: Device) -> Result<Self> {
        let moved = |t: &Tensor| t.to_device(device);
        let input = |s: &SavedInput| -> Result<SavedInput> {
            Ok(SavedInput { shape: s.shape.clone(), dtype: s.dtype, value: s.value.as_ref().map(moved).transpose()? })
        };
        Ok(Saved {
            op: self.op,
            inputs: self.inputs.iter().map(input).collect::<Result<_>>()?,
            output: self.output.as_ref().map(moved).transpose()?,
            kept: self.kept.iter().map(moved).collect::<fewstep_tensor::Result<_>>()?,
        })
    }

    /// The number of inputs.
    pub fn arity(&self) -> usize {
        self.inputs.len()
    }

    /// The value of input `i`.
    ///
    /// # Errors
    /// If the op does not declare to save it.
    pub fn input(&self, i: usize) -> Result<&Tensor> {
        let value = self.inputs.get(i).and_then(|s| s.value.as_ref());
        value.ok_or_else(|| Error::NotSaved { op: self.op, what: format!("input {i}") })
    }

    /// The shape of input `i`.
    pub fn shape(&self, i: usize) -> &[usize] {
        &self.inputs[i].shape
    }

    /// The dtype of input `i`.
    pub fn dtype(&self, i: usize) -> DType {
        self.inputs[i].dtype
    }

    /// The output.
    ///
    /// # Errors
    /// If the op does not declare to save it.
    pub fn output(&self) -> Result<&Tensor> {
        self.output.as_ref().ok_or_else(|| Error::NotSaved { op: self.op, what: "the output".into() })
    }

    /// Statistic `i` of the forward rule.
    ///
    /// # Errors
    /// If the forward rule kept fewer.
    pub fn kept(&self, i: usize) -> Result<&Tensor> {
        self.kept.get(i).ok_or_else(|| Error::NotSaved { op: self.op, what: format!("statistic {i}") })
    }
}
