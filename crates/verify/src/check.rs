use std::time::Instant;

use fewstep_ops::suite::Margin;
use fewstep_tensor::DType;
use serde::Serialize;

use crate::{Error, Result};

/// What came of a check in one dtype.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The op, the fixture, or what else is checked.
    pub what: String,
    /// The case.
    pub case: String,
    /// The dtype computed in.
    pub dtype: String,
    /// The error that came nearest to its bound.
    pub error: f64,
    /// The bound.
    pub allowed: f64,
    /// Whether every claim holds.
    pub ok: bool,
    /// Seconds that the check took.
    pub seconds: f64,
    /// The claim that failed.
    pub failure: Option<String>,
}

type Proof = std::result::Result<Margin, String>;

/// One thing to prove on a device, in some dtypes.
pub struct Check {
    what: String,
    case: String,
    dtypes: Vec<DType>,
    launch: Box<dyn Fn(DType) -> Result<()>>,
    prove: Box<dyn Fn(DType) -> Proof>,
}

impl Check {
    /// `launch` starts every kernel of the check once, whatever they compute; `prove` gives the error nearest to its bound, or the
    /// claim that failed.
    pub(crate) fn new(
        (what, case): (impl Into<String>, impl Into<String>),
        dtypes: &[DType],
        launch: impl Fn(DType) -> Result<()> + 'static,
        prove: impl Fn(DType) -> Proof + 'static,
    ) -> Self {
        Check {
            what: what.into(),
            case: case.into(),
            dtypes: dtypes.to_vec(),
            launch: Box::new(launch),
            prove: Box::new(prove),
        }
    }

    /// What is checked: an op, a fixture.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The case.
    pub fn case(&self) -> &str {
        &self.case
    }

    /// Starts every kernel of the check once, proving nothing: so that they can be noted and compiled beforehand, or watched.
    /// Gives what failed, by dtype.
    pub fn launch(&self) -> Vec<(DType, Error)> {
        self.dtypes.iter().filter_map(|&dtype| Some((dtype, (self.launch)(dtype).err()?))).collect()
    }

    /// Proves it in every dtype.
    pub fn run(&self) -> Vec<Row> {
        self.dtypes.iter().map(|&dtype| self.row(dtype)).collect()
    }

    fn row(&self, dtype: DType) -> Row {
        let began = Instant::now();
        let proof = (self.prove)(dtype);
        let seconds = began.elapsed().as_secs_f64();
        let margin = proof.as_ref().copied().unwrap_or(Margin { error: f64::NAN, allowed: f64::NAN });
        Row {
            what: self.what.clone(),
            case: self.case.clone(),
            dtype: dtype.to_string(),
            error: margin.error,
            allowed: margin.allowed,
            ok: proof.is_ok() && margin.holds(),
            seconds,
            failure: proof.err(),
        }
    }
}
