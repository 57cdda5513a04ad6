//! Preconditioning coefficients as an op, so that networks differentiate through them.

use fewstep_ops::cost::inputs;
use fewstep_ops::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};
use fewstep_tensor::{DType, Tensor};

use crate::{TrigTime, Wrapper};

/// Which coefficient of a [`Wrapper`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Factor of x_t on its way into the network.
    CIn,
    /// The time that the network is given.
    CNoise,
    /// Weight of x_t in F.
    OnXt,
    /// Weight of the network's output in F.
    OnNet,
}

/// A preconditioning coefficient of t `[B]` → `[B]`, in f64.
#[derive(Clone, Copy, Debug)]
pub struct Coefficient {
    /// The kind of network.
    pub wrapper: Wrapper,
    /// Which of its coefficients.
    pub which: Which,
}

impl Coefficient {
    fn value(&self, t: TrigTime) -> f64 {
        match self.which {
            Which::CIn => self.wrapper.coefficients(t).c_in,
            Which::CNoise => self.wrapper.coefficients(t).c_noise,
            Which::OnXt => self.wrapper.velocity(t).on_x_t,
            Which::OnNet => self.wrapper.velocity(t).on_net,
        }
    }

    fn slope(&self, t: TrigTime) -> f64 {
        match self.which {
            Which::CIn => self.wrapper.derivatives(t).c_in,
            Which::CNoise => self.wrapper.derivatives(t).c_noise,
            Which::OnXt => self.wrapper.velocity_derivatives(t).on_x_t,
            Which::OnNet => self.wrapper.velocity_derivatives(t).on_net,
        }
    }

    fn map(t: &Tensor, f: impl Fn(usize, TrigTime) -> f64) -> Result<Tensor> {
        let values = t.to_vec_f64().into_iter().enumerate().map(|(i, t)| {
            let t = TrigTime::new(t).map_err(|e| Error::input("coefficient", e.to_string(), t))?;
            Ok(f(i, t))
        });
        Ok(Tensor::from_vec(values.collect::<Result<Vec<f64>>>()?, t.shape())?)
    }

    /// The slope times d: tangent and cotangent rule of an elementwise function.
    fn scaled_slope(&self, t: &Tensor, d: &Tensor) -> Result<Tensor> {
        let d = d.to_vec_f64();
        Self::map(t, |i, t| self.slope(t) * d[i])
    }
}

impl Op for Coefficient {
    fn name(&self) -> &'static str {
        "coefficient"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Ok(Self::map(x[0], |_, t| self.value(t))?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let tangent = x_dot[0].map(|d| self.scaled_slope(x[0], d)).transpose()?;
        Ok(Dual { primal: self.forward(x)?.y, tangent })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let t = saved.input(0)?;
        let bar = || -> Result<Tensor> { Ok(self.scaled_slope(t, y_bar)?.to_dtype(t.dtype())) };
        Ok(vec![wanted[0].then(bar).transpose()?])
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        let [t] = inputs("coefficient", x)?;
        Ok(Cost::elementwise(Meta::new(&t.shape, DType::F64), 1.0, rule))
    }

    fn memory(&self) -> Memory {
        Memory::INPUTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewstep_ops::suite;

    #[test]
    fn every_rule_holds_for_every_coefficient() {
        let t = Tensor::from_vec(vec![0.01, 0.4, 0.8, 1.2, 1.56], &[5]).unwrap();
        for wrapper in [Wrapper::Rf, Wrapper::Rf1000] {
            for which in [Which::CIn, Which::CNoise, Which::OnXt, Which::OnNet] {
                suite::check_at(&Coefficient { wrapper, which }, std::slice::from_ref(&t), 1).unwrap();
            }
        }
    }
}
