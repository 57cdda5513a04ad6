//! One pass over the positions; bound by memory.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::Source;

use super::NAME;
use crate::layer_norm::rows::Rows;
use crate::row_kernels::{Hold, Pairs, Plan, ROWS, check_wide};
use crate::{Dual, Result, Saved};

const SOURCE: Source = Source::new("channel_norm", &[ROWS, include_str!("channel_norm.cu")]);

pub(super) fn forward(r: &Rows, x: &[&Tensor]) -> Result<Tensor> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    check_wide(NAME, dtype, &[Some(x[1])])?;
    let y = Tensor::empty(x[0].shape(), dtype, device)?;
    let plan = Plan::sweeping(*r, dtype, Pairs::None, (Hold::One, false), &[Some(x[0]), Some(x[1])], device)?;
    plan.run(plan.launch(device, &SOURCE, dtype, "forward")?.tensor(&y).tensor(x[0]).tensor(x[1]))?;
    Ok(y)
}

pub(super) fn jvp(r: &Rows, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    check_wide(NAME, dtype, &[Some(x[1]), x_dot[1]])?;
    let (y, y_dot) = (Tensor::empty(x[0].shape(), dtype, device)?, Tensor::empty(x[0].shape(), dtype, device)?);
    let all = [Some(x[0]), Some(x[1]), x_dot[0], x_dot[1]];
    let plan = Plan::sweeping(*r, dtype, Pairs::None, (Hold::One, true), &all, device)?;
    let launch = plan.launch(device, &SOURCE, dtype, "jvp")?.tensor(&y).tensor(&y_dot);
    plan.run(all.into_iter().fold(launch, |launch, t| launch.optional(t)))?;
    Ok(Dual { primal: y, tangent: Some(y_dot) })
}

pub(super) fn vjp(r: &Rows, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let (dtype, device) = (y_bar.dtype(), y_bar.device());
    let (x, gamma) = (saved.input(0)?, saved.input(1)?);
    let plan = Plan::summing_both(*r, dtype, Pairs::None, &[Some(y_bar), Some(x), Some(gamma)]);
    let x_bar = wanted[0].then(|| Tensor::empty(saved.shape(0), dtype, device)).transpose()?;
    let gamma_bars = plan.partials(wanted[1], dtype, device)?;
    let launch = plan.launch(device, &SOURCE, dtype, "vjp")?.optional(x_bar.as_ref()).optional(gamma_bars.as_ref());
    plan.run(launch.tensor(y_bar).tensor(x).tensor(gamma))?;
    let [gamma_bar] = plan.gather([gamma_bars], false, saved.shape(1))?;
    Ok(vec![x_bar, gamma_bar])
}
