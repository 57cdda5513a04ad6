//! Rows are copied one after another: a gather is bound by memory, and the rows are few.

use fewstep_tensor::math::Real;
use fewstep_tensor::{DType, Element, Tensor, bf16};

use crate::Result;

pub(super) fn gather<T: Real>(ids: &[u32], d: usize, table: &Tensor) -> Result<Tensor> {
    match table.dtype() {
        DType::F32 => rows::<f32, T>(ids, d, table),
        DType::F64 => rows::<f64, T>(ids, d, table),
        DType::Bf16 => rows::<bf16, T>(ids, d, table),
    }
}

fn rows<S: Element, T: Real>(ids: &[u32], d: usize, table: &Tensor) -> Result<Tensor> {
    let table = table.as_slice::<S>()?;
    Ok(Tensor::cpu_with(&[ids.len(), d], |y: &mut [T]| {
        for (y, &id) in y.chunks_exact_mut(d.max(1)).zip(ids) {
            let row = &table[id as usize * d..][..d];
            y.iter_mut().zip(row).for_each(|(y, x)| *y = T::from_f64(x.to_f64()));
        }
    }))
}

/// Adds every row of ȳ to its row of the table, in the order of the rows.
pub(super) fn scatter<T: Real>(ids: &[u32], [v, d]: [usize; 2], y_bar: &Tensor) -> Result<Tensor> {
    let y_bar = y_bar.as_slice::<T>()?;
    Ok(Tensor::cpu_with(&[v, d], |table: &mut [T]| {
        table.fill(T::ZERO);
        for (y, &id) in y_bar.chunks_exact(d.max(1)).zip(ids) {
            let row = &mut table[id as usize * d..][..d];
            row.iter_mut().zip(y).for_each(|(t, &y)| *t += y);
        }
    }))
}
