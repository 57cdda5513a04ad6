//! Pure functions of features: how far two sets of samples are apart, and in which way.
//!
//! All are statistics of finite samples. Compare values of one n only; the documentation of each says how n enters.

mod features;
mod frechet;
mod neighbours;

pub use features::Features;
pub use frechet::frechet_distance;
pub use neighbours::{NEIGHBOURS, PrecisionRecall, precision_recall};

#[cfg(test)]
mod tests;
