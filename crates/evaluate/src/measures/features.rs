use crate::{Error, Result};

/// Features of samples: a matrix [n, d] of finite f64, one sample a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    data: Vec<f64>,
    width: usize,
}

impl Features {
    /// Takes over rows of `width` features each.
    ///
    /// # Errors
    /// If the width is zero or does not divide the length, or a feature is not finite.
    pub fn new(data: Vec<f64>, width: usize) -> Result<Self> {
        if width == 0 || !data.len().is_multiple_of(width) {
            let expected = "whole rows of at least one feature".to_owned();
            return Err(Error::Features { expected, got: format!("{} values in rows of {width}", data.len()) });
        }
        match data.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(Error::NonFiniteFeature { what: format!("feature {}", i % width), sample: i / width }),
            None => Ok(Features { data, width }),
        }
    }

    /// The number of samples n.
    pub fn samples(&self) -> usize {
        self.data.len() / self.width
    }

    /// The number of features d of each.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The features of a sample.
    ///
    /// # Panics
    /// If there are not so many samples, as indexing does.
    pub fn row(&self, sample: usize) -> &[f64] {
        &self.data[sample * self.width..][..self.width]
    }

    /// The samples in order.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.data.chunks_exact(self.width)
    }

    /// Whether two sets can be compared by a measure that is defined from `least` samples on.
    pub(super) fn check_pair(generated: &Self, reference: &Self, measure: &'static str, least: usize) -> Result<()> {
        if generated.width != reference.width {
            return Err(Error::Widths { generated: generated.width, reference: reference.width });
        }
        match generated.samples().min(reference.samples()) {
            got if got < least => Err(Error::TooFewSamples { measure, least, got }),
            _ => Ok(()),
        }
    }
}
