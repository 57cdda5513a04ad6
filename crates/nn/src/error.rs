/// What can go wrong with a network: always with the remedy where a person can act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration that no network can have.
    #[error("{network} configuration: {problem}; {remedy}")]
    Config {
        /// The network.
        network: &'static str,
        /// What is impossible.
        problem: String,
        /// What to change.
        remedy: String,
    },
    /// Weights in no published layout.
    #[error("weights in no known layout of {network}: no tensor named like {expected}")]
    Layout {
        /// The network.
        network: &'static str,
        /// A name of each layout.
        expected: &'static str,
    },
    /// Weights that are not this network's.
    #[error("{file}: not the weights of this network\n{report}")]
    Weights {
        /// The file.
        file: String,
        /// Missing, unexpected and misshapen tensors, one a line.
        report: String,
    },
    /// Weights with NaN or infinite values.
    #[error("{file}: tensor '{tensor}' holds {count} non-finite values; the file is damaged or its training diverged")]
    NonFinite {
        /// The file.
        file: String,
        /// The first such tensor.
        tensor: String,
        /// How many of its values.
        count: usize,
    },
    /// Adapters that are not this network's.
    #[error("adapters: expected {expected}, got {got}; use a file of adapters made for this network")]
    Adapters {
        /// The invariant, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// Whoever observed the work asked to stop.
    #[error("stopped on request")]
    Stopped,
    /// Running the network failed.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// Reading a published file failed.
    #[error(transparent)]
    Format(#[from] fewstep_formats::Error),
    /// Reading or converting tensors failed.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
}

/// The result of building or loading a network.
pub type Result<T> = std::result::Result<T, Error>;
