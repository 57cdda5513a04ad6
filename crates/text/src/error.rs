/// What can go wrong between a prompt and its embedding: always with the remedy where a person can act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A file that is no tokenizer this crate can run.
    #[error("{file}: {problem}; {remedy}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A tokenizer and an encoder that do not belong together.
    #[error(
        "{file}: the tokenizer has ids up to {largest}, the encoder embeds {rows}; use the tokenizer that belongs to the weights"
    )]
    Mismatch {
        /// The tokenizer's file.
        file: String,
        /// The largest id.
        largest: u32,
        /// Rows of the encoder's token embedding.
        rows: usize,
    },
    /// A prompt that cannot be encoded.
    #[error("prompt {index}: {problem}; {remedy}")]
    Prompt {
        /// Which prompt or line, from 1.
        index: usize,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A file of weights was refused.
    #[error(transparent)]
    Formats(#[from] fewstep_formats::Error),
    /// The encoder or its weights were refused.
    #[error(transparent)]
    Network(#[from] fewstep_nn::Error),
    /// Running the encoder failed.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// Reading, writing or converting tensors failed.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
}

/// The result of an operation on prompts.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.display().to_string(), source }
    }
}
