use std::fmt;
use std::path::PathBuf;

/// Where a value of a configuration was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a built-in preset.
    Preset {
        /// The preset's name.
        name: String,
    },
    /// In the user's file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// On the command line.
    Override {
        /// The override as it was typed.
        text: String,
    },
    /// Nowhere: the type's own default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preset { name } => write!(f, "preset {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Override { text } => write!(f, "--set {text}"),
            Self::Default => f.write_str("default"),
        }
    }
}
