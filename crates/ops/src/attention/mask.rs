//! What an attention may attend to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use fewstep_tensor::cuda::Table;
use fewstep_tensor::{DType, Device};

use crate::{Error, Result};

/// A value for every query and key: [B or 1, N or 1, L or 1, S], an extent of 1 serves all.
#[derive(Clone, Debug)]
pub struct Pairs<T> {
    shape: [usize; 4],
    values: Arc<[T]>,
    copies: Copies,
}

/// Tables on GPUs, by the dtype of what they are for.
type Copies = Arc<Mutex<HashMap<(Device, DType), Arc<Table>>>>;

impl<T: Copy> Pairs<T> {
    /// Values by sample, head, query and key, row-major.
    ///
    /// # Errors
    /// If there are not as many as the shape says.
    pub fn new(shape: [usize; 4], values: impl Into<Arc<[T]>>) -> Result<Self> {
        let values = values.into();
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::input(super::NAME, format!("values of shape {shape:?}"), values.len()));
        }
        Ok(Pairs { shape, values, copies: Copies::default() })
    }

    /// The values on a GPU, which keeps them, as `table` makes them for a dtype.
    pub(super) fn on(
        &self,
        device: Device,
        dtype: DType,
        table: impl FnOnce(&[T]) -> fewstep_tensor::Result<Table>,
    ) -> Result<Arc<Table>> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = copies.get(&(device, dtype)) {
            return Ok(made.clone());
        }
        let made = Arc::new(table(&self.values)?);
        copies.insert((device, dtype), made.clone());
        Ok(made)
    }

    /// From a sample, a head and a query to the next.
    pub(super) fn strides(&self) -> [usize; 3] {
        let [b, n, l, s] = self.shape;
        let unless_one = |extent: usize, stride: usize| if extent == 1 { 0 } else { stride };
        [unless_one(b, n * l * s), unless_one(n, l * s), unless_one(l, s)]
    }

    /// The values of all keys for one sample, head and query.
    fn row(&self, at: [usize; 3]) -> &[T] {
        let first: usize = self.strides().iter().zip(at).map(|(stride, i)| stride * i).sum();
        &self.values[first..first + self.shape[3]]
    }

    fn fits(&self, extents: [usize; 4]) -> bool {
        let [.., keys] = self.shape;
        keys == extents[3] && self.shape.iter().zip(extents).all(|(&own, extent)| own == 1 || own == extent)
    }
}

/// Which keys a query may attend to, and what is added to their scores. A query without keys has the output zero, the
/// log-sum-exp −∞, and no gradient.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// Added to the scaled scores; −∞ forbids a key.
    pub bias: Option<Pairs<f32>>,
    /// Whether a query may attend to a key.
    pub allowed: Option<Pairs<bool>>,
    /// Queries and keys of every sample, where samples of different lengths lie one after another in one; what is said of
    /// pairs is then of the longest.
    pub packed: Option<Arc<[[usize; 2]]>>,
}

impl Mask {
    /// Samples, and the most queries and keys of one.
    pub(super) fn extents(&self, [b, l, s]: [usize; 3]) -> [usize; 3] {
        let Some(packed) = &self.packed else { return [b, l, s] };
        let longest = |i: usize| packed.iter().map(|lengths| lengths[i]).max().unwrap_or(0);
        [packed.len(), longest(0), longest(1)]
    }

    /// Refuses a mask that does not fit b samples, n heads, l queries and s keys.
    pub(super) fn check(&self, [b, n, l, s]: [usize; 4]) -> Result<()> {
        if let Some(packed) = &self.packed {
            let total = |i: usize| packed.iter().map(|lengths| lengths[i]).sum::<usize>();
            if b != 1 || [total(0), total(1)] != [l, s] {
                let expected = format!("one sample of {} queries and {} keys", total(0), total(1));
                return Err(Error::input(super::NAME, expected, [b, l, s]));
            }
        }
        let [b, l, s] = self.extents([b, l, s]);
        let fits = self.bias.as_ref().is_none_or(|p| p.fits([b, n, l, s]))
            && self.allowed.as_ref().is_none_or(|p| p.fits([b, n, l, s]));
        let expected = format!("a mask of shape {:?}, or 1 for samples, heads or queries", [b, n, l, s]);
        if fits { Ok(()) } else { Err(Error::input(super::NAME, expected, self)) }
    }

    /// What is added to the scores of one sample, head and query: −∞ where a key is not allowed.
    ///
    /// # Panics
    /// If the mask has no such sample, head, query or keys.
    pub fn added(&self, at: [usize; 3], keys: std::ops::Range<usize>) -> impl Iterator<Item = f64> {
        let bias = self.bias.as_ref().map(|p| &p.row(at)[keys.clone()]);
        let allowed = self.allowed.as_ref().map(|p| &p.row(at)[keys.clone()]);
        (0..keys.len()).map(move |i| {
            let forbidden = allowed.is_some_and(|allowed| !allowed[i]);
            if forbidden { f64::NEG_INFINITY } else { bias.map_or(0.0, |bias| f64::from(bias[i])) }
        })
    }
}
