//! Distributions of training times, as pure functions of raw random numbers.

use fewstep_tensor::random::Stream;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, RfTime, Shift, Sigma, TrigTime};

/// Where training times come from: p_G of the consistency loss and p_D of the score and critic losses (rCM, Table 4).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TimeDistribution {
    /// ln σ ~ N(mean, std²), so t = arctan exp(mean + std·z) with z standard normal.
    LogNormal {
        /// Mean of ln σ.
        mean: f64,
        /// Standard deviation of ln σ, not negative.
        std: f64,
    },
    /// τ = k·u/(1 + (k−1)·u) with u uniform on [0, 1], as a TrigFlow time.
    UniformShift {
        /// k.
        shift: Shift,
    },
}

/// The kind of raw random number that a distribution consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// A standard normal number.
    Normal,
    /// A uniform number in [0, 1].
    Uniform,
}

impl TimeDistribution {
    /// The kind of raw number that [`time`](Self::time) takes.
    pub fn draw(&self) -> Draw {
        match self {
            TimeDistribution::LogNormal { .. } => Draw::Normal,
            TimeDistribution::UniformShift { .. } => Draw::Uniform,
        }
    }

    /// Checks the parameters, for a message at the start of a run rather than in its first step.
    ///
    /// # Errors
    /// If `mean` or `std` is not finite, or `std` is negative.
    pub fn validate(&self) -> Result<()> {
        let TimeDistribution::LogNormal { mean, std } = *self else { return Ok(()) };
        let error = |quantity, range, got, remedy| Err(Error::OutOfRange { quantity, range, got, remedy });
        if !mean.is_finite() {
            return error("log-normal mean", "(-∞, ∞)", mean, "the paper uses -0.8, its code 0.7 or 1.5");
        }
        if !(std >= 0.0 && std.is_finite()) {
            return error("log-normal std", "[0, ∞)", std, "the published runs use 1.6");
        }
        Ok(())
    }

    /// The time that belongs to a raw number of the kind [`draw`](Self::draw) names.
    ///
    /// # Errors
    /// If a parameter or the number is not valid: NaN, infinite, or a uniform number outside [0, 1].
    pub fn time(&self, raw: f64) -> Result<TrigTime> {
        self.validate()?;
        match *self {
            TimeDistribution::LogNormal { mean, std } if raw.is_finite() => {
                Ok(TrigTime::from(Sigma::new((mean + std * raw).exp())?))
            }
            TimeDistribution::LogNormal { .. } => {
                let remedy = "pass a draw from a standard normal distribution";
                Err(Error::OutOfRange { quantity: "normal draw", range: "(-∞, ∞)", got: raw, remedy })
            }
            TimeDistribution::UniformShift { shift } if (0.0..=1.0).contains(&raw) => {
                Ok(TrigTime::from(shift.apply(RfTime::new(raw)?)))
            }
            TimeDistribution::UniformShift { .. } => {
                let remedy = "pass a draw from the uniform distribution";
                Err(Error::OutOfRange { quantity: "uniform draw", range: "[0, 1]", got: raw, remedy })
            }
        }
    }

    /// The time of global sample `sample`: the first number of the stream, through [`time`](Self::time).
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn sample(&self, stream: &Stream, sample: u64) -> Result<TrigTime> {
        self.time(match self.draw() {
            Draw::Normal => stream.normal(sample, 1).iter().map(|&z| f64::from(z)).sum(),
            Draw::Uniform => stream.uniform(sample, 1).iter().sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewstep_tensor::random::Purpose;

    fn uniform(k: f64) -> TimeDistribution {
        TimeDistribution::UniformShift { shift: Shift::new(k).unwrap() }
    }

    #[test]
    fn the_median_draw_gives_the_median_time() {
        let log_normal = TimeDistribution::LogNormal { mean: 2f64.ln(), std: 1.6 };
        assert!((Sigma::from(log_normal.time(0.0).unwrap()).get() - 2.0).abs() < 1e-14);
        // Half of a uniform time, shifted by k, is σ = k.
        assert!((Sigma::from(uniform(5.0).time(0.5).unwrap()).get() - 5.0).abs() < 1e-14);
    }

    #[test]
    fn the_ends_of_the_draws_stay_in_the_interval() {
        assert_eq!(uniform(5.0).time(0.0).unwrap(), TrigTime::CLEAN);
        assert_eq!(uniform(5.0).time(1.0).unwrap(), TrigTime::NOISE);
        let wide = TimeDistribution::LogNormal { mean: 0.0, std: 1e300 };
        assert_eq!(wide.time(6.0).unwrap(), TrigTime::NOISE);
        assert_eq!(wide.time(-6.0).unwrap(), TrigTime::CLEAN);
    }

    #[test]
    fn a_sampled_time_is_the_function_of_the_streams_first_number() {
        let s = Stream::new(3, Purpose::Time, 9);
        let d = TimeDistribution::LogNormal { mean: 0.7, std: 1.6 };
        assert_eq!(d.sample(&s, 4).unwrap(), d.time(f64::from(s.normal(4, 8)[0])).unwrap());
        assert_eq!(uniform(5.0).sample(&s, 4).unwrap(), uniform(5.0).time(s.uniform(4, 8)[0]).unwrap());
    }

    #[test]
    fn hostile_parameters_and_draws_are_errors() {
        for (mean, std) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (0.0, -1.0), (0.0, f64::NAN), (0.0, f64::INFINITY)] {
            assert!(TimeDistribution::LogNormal { mean, std }.time(0.0).is_err(), "{mean} {std}");
        }
        assert!(TimeDistribution::LogNormal { mean: 0.0, std: 1.0 }.time(f64::NAN).is_err());
        for raw in [f64::NAN, -0.1, 1.1] {
            assert!(uniform(5.0).time(raw).is_err(), "{raw}");
        }
    }

    #[test]
    fn unknown_keys_and_bad_shifts_do_not_parse() {
        let parse = serde_json::from_str::<TimeDistribution>;
        assert_eq!(parse(r#"{"uniform_shift": {"shift": 5}}"#).unwrap(), uniform(5.0));
        assert!(parse(r#"{"log_normal": {"mean": 0.7, "std": 1.6}}"#).is_ok());
        assert!(parse(r#"{"log_normal": {"mean": 0.7, "std": 1.6, "sdt": 1}}"#).is_err());
        assert!(parse(r#"{"uniform_shift": {"shift": 0}}"#).is_err());
        assert!(parse(r#"{"uniform": {"shift": 5}}"#).is_err());
    }
}
