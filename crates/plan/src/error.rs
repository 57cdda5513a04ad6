/// Why there is no plan: with what came and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of the request cannot be.
    #[error("{what}: {problem}; {remedy}")]
    Request {
        /// The part, as the command line spells it.
        what: &'static str,
        /// What is impossible.
        problem: String,
        /// What to give instead.
        remedy: String,
    },
    /// The network's configuration is impossible.
    #[error(transparent)]
    Network(#[from] fewstep_nn::Error),
    /// The network refuses the shapes.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
}

/// The result of planning.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn request(what: &'static str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::Request { what, problem: problem.into(), remedy: remedy.into() }
    }
}
