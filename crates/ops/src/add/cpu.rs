//! Repeating and summing over broadcast axes, for small tensors.

use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;

use crate::Result;

/// For every element of `shape` in order, the element of the smaller tensor that it repeats.
fn sources(small: &[usize], shape: &[usize]) -> Vec<usize> {
    let lead = shape.len() - small.len();
    let mut index = vec![0usize];
    for (i, &n) in shape.iter().enumerate() {
        let own = if i < lead { 1 } else { small[i - lead] };
        index = index.iter().flat_map(|&at| (0..n).map(move |j| at * own + if own == 1 { 0 } else { j })).collect();
    }
    index
}

pub(super) fn expand<T: Real>(a: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let values = a.as_slice::<T>()?;
    let index = sources(a.shape(), shape);
    Ok(Tensor::cpu_with(shape, |y: &mut [T]| y.iter_mut().zip(&index).for_each(|(y, &i)| *y = values[i])))
}

/// Sums over the repeated axes, in element order.
pub(super) fn reduce<T: Real>(y_bar: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let values = y_bar.as_slice::<T>()?;
    let index = sources(shape, y_bar.shape());
    Ok(Tensor::cpu_with(shape, |a: &mut [T]| {
        a.fill(T::ZERO);
        values.iter().zip(&index).for_each(|(&y, &i)| a[i] += y);
    }))
}
