//! Attention under a mask.

use std::sync::Arc;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use super::cpu::{self, View};
use super::{Attention, Extents, Mask, NAME, cuda};
use crate::{Cost, Dual, Memory, Meta, Op, Output, Result, Rule, Saved};

/// y = softmax(scale·q·kᵀ + bias)·v for each head, over the keys that a mask allows.
///
/// As [`Attention`], which see; of packed samples B is 1 and the lengths are their sums.
#[derive(Clone, Debug)]
pub struct MaskedAttention {
    /// Heads and scale.
    pub attention: Attention,
    /// What queries may attend to.
    pub mask: Arc<Mask>,
}

/// The rows of packed samples [1, Σ lengths, D] apart: [1, length, D] each.
fn apart(t: &Tensor, packed: &[[usize; 2]], side: usize) -> Result<Vec<Tensor>> {
    let [_, rows, width] = t.dims()?;
    let flat = t.reshape(&[rows, width])?;
    let mut first = 0;
    let mut one = |lengths: &[usize; 2]| -> Result<Tensor> {
        let part = flat.narrow(first, lengths[side])?.reshape(&[1, lengths[side], width])?;
        first += lengths[side];
        Ok(part)
    };
    packed.iter().map(&mut one).collect()
}

/// The inverse of `apart`.
fn together(parts: &[Tensor]) -> Result<Tensor> {
    let flat = |t: &Tensor| -> Result<Tensor> { Ok(t.reshape(&t.shape()[1..])?) };
    let flat = parts.iter().map(flat).collect::<Result<Vec<_>>>()?;
    let all = Tensor::cat(&flat.iter().collect::<Vec<_>>())?;
    Ok(all.reshape(&[1, all.shape()[0], all.shape()[1]])?)
}

/// Statistics [1, N, length] of packed samples to [1, N, Σ lengths].
fn statistics_together(parts: &[Tensor], heads: usize) -> Result<Tensor> {
    let mut rows = Vec::new();
    for head in 0..heads {
        for part in parts {
            let [_, n, length] = part.dims()?;
            rows.push(part.reshape(&[n, length])?.narrow(head, 1)?.reshape(&[length])?);
        }
    }
    let all = Tensor::cat(&rows.iter().collect::<Vec<_>>())?;
    Ok(all.reshape(&[1, heads, all.len() / heads])?)
}

/// The inverse of `statistics_together`.
fn statistics_apart(t: &Tensor, packed: &[[usize; 2]]) -> Result<Vec<Tensor>> {
    let [_, heads, total] = t.dims()?;
    let flat = t.reshape(&[heads * total])?;
    let mut first = 0;
    let mut one = |&[length, _]: &[usize; 2]| -> Result<Tensor> {
        let rows =
            (0..heads).map(|n| flat.narrow(n * total + first, length)).collect::<fewstep_tensor::Result<Vec<_>>>()?;
        first += length;
        Ok(Tensor::cat(&rows.iter().collect::<Vec<_>>())?.reshape(&[1, heads, length])?)
    };
    packed.iter().map(&mut one).collect()
}

impl MaskedAttention {
    fn checked(&self, e: Extents) -> Result<Extents> {
        self.mask.check([e.b, e.n, e.l, e.s])?;
        Ok(e)
    }

    fn view(&self, sample: usize) -> Option<View<'_>> {
        Some(View { mask: &self.mask, sample })
    }

    /// The inputs of every packed sample.
    fn samples(&self, x: [Option<&Tensor>; 3], packed: &[[usize; 2]]) -> Result<Vec<[Option<Tensor>; 3]>> {
        let mut samples = vec![[None, None, None]; packed.len()];
        for (i, t) in x.into_iter().enumerate() {
            let Some(t) = t else { continue };
            for (sample, part) in samples.iter_mut().zip(apart(t, packed, usize::from(i > 0))?) {
                sample[i] = Some(part);
            }
        }
        Ok(samples)
    }

    fn host_forward(&self, e: &Extents, x: &[&Tensor]) -> Result<Output> {
        let run = |e: &Extents, x: &[&Tensor], sample| dispatch_float!(NAME, x[0].dtype(), T => cpu::forward::<T>(e, x, self.view(sample)));
        let Some(packed) = &self.mask.packed else { return run(e, x, 0) };
        let (mut y, mut kept) = (Vec::new(), Vec::new());
        for (i, x) in self.samples([Some(x[0]), Some(x[1]), Some(x[2])], packed)?.iter().enumerate() {
            let x: Vec<&Tensor> = x.iter().flatten().collect();
            let output = run(&self.attention.of(&x)?, &x, i)?;
            y.push(output.y);
            kept.extend(output.kept);
        }
        Ok(Output { y: together(&y)?, kept: vec![statistics_together(&kept, e.n)?] })
    }

    fn host_jvp(&self, e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let run = |e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>], sample| dispatch_float!(NAME, x[0].dtype(), T => cpu::jvp::<T>(e, x, x_dot, self.view(sample)));
        let Some(packed) = &self.mask.packed else { return run(e, x, x_dot, 0) };
        let (mut y, mut y_dot) = (Vec::new(), Vec::new());
        let samples = self.samples([Some(x[0]), Some(x[1]), Some(x[2])], packed)?;
        let tangents = self.samples([x_dot[0], x_dot[1], x_dot[2]], packed)?;
        for (i, (x, x_dot)) in samples.iter().zip(&tangents).enumerate() {
            let x: Vec<&Tensor> = x.iter().flatten().collect();
            let x_dot: Vec<Option<&Tensor>> = x_dot.iter().map(Option::as_ref).collect();
            let dual = run(&self.attention.of(&x)?, &x, &x_dot, i)?;
            y.push(dual.primal);
            y_dot.extend(dual.tangent);
        }
        Ok(Dual { primal: together(&y)?, tangent: Some(together(&y_dot)?) })
    }

    fn host_vjp(&self, e: &Extents, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let run = |e: &Extents, saved: &Saved, y_bar: &Tensor, sample| dispatch_float!(NAME, y_bar.dtype(), T => cpu::vjp::<T>(e, saved, y_bar, wanted, self.view(sample)));
        let Some(packed) = &self.mask.packed else { return run(e, saved, y_bar, 0) };
        let x = [Some(saved.input(0)?), Some(saved.input(1)?), Some(saved.input(2)?)];
        let (y, y_bar) = (apart(saved.output()?, packed, 0)?, apart(y_bar, packed, 0)?);
        let kept = statistics_apart(saved.kept(0)?, packed)?;
        let mut bars = [const { Vec::new() }; 3];
        for (i, x) in self.samples(x, packed)?.iter().enumerate() {
            let x: Vec<&Tensor> = x.iter().flatten().collect();
            let saved = Saved::of(self, &x, &Output { y: y[i].clone(), kept: vec![kept[i].clone()] });
            let parts = run(&self.attention.of(&x)?, &saved, &y_bar[i], i)?;
            bars.iter_mut().zip(parts).for_each(|(bars, part)| bars.extend(part));
        }
        bars.iter().zip(wanted).map(|(parts, wanted)| wanted.then(|| together(parts)).transpose()).collect()
    }
}

impl Op for MaskedAttention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let e = self.checked(self.attention.of(x)?)?;
        match x[0].device() {
            Device::Cpu => self.host_forward(&e, x),
            Device::Cuda(_) => cuda::forward(&e, x, &self.mask),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let e = self.checked(self.attention.of(x)?)?;
        if x_dot.iter().all(Option::is_none) {
            return Ok(Dual { primal: self.forward(x)?.y, tangent: None });
        }
        match x[0].device() {
            Device::Cpu => self.host_jvp(&e, x, x_dot),
            Device::Cuda(_) => cuda::jvp(&e, x, x_dot, &self.mask),
        }
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let e = self.checked(self.attention.of_saved(saved, y_bar)?)?;
        match y_bar.device() {
            Device::Cpu => self.host_vjp(&e, saved, y_bar, wanted),
            Device::Cuda(_) => cuda::vjp(&e, saved, y_bar, wanted, &self.mask),
        }
    }

    /// As without a mask: what is not attended to is computed all the same.
    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        self.attention.cost(x, rule)
    }

    fn memory(&self) -> Memory {
        Memory::EXPENSIVE
    }
}
