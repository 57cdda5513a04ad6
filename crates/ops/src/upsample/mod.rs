//! Nearest-neighbour enlargement.

mod cpu;
mod cuda;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::{self, Cost, Meta, Rule};
use crate::{Dual, Error, Memory, Op, Output, Result, Saved};

const NAME: &str = "upsample";

/// Every position repeated twice along height and width: `[B, H, W, C]` → `[B, 2H, 2W, C]`.
#[derive(Clone, Copy, Debug)]
pub struct Upsample;

impl Upsample {
    fn enlarge(x: &Tensor) -> Result<Tensor> {
        let &[b, h, w, c] = x.shape() else { return Err(Error::input(NAME, "[B, H, W, C]", x.shape())) };
        match x.device() {
            Device::Cpu => dispatch_float!(NAME, x.dtype(), T => cpu::enlarge::<T>(x, [b, h, w, c])),
            Device::Cuda(_) => cuda::enlarge(x, [b, h, w, c]),
        }
    }
}

impl Op for Upsample {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        match x {
            [x] => Ok(Self::enlarge(x)?.into()),
            _ => Err(Error::input(NAME, "one input", x.len())),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        Ok(Dual { primal: self.forward(x)?.y, tangent: x_dot[0].map(Self::enlarge).transpose()? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let &[b, h, w, c] = saved.shape(0) else { return Err(Error::input(NAME, "[B, H, W, C]", saved.shape(0))) };
        if y_bar.shape() != [b, 2 * h, 2 * w, c] {
            return Err(Error::input(NAME, format!("a cotangent {:?}", [b, 2 * h, 2 * w, c]), y_bar.shape()));
        }
        let back = || match y_bar.device() {
            Device::Cpu => dispatch_float!(NAME, y_bar.dtype(), T => cpu::gather::<T>(y_bar, [b, h, w, c])),
            Device::Cuda(_) => cuda::gather(y_bar, [b, h, w, c]),
        };
        Ok(vec![wanted[0].then(back).transpose()?])
    }

    fn cost(&self, x: &[&Meta], _rule: Rule<'_>) -> Result<Cost> {
        let [x] = cost::inputs(NAME, x)?;
        let &[b, h, w, c] = x.shape.as_slice() else { return Err(Error::input(NAME, "[B, H, W, C]", &x.shape)) };
        Ok(Cost::new(Meta::new(&[b, 2 * h, 2 * w, c], x.dtype), 0.0))
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
        for (seed, shape) in [[2, 3, 5, 7], [1, 1, 1, 1], [0, 2, 2, 3], [1, 40, 30, 2]].iter().enumerate() {
            suite::check(&Upsample, &[shape], seed as u64).unwrap();
            suite::check_on(EMULATED, &Upsample, &[shape], seed as u64).unwrap();
        }
        for (seed, shape) in [[2, 3, 2, 8], [1, 2, 2, 3]].iter().enumerate() {
            // A sum of four is rounded once, to half a unit of 8 bits.
            suite::check_half(EMULATED, &Upsample, (&[shape], &[]), 2f64.powi(-8), seed as u64).unwrap();
        }
    }

    #[test]
    fn each_position_is_repeated_along_both_axes() {
        let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], &[1, 2, 2, 1]).unwrap();
        let y = Upsample.forward(&[&x]).unwrap().y;
        assert_eq!(y.shape(), [1, 4, 4, 1]);
        let want = [1., 1., 2., 2., 1., 1., 2., 2., 3., 3., 4., 4., 3., 3., 4., 4.];
        assert_eq!(y.to_vec_f64(), want);
    }

    #[test]
    fn other_axes_are_refused_by_name() {
        let x = Tensor::zeros(&[2, 3, 4], fewstep_tensor::DType::F32, Device::Cpu);
        assert!(Upsample.forward(&[&x]).unwrap_err().to_string().contains("upsample"));
    }
}
