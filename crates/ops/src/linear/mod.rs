//! y = x·Wᵀ + b, and its GELU.

mod cpu;
mod cuda;
mod gelu;

use fewstep_tensor::gemm::panel_cols;
use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::op::add_onto;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};
pub use gelu::LinearGelu;

/// y = x·Wᵀ (+ b): x `[..., I]`, W `[O, I]`, b `[O]` → y `[..., O]`. Accumulates in the compute type.
///
/// Inputs: x, W and, with `bias`, b. W may be bf16 beside f32 or f64 (weights kept as stored): it is widened in panels as it
/// is used, with the same result bit for bit as widened beforehand; its cotangent is in the compute type.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Whether there is a bias.
    pub bias: bool,
}

/// Extents of a product: rows of x, inputs, outputs, and the shape of y.
struct Extents {
    rows: usize,
    inputs: usize,
    outputs: usize,
    shape: Vec<usize>,
}

impl Linear {
    fn extents(&self, x: &[usize], w: &[usize], b: Option<&[usize]>) -> Result<Extents> {
        let (Some(&inputs), &[outputs, w_in]) = (x.last(), w) else {
            return Err(Error::input("linear", "x [..., I] and W [O, I]", (x, w)));
        };
        if inputs != w_in || b.is_some_and(|b| b != [outputs]) {
            return Err(Error::input("linear", "x [..., I], W [O, I], b [O]", (x, w, b)));
        }
        let rows = x[..x.len() - 1].iter().product();
        let mut shape = x.to_vec();
        shape[x.len() - 1] = outputs;
        Ok(Extents { rows, inputs, outputs, shape })
    }

    fn of(&self, x: &[&Tensor]) -> Result<Extents> {
        if x.len() != 2 + usize::from(self.bias) {
            return Err(Error::input("linear", "x, W and the bias it was built with", x.len()));
        }
        self.extents(x[0].shape(), x[1].shape(), x.get(2).map(|b| b.shape()))
    }

    /// x·Wᵀ + b, added to `onto` where given.
    fn product(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, onto: Option<Tensor>) -> Result<Tensor> {
        let e = self.extents(x.shape(), w.shape(), b.map(Tensor::shape))?;
        match x.device() {
            Device::Cpu => dispatch_float!("linear", x.dtype(), T => Ok(cpu::forward::<T>(&e, x, w, b, onto)?)),
            Device::Cuda(_) => cuda::forward(&e, x, w, b, onto),
        }
    }

    /// The cotangents that are wanted, of x, W and b.
    fn bars(
        &self,
        wanted: &[bool],
        x: impl FnOnce() -> Result<Tensor>,
        w: impl FnOnce() -> Result<Tensor>,
        b: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut bars = vec![wanted[0].then(x).transpose()?, wanted[1].then(w).transpose()?];
        if self.bias {
            bars.push(wanted[2].then(b).transpose()?);
        }
        Ok(bars)
    }

    /// ẋ·Wᵀ + x·Ẇᵀ + ḃ, of what moves.
    fn tangent(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let e = self.of(x)?;
        let mut tangent = match x_dot[0] {
            Some(dx) => Some(self.product(dx, x[1], x_dot.get(2).copied().flatten(), None)?),
            None => None,
        };
        if let Some(dw) = x_dot[1] {
            let db = if tangent.is_none() { x_dot.get(2).copied().flatten() } else { None };
            tangent = Some(self.product(x[0], dw, db, tangent)?);
        }
        if let (None, Some(Some(db))) = (&tangent, x_dot.get(2)) {
            let zero = Tensor::zeros(&e.shape, x[0].dtype(), x[0].device());
            tangent = Some(add_rows(&e, zero, db)?);
        }
        Ok(tangent)
    }
}

/// Elements of a narrow weight that are widened at a time.
fn widened(e: &Extents, rule: Rule<'_>) -> usize {
    match rule {
        Rule::Vjp([false, ..]) => 0,
        Rule::Vjp(_) => panel_cols(e.rows, e.inputs, e.outputs).min(e.inputs) * e.outputs,
        _ => panel_cols(e.rows, e.outputs, e.inputs).min(e.outputs) * e.inputs,
    }
}

fn add_rows(e: &Extents, y: Tensor, b: &Tensor) -> Result<Tensor> {
    match y.device() {
        Device::Cpu => dispatch_float!("linear", y.dtype(), T => cpu::add_rows::<T>(y, b)),
        Device::Cuda(_) => cuda::add_rows(e, y, b),
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        self.of(x)?;
        Ok(self.product(x[0], x[1], x.get(2).copied(), None)?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        self.of(x)?;
        let primal = self.product(x[0], x[1], x.get(2).copied(), None)?;
        Ok(Dual { primal, tangent: self.tangent(x, x_dot)? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        self.vjp_onto(saved, y_bar.clone(), wanted, vec![None; wanted.len()])
    }

    fn vjp_onto(
        &self,
        saved: &Saved,
        y_bar: Tensor,
        wanted: &[bool],
        mut sums: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let y_bar = &y_bar;
        let b_shape = self.bias.then(|| saved.shape(2));
        let e = self.extents(saved.shape(0), saved.shape(1), b_shape)?;
        if y_bar.shape() != e.shape {
            return Err(Error::input("linear", format!("a cotangent {:?}", e.shape), y_bar.shape()));
        }
        let onto = if wanted[1] { sums[1].take() } else { None };
        let bars = match y_bar.device() {
            Device::Cpu => dispatch_float!("linear", y_bar.dtype(), T => {
                let x_bar = || cpu::input_bar::<T>(&e, saved.shape(0), y_bar, saved.input(1)?);
                let w_bar = || cpu::weight_bar::<T>(&e, y_bar, saved.input(0)?, onto);
                self.bars(wanted, x_bar, w_bar, || cpu::bias_bar::<T>(&e, y_bar))
            }),
            Device::Cuda(_) => {
                let x_bar = || cuda::input_bar(&e, saved.shape(0), y_bar, saved.input(1)?);
                let w_bar = || cuda::weight_bar(&e, y_bar, saved.input(0)?, onto);
                self.bars(wanted, x_bar, w_bar, || cuda::bias_bar(&e, y_bar))
            }
        };
        add_onto(sums, bars?)
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        if x.len() != 2 + usize::from(self.bias) {
            return Err(Error::input("linear", "x, W and the bias it was built with", x.len()));
        }
        let e = self.extents(&x[0].shape, &x[1].shape, x.get(2).map(|b| b.shape.as_slice()))?;
        let product = 2.0 * e.rows as f64 * e.inputs as f64 * e.outputs as f64;
        let scratch = if x[1].dtype == x[0].dtype { 0 } else { widened(&e, rule) * x[0].dtype.size() };
        let cost = Cost::new(Meta::new(&e.shape, x[0].dtype), product * rule.products(&[0, 1]));
        Ok(Cost { scratch, adds: vec![1], ..cost })
    }

    fn memory(&self) -> Memory {
        Memory::inputs_but(2)
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        for (seed, (x, o)) in [(vec![3, 5, 7], 4), (vec![1, 1], 1), (vec![0, 3], 2), (vec![2, 9, 33], 65), (vec![4], 3)]
            .into_iter()
            .enumerate()
        {
            let i = *x.last().unwrap();
            suite::check(&Linear { bias: true }, &[&x, &[o, i], &[o]], seed as u64).unwrap();
            suite::check(&Linear { bias: false }, &[&x, &[o, i]], seed as u64).unwrap();
            suite::check_on(EMULATED, &Linear { bias: true }, &[&x, &[o, i], &[o]], seed as u64).unwrap();
        }
    }

    #[test]
    fn every_rule_holds_in_bf16_on_a_gpu() {
        // One rounding of each output: half a unit of 8 bits.
        for (seed, (rows, i, o)) in [(300, 70, 33), (1, 8, 8), (5, 33, 1)].into_iter().enumerate() {
            let shapes: [&[usize]; 3] = [&[rows, i], &[o, i], &[o]];
            suite::check_half(EMULATED, &Linear { bias: true }, (&shapes, &[]), 2f64.powi(-8), seed as u64).unwrap();
        }
    }

    #[test]
    fn a_weight_in_bf16_gives_the_bits_of_the_widened_one_in_every_rule() {
        use fewstep_tensor::DType;
        for (rows, i, o) in
            [(1, 70, 300), (5, 64, 2100), (8, 300, 1025), (9, 130, 2049), (70, 65, 1030), (65, 1100, 33), (3, 4, 5)]
        {
            let drawn = suite::draw(rows as u64, 0, &[&[rows, i], &[o, i], &[o], &[rows, i], &[rows, o]]).unwrap();
            for dtype in [DType::F32, DType::F64] {
                let t: Vec<Tensor> = drawn.iter().map(|t| t.to_dtype(dtype)).collect();
                let narrow = t[1].to_dtype(DType::Bf16);
                let rules = |w: &Tensor| {
                    let (op, x) = (Linear { bias: true }, [&t[0], w, &t[2]]);
                    let dual = op.jvp(&x, &[Some(&t[3]), None, None]).unwrap();
                    let saved = Saved::of(&op, &x, &op.forward(&x).unwrap());
                    let mut all = vec![dual.primal, dual.tangent.unwrap()];
                    all.extend(op.vjp(&saved, &t[4], &[true; 3]).unwrap().into_iter().flatten());
                    all.iter().map(|t| t.le_bytes().to_vec()).collect::<Vec<_>>()
                };
                assert!(rules(&narrow) == rules(&narrow.to_dtype(dtype)), "{rows}x{i}x{o} {dtype}");
            }
        }
    }

    #[test]
    fn a_narrow_weight_costs_its_widened_panel_and_the_result_keeps_the_dtype_of_x() {
        use fewstep_tensor::DType;
        let meta = |shape: &[usize], dtype| Meta::new(shape, dtype);
        let (x, w) = (meta(&[2000, 64], DType::F32), meta(&[4096, 64], DType::Bf16));
        for (rule, panel) in [(Rule::Forward, 1024 * 64), (Rule::Vjp(&[true, false]), 64 * 4096)] {
            let cost = Linear { bias: false }.cost(&[&x, &w], rule).unwrap();
            assert_eq!((cost.y, cost.scratch), (meta(&[2000, 4096], DType::F32), panel * 4));
        }
        let same = Linear { bias: false }.cost(&[&x, &meta(&[4096, 64], DType::F32)], Rule::Forward).unwrap();
        assert_eq!(same.scratch, 0);
    }

    #[test]
    fn a_weight_of_another_width_is_refused_by_name() {
        let x = Tensor::zeros(&[2, 3], fewstep_tensor::DType::F32, Device::Cpu);
        let w = Tensor::zeros(&[4, 5], fewstep_tensor::DType::F32, Device::Cpu);
        let e = Linear { bias: false }.forward(&[&x, &w]).unwrap_err();
        assert!(e.to_string().contains("linear"), "{e}");
    }
}
