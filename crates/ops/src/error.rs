use fewstep_tensor::DType;

/// What can go wrong while a network runs: always with the op, what it expects and what came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
    /// Inputs do not fit together.
    #[error("{op}: expected {expected}, got {got}")]
    Input {
        /// The op that refused.
        op: &'static str,
        /// The invariant, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// A rule of an op asked for a value that it does not declare to save.
    #[error("{op}: its vjp reads {what}, which it does not declare to save (a defect of the op)")]
    NotSaved {
        /// The defective op.
        op: &'static str,
        /// What is missing.
        what: String,
    },
    /// A parameter has another dtype or shape than the network declares.
    #[error("parameter '{name}': expected shape {expected:?}, got {got:?} ({dtype})")]
    Parameter {
        /// The parameter's name.
        name: String,
        /// The declared shape.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
        /// The dtype that came.
        dtype: DType,
    },
}

/// The result of running an op or a network.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether a GPU's memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Tensor(e) if e.is_out_of_memory())
    }

    /// An input error, from anything that displays.
    pub fn input(op: &'static str, expected: impl Into<String>, got: impl std::fmt::Debug) -> Self {
        Error::Input { op, expected: expected.into(), got: format!("{got:?}") }
    }
}
