/// What can go wrong with times, schedules and samplers: what was expected, what came, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number lies outside its range, or is not a number.
    #[error("{quantity} must lie in {range}, got {got}; {remedy}")]
    OutOfRange {
        /// What the number is.
        quantity: &'static str,
        /// The admissible range.
        range: &'static str,
        /// The number that came.
        got: f64,
        /// What to do.
        remedy: &'static str,
    },
    /// A grid is not defined for this number of steps.
    #[error("{grid} is defined for {min} to {max} steps, got {got}; choose a number in that range")]
    Steps {
        /// The grid that refused.
        grid: &'static str,
        /// The fewest steps.
        min: usize,
        /// The most steps.
        max: usize,
        /// The number that came.
        got: usize,
    },
    /// Noise levels that must fall from step to step do not.
    #[error("{grid}: level {index} is {got} after {previous}; {remedy}")]
    NotDecreasing {
        /// The grid or sampler that refused.
        grid: &'static str,
        /// Position of the offending level.
        index: usize,
        /// The level before it.
        previous: f64,
        /// The offending level.
        got: f64,
        /// What to do.
        remedy: &'static str,
    },
    /// Two lists that belong together have different lengths.
    #[error("{what}: expected {expected} entries, got {got}")]
    Length {
        /// What is counted.
        what: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// A sampler cannot run in the coordinate of this schedule.
    #[error("{sampler} runs on levels in {expected}, got a schedule in {got}; build the schedule that belongs to it")]
    WrongSpace {
        /// The sampler that refused.
        sampler: &'static str,
        /// The coordinate it integrates.
        expected: &'static str,
        /// The schedule's coordinate.
        got: &'static str,
    },
    /// A network or a source of noise returned another shape than the state's.
    #[error("step {step}: expected {what} of shape {expected:?}, got {got:?}")]
    OutputShape {
        /// What was returned.
        what: &'static str,
        /// The step, from 0.
        step: usize,
        /// The state's shape.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A network or a source of noise returned NaN or infinite values.
    #[error(
        "step {step}: {count} of {of} values of {what} are not finite; check the weights, the input and the precision"
    )]
    NonFinite {
        /// What was returned.
        what: &'static str,
        /// The step, from 0.
        step: usize,
        /// How many values are NaN or infinite.
        count: usize,
        /// How many values there are.
        of: usize,
    },
    /// A network refused.
    #[error(transparent)]
    Op(#[from] fewstep_ops::Error),
    /// Tensor arithmetic refused.
    #[error(transparent)]
    Tensor(#[from] fewstep_tensor::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether a GPU's memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Error::Tensor(e) => e.is_out_of_memory(),
            Error::Op(e) => e.is_out_of_memory(),
            _ => false,
        }
    }
}
