use fewstep_tensor::{DType, Tensor};

use crate::{Error, Result};

/// Cosines and sines [L, K/2] of the angles by which the pairs of a head are rotated, in f64 and in f32.
#[derive(Clone, Debug)]
pub struct RopeTable {
    double: [Tensor; 2],
    single: [Tensor; 2],
}

impl RopeTable {
    /// The table of these angles [L, K/2] in radians, row-major; computed in f64 and rounded once.
    ///
    /// # Errors
    /// If there are not `tokens`·`pairs` angles.
    pub fn new(angles: &[f64], tokens: usize, pairs: usize) -> Result<Self> {
        if angles.len() != tokens * pairs {
            return Err(Error::input("rope_table", format!("{tokens}·{pairs} angles"), angles.len()));
        }
        let table = |f: fn(f64) -> f64| Tensor::from_vec(angles.iter().map(|&a| f(a)).collect(), &[tokens, pairs]);
        let double = [table(f64::cos)?, table(f64::sin)?];
        let single = [double[0].to_dtype(DType::F32), double[1].to_dtype(DType::F32)];
        Ok(RopeTable { double, single })
    }

    /// (L, K/2)
    pub fn extents(&self) -> (usize, usize) {
        (self.double[0].shape()[0], self.double[0].shape()[1])
    }

    /// Cosines and sines in a compute type.
    pub(super) fn get(&self, dtype: DType) -> [&Tensor; 2] {
        let [cos, sin] = if dtype == DType::F64 { &self.double } else { &self.single };
        [cos, sin]
    }
}
