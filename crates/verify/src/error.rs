/// Why a check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tensor code refused.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
    /// An op or a network refused.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// Weights or a configuration were refused.
    #[error(transparent)]
    Network(#[from] fewstep_nn::Error),
    /// A time or schedule was refused.
    #[error(transparent)]
    Diffusion(#[from] fewstep_diffusion::Error),
    /// A training step refused.
    #[error(transparent)]
    Distill(#[from] fewstep_distill::Error),
    /// A fixture does not hold what it must, or a computation does not give what it must.
    #[error("{name}: {reason}")]
    Fixture {
        /// The fixture or the computation.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// The result of a check's parts.
pub type Result<T> = std::result::Result<T, Error>;
