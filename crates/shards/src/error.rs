use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with shards; always with the file, and with the member where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },

    /// A set cannot be written on; what was finished before is intact.
    #[error(
        "cannot write {}: {source}; {finished} samples are finished and kept: make room, then start the same command again",
        path.display()
    )]
    NotWritten {
        /// The file being written.
        path: PathBuf,
        /// How many samples of the set are safe.
        finished: u64,
        /// The system's own error.
        source: io::Error,
    },

    /// An archive is damaged, or holds what a set of shards has no use for.
    #[error("{}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it, with the member's name.
        reason: String,
    },

    /// A sample cannot be used.
    #[error("{}: sample '{key}': {reason}", path.display())]
    BadSample {
        /// The archive.
        path: PathBuf,
        /// The sample's key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A folder belongs to a set that was built otherwise.
    #[error(
        "{} holds a set that was begun with other settings:\n{}\nuse those settings, or choose another folder",
        path.display(),
        differences.join("\n")
    )]
    OtherSettings {
        /// The folder.
        path: PathBuf,
        /// A line for each key that differs: the folder's value and the one asked for.
        differences: Vec<String>,
    },

    /// Another process builds in the folder.
    #[error("{} is being written by {owner}: wait for it to end, or choose another folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
        /// The owner, by its process number where it is known.
        owner: String,
    },

    /// A folder or file is no set of shards.
    #[error("{}: {reason}", path.display())]
    NoSet {
        /// The folder or file.
        path: PathBuf,
        /// What was expected there.
        reason: String,
    },

    /// A plan or option that cannot be followed.
    #[error("{what}: expected {expected}, got {got}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What would be right.
        expected: String,
        /// What came.
        got: String,
    },

    /// The source of samples failed.
    #[error("sample {index} could not be made: {source}")]
    Source {
        /// The sample's index.
        index: u64,
        /// The source's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// Bytes are not the tensor that they should be; the caller adds file and key.
    #[error("{0}")]
    Tensor(String),
}

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        |source| Error::Io { path, source }
    }
}

impl From<fewstep_tensor::Error> for Error {
    fn from(e: fewstep_tensor::Error) -> Self {
        match e {
            fewstep_tensor::Error::Io { path, source } => Error::Io { path: path.into(), source },
            other => Error::Tensor(other.to_string()),
        }
    }
}

impl From<fewstep_formats::Error> for Error {
    fn from(e: fewstep_formats::Error) -> Self {
        Error::Tensor(e.to_string())
    }
}
