use std::path::PathBuf;

/// What can go wrong on the way from a model's folder to frames: always with the remedy where a person can act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model, or a part of one, is not where it was looked for.
    #[error("{}: {what}; {remedy}", place.display())]
    Missing {
        /// Where it was looked for.
        place: PathBuf,
        /// What is not there.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// Parts that do not fit together, or an input that does not fit them.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// What was looked at.
        what: &'static str,
        /// The invariant, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// A file of weights was refused.
    #[error(transparent)]
    Formats(#[from] fewstep_formats::Error),
    /// A prompt, a tokenizer or a text encoder was refused.
    #[error(transparent)]
    Text(#[from] fewstep_text::Error),
    /// A network or its weights were refused.
    #[error(transparent)]
    Network(#[from] fewstep_nn::Error),
    /// Running a network failed.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// Reading or converting tensors failed.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
}

/// The result of an operation on a model.
pub type Result<T> = std::result::Result<T, Error>;
