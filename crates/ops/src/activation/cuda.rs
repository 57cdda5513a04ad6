//! One pass each, bound by memory; the derivative is recomputed from x.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::{Launch, Source};

use super::Activation;
use crate::{Dual, Result};

const SOURCE: Source = Source::new("activation", &[include_str!("activation.cu")]);

fn launch(a: Activation, x: &Tensor, kernel: &'static str) -> Result<Launch<'static>> {
    let kind = match a {
        Activation::GeluTanh => 0,
        Activation::GeluExact => 1,
        Activation::Silu => 2,
        Activation::Relu => 3,
    };
    Ok(Launch::new(x.device(), &SOURCE, x.dtype(), kernel)?.define("KIND", kind))
}

pub(super) fn forward(a: Activation, x: &Tensor) -> Result<Tensor> {
    let y = Tensor::empty(x.shape(), x.dtype(), x.device())?;
    launch(a, x, "forward")?.map_elements(&[Some(&y)], &[Some(x)]).run()?;
    Ok(y)
}

pub(super) fn jvp(a: Activation, x: &Tensor, x_dot: &Tensor) -> Result<Dual> {
    let like_x = || Tensor::empty(x.shape(), x.dtype(), x.device());
    let (y, y_dot) = (like_x()?, like_x()?);
    launch(a, x, "jvp")?.map_elements(&[Some(&y), Some(&y_dot)], &[Some(x), Some(x_dot)]).run()?;
    Ok(Dual { primal: y, tangent: Some(y_dot) })
}

pub(super) fn vjp(a: Activation, x: &Tensor, y_bar: &Tensor) -> Result<Tensor> {
    let x_bar = Tensor::empty(x.shape(), x.dtype(), x.device())?;
    launch(a, x, "vjp")?.map_elements(&[Some(&x_bar)], &[Some(y_bar), Some(x)]).run()?;
    Ok(x_bar)
}
