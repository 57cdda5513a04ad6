//! The one suite that proves every op, in f64.
//!
//! For random inputs of given shapes it checks: the primal of `jvp` is `forward` bit for bit; `jvp` agrees with
//! central differences; ⟨ȳ, Jẋ⟩ = ⟨Jᵀȳ, ẋ⟩; a missing tangent is a zero tangent; `jvp` is linear in the tangent;
//! `vjp` returns just what is wanted; and every rule of the same op in f32 agrees with f64.

use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

use crate::{Dual, Error, Meta, Op, Result, Rule, Saved};

/// Central differences of fourth order leave h⁴·f⁽⁵⁾/30 and rounding ε/h: at half a thousandth rounding stays below 10⁻¹² of the
/// scale, and curvature below 10⁻⁹ also where scores that no factor tames go through an exponential.
const STEP: f64 = 5e-4;
/// Bound on the error of a difference quotient relative to the largest values involved.
const DIFFERENCE_TOLERANCE: f64 = 1e-8;
/// Bound on sums that are equal but for the order of f64 rounding.
const ROUNDING_TOLERANCE: f64 = 1e-11;
/// Bound on f32 against f64 relative to the largest value: ε_f32 = 6·10⁻⁸ over sums of a few hundred terms.
const SINGLE_TOLERANCE: f64 = 1e-5;

/// The error that came nearest to its bound, and the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Margin {
    /// The error, relative to what its bound is relative to.
    pub error: f64,
    /// What is allowed.
    pub allowed: f64,
}

impl Margin {
    /// Whether the error is within the bound; NaN is not.
    pub fn holds(&self) -> bool {
        self.error <= self.allowed
    }

    /// The one of two that is nearer to its bound, or beyond it.
    pub fn nearer(self, other: Margin) -> Margin {
        let share = |m: &Margin| if m.holds() { m.error / m.allowed.max(f64::MIN_POSITIVE) } else { f64::INFINITY };
        if share(&other) > share(&self) || self.allowed == 0.0 && self.holds() { other } else { self }
    }
}

/// Bounds that are held one after another; the nearest is kept.
#[derive(Default)]
struct Claims {
    nearest: Margin,
}

impl Claims {
    /// Holds an error against its bound: says what is wrong where it passes it.
    fn hold(&mut self, error: f64, allowed: f64) -> Option<String> {
        let margin = Margin { error, allowed };
        self.nearest = self.nearest.nearer(margin);
        (!margin.holds()).then(|| format!("off by {error:e} where {allowed:e} is allowed"))
    }

    /// Holds the largest difference, relative to max|want| or to `scale` where that is larger.
    fn near(&mut self, got: &Tensor, want: &Tensor, tolerance: f64, scale: f64) -> Option<String> {
        if got.shape() != want.shape() {
            return Some(format!("shape {:?} against {:?}", got.shape(), want.shape()));
        }
        let pairs = got.to_vec_f64().into_iter().zip(want.to_vec_f64());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
        let scale = scale.max(max_abs(want)).max(f64::MIN_POSITIVE);
        self.hold(worst / scale, tolerance).map(|e| format!("{e}, at scale {scale:e}"))
    }
}

/// Normal inputs of the given shapes, one sample of the stream each.
///
/// # Errors
/// Never for f64; the signature follows the draw.
pub fn draw(seed: u64, purpose: u64, shapes: &[&[usize]]) -> Result<Vec<Tensor>> {
    let stream = Stream::new(seed, Purpose::Check, purpose);
    let one = |(i, shape): (usize, &&[usize])| {
        let flat = arith::normal(&stream, i as u64, &[1, shape.iter().product()], DType::F64, Device::Cpu)?;
        Ok(flat.reshape(shape)?)
    };
    shapes.iter().enumerate().map(one).collect()
}

/// Proves an op on normal inputs of these shapes.
///
/// # Errors
/// The first claim that fails, with the seed.
pub fn check(op: &dyn Op, shapes: &[&[usize]], seed: u64) -> std::result::Result<(), String> {
    let x = draw(seed, 0, shapes).map_err(|e| e.to_string())?;
    check_at(op, &x, seed)
}

/// Proves an op at these f64 inputs, and in f32.
///
/// # Errors
/// The first claim that fails, with the seed.
pub fn check_at(op: &dyn Op, x: &[Tensor], seed: u64) -> std::result::Result<(), String> {
    check_double(op, x, seed)?;
    check_single(op, x, seed).map(drop)
}

/// Proves the rules of an op at these f64 inputs.
///
/// # Errors
/// The first claim that fails, with the seed.
pub fn check_double(op: &dyn Op, x: &[Tensor], seed: u64) -> std::result::Result<Margin, String> {
    proof(op, x, seed, double_precision)
}

/// Proves that every rule of an op in f32 is the same in f64, at these f64 inputs.
///
/// # Errors
/// The first claim that fails, with the seed.
pub fn check_single(op: &dyn Op, x: &[Tensor], seed: u64) -> std::result::Result<Margin, String> {
    proof(op, x, seed, single_precision)
}

fn proof(
    op: &dyn Op,
    x: &[Tensor],
    seed: u64,
    run: impl FnOnce(&dyn Op, &[Tensor], u64, &mut Claims) -> Result<Option<String>>,
) -> std::result::Result<Margin, String> {
    let shapes: Vec<Vec<usize>> = x.iter().map(|t| t.shape().to_vec()).collect();
    let mut claims = Claims::default();
    run(op, x, seed, &mut claims)
        .and_then(|failed| failed.map_or(Ok(()), |claim| Err(Error::input(op.name(), "the claim to hold", claim))))
        .map_err(|e| format!("{e}; op {op:?}, shapes {shapes:?}, seed {seed}"))?;
    Ok(claims.nearest)
}

/// Runs every claim in f64; `Some` names the first that fails.
fn double_precision(op: &dyn Op, x: &[Tensor], seed: u64, claims: &mut Claims) -> Result<Option<String>> {
    let refs: Vec<&Tensor> = x.iter().collect();
    let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
    let (u, v) = (draw(seed, 1, &shapes)?, draw(seed, 2, &shapes)?);
    let output = op.forward(&refs)?;
    let y_bar = draw(seed, 3, &[output.y.shape()])?.remove(0);
    if bits(&op.value(&refs)?) != bits(&output.y) {
        return Ok(Some("value is forward, bit for bit".into()));
    }
    if let Some(e) = cost(op, &refs, &output)? {
        return Ok(Some(e));
    }
    let jvp = |x_dot: &[Tensor]| op.jvp(&refs, &x_dot.iter().map(Some).collect::<Vec<_>>());

    let dual = jvp(&u)?;
    if bits(&dual.primal) != bits(&output.y) {
        return Ok(Some("the primal of jvp is forward, bit for bit".into()));
    }
    let ju = tangent(&dual);
    if let Some(e) = claims.near(&ju, &central_difference(op, x, &u)?, DIFFERENCE_TOLERANCE, max_abs(&output.y)) {
        return Ok(Some(format!("jvp is the central difference: {e}")));
    }
    if let Some(e) = zero_tangents(op, &refs, &u, claims)? {
        return Ok(Some(e));
    }
    let mixed = u.iter().zip(&v).map(|(u, v)| mix(1.5, u, -0.5, v)).collect::<Result<Vec<_>>>()?;
    let want = mix(1.5, &ju, -0.5, &tangent(&jvp(&v)?))?;
    if let Some(e) = claims.near(&tangent(&jvp(&mixed)?), &want, ROUNDING_TOLERANCE, max_abs(&ju)) {
        return Ok(Some(format!("jvp is linear in the tangent: {e}")));
    }
    adjoint(op, &refs, &output, &y_bar, (&u, &ju), claims)
}

/// What an op says that it makes, from shapes, is what it makes.
fn cost(op: &dyn Op, x: &[&Tensor], output: &crate::Output) -> Result<Option<String>> {
    let meta = |t: &Tensor| Meta::new(t.shape(), t.dtype());
    let metas: Vec<Meta> = x.iter().map(|t| meta(t)).collect();
    let metas: Vec<&Meta> = metas.iter().collect();
    let all = vec![true; x.len()];
    for rule in [Rule::Forward, Rule::Jvp(&all), Rule::Vjp(&all)] {
        let cost = op.cost(&metas, rule)?;
        let kept: Vec<Meta> = output.kept.iter().map(meta).collect();
        if (&cost.y, &cost.kept) != (&meta(&output.y), &kept) {
            return Ok(Some(format!("cost says what forward makes: {cost:?} against {:?}", meta(&output.y))));
        }
        if !cost.flops.is_finite() {
            return Ok(Some(format!("cost counts operations: {cost:?}")));
        }
    }
    Ok(None)
}

fn adjoint(
    op: &dyn Op,
    x: &[&Tensor],
    output: &crate::Output,
    y_bar: &Tensor,
    (u, ju): (&[Tensor], &Tensor),
    claims: &mut Claims,
) -> Result<Option<String>> {
    let saved = Saved::of(op, x, output);
    let all = op.vjp(&saved, y_bar, &vec![true; x.len()])?;
    let left = dot(y_bar, ju);
    let (mut right, mut scale) = (0.0, max_abs(y_bar) * max_abs(ju) * ju.len() as f64);
    for (i, (x_bar, u)) in all.iter().zip(u).enumerate() {
        let Some(x_bar) = x_bar else { return Ok(Some(format!("vjp returns the wanted cotangent of input {i}"))) };
        if x_bar.shape() != x[i].shape() || x_bar.dtype() != x[i].dtype() {
            return Ok(Some(format!("the cotangent of input {i} has its shape and dtype: {:?}", x_bar.shape())));
        }
        right += dot(x_bar, u);
        scale += max_abs(x_bar) * max_abs(u) * u.len() as f64;
        let only: Vec<bool> = (0..x.len()).map(|j| j == i).collect();
        let alone = op.vjp(&saved, y_bar, &only)?;
        for (j, a) in alone.iter().enumerate() {
            if a.is_some() != only[j] {
                return Ok(Some(format!("vjp returns just what is wanted (input {j} when only {i} is)")));
            }
        }
        if alone[i].as_ref().map(bits) != Some(bits(x_bar)) {
            return Ok(Some(format!("the cotangent of input {i} does not depend on what else is wanted")));
        }
    }
    if let Some(e) = sums(op, x, &saved, y_bar, (u, &all), claims)? {
        return Ok(Some(e));
    }
    let failed = claims.hold((left - right).abs() / scale.max(f64::MIN_POSITIVE), ROUNDING_TOLERANCE);
    Ok(failed.map(|e| format!("⟨ȳ, Jẋ⟩ = ⟨Jᵀȳ, ẋ⟩: {left:e} against {right:e}, {e}")))
}

/// Whether an op adds a cotangent to a sum in place.
fn adds(op: &dyn Op, x: &[&Tensor]) -> Result<bool> {
    let metas: Vec<Meta> = x.iter().map(|t| Meta::new(t.shape(), t.dtype())).collect();
    let cost = op.cost(&metas.iter().collect::<Vec<_>>(), Rule::Vjp(&vec![true; x.len()]))?;
    Ok(!cost.adds.is_empty())
}

/// An op that adds cotangents to sums adds what its vjp returns.
fn sums(
    op: &dyn Op,
    x: &[&Tensor],
    saved: &Saved,
    y_bar: &Tensor,
    (before, x_bar): (&[Tensor], &[Option<Tensor>]),
    claims: &mut Claims,
) -> Result<Option<String>> {
    let all = vec![true; x.len()];
    if !adds(op, x)? {
        return Ok(None);
    }
    let sums = op.vjp_onto(saved, y_bar.clone(), &all, before.iter().cloned().map(Some).collect())?;
    for (i, ((sum, before), x_bar)) in sums.iter().zip(before).zip(x_bar).enumerate() {
        let (Some(sum), Some(x_bar)) = (sum, x_bar) else {
            return Ok(Some(format!("a sum comes back with the cotangent of input {i}")));
        };
        if let Some(e) = claims.near(sum, &mix(1.0, before, 1.0, x_bar)?, ROUNDING_TOLERANCE, max_abs(x_bar)) {
            return Ok(Some(format!("the cotangent of input {i} is added to its sum: {e}")));
        }
    }
    Ok(None)
}

fn zero_tangents(op: &dyn Op, x: &[&Tensor], u: &[Tensor], claims: &mut Claims) -> Result<Option<String>> {
    let zeros: Vec<Tensor> = x.iter().map(|t| Tensor::zeros(t.shape(), t.dtype(), t.device())).collect();
    for missing in 0..1usize << x.len().min(6) {
        let gone = |i: usize| missing >> i & 1 == 1;
        let symbolic: Vec<_> = (0..x.len()).map(|i| (!gone(i)).then_some(&u[i])).collect();
        let real: Vec<_> = (0..x.len()).map(|i| Some(if gone(i) { &zeros[i] } else { &u[i] })).collect();
        let (a, b) = (op.jvp(x, &symbolic)?, op.jvp(x, &real)?);
        if bits(&a.primal) != bits(&b.primal) {
            return Ok(Some("the primal does not depend on which tangents are missing".into()));
        }
        if let Some(e) = claims.near(&tangent(&a), &tangent(&b), ROUNDING_TOLERANCE, 0.0) {
            return Ok(Some(format!("a missing tangent is a zero tangent (missing set {missing:b}): {e}")));
        }
    }
    Ok(None)
}

/// Forward, tangent and cotangents of the same op in f32.
fn single_precision(op: &dyn Op, x: &[Tensor], seed: u64, claims: &mut Claims) -> Result<Option<String>> {
    let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
    let u = draw(seed, 1, &shapes)?;
    let narrow = |t: &[Tensor]| t.iter().map(|t| t.to_dtype(DType::F32)).collect::<Vec<_>>();
    let (x32, u32) = (narrow(x), narrow(&u));
    let (refs, refs32): (Vec<&Tensor>, Vec<&Tensor>) = (x.iter().collect(), x32.iter().collect());
    let (output, output32) = (op.forward(&refs)?, op.forward(&refs32)?);
    let (y, ju) = (&output.y, tangent(&op.jvp(&refs, &u.iter().map(Some).collect::<Vec<_>>())?));
    let dual = op.jvp(&refs32, &u32.iter().map(Some).collect::<Vec<_>>())?;
    if bits(&dual.primal) != bits(&output32.y) {
        return Ok(Some("in f32 the primal of jvp is forward, bit for bit".into()));
    }
    if let Some(e) = claims.near(&output32.y, y, SINGLE_TOLERANCE, 0.0) {
        return Ok(Some(format!("forward in f32 is forward in f64: {e}")));
    }
    if let Some(e) = claims.near(&tangent(&dual), &ju, 10.0 * SINGLE_TOLERANCE, max_abs(&ju) + max_abs(y)) {
        return Ok(Some(format!("jvp in f32 is jvp in f64: {e}")));
    }
    let (y_bar, all) = (draw(seed, 3, &[y.shape()])?.remove(0), vec![true; x.len()]);
    let bars = op.vjp(&Saved::of(op, &refs, &output), &y_bar, &all)?;
    let bars32 = op.vjp(&Saved::of(op, &refs32, &output32), &y_bar.to_dtype(output32.y.dtype()), &all)?;
    for (i, (bar, bar32)) in bars.iter().zip(&bars32).enumerate() {
        let (Some(bar), Some(bar32)) = (bar, bar32) else { continue };
        if let Some(e) = claims.near(bar32, bar, 10.0 * SINGLE_TOLERANCE, max_abs(&y_bar)) {
            return Ok(Some(format!("the cotangent of input {i} in f32 is that in f64: {e}")));
        }
    }
    Ok(None)
}

/// (−f(x+2h) + 8f(x+h) − 8f(x−h) + f(x−2h)) / 12h along u.
fn central_difference(op: &dyn Op, x: &[Tensor], u: &[Tensor]) -> Result<Tensor> {
    let at = |h: f64| -> Result<Tensor> {
        let moved = x.iter().zip(u).map(|(x, u)| mix(1.0, x, h, u)).collect::<Result<Vec<_>>>()?;
        Ok(op.forward(&moved.iter().collect::<Vec<_>>())?.y)
    };
    let near = arith::sub(&at(STEP)?, &at(-STEP)?)?;
    let far = arith::sub(&at(2.0 * STEP)?, &at(-2.0 * STEP)?)?;
    mix(8.0 / (12.0 * STEP), &near, -1.0 / (12.0 * STEP), &far)
}

fn mix(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Result<Tensor> {
    let n = leading(x);
    Ok(arith::combine(&[(&vec![a; n], x), (&vec![b; n], y)])?)
}

fn leading(t: &Tensor) -> usize {
    t.shape().first().copied().unwrap_or(1)
}

fn tangent(d: &Dual) -> Tensor {
    let zeros = || Tensor::zeros(d.primal.shape(), d.primal.dtype(), d.primal.device());
    d.tangent.clone().unwrap_or_else(zeros)
}

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_vec_f64().into_iter().map(f64::to_bits).collect()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.to_vec_f64().iter().zip(b.to_vec_f64()).map(|(a, b)| a * b).sum()
}

fn max_abs(t: &Tensor) -> f64 {
    t.to_vec_f64().iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// An op whose rules run on another device, with inputs and outputs on the host: what proves an op there is the same suite.
#[derive(Debug)]
pub struct Elsewhere<'a> {
    /// The op.
    pub op: &'a dyn Op,
    /// Where its rules run.
    pub device: Device,
}

impl Elsewhere<'_> {
    fn there(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(x.iter().map(|t| t.to_device(self.device)).collect::<fewstep_tensor::Result<_>>()?)
    }
}

fn here(t: &Tensor) -> Result<Tensor> {
    Ok(t.to_device(Device::Cpu)?)
}

impl Op for Elsewhere<'_> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn forward(&self, x: &[&Tensor]) -> Result<crate::Output> {
        let output = self.op.forward(&self.there(x)?.iter().collect::<Vec<_>>())?;
        Ok(crate::Output { y: here(&output.y)?, kept: output.kept.iter().map(here).collect::<Result<_>>()? })
    }

    fn value(&self, x: &[&Tensor]) -> Result<Tensor> {
        here(&self.op.value(&self.there(x)?.iter().collect::<Vec<_>>())?)
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let x = self.there(x)?;
        let there = |t: &Option<&Tensor>| t.map(|t| t.to_device(self.device)).transpose();
        let x_dot = x_dot.iter().map(there).collect::<fewstep_tensor::Result<Vec<_>>>()?;
        let dual = self.op.jvp(&x.iter().collect::<Vec<_>>(), &x_dot.iter().map(Option::as_ref).collect::<Vec<_>>())?;
        Ok(Dual { primal: here(&dual.primal)?, tangent: dual.tangent.as_ref().map(here).transpose()? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let bars = self.op.vjp(&saved.to_device(self.device)?, &y_bar.to_device(self.device)?, wanted)?;
        bars.iter().map(|b| b.as_ref().map(here).transpose()).collect()
    }

    fn vjp_onto(
        &self,
        saved: &Saved,
        y_bar: Tensor,
        wanted: &[bool],
        sums: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let there = |t: &Option<Tensor>| t.as_ref().map(|t| t.to_device(self.device)).transpose();
        let sums = sums.iter().map(there).collect::<fewstep_tensor::Result<Vec<_>>>()?;
        let (saved, y_bar) = (saved.to_device(self.device)?, y_bar.to_device(self.device)?);
        let bars = self.op.vjp_onto(&saved, y_bar, wanted, sums)?;
        bars.iter().map(|b| b.as_ref().map(here).transpose()).collect()
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<crate::Cost> {
        self.op.cost(x, rule)
    }

    fn memory(&self) -> crate::Memory {
        self.op.memory()
    }
}

/// Proves an op on another device on normal inputs of these shapes, in f64 and f32.
///
/// # Errors
/// The first claim that fails, with the seed.
pub fn check_on(device: Device, op: &dyn Op, shapes: &[&[usize]], seed: u64) -> std::result::Result<(), String> {
    check(&Elsewhere { op, device }, shapes, seed)
}

/// What outputs in bf16 may be off, in relative L2 norm.
#[derive(Clone, Copy, Debug)]
pub enum Tolerance<'a> {
    /// Each by so much.
    Of(f64),
    /// Each by twice what the outputs of this op are off, which rounds to bf16 what an unfused computation keeps, and at
    /// least by one rounding of its own. Its rules take and give f64 on the host.
    TwiceThatOf(&'a dyn Op),
}

/// Half a unit of the 8 bits of a bf16.
pub const BF16_ROUNDING: f64 = 1.0 / 256.0;

/// Proves the rules of an op in bf16 on a device: each output differs from that of the same op in f64 on the host, at the
/// same rounded inputs, by at most `tolerance` in relative L2 norm, and the primal of `jvp` is `forward` bit for bit. The
/// inputs in `wide` are f32. Inputs have means and outliers.
///
/// # Errors
/// The first rule that fails, with its error.
pub fn check_half(
    device: Device,
    op: &dyn Op,
    (shapes, wide): (&[&[usize]], &[usize]),
    tolerance: f64,
    seed: u64,
) -> std::result::Result<(), String> {
    check_half_against([&Elsewhere { op, device }, op], (shapes, wide), Tolerance::Of(tolerance), seed).map(drop)
}

/// As [`check_half`], of an op that is another one in f64: the op in bf16, whose inputs and outputs are on the host, and that
/// in f64.
///
/// # Errors
/// The first rule that fails, with its error.
pub fn check_half_against(
    [there, op]: [&dyn Op; 2],
    (shapes, wide): (&[&[usize]], &[usize]),
    tolerance: Tolerance<'_>,
    seed: u64,
) -> std::result::Result<Margin, String> {
    let mut claims = Claims::default();
    let failed = half([there, op], (shapes, wide), tolerance, seed, &mut claims).map_err(|e| e.to_string())?;
    match failed {
        Some(claim) => Err(format!("{claim}; in bf16, op {there:?}, shapes {shapes:?}, seed {seed}")),
        None => Ok(claims.nearest),
    }
}

/// What the three rules of an op give, by name.
struct Ruled {
    dual: Dual,
    y: Tensor,
    bars: Vec<Option<Tensor>>,
    /// Cotangents added to sums in the wide dtype, where the op adds in place.
    sums: Vec<Option<Tensor>>,
}

impl Ruled {
    fn of(op: &dyn Op, x: &[Tensor], u: &[Tensor], seed: u64) -> Result<Self> {
        let x: Vec<&Tensor> = x.iter().collect();
        let output = op.forward(&x)?;
        let dual = op.jvp(&x, &u.iter().map(Some).collect::<Vec<_>>())?;
        // Rounded for every dtype alike.
        let y_bar = draw(seed, 2, &[output.y.shape()])?.remove(0).to_dtype(DType::Bf16).to_dtype(output.y.dtype());
        let (saved, all) = (Saved::of(op, &x, &output), vec![true; x.len()]);
        let bars = op.vjp(&saved, &y_bar, &all)?;
        let before = || u.iter().map(|t| Some(t.to_dtype(t.dtype().wide()))).collect();
        let sums = if adds(op, &x)? { op.vjp_onto(&saved, y_bar, &all, before())? } else { Vec::new() };
        Ok(Ruled { dual, y: output.y, bars, sums })
    }

    fn outputs(self) -> Vec<(String, Option<Tensor>)> {
        let tangent = tangent(&self.dual);
        let bars = self.bars.into_iter().enumerate().map(|(i, bar)| (format!("the cotangent of input {i}"), bar));
        let sums = self.sums.into_iter().enumerate().map(|(i, sum)| (format!("the sum with that of input {i}"), sum));
        let first = [("forward".to_string(), Some(self.y)), ("jvp".to_string(), Some(tangent))];
        first.into_iter().chain(bars).chain(sums).collect()
    }
}

fn half(
    [there, op]: [&dyn Op; 2],
    (shapes, wide): (&[&[usize]], &[usize]),
    tolerance: Tolerance<'_>,
    seed: u64,
    claims: &mut Claims,
) -> Result<Option<String>> {
    let dtype = |i: usize| if wide.contains(&i) { DType::F32 } else { DType::Bf16 };
    let rounded = |purpose| -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let drawn = draw(seed, purpose, shapes)?.into_iter().map(uneven).collect::<Result<Vec<_>>>()?;
        let narrow: Vec<Tensor> = drawn.iter().enumerate().map(|(i, t)| t.to_dtype(dtype(i))).collect();
        let exact = narrow.iter().map(|t| t.to_dtype(DType::F64)).collect();
        Ok((narrow, exact))
    };
    let ((x, x64), (u, u64)) = (rounded(0)?, rounded(1)?);
    let got = Ruled::of(there, &x, &u, seed)?;
    if bits(&got.dual.primal) != bits(&got.y) {
        return Ok(Some("the primal of jvp is forward, bit for bit".into()));
    }
    if bits(&there.value(&x.iter().collect::<Vec<_>>())?) != bits(&got.y) {
        return Ok(Some("value is forward, bit for bit".into()));
    }
    let want = Ruled::of(op, &x64, &u64, seed)?.outputs();
    let allowed: Vec<f64> = match tolerance {
        Tolerance::Of(tolerance) => vec![tolerance; want.len()],
        Tolerance::TwiceThatOf(unfused) => {
            let unfused = Ruled::of(unfused, &x64, &u64, seed)?.outputs();
            let off = |a: &Option<Tensor>, b: &Option<Tensor>| match (a, b) {
                (Some(a), Some(b)) => (2.0 * relative_l2(a, b)).max(BF16_ROUNDING),
                _ => BF16_ROUNDING,
            };
            unfused.iter().zip(&want).map(|((_, a), (_, b))| off(a, b)).collect()
        }
    };
    for (((what, got), (_, want)), allowed) in got.outputs().iter().zip(&want).zip(allowed) {
        let (Some(got), Some(want)) = (got, want) else { continue };
        if let Some(e) = claims.hold(relative_l2(got, want), allowed) {
            return Ok(Some(format!("{what} is {e}")));
        }
    }
    Ok(None)
}

/// Shifts a tensor and lets every 97th element stand out.
fn uneven(t: Tensor) -> Result<Tensor> {
    let moved = t.to_vec_f64().into_iter().enumerate().map(|(i, x)| (x + 0.3) * if i % 97 == 5 { 8.0 } else { 1.0 });
    Ok(Tensor::from_vec(moved.collect::<Vec<f64>>(), t.shape())?)
}

/// ‖got − want‖₂/‖want‖₂; the absolute norm where want is zero; NaN where shapes differ.
pub fn relative_l2(got: &Tensor, want: &Tensor) -> f64 {
    if got.shape() != want.shape() {
        return f64::NAN;
    }
    let norm = |v: &mut dyn Iterator<Item = f64>| v.fold(0.0, |sum, x| sum + x * x).sqrt();
    let (got, want) = (got.to_vec_f64(), want.to_vec_f64());
    let scale = norm(&mut want.iter().copied());
    norm(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / if scale > 0.0 { scale } else { 1.0 }
}
