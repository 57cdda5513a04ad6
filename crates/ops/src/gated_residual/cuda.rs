//! One pass over the activations; bound by memory.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::Source;

use super::NAME;
use crate::layer_norm::rows::Rows;
use crate::row_kernels::{Pairs, Plan, ROWS, check_wide};
use crate::{Dual, Result, Saved};

const SOURCE: Source = Source::new("gated_residual", &[ROWS, include_str!("gated_residual.cu")]);

pub(super) fn forward(r: &Rows, x: &[&Tensor]) -> Result<Tensor> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    check_wide(NAME, dtype, &[Some(x[2])])?;
    let y = Tensor::empty(x[0].shape(), dtype, device)?;
    let plan = Plan::new(*r, dtype, Pairs::None, &[Some(x[0]), Some(x[1]), Some(x[2])]);
    let launch = plan.launch(device, &SOURCE, dtype, "forward")?.tensor(&y);
    plan.run(launch.tensor(x[0]).tensor(x[1]).tensor(x[2]))?;
    Ok(y)
}

/// With a tangent of h or of the gate.
pub(super) fn jvp(r: &Rows, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    check_wide(NAME, dtype, &[Some(x[2]), x_dot[2]])?;
    let (y, y_dot) = (Tensor::empty(x[0].shape(), dtype, device)?, Tensor::empty(x[0].shape(), dtype, device)?);
    let all = [Some(x[0]), Some(x[1]), Some(x[2]), x_dot[0], x_dot[1], x_dot[2]];
    let plan = Plan::new(*r, dtype, Pairs::None, &all);
    let launch = plan.launch(device, &SOURCE, dtype, "jvp")?.tensor(&y).tensor(&y_dot);
    plan.run(all.into_iter().fold(launch, |launch, t| launch.optional(t)))?;
    Ok(Dual { primal: y, tangent: Some(y_dot) })
}

pub(super) fn vjp(r: &Rows, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let (dtype, device) = (y_bar.dtype(), y_bar.device());
    let mut bars = vec![wanted[0].then(|| y_bar.clone()), None, None];
    if wanted[1] || wanted[2] {
        let (h, gate) = (saved.input(1)?, saved.input(2)?);
        let plan = Plan::summing(*r, dtype, Pairs::None, &[Some(y_bar), Some(h), Some(gate)]);
        bars[1] = wanted[1].then(|| Tensor::empty(saved.shape(1), dtype, device)).transpose()?;
        let gate_bars = plan.partials(wanted[2], dtype, device)?;
        let launch = plan.launch(device, &SOURCE, dtype, "vjp")?.optional(bars[1].as_ref());
        plan.run(launch.optional(gate_bars.as_ref()).tensor(y_bar).tensor(h).tensor(gate))?;
        [bars[2]] = plan.gather([gate_bars], false, saved.shape(2))?;
    }
    Ok(bars)
}
