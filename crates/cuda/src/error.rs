use crate::memory::Usage;

/// What can go wrong on a GPU: always with what was wanted and what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no driver.
    #[error("no NVIDIA driver was found (libcuda.so.1): install one, or compute with --device cpu")]
    NoDriver,
    /// There is a driver but no such device.
    #[error(
        "CUDA device {ordinal} was asked for, and the driver shows {count}: see nvidia-smi and CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A library of the CUDA toolkit was not found.
    #[error(
        "{library} was not found: install the CUDA toolkit 13 or its wheel (pip install {wheel}), and name the folder that \
         holds the libraries in FEWSTEP_CUDA_LIBRARIES"
    )]
    Library {
        /// The library's file name.
        library: &'static str,
        /// The package that brings it.
        wheel: &'static str,
    },
    /// Driver and compiler do not fit.
    #[error(
        "the driver runs CUDA {driver} and the compiler found is NVRTC {compiler}: update the driver, or install NVRTC {driver}"
    )]
    DriverTooOld {
        /// The newest CUDA that the driver runs.
        driver: Version,
        /// The compiler's version.
        compiler: Version,
    },
    /// The device is older than the kernels.
    #[error("{name} has compute capability {major}.{minor}: the kernels need 8.0 or newer (A100, RTX 30, and later)")]
    Architecture {
        /// The device's name.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// A kernel did not compile: a defect of this program.
    #[error("the kernels of {source_name} do not compile for {target}:\n{log}")]
    Compile {
        /// The source.
        source_name: String,
        /// The architecture.
        target: String,
        /// What the compiler said.
        log: String,
    },
    /// The device's memory is full.
    #[error(
        "out of GPU memory in {what}: {requested} MB more were asked for with {usage}. Let `fewstep plan` choose a configuration that fits: \
         recomputation (run.recompute = \"inputs\"), a smaller batch with accumulation, or LoRA need less"
    )]
    OutOfMemory {
        /// The operation that asked.
        what: &'static str,
        /// MB asked for.
        requested: usize,
        /// What is in use.
        usage: Usage,
    },
    /// The driver or a library refused a call.
    #[error("{call}: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// What came back.
        reason: String,
    },
    /// The emulator found a defect of a kernel.
    #[error("emulated kernel: {0}")]
    Emulator(String),
}

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Before the dot.
    pub major: i32,
    /// After the dot.
    pub minor: i32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The result of work on a GPU.
pub type Result<T> = std::result::Result<T, Error>;

/// The refusal of a call as an error.
pub(crate) fn refused<E: std::fmt::Debug>(call: &'static str) -> impl FnOnce(E) -> Error {
    move |e| Error::Call { call, reason: format!("{e:?}") }
}
