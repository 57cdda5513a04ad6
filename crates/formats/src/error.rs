/// What can go wrong with a published file: always with the file, and with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is damaged or not what it says it is.
    #[error("{file}: {problem}; fetch or write it again")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The file is whole, but asks for what is not done here, such as running code.
    #[error("{file}: {what}; {remedy}")]
    Refused {
        /// The file.
        file: String,
        /// What it asks for.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Reading or making tensors failed.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
}

/// The result of reading or writing a published file.
pub type Result<T> = std::result::Result<T, Error>;
