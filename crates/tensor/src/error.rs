use crate::{DType, Device};

/// What can go wrong in tensor code: always with what was expected and what came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor has the wrong shape for what is asked of it.
    #[error("{op}: expected {expected}, got shape {got:?}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// The invariant, in words.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("{op}: expected dtype {expected}, got {got}")]
    DType {
        /// The operation that refused.
        op: &'static str,
        /// The type it takes.
        expected: DType,
        /// The type that came.
        got: DType,
    },
    /// An operation has no rule for this element type.
    #[error("{op}: no kernel for dtype {got}; compute types are f32 and f64")]
    UnsupportedDType {
        /// The operation that refused.
        op: &'static str,
        /// The type that came.
        got: DType,
    },
    /// A tensor is on another device than an operation takes.
    #[error("{op}: expected a tensor on {expected}, got one on {got}")]
    Device {
        /// The operation that refused.
        op: &'static str,
        /// The device that it takes.
        expected: Device,
        /// The device that came.
        got: Device,
    },
    /// A GPU failed.
    #[error(transparent)]
    Cuda(#[from] fewstep_cuda::Error),
    /// Operands live on different devices.
    #[error("{op}: operands on different devices, {a} and {b}")]
    DeviceMismatch {
        /// The operation that refused.
        op: &'static str,
        /// The first operand's device.
        a: Device,
        /// The other operand's device.
        b: Device,
    },
    /// A file of tensors could not be read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's own error.
        source: std::io::Error,
    },
}

/// The result of tensor code.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether a GPU's memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Cuda(fewstep_cuda::Error::OutOfMemory { .. }))
    }

    /// A shape error, from anything that displays as the invariant.
    pub fn shape(op: &'static str, expected: impl Into<String>, got: &[usize]) -> Self {
        Error::Shape { op, expected: expected.into(), got: got.to_vec() }
    }
}
