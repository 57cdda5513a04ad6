//! UniPC of order 2 (Zhao et al., arXiv 2302.04867, Alg. 1–2) for flow models, with B(h) = e^h − 1 ("bh2").
//!
//! In x_0 prediction, with α = 1 − τ, λ = ln α − ln τ, h = λ' − λ and g = α'·(e^{−h} − 1), every update is
//! x' = τ'/τ·x − g·m_0 − g·(ρ_D·D + ρ_c·(m' − m_0)), D = (m_{−1} − m_0)/r, r = (λ_{−1} − λ)/h,
//! where m_0, m_{−1} are the clean predictions at the start and one step before, and m' (the corrector's) at the end.

use fewstep_tensor::Tensor;

use crate::Result;
use crate::linear::linear;
use crate::sampler::History;

/// Weights of one update on x, m_0, m_{−1} and m'.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Weights {
    x: f64,
    newest: f64,
    older: f64,
    ahead: f64,
}

fn lambda(tau: f64) -> f64 {
    // +∞ at τ = 0, where e^{−h} = 0 makes the predictor x' = m_0.
    (1.0 - tau).ln() - tau.ln()
}

/// (ρ_D, ρ_c) of the corrector of order 2: the solution of [1 1; r 1]·ρ = (b_1, b_2).
///
/// With z = −h and ψ_1 = (e^z − 1)/z − 1, ψ_2 = ψ_1/z − 1/2: b_1 = ψ_1/(e^z − 1), b_2 = 2·ψ_2/(e^z − 1).
fn corrector(h: f64, r: f64) -> (f64, f64) {
    let z = -h;
    let e = z.exp_m1();
    let psi1 = e / z - 1.0;
    let (b1, b2) = (psi1 / e, 2.0 * (psi1 / z - 0.5) / e);
    let on_difference = (b1 - b2) / (1.0 - r);
    (on_difference, b1 - on_difference)
}

/// Weights of the update from level `i` to level `i + 1`: the predictor's, or the corrector's.
fn weights(levels: &[f64], i: usize, order: usize, corrects: bool) -> Weights {
    let (tau, next) = (levels[i], levels[i + 1]);
    let h = lambda(next) - lambda(tau);
    let r = if order == 2 { (lambda(levels[i - 1]) - lambda(tau)) / h } else { 1.0 };
    let (on_difference, on_ahead) = match (order, corrects) {
        (2, true) => corrector(h, r),
        // At order 2 the predictor's single condition is met by ρ = 1/2 to the order required, whatever r.
        (2, false) => (0.5, 0.0),
        (_, true) => (0.0, 0.5),
        _ => (0.0, 0.0),
    };
    let g = (1.0 - next) * (-h).exp_m1();
    Weights {
        x: next / tau,
        newest: -g * (1.0 - on_difference / r - on_ahead),
        older: -g * on_difference / r,
        ahead: -g * on_ahead,
    }
}

fn update(w: Weights, x: &Tensor, history: &History, ahead: Option<&Tensor>) -> Result<Tensor> {
    let candidates = [(w.newest, history.x0[0].as_ref()), (w.older, history.x0[1].as_ref()), (w.ahead, ahead)];
    let mut terms = vec![(w.x, x)];
    terms.extend(candidates.into_iter().filter_map(|(c, t)| Some((c, t?)).filter(|_| c != 0.0)));
    linear(&terms)
}

/// Step `i`: corrects the state `x` with the velocity found there, then predicts the next.
pub(crate) fn step(levels: &[f64], i: usize, x: &Tensor, velocity: &Tensor, history: &mut History) -> Result<Tensor> {
    let x0 = linear(&[(1.0, x), (-levels[i], velocity)])?;
    let x = match &history.start {
        None => x.clone(),
        Some(start) => update(weights(levels, i - 1, history.order, true), start, history, Some(&x0))?,
    };
    history.push(x0);
    let last = i + 2 == levels.len();
    history.order = if i == 0 || last { 1 } else { 2 };
    let next = update(weights(levels, i, history.order, false), &x, history, None)?;
    history.start = Some(x);
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_to_zero_returns_the_clean_prediction() {
        let w = weights(&[0.9, 0.5, 0.0], 1, 1, false);
        assert_eq!(w, Weights { x: 0.0, newest: 1.0, older: 0.0, ahead: 0.0 });
    }

    #[test]
    fn every_update_keeps_a_constant_clean_prediction_exact() {
        // With m constant and x = (1−τ)·m + τ·ε, the exact solution is (1−τ')·m + τ'·ε.
        let levels = [0.97, 0.8, 0.55, 0.2];
        for (i, order, corrects) in [(0, 1, false), (0, 1, true), (1, 2, false), (2, 2, true)] {
            let w = weights(&levels, i, order, corrects);
            let on_m = w.x * (1.0 - levels[i]) + w.newest + w.older + w.ahead;
            assert!((on_m - (1.0 - levels[i + 1])).abs() < 1e-14, "{i} {order} {corrects}");
        }
    }

    #[test]
    fn the_corrector_is_exact_for_a_clean_prediction_quadratic_in_lambda() {
        // Order 2 with three predictions: x' = τ'/τ·x + τ'·∫ e^λ m(λ) dλ is met for m(λ) of degree 2.
        let levels = [0.9, 0.7, 0.4];
        let w = weights(&levels, 1, 2, true);
        let (a, b, c) = (lambda(levels[1]), lambda(levels[2]), lambda(levels[0]));
        for degree in 0..=2 {
            let m = |l: f64| (l - a).powi(degree);
            let n = 20_000;
            let dl = (b - a) / n as f64;
            let at = |k: f64| (k * dl).exp() * m(a + k * dl);
            let integral: f64 =
                (0..n).map(|k| k as f64).map(|k| dl / 6.0 * (at(k) + 4.0 * at(k + 0.5) + at(k + 1.0))).sum();
            let want = (1.0 - levels[2]) * (a - b).exp() * integral;
            let got = w.newest * m(a) + w.older * m(c) + w.ahead * m(b);
            assert!((got - want).abs() < 1e-12, "degree {degree}: {got} against {want}");
        }
    }
}
