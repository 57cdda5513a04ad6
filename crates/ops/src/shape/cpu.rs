//! Copies of whole rows.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;

use super::Around;
use crate::Result;

pub(super) fn take<T: Real>(x: &Tensor, a: Around, start: usize, shape: &[usize]) -> Result<Tensor> {
    let xs = x.as_slice::<T>()?;
    Ok(Tensor::cpu_with(shape, |y: &mut [T]| {
        let row = y.len() / a.outer.max(1);
        for (o, y) in y.chunks_mut(row.max(1)).enumerate() {
            y.copy_from_slice(&xs[(o * a.axis + start) * a.inner..][..row]);
        }
    }))
}

pub(super) fn put<T: Real>(y_bar: &Tensor, a: Around, start: usize, shape: &[usize]) -> Result<Tensor> {
    let ys = y_bar.as_slice::<T>()?;
    Ok(Tensor::cpu_with(shape, |x: &mut [T]| {
        x.fill(T::ZERO);
        let row = ys.len() / a.outer.max(1);
        for (o, y) in ys.chunks(row.max(1)).enumerate() {
            x[(o * a.axis + start) * a.inner..][..row].copy_from_slice(y);
        }
    }))
}

pub(super) fn join<T: Real>(parts: &[&Tensor], around: &[Around], shape: &[usize]) -> Result<Tensor> {
    let slices = parts.iter().map(|p| p.as_slice::<T>()).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(Tensor::cpu_with(shape, |y: &mut [T]| {
        let mut at = 0;
        for o in 0..around[0].outer {
            for (part, a) in slices.iter().zip(around) {
                let row = a.axis * a.inner;
                y[at..at + row].copy_from_slice(&part[o * row..][..row]);
                at += row;
            }
        }
    }))
}
