use std::path::{Path, PathBuf};

use crate::configuration::Difference;

/// What can go wrong in training: with what was expected, what came and, where the user can act, a remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tensor code refused.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
    /// Examples could not be read.
    #[error(transparent)]
    Examples(Box<dyn std::error::Error + Send + Sync>),
    /// A network refused.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// A time, schedule or sampler refused.
    #[error(transparent)]
    Diffusion(#[from] fewstep_diffusion::Error),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A setting lies outside its range.
    #[error("{key}: expected {expected}, got {got}")]
    Setting {
        /// The setting's name.
        key: &'static str,
        /// Its range, in words.
        expected: &'static str,
        /// The value that came.
        got: String,
    },
    /// Lists of parameters, gradients or states do not belong together.
    #[error("{what}: expected {expected}, got {got}")]
    Parameters {
        /// The list or the tensor in question.
        what: String,
        /// The invariant, in words.
        expected: String,
        /// What came instead.
        got: String,
    },
    /// A checkpoint's files are not what its manifest promises.
    #[error("checkpoint {} is damaged: {reason}\n{remedy}", path.display())]
    Damaged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Which file, and how it differs.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A checkpoint could not be written.
    #[error(
        "checkpoint {} was not written: {source}\nearlier checkpoints are intact; free space on the disk or make the \
         folder writable, then resume",
        path.display()
    )]
    NotWritten {
        /// The folder the checkpoint would have had.
        path: PathBuf,
        /// What the system or the tensor code said.
        source: Box<Error>,
    },
    /// A checkpoint belongs to a run with another configuration.
    #[error(
        "checkpoint {} was trained with another configuration:\n{}\nrestore these settings, or start a new run in an \
         empty folder",
        path.display(),
        lines(differences)
    )]
    ConfigurationDiffers {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Every setting that differs and may not.
        differences: Vec<Difference>,
    },
    /// Another process trains in this folder.
    #[error(
        "{}: {owner} is training in this folder; wait for it to end or stop it, or choose another output folder",
        path.display()
    )]
    FolderBusy {
        /// The output folder.
        path: PathBuf,
        /// The owner, "process 123" where it is known.
        owner: String,
    },
    /// A new run was asked for where another has left its files.
    #[error(
        "{}: the folder holds the files of an earlier run ({}); ask to resume it, or choose another output folder",
        path.display(),
        found.join(", ")
    )]
    FolderHoldsRun {
        /// The output folder.
        path: PathBuf,
        /// The files that gave it away.
        found: Vec<String>,
    },
    /// A file of metrics holds a line that is no record.
    #[error("{}:{line}: not a metrics record ({reason}); delete the line, or move the file away", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why it does not parse.
        reason: String,
    },
    /// An image that is not a PNG.
    #[error("image '{tag}': not a PNG ({reason})")]
    Png {
        /// The image's name.
        tag: String,
        /// What is wrong with its header.
        reason: &'static str,
    },
    /// More non-finite values than the budget allows.
    #[error(
        "non-finite values at iteration {iteration} in {term}, {}: {count} of them; that is occurrence {total}, the \
         budget is {budget} ({by_term})\nlower the learning rate or lengthen the warmup, look at the data of these \
         samples, or raise the budget, then resume from the last checkpoint",
        sample.map_or("the whole batch".to_string(), |s| format!("sample {s}"))
    )]
    NonFiniteBudget {
        /// The iteration of the last occurrence.
        iteration: u64,
        /// The loss term, network or gradient in which it was seen.
        term: String,
        /// The global index of the sample, if it can be told.
        sample: Option<u64>,
        /// How many elements were not finite.
        count: u64,
        /// Occurrences so far, this one included.
        total: u64,
        /// Occurrences that are let pass.
        budget: u64,
        /// Occurrences of each term.
        by_term: String,
    },
}

/// The result of training code.
pub type Result<T> = std::result::Result<T, Error>;

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(|d| format!("  {d}")).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// Whether a GPU's memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Error::Tensor(e) => e.is_out_of_memory(),
            Error::Op(e) => e.is_out_of_memory(),
            Error::Diffusion(e) => e.is_out_of_memory(),
            _ => false,
        }
    }

    /// An error of the operating system on a path; for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn parameters(what: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Error::Parameters { what: what.into(), expected: expected.into(), got: got.into() }
    }
}
