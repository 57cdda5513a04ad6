//! One pass over the rows, normalised and rotated in registers; bound by memory.

use fewstep_tensor::cuda::{Launch, Source};
use fewstep_tensor::{DType, Device, Tensor};

use super::{Extents, NAME, RmsNormRope, RopeStyle};
use crate::layer_norm::rows::Rows;
use crate::row_kernels::{Hold, Pairs, Plan, ROWS, check_wide};
use crate::{Dual, Output, Result, Saved};

const SOURCE: Source = Source::new("rms_norm_rope", &[ROWS, include_str!("rms_norm_rope.cu")]);

/// The rows of the kernels are parts; their groups are samples, so that a row's place in its group gives its token.
struct Parts {
    plan: Plan,
    style: usize,
    /// Parts of a token.
    each: usize,
    table: Option<[Tensor; 2]>,
    head: usize,
}

impl Parts {
    fn new(
        op: &RmsNormRope,
        e: &Extents,
        dtype: DType,
        device: Device,
        tensors: &[Option<&Tensor>],
        plan: impl Fn(Rows, DType, Pairs, &[Option<&Tensor>]) -> Result<Plan>,
    ) -> Result<Option<Self>> {
        if e.rows == 0 || e.d == 0 {
            return Ok(None);
        }
        let each = e.d / e.part;
        let (style, pairs) = match op.rope.as_ref().map(|r| r.style) {
            None => (0, Pairs::None),
            Some(RopeStyle::Interleaved) => (1, Pairs::Neighbours(e.k)),
            Some(RopeStyle::HalfSplit) => (2, Pairs::Halves(e.k)),
        };
        let groups = if style == 0 { 1 } else { e.rows / e.l };
        let rows = Rows { rows: e.rows * each, d: e.part, per_group: e.rows / groups * each, groups };
        let table = op.rope.as_ref().map(|r| r.table.on(device, dtype.wide())).transpose()?;
        Ok(Some(Parts { plan: plan(rows, dtype, pairs, tensors)?, style, each, table, head: e.k }))
    }

    fn launch(&self, dtype: DType, device: Device, kernel: &'static str) -> Result<Launch<'static>> {
        let launch = self.plan.launch(device, &SOURCE, dtype, kernel)?;
        Ok(launch.define("STYLE", self.style).define("PARTS", self.each))
    }

    fn table<'l>(&self, launch: Launch<'l>) -> Launch<'l> {
        let table = |i: usize| self.table.as_ref().map(|t| &t[i]);
        launch.optional(table(0)).optional(table(1))
    }
}

/// Plans for the rows of one tensor, or of two.
fn sweeping(dual: bool, device: Device) -> impl Fn(Rows, DType, Pairs, &[Option<&Tensor>]) -> Result<Plan> {
    move |rows, dtype, pairs, tensors| Plan::sweeping(rows, dtype, pairs, (Hold::Three, dual), tensors, device)
}

pub(super) fn forward(op: &RmsNormRope, e: &Extents, x: &[&Tensor]) -> Result<Output> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    check_wide(NAME, dtype, &[Some(x[1])])?;
    let y = Tensor::empty(x[0].shape(), dtype, device)?;
    let kept = Tensor::empty(&[e.rows, e.d.checked_div(e.part).unwrap_or(0)], dtype.wide(), device)?;
    if let Some(parts) = Parts::new(op, e, dtype, device, &[Some(x[0]), Some(x[1])], sweeping(false, device))? {
        let launch = parts.launch(dtype, device, "forward")?.tensor(&y).tensor(&kept).tensor(x[0]).tensor(x[1]);
        parts.plan.run_with(parts.table(launch).real(op.eps), &[parts.head])?;
    }
    Ok(Output { y, kept: vec![kept] })
}

pub(super) fn jvp(op: &RmsNormRope, e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    check_wide(NAME, dtype, &[Some(x[1]), x_dot[1]])?;
    let (y, y_dot) = (Tensor::empty(x[0].shape(), dtype, device)?, Tensor::empty(x[0].shape(), dtype, device)?);
    let all = [Some(x[0]), Some(x[1]), x_dot[0], x_dot[1]];
    if let Some(parts) = Parts::new(op, e, dtype, device, &all, sweeping(true, device))? {
        let launch = parts.launch(dtype, device, "jvp")?.tensor(&y).tensor(&y_dot);
        let launch = all.into_iter().fold(launch, |launch, t| launch.optional(t));
        parts.plan.run_with(parts.table(launch).real(op.eps), &[parts.head])?;
    }
    Ok(Dual { primal: y, tangent: Some(y_dot) })
}

pub(super) fn vjp(
    op: &RmsNormRope,
    e: &Extents,
    saved: &Saved,
    y_bar: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let (dtype, device) = (y_bar.dtype(), y_bar.device());
    let (x, weight, kept) = (saved.input(0)?, saved.input(1)?, saved.kept(0)?);
    let x_bar = wanted[0].then(|| Tensor::empty(saved.shape(0), dtype, device)).transpose()?;
    let all = [Some(x), Some(weight), Some(y_bar)];
    let Some(parts) = Parts::new(op, e, dtype, device, &all, |r, t, p, x| Ok(Plan::summing_both(r, t, p, x)))? else {
        let zeros = || Tensor::zeros(saved.shape(1), dtype.wide(), device);
        return Ok(vec![x_bar, wanted[1].then(zeros)]);
    };
    let weight_bars = parts.plan.partials(wanted[1], dtype, device)?;
    let launch = parts.launch(dtype, device, "vjp")?.optional(x_bar.as_ref()).optional(weight_bars.as_ref());
    let launch = launch.tensor(y_bar).tensor(x).tensor(kept).tensor(weight);
    parts.plan.run_with(parts.table(launch), &[parts.head])?;
    let [weight_bar] = parts.plan.gather([weight_bars], true, saved.shape(1))?;
    Ok(vec![x_bar, weight_bar])
}
