//! What ends a command.

use std::path::PathBuf;

use crate::configuration::ConfigurationError;

/// What ends a command with exit code 1.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Error {
    /// A configuration was refused.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Configuration(#[from] Box<ConfigurationError>),
    /// Training failed.
    #[error(transparent)]
    Distill(#[from] fewstep_distill::Error),
    /// A network or its weights were refused.
    #[error(transparent)]
    Network(#[from] fewstep_nn::Error),
    /// A sampler or time was refused.
    #[error(transparent)]
    Diffusion(#[from] fewstep_diffusion::Error),
    /// Running a network failed.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// Reading, writing or arithmetic on tensors failed.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
    /// The data set or an image refused.
    #[error(transparent)]
    Data(#[from] fewstep_data::DataError),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// Measuring clips or training the classifier failed.
    #[error(transparent)]
    Evaluate(#[from] fewstep_evaluate::Error),
    /// A forward-mode tangent is not the derivative.
    #[error(
        "a forward-mode tangent is not the derivative of the network (see the table); the weights may be damaged, or \
         values too large for the precision; --no-check skips this check at the start of a distillation"
    )]
    WrongTangent,
    /// The report could not be made.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// An argument cannot be honoured.
    #[error("{0}")]
    Argument(String),
}

/// The result of a command.
pub type Result<T> = std::result::Result<T, Error>;

impl From<ConfigurationError> for Error {
    fn from(e: ConfigurationError) -> Self {
        Error::Configuration(Box::new(e))
    }
}

impl Error {
    /// An error of the operating system on a path; for `map_err`.
    pub fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_path_buf(), source }
    }
}
