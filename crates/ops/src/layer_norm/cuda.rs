//! One pass over the rows, bound by memory; the statistics are in the wide dtype.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::Source;

use super::Spec;
use super::rows::Rows;
use crate::row_kernels::{Hold, Pairs, Plan, ROWS, check_wide};
use crate::{Dual, Output, Result, Saved};

const SOURCE: Source = Source::new("layer_norm", &[ROWS, include_str!("layer_norm.cu")]);

pub(super) fn forward(spec: &Spec, r: &Rows, x: &[&Tensor]) -> Result<Output> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    let (factor, offset) = (x[spec.factor], x[spec.offset]);
    check_wide(spec.name, dtype, &[Some(factor), Some(offset)])?;
    let y = Tensor::empty(x[0].shape(), dtype, device)?;
    let kept = Tensor::empty(&[r.rows, 2], dtype.wide(), device)?;
    let plan =
        Plan::sweeping(*r, dtype, Pairs::None, (Hold::One, false), &[Some(x[0]), Some(factor), Some(offset)], device)?;
    let launch = plan.launch(device, &SOURCE, dtype, "forward")?.tensor(&y).tensor(&kept);
    plan.run(launch.tensor(x[0]).tensor(factor).tensor(offset).real(spec.base).real(spec.eps))?;
    Ok(Output { y, kept: vec![kept] })
}

pub(super) fn jvp(spec: &Spec, r: &Rows, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    let (factor, offset) = (x[spec.factor], x[spec.offset]);
    let (factor_dot, offset_dot) = (x_dot[spec.factor], x_dot[spec.offset]);
    check_wide(spec.name, dtype, &[Some(factor), Some(offset), factor_dot, offset_dot])?;
    let (y, y_dot) = (Tensor::empty(x[0].shape(), dtype, device)?, Tensor::empty(x[0].shape(), dtype, device)?);
    let all = [Some(x[0]), Some(factor), Some(offset), x_dot[0], factor_dot, offset_dot];
    let plan = Plan::sweeping(*r, dtype, Pairs::None, (Hold::One, true), &all, device)?;
    let launch = plan.launch(device, &SOURCE, dtype, "jvp")?.tensor(&y).tensor(&y_dot);
    let launch = all.into_iter().fold(launch, |launch, t| launch.optional(t));
    plan.run(launch.real(spec.base).real(spec.eps))?;
    Ok(Dual { primal: y, tangent: Some(y_dot) })
}

pub(super) fn vjp(
    spec: &Spec,
    r: &Rows,
    saved: &Saved,
    y_bar: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let (dtype, device) = (y_bar.dtype(), y_bar.device());
    let (x, factor, kept) = (saved.input(0)?, saved.input(spec.factor)?, saved.kept(0)?);
    let plan = Plan::summing_both(*r, dtype, Pairs::None, &[Some(x), Some(factor), Some(y_bar)]);
    let x_bar = wanted[0].then(|| Tensor::empty(saved.shape(0), dtype, device)).transpose()?;
    let factor_bars = plan.partials(wanted[spec.factor], dtype, device)?;
    let offset_bars = plan.partials(wanted[spec.offset], dtype, device)?;
    let launch = plan.launch(device, &SOURCE, dtype, "vjp")?.optional(x_bar.as_ref());
    let launch = launch.optional(factor_bars.as_ref()).optional(offset_bars.as_ref());
    plan.run(launch.tensor(y_bar).tensor(x).tensor(kept).tensor(factor).real(spec.base))?;
    let [factor_bar, offset_bar] = plan.gather([factor_bars, offset_bars], false, saved.shape(spec.factor))?;
    let mut bars = vec![x_bar, None, None];
    (bars[spec.factor], bars[spec.offset]) = (factor_bar, offset_bar);
    Ok(bars)
}
