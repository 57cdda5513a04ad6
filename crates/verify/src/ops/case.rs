use std::fmt;

use fewstep_ops::suite::{self, Elsewhere, Margin, Tolerance};
use fewstep_ops::{Op, Saved};
use fewstep_tensor::{DType, Device, Tensor};

use super::window::Windows;
use crate::Result;

type Boxed = Box<dyn Op>;

/// An op at inputs of some shapes, and what it is in bf16.
pub struct Case {
    name: String,
    op: Boxed,
    /// The op in f64 on the host, where that is another one.
    host: Option<Boxed>,
    shapes: Vec<Vec<usize>>,
    /// What is done to normal numbers before they are inputs.
    inputs: fn(f64) -> f64,
    half: Option<Half>,
    only_half: bool,
    windows: bool,
    large: bool,
}

/// A case in bf16.
struct Half {
    /// The op, where it is another one.
    op: Option<Boxed>,
    /// The inputs that are f32.
    wide: Vec<usize>,
    allowed: Allowed,
}

enum Allowed {
    Of(f64),
    TwiceThatOf(Boxed),
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Case {
    /// An op at normal inputs. In bf16 all of them are bf16, and each output may be off by one rounding.
    pub(super) fn new(op: impl Op + 'static, shapes: &[&[usize]]) -> Self {
        let name = format!("{op:?} at {}", shapes.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" "));
        let half = Half { op: None, wide: Vec::new(), allowed: Allowed::Of(suite::BF16_ROUNDING) };
        Case {
            name,
            op: Box::new(op),
            host: None,
            shapes: shapes.iter().map(|s| s.to_vec()).collect(),
            inputs: |x| x,
            half: Some(half),
            only_half: false,
            windows: false,
            large: false,
        }
    }

    fn with_half(mut self, change: impl FnOnce(&mut Half)) -> Self {
        if let Some(half) = &mut self.half {
            change(half);
        }
        self
    }

    pub(super) fn named(self, name: impl Into<String>) -> Self {
        Case { name: name.into(), ..self }
    }

    /// These inputs are f32 beside bf16.
    pub(super) fn wide(self, wide: &[usize]) -> Self {
        self.with_half(|half| half.wide = wide.to_vec())
    }

    /// In bf16 nothing is rounded.
    pub(super) fn exact(self) -> Self {
        self.with_half(|half| half.allowed = Allowed::Of(0.0))
    }

    /// In bf16 outputs may be off by two roundings: one of something before.
    pub(super) fn rounded_twice(self) -> Self {
        self.with_half(|half| half.allowed = Allowed::Of(2.0 * suite::BF16_ROUNDING))
    }

    /// In bf16 outputs may be off by twice what this op's are.
    pub(super) fn unfused(self, op: impl Op + 'static) -> Self {
        self.with_half(|half| half.allowed = Allowed::TwiceThatOf(Box::new(op)))
    }

    /// In bf16 it is this op.
    pub(super) fn in_half(self, op: impl Op + 'static) -> Self {
        self.with_half(|half| half.op = Some(Box::new(op)))
    }

    /// There is no such op in bf16.
    pub(super) fn never_half(self) -> Self {
        Case { half: None, ..self }
    }

    /// The suite's many passes would take too long: bf16 alone.
    pub(super) fn only_half(self) -> Self {
        Case { only_half: true, ..self }
    }

    /// On the host it is this op.
    pub(super) fn on_host(self, op: impl Op + 'static) -> Self {
        Case { host: Some(Box::new(op)), ..self }
    }

    /// Inputs are this of normal numbers.
    pub(super) fn at(self, inputs: fn(f64) -> f64) -> Self {
        Case { inputs, ..self }
    }

    /// Also on windows of larger tensors.
    pub(super) fn and_windows(self) -> Self {
        Case { windows: true, ..self }
    }

    /// Too much for an emulated device.
    pub(super) fn large(self) -> Self {
        Case { large: true, ..self }
    }

    /// The op and the shapes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The op, in f64 and f32.
    pub fn op(&self) -> &dyn Op {
        &*self.op
    }

    /// Whether it is too much for an emulated device.
    pub fn is_large(&self) -> bool {
        self.large
    }

    /// Whether it is also to be proven on windows of larger tensors.
    pub fn windows(&self) -> bool {
        self.windows
    }

    /// Whether there is such a case in a dtype.
    pub fn has(&self, dtype: DType) -> bool {
        if dtype == DType::Bf16 { self.half.is_some() } else { !self.only_half }
    }

    fn shapes(&self) -> Vec<&[usize]> {
        self.shapes.iter().map(Vec::as_slice).collect()
    }

    /// Inputs in f64.
    fn draw(&self, seed: u64, purpose: u64) -> Result<Vec<Tensor>> {
        let drawn = suite::draw(seed, purpose, &self.shapes())?;
        let mapped = |t: Tensor| Tensor::from_vec(t.to_vec_f64().into_iter().map(self.inputs).collect(), t.shape());
        Ok(drawn.into_iter().map(mapped).collect::<fewstep_tensor::Result<_>>()?)
    }

    /// The op that runs in a dtype, and which inputs are wide.
    fn of(&self, dtype: DType) -> (&dyn Op, &[usize]) {
        match (&self.half, dtype) {
            (Some(half), DType::Bf16) => (half.op.as_deref().unwrap_or(&*self.op), &half.wide),
            _ => (&*self.op, &[]),
        }
    }

    /// Runs the three rules once, whatever they give.
    pub(super) fn launch(&self, device: Device, dtype: DType, window: bool, seed: u64) -> Result<()> {
        let (op, wide) = self.of(dtype);
        let windows = Windows(op);
        self.rules(if window { &windows } else { op }, wide, device, dtype, seed).map(drop)
    }

    /// The bytes of what the three rules give on a device.
    fn rules(&self, op: &dyn Op, wide: &[usize], device: Device, dtype: DType, seed: u64) -> Result<Vec<Vec<u8>>> {
        let there = |(i, t): (usize, Tensor)| {
            t.to_dtype(if wide.contains(&i) { dtype.wide() } else { dtype }).to_device(device)
        };
        let moved = |purpose| -> Result<Vec<Tensor>> {
            Ok(self.draw(seed, purpose)?.into_iter().enumerate().map(there).collect::<fewstep_tensor::Result<_>>()?)
        };
        let (x, x_dot) = (moved(0)?, moved(1)?);
        let x: Vec<&Tensor> = x.iter().collect();
        let output = op.forward(&x)?;
        let dual = op.jvp(&x, &x_dot.iter().map(Some).collect::<Vec<_>>())?;
        let y_bar = suite::draw(seed, 3, &[output.y.shape()])?.remove(0);
        let y_bar = y_bar.to_dtype(output.y.dtype()).to_device(output.y.device())?;
        let bars = op.vjp(&Saved::of(op, &x, &output), &y_bar, &vec![true; x.len()])?;
        let all =
            [Some(output.y), Some(dual.primal), dual.tangent].into_iter().chain(bars).flatten().chain(output.kept);
        all.map(|t| Ok(t.to_device(Device::Cpu)?.le_bytes().to_vec())).collect()
    }

    /// Proves the case in a dtype: the rules hold, and give the same bits again.
    pub(super) fn prove(
        &self,
        device: Device,
        dtype: DType,
        window: bool,
        seed: u64,
    ) -> std::result::Result<Margin, String> {
        let (op, wide) = self.of(dtype);
        let windows = Windows(op);
        let op: &dyn Op = if window { &windows } else { op };
        let there = Elsewhere { op, device };
        let text = |e: crate::Error| e.to_string();
        let margin = match dtype {
            DType::F64 => suite::check_double(&there, &self.draw(seed, 0).map_err(text)?, seed)?,
            DType::F32 => suite::check_single(&there, &self.draw(seed, 0).map_err(text)?, seed)?,
            DType::Bf16 => {
                let host = self.host.as_deref().unwrap_or(&*self.op);
                let tolerance = match self.half.as_ref().map(|half| &half.allowed) {
                    Some(Allowed::TwiceThatOf(unfused)) => Tolerance::TwiceThatOf(&**unfused),
                    Some(Allowed::Of(allowed)) => Tolerance::Of(*allowed),
                    None => return Err("there is no such case in bf16".into()),
                };
                suite::check_half_against([&there, host], (&self.shapes(), wide), tolerance, seed)?
            }
        };
        let rules = || self.rules(op, wide, device, dtype, seed).map_err(text);
        match rules()? == rules()? {
            true => Ok(margin),
            false => Err(format!("a second run gives other bits; {} in {dtype}", self.name)),
        }
    }
}
