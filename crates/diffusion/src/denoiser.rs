//! A raw network seen as TrigFlow's velocity F_θ(x_t, t).

use fewstep_ops::{
    Cast, Combine, Conditions, Dual, Forward, Grads, Mode, Network, Params, Plain, Recompute, Result, Reverse, Var,
};
use fewstep_tensor::{DType, Tensor, arith};

use crate::coefficient::{Coefficient, Which};
use crate::{Guidance, TrigTime, Wrapper};

/// A network with its preconditioning: F = on_x_t(t)·x_t + on_net(t)·net(c_in(t)·x_t, c_noise(t)).
///
/// States x_t, times and coefficients are f64; the network computes in its parameters' dtype. c_noise reaches it in f64.
#[derive(Debug)]
pub struct Denoiser<N> {
    network: N,
    wrapper: Wrapper,
}

impl<N> Denoiser<N> {
    /// The unit of the schedules' timesteps: τ = 1 is 1000.
    pub(crate) const TIMESTEPS: f64 = 1000.0;
}

impl<N: Network> Denoiser<N> {
    /// Wraps a network.
    pub fn new(network: N, wrapper: Wrapper) -> Self {
        Denoiser { network, wrapper }
    }

    /// The raw network.
    pub fn network(&self) -> &N {
        &self.network
    }

    /// How the raw network's input, time and output relate to TrigFlow's.
    pub fn wrapper(&self) -> Wrapper {
        self.wrapper
    }

    /// F(x_t, t) in any mode: x_t `[B, C, F, H, W]` f64, t `[B]` f64 → f64.
    ///
    /// # Errors
    /// If shapes do not fit the network or a time leaves [0, π/2].
    pub fn velocity<M: Mode>(
        &self,
        m: &M,
        x_t: &M::Value,
        t: &M::Value,
        conditions: &Conditions<M::Value>,
    ) -> Result<M::Value> {
        let of = |which| m.apply(Coefficient { wrapper: self.wrapper, which }, &[t]);
        let scaled = m.apply(Combine, &[&of(Which::CIn)?, x_t])?;
        let input = m.apply(Cast { to: m.dtype(&conditions.text) }, &[&scaled])?;
        let net = self.network.forward(m, &input, &of(Which::CNoise)?, conditions)?;
        let net = m.apply(Cast { to: DType::F64 }, &[&net])?;
        m.apply(Combine, &[&of(Which::OnXt)?, x_t, &of(Which::OnNet)?, &net])
    }
}

/// A denoiser with weights: what objectives and samplers ask for predictions.
///
/// Conditions must have the weights' dtype.
#[derive(Debug)]
pub struct Predictor<'a, N> {
    /// The network and its preconditioning.
    pub denoiser: &'a Denoiser<N>,
    /// The weights.
    pub params: &'a Params,
}

impl<N> Clone for Predictor<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N> Copy for Predictor<'_, N> {}

fn times(t: &[TrigTime]) -> Result<Tensor> {
    Ok(Tensor::from_vec(t.iter().map(|t| t.get()).collect::<Vec<f64>>(), &[t.len()])?)
}

impl<'a, N: Network> Predictor<'a, N> {
    /// F(x_t, t), f64.
    ///
    /// # Errors
    /// As [`Denoiser::velocity`].
    pub fn velocity(&self, x_t: &Tensor, t: &[TrigTime], conditions: &Conditions) -> Result<Tensor> {
        let m = Plain::new(self.params);
        self.denoiser.velocity(&m, x_t, &times(t)?, &conditions.in_mode(&m))
    }

    /// Guided F: uncond + w·(cond − uncond); one evaluation where w = 1.
    ///
    /// # Errors
    /// As [`Denoiser::velocity`].
    pub fn guided_velocity(
        &self,
        x_t: &Tensor,
        t: &[TrigTime],
        conditions: &Conditions,
        unconditional: &Conditions,
        guidance: Guidance,
    ) -> Result<Tensor> {
        let f_cond = self.velocity(x_t, t, conditions)?;
        if !guidance.needs_unconditional() {
            return Ok(f_cond);
        }
        let f_uncond = self.velocity(x_t, t, unconditional)?;
        let (w, n) = (guidance.scale(), t.len());
        Ok(arith::combine(&[(&vec![1.0 - w; n], &f_uncond), (&vec![w; n], &f_cond)])?)
    }

    /// (F, dF along (x_dot, t_dot)), f64.
    ///
    /// # Errors
    /// As [`Denoiser::velocity`].
    pub fn velocity_jvp(
        &self,
        (x_t, x_dot): (&Tensor, &Tensor),
        (t, t_dot): (&[TrigTime], &[f64]),
        conditions: &Conditions,
    ) -> Result<(Tensor, Tensor)> {
        let m = Forward::new(self.params);
        let x = m.input(x_t.clone(), Some(x_dot.clone()));
        let t = m.input(times(t)?, Some(Tensor::from_vec(t_dot.to_vec(), &[t_dot.len()])?));
        let Dual { primal, tangent } = self.denoiser.velocity(&m, &x, &t, &conditions.in_mode(&m))?;
        let tangent = tangent.unwrap_or_else(|| Tensor::zeros(primal.shape(), DType::F64, primal.device()));
        Ok((primal, tangent))
    }

    /// F on a tape, to be differentiated by the weights.
    ///
    /// # Errors
    /// As [`Denoiser::velocity`].
    pub fn velocity_tape(
        &self,
        x_t: &Tensor,
        t: &[TrigTime],
        conditions: &Conditions,
        recompute: Recompute,
    ) -> Result<Tape<'a>> {
        let m = Reverse::new(self.params, recompute);
        let x = m.constant(x_t.clone());
        let t = m.constant(times(t)?);
        let conditions = conditions.in_mode(&m);
        let f = self.denoiser.velocity(&m, &x, &t, &conditions)?;
        Ok(Tape { mode: m, f })
    }
}

/// A prediction F_θ that waits for its cotangent.
pub struct Tape<'a> {
    mode: Reverse<'a>,
    f: Var,
}

impl Tape<'_> {
    /// F_θ, f64.
    pub fn f(&self) -> &Tensor {
        self.f.value()
    }

    /// Adds (∂F/∂θ)ᵀ·f_bar to the gradients.
    ///
    /// # Errors
    /// If the cotangent does not have the shape of F.
    pub fn backward(self, f_bar: Tensor, grads: &mut Grads) -> Result<()> {
        self.mode.backward(&self.f, f_bar, grads).map(drop)
    }
}

/// x_0 = cos t·x_t − sin t·F, sample by sample.
///
/// # Errors
/// If shapes differ or there is not one time a sample.
pub fn clean(x_t: &Tensor, f: &Tensor, t: &[TrigTime]) -> crate::Result<Tensor> {
    let (sin, cos): (Vec<f64>, Vec<f64>) = t.iter().map(|t| t.sin_cos()).unzip();
    let minus: Vec<f64> = sin.iter().map(|s| -s).collect();
    Ok(arith::combine(&[(&cos, x_t), (&minus, f)])?)
}
