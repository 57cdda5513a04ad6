/// What can go wrong while clips are judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Numbers that are no matrix of features.
    #[error("features: expected {expected}, got {got}")]
    Features {
        /// The invariant, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// Features that are NaN or infinite.
    #[error("features: {what} of sample {sample} is not finite; the sample or the network that read it diverged")]
    NonFiniteFeature {
        /// The first such feature.
        what: String,
        /// The row of the matrix.
        sample: usize,
    },
    /// Two sets of features of different networks.
    #[error("features: the sets are {generated} and {reference} wide; take both from one classifier")]
    Widths {
        /// The width of the generated set.
        generated: usize,
        /// The width of the reference set.
        reference: usize,
    },
    /// A set too small for its measure.
    #[error("{measure}: needs at least {least} samples in each set, got {got}; evaluate more clips")]
    TooFewSamples {
        /// The measure that refused.
        measure: &'static str,
        /// The least it is defined for.
        least: usize,
        /// The size of the smaller set.
        got: usize,
    },
    /// A measure left the range of f64.
    #[error("{measure}: {what} is beyond the range of f64; the samples diverged")]
    Range {
        /// The measure that failed.
        measure: &'static str,
        /// The quantity.
        what: &'static str,
    },
    /// A clip of another size.
    #[error("clip {sample}: expected {expected} values ({}), got {got}", shape())]
    ClipSize {
        /// Its place in the list.
        sample: usize,
        /// The number of values of a clip.
        expected: usize,
        /// The number that came.
        got: usize,
    },
    /// A clip with NaN or infinite pixels.
    #[error(
        "clip {sample}: {count} of its pixels are not finite, the first at element {first}; the generator diverged"
    )]
    NonFinitePixels {
        /// Its place in the list.
        sample: usize,
        /// How many of its pixels.
        count: usize,
        /// The index of the first in [C, F, H, W] order.
        first: usize,
    },
    /// A setting of the training outside its range.
    #[error("classifier training: {key} must be {expected}, got {got}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its range, in words.
        expected: &'static str,
        /// Its value.
        got: String,
    },
    /// Training diverged.
    #[error("classifier training: non-finite gradient in '{parameter}' at step {step}; lower the learning rate")]
    Diverged {
        /// The step, from 0.
        step: u64,
        /// The first parameter with one.
        parameter: String,
    },
    /// Weights that are not the classifier's.
    #[error("{file}: not the weights of the classifier: {reason}; train them again with `fewstep train-classifier`")]
    Weights {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The demo data refused.
    #[error(transparent)]
    Data(#[from] fewstep_data::DataError),
    /// Running the classifier failed.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
    /// The optimiser refused.
    #[error(transparent)]
    Optimizer(#[from] fewstep_distill::Error),
}

/// The result of judging clips.
pub type Result<T> = std::result::Result<T, Error>;

fn shape() -> String {
    use fewstep_data::{CHANNELS, FRAMES, HEIGHT, WIDTH};
    format!("[C, F, H, W] = [{CHANNELS}, {FRAMES}, {HEIGHT}, {WIDTH}]")
}
