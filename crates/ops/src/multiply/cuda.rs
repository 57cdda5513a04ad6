//! One pass, bound by memory.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::{Launch, Source};

use crate::{Dual, Result};

const SOURCE: Source = Source::new("multiply", &[include_str!("multiply.cu")]);

fn launch(like: &Tensor, kernel: &'static str) -> Result<Launch<'static>> {
    Ok(Launch::new(like.device(), &SOURCE, like.dtype(), kernel)?)
}

fn empty(like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::empty(like.shape(), like.dtype(), like.device())?)
}

pub(super) fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = empty(a)?;
    launch(a, "forward")?.map_elements(&[Some(&y)], &[Some(a), Some(b)]).run()?;
    Ok(y)
}

pub(super) fn jvp(a: &Tensor, b: &Tensor, x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (y, y_dot) = (empty(a)?, empty(a)?);
    let inputs = [Some(a), Some(b), x_dot[0], x_dot[1]];
    launch(a, "jvp")?.map_elements(&[Some(&y), Some(&y_dot)], &inputs).run()?;
    Ok(Dual { primal: y, tangent: Some(y_dot) })
}

pub(super) fn vjp([a, b]: [&Tensor; 2], y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let bars = vec![wanted[0].then(|| empty(a)).transpose()?, wanted[1].then(|| empty(b)).transpose()?];
    if wanted[0] || wanted[1] {
        let outputs = [bars[0].as_ref(), bars[1].as_ref()];
        launch(a, "vjp")?.map_elements(&outputs, &[Some(y_bar), Some(a), Some(b)]).run()?;
    }
    Ok(bars)
}
