//! One pass over the activations; bound by memory.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use multiversion::multiversion;

use crate::layer_norm::rows::Rows;
use crate::{Result, Saved};

/// out ← out + gate∘h over the rows of one group.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn accumulate<T: Real>(h: &[T], gate: &[T], out: &mut [T]) {
    for (h, out) in h.chunks_exact(gate.len()).zip(out.chunks_exact_mut(gate.len())) {
        out.iter_mut().zip(h).zip(gate).for_each(|((o, &h), &g)| *o = h.fma(g, *o));
    }
}

/// sum ← sum + Σ rows of a∘b.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn sum_products<T: Real>(a: &[T], b: &[T], sum: &mut [T]) {
    for (a, b) in a.chunks_exact(sum.len()).zip(b.chunks_exact(sum.len())) {
        sum.iter_mut().zip(a).zip(b).for_each(|((s, &a), &b)| *s = a.fma(b, *s));
    }
}

/// x + Σ gateᵢ∘hᵢ, x zero where missing.
pub(super) fn add_gated<T: Real>(r: &Rows, x: Option<&Tensor>, products: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let x = x.map(|x| x.as_slice::<T>()).transpose()?;
    let mut slices = Vec::new();
    let mut shape: &[usize] = &[];
    for (h, gate) in products {
        // One of the two is an activation [B, L, D]; its shape is the output's.
        shape = h.shape();
        slices.push((h.as_slice::<T>()?, gate.as_slice::<T>()?));
    }
    Ok(Tensor::cpu_with(shape, |y: &mut [T]| {
        r.pieces(y, r.d, |first, g, y| {
            let (from, len) = (first * r.d, y.len());
            match x {
                Some(x) => y.copy_from_slice(&x[from..][..len]),
                None => y.fill(T::ZERO),
            }
            for (h, gate) in &slices {
                accumulate(&h[from..][..len], &gate[g * r.d..][..r.d], y);
            }
        });
    }))
}

/// Σ ȳ∘h over the rows of each group.
pub(super) fn gate_bar<T: Real>(r: &Rows, saved: &Saved, y_bar: &Tensor) -> Result<Tensor> {
    let (h, y_bar) = (saved.input(1)?.as_slice::<T>()?, y_bar.as_slice::<T>()?);
    let mut units = vec![T::ZERO; r.rows];
    let sums = r.pieces(&mut units, usize::from(r.d > 0), |first, _, rows| {
        let (from, len) = (first * r.d, rows.len() * r.d);
        let mut sum = vec![T::ZERO; r.d];
        sum_products(&y_bar[from..][..len], &h[from..][..len], &mut sum);
        sum
    });
    let parts: Vec<&[T]> = sums.iter().map(Vec::as_slice).collect();
    Ok(r.gather(&parts, saved.shape(2)))
}
