//! Addition with broadcasting.

mod cpu;
mod cuda;

use fewstep_tensor::{Device, Tensor, arith, dispatch_float};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

/// y = a + b; axes of extent 1 repeat, as do axes missing on the left.
///
/// Equal shapes are a plain sum (residuals); the broadcast serves modulation tables, whose tensors are small.
#[derive(Clone, Copy, Debug)]
pub struct Add;

impl Add {
    fn shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
        let rank = a.len().max(b.len());
        let axis = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
        let joined = (0..rank).map(|i| match (axis(a, i), axis(b, i)) {
            (m, n) if m == n => Some(m),
            (1, n) | (n, 1) => Some(n),
            _ => None,
        });
        joined.collect::<Option<_>>().ok_or_else(|| Error::input("add", "shapes that broadcast", (a, b)))
    }

    fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = Self::shape(a.shape(), b.shape())?;
        if a.device() != Device::Cpu && a.shape() != b.shape() {
            return cuda::sum(a, b, &shape);
        }
        Ok(arith::add(&Self::expand(a, &shape)?, &Self::expand(b, &shape)?)?)
    }

    fn expand(a: &Tensor, shape: &[usize]) -> Result<Tensor> {
        if a.shape() == shape {
            return Ok(a.clone());
        }
        match a.device() {
            Device::Cpu => dispatch_float!("add", a.dtype(), T => cpu::expand::<T>(a, shape)),
            Device::Cuda(_) => cuda::expand(a, shape),
        }
    }

    fn reduce(y_bar: &Tensor, shape: &[usize]) -> Result<Tensor> {
        if y_bar.shape() == shape {
            return Ok(y_bar.clone());
        }
        match y_bar.device() {
            Device::Cpu => dispatch_float!("add", y_bar.dtype(), T => cpu::reduce::<T>(y_bar, shape)),
            Device::Cuda(_) => cuda::reduce(y_bar, shape),
        }
    }
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        match x {
            [a, b] => Ok(Self::sum(a, b)?.into()),
            _ => Err(Error::input("add", "two inputs", x.len())),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let primal = self.forward(x)?.y;
        let tangent = match (x_dot[0], x_dot[1]) {
            (Some(a), Some(b)) => Some(Self::sum(a, b)?),
            (Some(d), None) | (None, Some(d)) => Some(Self::expand(d, primal.shape())?),
            (None, None) => None,
        };
        Ok(Dual { primal, tangent })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let shape = Self::shape(saved.shape(0), saved.shape(1))?;
        if y_bar.shape() != shape {
            return Err(Error::input("add", format!("a cotangent {shape:?}"), y_bar.shape()));
        }
        (0..2).map(|i| wanted[i].then(|| Self::reduce(y_bar, saved.shape(i))).transpose()).collect()
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [a, b] = inputs("add", x)?;
        let y = Meta::new(&Self::shape(&a.shape, &b.shape)?, a.dtype);
        let passes = (0..2).filter(|&i| x[i].shape == y.shape).collect();
        let expanded = x.iter().filter(|x| x.shape != y.shape).count() * y.bytes();
        let scratch = if matches!(rule, Rule::Vjp(_)) { 0 } else { expanded };
        Ok(Cost { scratch, passes, ..Cost::elementwise(y, 1.0, rule) })
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
    fn every_rule_holds_on_random_shapes() {
        for (seed, (a, b)) in [
            (&[3usize, 5, 7][..], &[3usize, 5, 7][..]),
            (&[1, 6, 8], &[3, 6, 8]),
            (&[1, 2, 5], &[4, 1, 5]),
            (&[5], &[2, 3, 5]),
            (&[0, 3], &[1, 3]),
            (&[2, 1, 3, 1], &[2, 5, 3, 4]),
        ]
        .into_iter()
        .enumerate()
        {
            suite::check(&Add, &[a, b], seed as u64).unwrap();
            suite::check(&Add, &[b, a], seed as u64).unwrap();
            suite::check_on(EMULATED, &Add, &[a, b], seed as u64).unwrap();
            suite::check_on(EMULATED, &Add, &[b, a], seed as u64).unwrap();
            // Each output is rounded once, by at most 2⁻⁸ of it.
            suite::check_half(EMULATED, &Add, (&[a, b], &[]), 2f64.powi(-8), seed as u64).unwrap();
        }
    }

    #[test]
    fn shapes_that_do_not_broadcast_are_refused() {
        let t = |s: &[usize]| Tensor::zeros(s, fewstep_tensor::DType::F32, Device::Cpu);
        let e = Add.forward(&[&t(&[2, 3]), &t(&[2, 4])]).unwrap_err();
        assert!(e.to_string().contains("broadcast"), "{e}");
    }
}
