//! Parts and wholes: slices, concatenations and reshapes.

mod cpu;
pub(crate) mod cuda;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

/// A tensor seen as [outer, axis, inner] around one axis.
#[derive(Clone, Copy)]
struct Around {
    outer: usize,
    axis: usize,
    inner: usize,
}

impl Around {
    fn of(op: &'static str, shape: &[usize], axis: usize) -> Result<Self> {
        if axis >= shape.len() {
            return Err(Error::input(op, format!("an axis {axis}"), shape));
        }
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        Ok(Around { outer, axis: shape[axis], inner })
    }
}

/// Elements `start..start + len` of one axis.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// The axis.
    pub axis: usize,
    /// The first element.
    pub start: usize,
    /// The number of elements.
    pub len: usize,
}

impl Slice {
    fn take(&self, x: &Tensor) -> Result<Tensor> {
        let around = Around::of("slice", x.shape(), self.axis)?;
        if self.start + self.len > around.axis {
            let expected = format!("axis {} to hold {}..{}", self.axis, self.start, self.start + self.len);
            return Err(Error::input("slice", expected, x.shape()));
        }
        let mut shape = x.shape().to_vec();
        shape[self.axis] = self.len;
        match x.device() {
            Device::Cpu => dispatch_float!("slice", x.dtype(), T => cpu::take::<T>(x, around, self.start, &shape)),
            Device::Cuda(_) => cuda::take(x, around, self.start, &shape),
        }
    }
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Ok(self.take(x[0])?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        Ok(Dual { primal: self.take(x[0])?, tangent: x_dot[0].map(|d| self.take(d)).transpose()? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let put = || -> Result<Tensor> {
            let around = Around::of("slice", saved.shape(0), self.axis)?;
            match y_bar.device() {
                Device::Cpu => {
                    dispatch_float!("slice", y_bar.dtype(), T => cpu::put::<T>(y_bar, around, self.start, saved.shape(0)))
                }
                Device::Cuda(_) => cuda::put(y_bar, around, self.start, saved.shape(0)),
            }
        };
        Ok(vec![wanted[0].then(put).transpose()?])
    }

    fn cost(&self, x: &[&Meta], _rule: Rule<'_>) -> Result<Cost> {
        let [x] = inputs("slice", x)?;
        let mut y = x.clone();
        let axis = Around::of("slice", &x.shape, self.axis)?.axis;
        if self.start + self.len > axis {
            let expected = format!("axis {} to hold {}..{}", self.axis, self.start, self.start + self.len);
            return Err(Error::input("slice", expected, &x.shape));
        }
        y.shape[self.axis] = self.len;
        Ok(Cost::new(y, 0.0))
    }

    fn memory(&self) -> Memory {
        Memory::NOTHING
    }
}

/// Tensors joined along one axis.
#[derive(Clone, Copy, Debug)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Concat {
    /// The parts' extents around the axis, and the shape of the whole.
    fn extents(&self, parts: &[&Tensor]) -> Result<(Vec<Around>, Vec<usize>)> {
        let first = parts.first().ok_or_else(|| Error::input("concat", "at least one input", 0))?;
        let mut shape = first.shape().to_vec();
        let mut around = Vec::with_capacity(parts.len());
        for p in parts {
            let a = Around::of("concat", p.shape(), self.axis)?;
            let mut same = p.shape().to_vec();
            same[self.axis] = first.shape()[self.axis];
            if same != first.shape() {
                let expected = format!("axes {:?} but for axis {}", first.shape(), self.axis);
                return Err(Error::input("concat", expected, p.shape()));
            }
            around.push(a);
        }
        shape[self.axis] = around.iter().map(|a| a.axis).sum();
        Ok((around, shape))
    }

    fn join(&self, parts: &[&Tensor]) -> Result<Tensor> {
        let (around, shape) = self.extents(parts)?;
        let first = parts[0];
        match first.device() {
            Device::Cpu => dispatch_float!("concat", first.dtype(), T => cpu::join::<T>(parts, &around, &shape)),
            Device::Cuda(_) => cuda::join(first, &parts.iter().map(|&p| Some(p)).collect::<Vec<_>>(), &around, &shape),
        }
    }
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Ok(self.join(x)?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let primal = self.join(x)?;
        if x_dot.iter().all(Option::is_none) {
            return Ok(Dual { primal, tangent: None });
        }
        if let Device::Cuda(_) = primal.device() {
            let (around, shape) = self.extents(x)?;
            let tangent = cuda::join(&primal, x_dot, &around, &shape)?;
            return Ok(Dual { primal, tangent: Some(tangent) });
        }
        let zeros = |t: &Tensor| Tensor::zeros(t.shape(), t.dtype(), t.device());
        let parts: Vec<Tensor> = x.iter().zip(x_dot).map(|(x, d)| d.cloned().unwrap_or_else(|| zeros(x))).collect();
        Ok(Dual { primal, tangent: Some(self.join(&parts.iter().collect::<Vec<_>>())?) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let mut start = 0;
        let mut bars = Vec::with_capacity(saved.arity());
        for (i, &wanted) in wanted.iter().enumerate() {
            let len = Around::of("concat", saved.shape(i), self.axis)?.axis;
            let slice = Slice { axis: self.axis, start, len };
            bars.push(wanted.then(|| slice.take(y_bar)).transpose()?);
            start += len;
        }
        Ok(bars)
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let first = x.first().ok_or_else(|| Error::input("concat", "at least one input", 0))?;
        let mut y = (*first).clone();
        let axes = x.iter().map(|x| Ok(Around::of("concat", &x.shape, self.axis)?.axis));
        y.shape[self.axis] = axes.collect::<Result<Vec<_>>>()?.iter().sum();
        // Zeros stand in for tangents that are missing.
        let missing = |moving: &[bool]| x.iter().zip(moving).filter(|(_, m)| !**m).map(|(x, _)| x.bytes()).sum();
        let scratch = if let Rule::Jvp(moving) = rule { missing(moving) } else { 0 };
        Ok(Cost { scratch, ..Cost::new(y, 0.0) })
    }

    fn memory(&self) -> Memory {
        Memory::NOTHING
    }
}

/// The same elements under another shape; free.
#[derive(Clone, Debug)]
pub struct Reshape {
    /// The new shape.
    pub shape: Vec<usize>,
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Ok(x[0].reshape(&self.shape)?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let tangent = x_dot[0].map(|d| d.reshape(&self.shape)).transpose()?;
        Ok(Dual { primal: x[0].reshape(&self.shape)?, tangent })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![wanted[0].then(|| y_bar.reshape(saved.shape(0))).transpose()?])
    }

    fn cost(&self, x: &[&Meta], _rule: Rule<'_>) -> Result<Cost> {
        let [x] = inputs("reshape", x)?;
        let y = Meta::new(&self.shape, x.dtype);
        if y.len() != x.len() {
            return Err(Error::input("reshape", format!("the elements of {:?}", self.shape), &x.shape));
        }
        Ok(Cost::view(y))
    }

    fn memory(&self) -> Memory {
        Memory::NOTHING
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn slices_hold_every_rule() {
        suite::check(&Slice { axis: 1, start: 2, len: 3 }, &[&[2, 6, 5]], 1).unwrap();
        suite::check(&Slice { axis: 0, start: 1, len: 1 }, &[&[3]], 2).unwrap();
        suite::check(&Slice { axis: 2, start: 0, len: 0 }, &[&[2, 1, 4]], 3).unwrap();
    }

    #[test]
    fn slices_and_concatenations_hold_every_rule_on_a_gpu() {
        let slices = [
            (1, 2, 3, &[2, 6, 5][..]),
            (0, 1, 1, &[3]),
            (2, 0, 0, &[2, 1, 4]),
            (2, 8, 16, &[3, 2, 32]),
            (1, 4, 2, &[2, 6, 4]),
        ];
        for (axis, start, len, shape) in slices {
            suite::check_on(EMULATED, &Slice { axis, start, len }, &[shape], 1).unwrap();
            suite::check_half(EMULATED, &Slice { axis, start, len }, (&[shape], &[]), 0.0, 2).unwrap();
        }
        let joined: [&[&[usize]]; 3] =
            [&[&[2, 3, 5], &[2, 1, 5], &[2, 0, 5]], &[&[2, 1, 8], &[2, 3, 8]], &[&[0, 2, 3], &[0, 1, 3]]];
        for shapes in joined {
            suite::check_on(EMULATED, &Concat { axis: 1 }, shapes, 3).unwrap();
            suite::check_half(EMULATED, &Concat { axis: 1 }, (shapes, &[]), 0.0, 4).unwrap();
        }
    }

    #[test]
    fn concatenations_hold_every_rule() {
        suite::check(&Concat { axis: 1 }, &[&[2, 3, 5], &[2, 1, 5], &[2, 0, 5]], 1).unwrap();
        suite::check(&Concat { axis: 0 }, &[&[1], &[4]], 2).unwrap();
    }

    #[test]
    fn reshapes_hold_every_rule() {
        suite::check(&Reshape { shape: vec![3, 10] }, &[&[2, 3, 5]], 1).unwrap();
        suite::check_on(EMULATED, &Reshape { shape: vec![3, 10] }, &[&[2, 3, 5]], 1).unwrap();
    }

    #[test]
    fn a_slice_beyond_the_axis_is_refused() {
        let x = Tensor::zeros(&[2, 3], fewstep_tensor::DType::F32, Device::Cpu);
        assert!(Slice { axis: 1, start: 2, len: 2 }.forward(&[&x]).is_err());
        assert!(Slice { axis: 2, start: 0, len: 1 }.forward(&[&x]).is_err());
    }
}
