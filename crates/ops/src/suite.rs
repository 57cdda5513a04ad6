//! The one suite that proves every op, in f64.
//!
//! For random inputs of given shapes it checks: the primal of `jvp` is `forward` bit for bit; `jvp` agrees with
//! central differences; ⟨ȳ, Jẋ⟩ = ⟨Jᵀȳ, ẋ⟩; a missing tangent is a zero tangent; `jvp` is linear in the tangent;
//! `vjp` returns just what is wanted; and the same op in f32 agrees with f64.

use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

use crate::{Dual, Error, Meta, Op, Result, Rule, Saved};

/// Central differences of fourth order leave h⁴·f⁽⁵⁾/30 and rounding ε/h; at 10⁻³ both stay below 10⁻¹¹ of the scale.
const STEP: f64 = 1e-3;
/// Bound on the error of a difference quotient relative to the largest values involved.
const DIFFERENCE_TOLERANCE: f64 = 1e-8;
/// Bound on sums that are equal but for the order of f64 rounding.
const ROUNDING_TOLERANCE: f64 = 1e-11;
/// Bound on f32 against f64 relative to the largest value: ε_f32 = 6·10⁻⁸ over sums of a few hundred terms.
const SINGLE_TOLERANCE: f64 = 1e-5;

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

/// Proves an op at these f64 inputs.
///
/// # Errors
/// The first claim that fails, with the seed.
pub fn check_at(op: &dyn Op, x: &[Tensor], seed: u64) -> std::result::Result<(), String> {
    let shapes: Vec<Vec<usize>> = x.iter().map(|t| t.shape().to_vec()).collect();
    claims(op, x, seed)
        .and_then(|failed| failed.map_or(Ok(()), |claim| Err(Error::input(op.name(), "the claim to hold", claim))))
        .map_err(|e| format!("{e}; op {op:?}, shapes {shapes:?}, seed {seed}"))
}

/// Runs every claim; `Some` names the first that fails.
fn claims(op: &dyn Op, x: &[Tensor], seed: u64) -> Result<Option<String>> {
    let refs: Vec<&Tensor> = x.iter().collect();
    let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
    let (u, v) = (draw(seed, 1, &shapes)?, draw(seed, 2, &shapes)?);
    let output = op.forward(&refs)?;
    let y_bar = draw(seed, 3, &[output.y.shape()])?.remove(0);
    if let Some(e) = cost(op, &refs, &output)? {
        return Ok(Some(e));
    }
    let jvp = |x_dot: &[Tensor]| op.jvp(&refs, &x_dot.iter().map(Some).collect::<Vec<_>>());

    let dual = jvp(&u)?;
    if bits(&dual.primal) != bits(&output.y) {
        return Ok(Some("the primal of jvp is forward, bit for bit".into()));
    }
    let ju = tangent(&dual);
    if let Some(e) = differs(&ju, &central_difference(op, x, &u)?, DIFFERENCE_TOLERANCE, max_abs(&output.y)) {
        return Ok(Some(format!("jvp is the central difference: {e}")));
    }
    if let Some(e) = zero_tangents(op, &refs, &u)? {
        return Ok(Some(e));
    }
    let mixed = u.iter().zip(&v).map(|(u, v)| mix(1.5, u, -0.5, v)).collect::<Result<Vec<_>>>()?;
    let want = mix(1.5, &ju, -0.5, &tangent(&jvp(&v)?))?;
    if let Some(e) = differs(&tangent(&jvp(&mixed)?), &want, ROUNDING_TOLERANCE, max_abs(&ju)) {
        return Ok(Some(format!("jvp is linear in the tangent: {e}")));
    }
    if let Some(e) = adjoint(op, &refs, &output, &y_bar, &u, &ju)? {
        return Ok(Some(e));
    }
    single_precision(op, x, &u, &output.y, &ju)
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
    u: &[Tensor],
    ju: &Tensor,
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
    let failed = (left - right).abs() > ROUNDING_TOLERANCE * scale;
    Ok(failed.then(|| format!("⟨ȳ, Jẋ⟩ = ⟨Jᵀȳ, ẋ⟩: {left:e} against {right:e}")))
}

fn zero_tangents(op: &dyn Op, x: &[&Tensor], u: &[Tensor]) -> Result<Option<String>> {
    let zeros: Vec<Tensor> = x.iter().map(|t| Tensor::zeros(t.shape(), t.dtype(), t.device())).collect();
    for missing in 0..1usize << x.len().min(6) {
        let gone = |i: usize| missing >> i & 1 == 1;
        let symbolic: Vec<_> = (0..x.len()).map(|i| (!gone(i)).then_some(&u[i])).collect();
        let real: Vec<_> = (0..x.len()).map(|i| Some(if gone(i) { &zeros[i] } else { &u[i] })).collect();
        let (a, b) = (op.jvp(x, &symbolic)?, op.jvp(x, &real)?);
        if bits(&a.primal) != bits(&b.primal) {
            return Ok(Some("the primal does not depend on which tangents are missing".into()));
        }
        if let Some(e) = differs(&tangent(&a), &tangent(&b), ROUNDING_TOLERANCE, max_abs(&tangent(&b))) {
            return Ok(Some(format!("a missing tangent is a zero tangent (missing set {missing:b}): {e}")));
        }
    }
    Ok(None)
}

fn single_precision(op: &dyn Op, x: &[Tensor], u: &[Tensor], y: &Tensor, ju: &Tensor) -> Result<Option<String>> {
    let narrow = |t: &[Tensor]| t.iter().map(|t| t.to_dtype(DType::F32)).collect::<Vec<_>>();
    let (x32, u32) = (narrow(x), narrow(u));
    let refs: Vec<&Tensor> = x32.iter().collect();
    let dual = op.jvp(&refs, &u32.iter().map(Some).collect::<Vec<_>>())?;
    let y32 = op.forward(&refs)?.y;
    if bits(&dual.primal) != bits(&y32) {
        return Ok(Some("in f32 the primal of jvp is forward, bit for bit".into()));
    }
    if let Some(e) = differs(&y32.to_dtype(DType::F64), y, SINGLE_TOLERANCE, max_abs(y)) {
        return Ok(Some(format!("forward in f32 is forward in f64: {e}")));
    }
    let t32 = tangent(&dual).to_dtype(DType::F64);
    let failed = differs(&t32, ju, 10.0 * SINGLE_TOLERANCE, max_abs(ju) + max_abs(y));
    Ok(failed.map(|e| format!("jvp in f32 is jvp in f64: {e}")))
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

/// The largest difference relative to max|want| (or `scale`, if larger) when it passes the tolerance; NaN never does.
fn differs(got: &Tensor, want: &Tensor, tolerance: f64, scale: f64) -> Option<String> {
    if got.shape() != want.shape() {
        return Some(format!("shape {:?} against {:?}", got.shape(), want.shape()));
    }
    let pairs = got.to_vec_f64().into_iter().zip(want.to_vec_f64());
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
    let scale = scale.max(max_abs(want)).max(f64::MIN_POSITIVE);
    (worst.is_nan() || worst > tolerance * scale).then(|| format!("off by {worst:e} at scale {scale:e}"))
}
