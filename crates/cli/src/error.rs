//! What ends a command, and what to do about it.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use miette::{Diagnostic, LabeledSpan, SourceCode};

use crate::configuration::ConfigurationError;

/// What ends a command with exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration was refused.
    #[error(transparent)]
    Configuration(#[from] Box<ConfigurationError>),
    /// Training failed.
    #[error(transparent)]
    Distill(fewstep_distill::Error),
    /// A network or its weights were refused.
    #[error(transparent)]
    Network(fewstep_nn::Error),
    /// A sampler or time was refused.
    #[error(transparent)]
    Diffusion(#[from] fewstep_diffusion::Error),
    /// Running a network failed.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// Reading, writing or arithmetic on tensors failed.
    #[error(transparent)]
    Tensor(fewstep_tensor::Error),
    /// The data set refused.
    #[error(transparent)]
    Data(#[from] fewstep_data::DataError),
    /// An image or a video refused.
    #[error(transparent)]
    Media(#[from] fewstep_media::MediaError),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// The results cannot be written to stdout.
    #[error("cannot write to the standard output: {0}")]
    Output(io::Error),
    /// Measuring clips or training the classifier failed.
    #[error(transparent)]
    Evaluate(#[from] fewstep_evaluate::Error),
    /// A forward-mode tangent is not the derivative.
    #[error(
        "a forward-mode tangent is not the derivative of the network (see the table); the weights may be damaged, or \
         values too large for the precision; --no-check skips this check at the start of a distillation"
    )]
    WrongTangent,
    /// A check failed on the device.
    #[error("{failed} of {checks} checks failed on {device} (see the list): do not trust what it computes")]
    Unverified {
        /// How many.
        failed: usize,
        /// Of how many.
        checks: usize,
        /// The device.
        device: fewstep_tensor::Device,
    },
    /// A fixture was refused.
    #[error(transparent)]
    Verify(fewstep_verify::Error),
    /// The report could not be made.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// Shards were refused.
    #[error(transparent)]
    Shards(#[from] fewstep_shards::Error),
    /// A set of shards is not sound.
    #[error("{findings} of the set's members are not sound (see the list); build or fetch their shards again")]
    UnsoundShards {
        /// How many.
        findings: usize,
    },
    /// A file of weights was refused.
    #[error(transparent)]
    Formats(fewstep_formats::Error),
    /// A prompt, a tokenizer or a text encoder was refused.
    #[error(transparent)]
    Text(fewstep_text::Error),
    /// A model's parts were refused.
    #[error(transparent)]
    Pipeline(fewstep_pipeline::Error),
    /// A plan was refused.
    #[error(transparent)]
    Plan(#[from] fewstep_plan::Error),
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

// What the operating system refused is one kind of error, whichever library asked, so that it gets one remedy.

impl From<fewstep_tensor::Error> for Error {
    fn from(e: fewstep_tensor::Error) -> Self {
        match e {
            fewstep_tensor::Error::Io { path, source } => Error::Io { path: path.into(), source },
            other => Error::Tensor(other),
        }
    }
}

impl From<fewstep_tensor::cuda::CudaError> for Error {
    fn from(e: fewstep_tensor::cuda::CudaError) -> Self {
        Error::Tensor(e.into())
    }
}

impl From<fewstep_nn::Error> for Error {
    fn from(e: fewstep_nn::Error) -> Self {
        match e {
            fewstep_nn::Error::Tensor(e) => e.into(),
            fewstep_nn::Error::Format(e) => e.into(),
            other => Error::Network(other),
        }
    }
}

impl From<fewstep_formats::Error> for Error {
    fn from(e: fewstep_formats::Error) -> Self {
        match e {
            fewstep_formats::Error::Tensor(e) => e.into(),
            other => Error::Formats(other),
        }
    }
}

impl From<fewstep_text::Error> for Error {
    fn from(e: fewstep_text::Error) -> Self {
        match e {
            fewstep_text::Error::Io { path, source } => Error::Io { path: path.into(), source },
            fewstep_text::Error::Formats(e) => e.into(),
            fewstep_text::Error::Network(e) => e.into(),
            fewstep_text::Error::Tensor(e) => e.into(),
            other => Error::Text(other),
        }
    }
}

impl From<fewstep_pipeline::Error> for Error {
    fn from(e: fewstep_pipeline::Error) -> Self {
        match e {
            fewstep_pipeline::Error::Formats(e) => e.into(),
            fewstep_pipeline::Error::Text(e) => e.into(),
            fewstep_pipeline::Error::Network(e) => e.into(),
            fewstep_pipeline::Error::Tensor(e) => e.into(),
            other => Error::Pipeline(other),
        }
    }
}

impl From<fewstep_verify::Error> for Error {
    fn from(e: fewstep_verify::Error) -> Self {
        match e {
            fewstep_verify::Error::Tensor(e) => e.into(),
            fewstep_verify::Error::Network(e) => e.into(),
            other => Error::Verify(other),
        }
    }
}

impl From<fewstep_distill::Error> for Error {
    fn from(e: fewstep_distill::Error) -> Self {
        match e {
            fewstep_distill::Error::Io { path, source } => Error::Io { path, source },
            fewstep_distill::Error::Tensor(e) => e.into(),
            other => Error::Distill(other),
        }
    }
}

impl Error {
    /// An error of the operating system on a path; for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_path_buf(), source }
    }

    /// What to do, where the message does not say it.
    fn remedy(&self) -> Option<&'static str> {
        match self {
            Error::Io { source, .. } | Error::Output(source) => Some(remedy(source.kind())),
            Error::Network(fewstep_nn::Error::Weights { .. }) => {
                Some("use the file as teach or distill wrote it; the network it describes has other tensors")
            }
            Error::Network(fewstep_nn::Error::NonFinite { .. }) => {
                Some("use an earlier checkpoint or train again with a lower learning rate")
            }
            Error::Network(fewstep_nn::Error::Layout { network: "wan vae", .. }) => {
                Some("give the weights of a Wan autoencoder, such as Wan2.1_VAE or the file in the folder vae")
            }
            Error::Network(fewstep_nn::Error::Layout { network: "wan", .. }) => {
                Some("give the weights of a Wan network")
            }
            Error::Distill(fewstep_distill::Error::FolderHoldsRun { .. }) => {
                Some("--resume goes on with the run in the folder")
            }
            _ => None,
        }
    }
}

fn remedy(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "check the path; relative paths start at the current folder",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a file stands where a folder is needed: choose another path"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "choose a place where you may read and write",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "free some space, or choose a place that has more"
        }
        _ => "check that the path is what you mean, and that you may read and write there",
    }
}

impl Diagnostic for Error {
    fn help(&self) -> Option<Box<dyn Display + '_>> {
        match self {
            Error::Configuration(e) => e.help(),
            other => other.remedy().map(|remedy| Box::new(remedy) as _),
        }
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        if let Error::Configuration(e) = self { e.source_code() } else { None }
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        if let Error::Configuration(e) = self { e.labels() } else { None }
    }
}
