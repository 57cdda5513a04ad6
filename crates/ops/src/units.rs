//! Copies on a GPU that do not look at what they copy: in units as wide as addresses and extents allow.

use fewstep_tensor::Tensor;

/// Widths of a unit in bytes, the widest first; kernels that copy units are compiled for each.
const WIDTHS: [usize; 4] = [16, 8, 4, 2];

/// Elements of the widest unit of which the tensors' addresses and all these lengths, in elements, are multiples.
pub(crate) fn unit(tensors: &[&Tensor], lengths: &[usize]) -> usize {
    let size = tensors[0].dtype().size();
    let fits = |width: usize| {
        lengths.iter().all(|n| (n * size).is_multiple_of(width)) && tensors.iter().all(|t| t.is_aligned(width as u64))
    };
    WIDTHS.into_iter().find(|&w| w > size && fits(w)).map_or(1, |w| w / size)
}
