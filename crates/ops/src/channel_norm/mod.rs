//! Normalisation of each position by the norm of its channels.

mod cpu;
mod cuda;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::{self, Cost, Meta, Rule};
use crate::layer_norm::rows::Rows;
use crate::{Dual, Error, Memory, Op, Output, Result, Saved};

const NAME: &str = "channel_norm";

/// y = √C·γ·x/max(‖x‖, 1e-12) over the last axis: the norm of the Wan VAE, x `[..., C]`, γ `[C]`.
///
/// Where the norm is below 1e-12 the divisor is constant. Sums are accumulated in the compute type.
#[derive(Clone, Copy, Debug)]
pub struct ChannelNorm;

impl ChannelNorm {
    fn of(x: &[&Tensor]) -> Result<Rows> {
        match x {
            [x, gamma] => Rows::shared(NAME, x.shape(), gamma.shape()),
            _ => Err(Error::input(NAME, "x and gamma", x.len())),
        }
    }
}

impl Op for ChannelNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        let rows = Self::of(x)?;
        match x[0].device() {
            Device::Cpu => dispatch_float!(NAME, x[0].dtype(), T => Ok(cpu::forward::<T>(&rows, x)?.into())),
            Device::Cuda(_) => Ok(cuda::forward(&rows, x)?.into()),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let rows = Self::of(x)?;
        let moves = x_dot.iter().any(Option::is_some);
        if moves && x[0].device() != Device::Cpu {
            return cuda::jvp(&rows, x, x_dot);
        }
        let primal = self.forward(x)?.y;
        if !moves {
            return Ok(Dual { primal, tangent: None });
        }
        let tangent = dispatch_float!(NAME, x[0].dtype(), T => cpu::tangent::<T>(&rows, x, x_dot))?;
        Ok(Dual { primal, tangent: Some(tangent) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let rows = Rows::shared(NAME, saved.shape(0), saved.shape(1))?;
        if y_bar.shape() != saved.shape(0) {
            return Err(Error::input(NAME, format!("a cotangent {:?}", saved.shape(0)), y_bar.shape()));
        }
        match y_bar.device() {
            Device::Cpu => dispatch_float!(NAME, y_bar.dtype(), T => cpu::vjp::<T>(&rows, saved, y_bar, wanted)),
            Device::Cuda(_) => cuda::vjp(&rows, saved, y_bar, wanted),
        }
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [x, gamma] = cost::inputs(NAME, x)?;
        Rows::shared(NAME, &x.shape, &gamma.shape)?;
        Ok(Cost::elementwise(x.clone(), 4.0, rule))
    }

    fn memory(&self) -> Memory {
        Memory::INPUTS
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_on_random_shapes() {
        for (seed, shape) in [&[2usize, 3, 5, 7][..], &[1, 1], &[0, 3], &[130, 40]].into_iter().enumerate() {
            suite::check(&ChannelNorm, &[shape, &shape[shape.len() - 1..]], seed as u64).unwrap();
        }
    }

    #[test]
    fn every_rule_holds_on_a_gpu() {
        for (seed, shape) in [&[2usize, 3, 5, 7][..], &[1, 1], &[0, 3], &[70, 40]].into_iter().enumerate() {
            suite::check_on(EMULATED, &ChannelNorm, &[shape, &shape[shape.len() - 1..]], seed as u64).unwrap();
        }
        // Each output is rounded once, by at most 2⁻⁸ of it.
        for (seed, [rows, c]) in [[40, 96], [9, 33]].into_iter().enumerate() {
            let shapes: [&[usize]; 2] = [&[rows, c], &[c]];
            suite::check_half(EMULATED, &ChannelNorm, (&shapes, &[1]), 2f64.powi(-8), seed as u64).unwrap();
        }
    }

    #[test]
    fn a_position_of_zeros_stays_zero() {
        let (x, gamma) = (Tensor::from_vec(vec![0.0f32, 0.0, 3.0, 4.0], &[2, 2]).unwrap(), [1.0f32, 2.0]);
        let gamma = Tensor::from_vec(gamma.to_vec(), &[2]).unwrap();
        for device in [Device::Cpu, EMULATED] {
            let (x, gamma) = (x.to_device(device).unwrap(), gamma.to_device(device).unwrap());
            let y = ChannelNorm.forward(&[&x, &gamma]).unwrap().y.to_vec_f64();
            let root = std::f64::consts::SQRT_2;
            assert_eq!(y[..2], [0.0, 0.0]);
            assert!((y[2] - 0.6 * root).abs() < 1e-6 && (y[3] - 1.6 * root).abs() < 1e-6, "{y:?}");
        }
    }

    #[test]
    fn a_gain_of_another_width_is_refused_by_name() {
        let t = |s: &[usize]| Tensor::zeros(s, fewstep_tensor::DType::F32, Device::Cpu);
        let e = ChannelNorm.forward(&[&t(&[2, 3]), &t(&[2])]).unwrap_err();
        assert!(e.to_string().contains("channel_norm"), "{e}");
    }
}
