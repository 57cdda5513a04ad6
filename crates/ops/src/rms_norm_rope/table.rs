use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fewstep_tensor::{DType, Device, Tensor};

use crate::{Error, Result};

type Angles = Arc<dyn Fn() -> Vec<f64> + Send + Sync>;

/// Tables on GPUs.
type Copies = Arc<Mutex<HashMap<(Device, DType), [Tensor; 2]>>>;

/// Cosines and sines [L, K/2] of the angles by which the pairs of a head are rotated, in f64 or in f32: each computed when
/// it is first asked for, so that a run without data computes none.
#[derive(Clone)]
pub struct RopeTable {
    tokens: usize,
    pairs: usize,
    angles: Angles,
    double: OnceLock<[Tensor; 2]>,
    single: OnceLock<[Tensor; 2]>,
    copies: Copies,
}

impl fmt::Debug for RopeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RopeTable [{}, {}]", self.tokens, self.pairs)
    }
}

impl RopeTable {
    /// The table of these angles [L, K/2] in radians, row-major; computed in f64 and rounded once.
    ///
    /// # Errors
    /// If there are not `tokens`·`pairs` angles.
    pub fn new(angles: &[f64], tokens: usize, pairs: usize) -> Result<Self> {
        refuse_others(angles, tokens, pairs)?;
        let angles = angles.to_vec();
        Ok(Self::lazy(tokens, pairs, move || angles.clone()))
    }

    /// As [`RopeTable::new`], with angles that are computed when they are first needed.
    pub fn lazy(tokens: usize, pairs: usize, angles: impl Fn() -> Vec<f64> + Send + Sync + 'static) -> Self {
        let (double, single) = (OnceLock::new(), OnceLock::new());
        RopeTable { tokens, pairs, angles: Arc::new(angles), double, single, copies: Arc::default() }
    }

    /// (L, K/2)
    pub fn extents(&self) -> (usize, usize) {
        (self.tokens, self.pairs)
    }

    /// Cosines and sines in a compute type.
    ///
    /// # Errors
    /// If there are not L·K/2 angles.
    pub(super) fn get(&self, dtype: DType) -> Result<&[Tensor; 2]> {
        let table = if dtype == DType::F64 { &self.double } else { &self.single };
        if let Some(made) = table.get() {
            return Ok(made);
        }
        let made = self.build(dtype)?;
        Ok(table.get_or_init(|| made))
    }

    /// Cosines and sines in a compute type on a GPU, which keeps them.
    ///
    /// # Errors
    /// If there are not L·K/2 angles, or the GPU has no memory for them.
    pub(super) fn on(&self, device: Device, dtype: DType) -> Result<[Tensor; 2]> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = copies.get(&(device, dtype)) {
            return Ok(made.clone());
        }
        let [cos, sin] = self.get(dtype)?;
        let made = [cos.to_device(device)?, sin.to_device(device)?];
        copies.insert((device, dtype), made.clone());
        Ok(made)
    }

    fn build(&self, dtype: DType) -> Result<[Tensor; 2]> {
        let angles = (self.angles)();
        refuse_others(&angles, self.tokens, self.pairs)?;
        let shape = [self.tokens, self.pairs];
        let table = |f: fn(f64) -> f64| match dtype {
            DType::F64 => Tensor::from_vec(angles.iter().map(|&a| f(a)).collect::<Vec<f64>>(), &shape),
            _ => Tensor::from_vec(angles.iter().map(|&a| f(a) as f32).collect::<Vec<f32>>(), &shape),
        };
        Ok([table(f64::cos)?, table(f64::sin)?])
    }
}

fn refuse_others(angles: &[f64], tokens: usize, pairs: usize) -> Result<()> {
    if angles.len() == tokens * pairs {
        return Ok(());
    }
    Err(Error::input("rope_table", format!("{tokens}·{pairs} angles"), angles.len()))
}
