//! Classifier-free guidance (Ho and Salimans, arXiv 2207.12598).

use fewstep_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::linear::linear;
use crate::{Error, Result};

/// The guidance scale w: prediction = uncond + w·(cond − uncond).
///
/// w = 1 is the conditional prediction alone.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Guidance(f64);

/// Which condition the network is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// The prompt.
    Conditional,
    /// The empty or negative prompt.
    Unconditional,
}

impl Guidance {
    /// No guidance: w = 1.
    pub const NONE: Guidance = Guidance(1.0);

    /// The scale w.
    ///
    /// # Errors
    /// If w is not finite.
    pub fn new(w: f64) -> Result<Self> {
        if w.is_finite() {
            return Ok(Guidance(w));
        }
        let remedy = "1 means no guidance, teachers use 3 to 8";
        Err(Error::OutOfRange { quantity: "guidance scale", range: "(-inf, inf)", got: w, remedy })
    }

    /// Cosmos's convention cond + g·(cond − uncond), which is w = 1 + g.
    ///
    /// # Errors
    /// If g is not finite.
    pub fn from_cosmos(g: f64) -> Result<Self> {
        Self::new(1.0 + g)
    }

    /// w.
    pub fn scale(self) -> f64 {
        self.0
    }

    /// Whether the unconditional prediction has any weight (w ≠ 1).
    pub fn needs_unconditional(self) -> bool {
        self.0 != 1.0
    }

    /// uncond + w·(cond − uncond), elementwise; f64 arithmetic, rounded to the predictions' dtype.
    ///
    /// # Errors
    /// If shapes, dtypes or devices differ, or the dtype is not f32 or f64.
    pub fn combine(self, cond: &Tensor, uncond: &Tensor) -> Result<Tensor> {
        linear(&[(1.0 - self.0, uncond), (self.0, cond)])
    }

    /// The guided prediction, from a network asked for each [`Branch`]: conditional first, unconditional only if w ≠ 1.
    ///
    /// # Errors
    /// Those of `predict`, and as [`combine`](Self::combine).
    pub fn apply<E: From<Error>>(
        self,
        mut predict: impl FnMut(Branch) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Tensor, E> {
        let cond = predict(Branch::Conditional)?;
        if !self.needs_unconditional() {
            return Ok(cond);
        }
        let uncond = predict(Branch::Unconditional)?;
        Ok(self.combine(&cond, &uncond)?)
    }
}

impl TryFrom<f64> for Guidance {
    type Error = Error;
    fn try_from(w: f64) -> Result<Self> {
        Self::new(w)
    }
}

impl From<Guidance> for f64 {
    fn from(w: Guidance) -> f64 {
        w.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(b: Branch) -> Tensor {
        let v = if b == Branch::Conditional { vec![3.0f32, -1.0] } else { vec![1.0, 0.5] };
        Tensor::from_vec(v, &[2, 1]).unwrap()
    }

    #[test]
    fn the_guided_prediction_extrapolates_from_the_unconditional_one() {
        let got = Guidance::new(5.0).unwrap().apply(|b| Ok::<_, Error>(branch(b))).unwrap();
        assert_eq!(got.as_slice::<f32>().unwrap(), [11.0, -7.0]);
    }

    #[test]
    fn scale_one_never_asks_for_the_unconditional_prediction() {
        let mut asked = vec![];
        let got = Guidance::NONE.apply(|b| {
            asked.push(b);
            Ok::<_, Error>(branch(b))
        });
        assert_eq!(got.unwrap().as_slice::<f32>().unwrap(), [3.0, -1.0]);
        assert_eq!(asked, [Branch::Conditional]);
    }

    #[test]
    fn cosmos_scale_counts_from_the_conditional_prediction() {
        let (c, u, g) = (branch(Branch::Conditional), branch(Branch::Unconditional), 7.0);
        let got = Guidance::from_cosmos(g).unwrap().combine(&c, &u).unwrap();
        assert_eq!(got.as_slice::<f32>().unwrap(), [3.0 + 7.0 * 2.0, -1.0 - 7.0 * 1.5]);
    }

    #[test]
    fn hostile_scales_and_shapes_are_errors() {
        assert!(Guidance::new(f64::NAN).is_err());
        assert!(Guidance::new(f64::INFINITY).is_err());
        assert!(serde_json::from_str::<Guidance>("\"five\"").is_err());
        let other = Tensor::from_vec(vec![0.0f32; 3], &[3]).unwrap();
        assert!(Guidance::new(2.0).unwrap().combine(&branch(Branch::Conditional), &other).is_err());
    }
}
