//! What is trained, when: the objectives' settings and the schedule of phases.

use fewstep_diffusion::{Shift, TimeDistribution, TrigTime};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A distillation method with its own settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// Consistency alone (sCM, dCM): no fake score.
    Consistency(Consistency),
    /// Distribution matching alone.
    Dmd(Dmd),
    /// rCM: consistency, regularised by distribution matching.
    Rcm {
        /// The forward-divergence term.
        consistency: Consistency,
        /// The reverse-divergence term.
        dmd: Dmd,
    },
}

/// A consistency objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Consistency {
    /// Continuous time.
    Scm(Scm),
    /// Discrete time.
    Dcm(Dcm),
}

/// Settings of continuous-time consistency.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scm {
    /// How the derivative along the teacher's trajectory is formed.
    pub tangent: Tangent,
    /// H iterations over which r grows from 0 to 1; 0 for none.
    pub tangent_warmup: u64,
    /// Factor of the loss.
    pub scale: f64,
    /// p_G, the distribution of training times.
    pub time: TimeDistribution,
}

/// How dF/dt along the trajectory is formed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Tangent {
    /// By the Jacobian-vector product in x and t.
    Full,
    /// By the product in x, and a difference quotient in t.
    SemiContinuous {
        /// Step in t.
        h: f64,
    },
    /// By a difference quotient along the trajectory.
    Discrete {
        /// Step in t.
        h: f64,
    },
}

/// Settings of discrete-time consistency.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dcm {
    /// Steps into which τ is divided before the shift.
    pub steps: u64,
    /// Teacher steps between the two points.
    pub skip: u64,
    /// Shift of the grid.
    pub shift: Shift,
    /// Factor of the loss.
    pub scale: f64,
}

/// Settings of distribution matching and its critic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dmd {
    /// Factor of the loss.
    pub scale: f64,
    /// H, the iteration at which the critic begins to train and this loss to count.
    pub start: u64,
    /// F: of every F iterations from H on, one trains the student.
    pub student_update_freq: u64,
    /// N_max, the most steps of a backward simulation.
    pub max_simulation_steps: u64,
    /// Times of the backward simulation.
    pub simulation: Simulation,
    /// p_D, the distribution of the times at which scores are compared, and of random simulation times.
    pub time: TimeDistribution,
}

/// Times of a backward simulation after the first, which is π/2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Simulation {
    /// t_n = min(t̂ ~ p_D, t_{n−1}), each sample its own.
    Random,
    /// The same times in every iteration.
    Fixed {
        /// Descending times.
        times: Vec<TrigTime>,
    },
}

/// What an iteration trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The student, by consistency and, where `dmd`, distribution matching too.
    Student {
        /// Student updates before this one.
        effective: u64,
        /// Whether the distribution-matching loss counts.
        dmd: bool,
    },
    /// The fake score.
    FakeScore {
        /// Fake-score updates before this one.
        effective: u64,
    },
}

impl Method {
    /// The method's name as the papers write it.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Consistency(Consistency::Scm(_)) => "sCM",
            Method::Consistency(Consistency::Dcm(_)) => "dCM",
            Method::Dmd(_) => "DMD",
            Method::Rcm { .. } => "rCM",
        }
    }

    /// The consistency term, if there is one.
    pub fn consistency(&self) -> Option<&Consistency> {
        match self {
            Method::Consistency(c) | Method::Rcm { consistency: c, .. } => Some(c),
            Method::Dmd(_) => None,
        }
    }

    /// The distribution-matching term, if there is one.
    pub fn dmd(&self) -> Option<&Dmd> {
        match self {
            Method::Dmd(d) | Method::Rcm { dmd: d, .. } => Some(d),
            Method::Consistency(_) => None,
        }
    }

    /// The same method with distribution matching from an iteration on.
    pub fn matching_from(mut self, start: u64) -> Self {
        if let Method::Dmd(d) | Method::Rcm { dmd: d, .. } = &mut self {
            d.start = start;
        }
        self
    }

    /// Whether a Jacobian-vector product is taken.
    pub fn is_continuous(&self) -> bool {
        matches!(self.consistency(), Some(Consistency::Scm(_)))
    }

    /// What iteration `it` trains: the student if it < H or (it − H) mod F = 0, else the fake score.
    pub fn phase(&self, it: u64) -> Phase {
        let Some(d) = self.dmd() else { return Phase::Student { effective: it, dmd: false } };
        if it < d.start {
            return Phase::Student { effective: it, dmd: false };
        }
        let (since, f) = (it - d.start, d.student_update_freq);
        let effective = d.start + since / f;
        if since % f == 0 {
            Phase::Student { effective, dmd: true }
        } else {
            Phase::FakeScore { effective: it - effective - 1 }
        }
    }

    /// Refuses settings that contradict each other or cannot be.
    ///
    /// # Errors
    /// The first such setting, with its range.
    pub fn validate(&self) -> Result<()> {
        match self.consistency() {
            Some(Consistency::Scm(s)) => s.validate()?,
            Some(Consistency::Dcm(d)) => d.validate()?,
            None => {}
        }
        self.dmd().map_or(Ok(()), |d| d.validate(self.consistency().is_some()))
    }
}

fn setting(key: &'static str, ok: bool, expected: &'static str, got: impl ToString) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Setting { key, expected, got: got.to_string() }) }
}

fn positive(key: &'static str, x: f64) -> Result<()> {
    setting(key, x > 0.0 && x.is_finite(), "a positive number", x)
}

impl Scm {
    /// r of iteration `effective`: min(1, it/H).
    pub fn warmup(&self, effective: u64) -> f64 {
        if self.tangent_warmup == 0 { 1.0 } else { (effective as f64 / self.tangent_warmup as f64).min(1.0) }
    }

    fn validate(&self) -> Result<()> {
        positive("method scm.scale", self.scale)?;
        match self.tangent {
            Tangent::Full => {}
            Tangent::SemiContinuous { h } | Tangent::Discrete { h } => {
                setting("method scm.tangent.h", h > 0.0 && h < 0.5, "a step in (0, 0.5), such as 1e-4", h)?;
            }
        }
        Ok(self.time.validate()?)
    }
}

impl Dcm {
    fn validate(&self) -> Result<()> {
        positive("method dcm.scale", self.scale)?;
        let skip = self.skip >= 1 && self.skip < self.steps;
        setting("method dcm.skip", skip, "at least 1 and fewer than dcm.steps", self.skip)
    }
}

impl Dmd {
    fn validate(&self, with_consistency: bool) -> Result<()> {
        positive("method dmd.scale", self.scale)?;
        setting(
            "method dmd.student_update_freq",
            self.student_update_freq >= 1,
            "at least 1",
            self.student_update_freq,
        )?;
        setting(
            "method dmd.max_simulation_steps",
            self.max_simulation_steps >= 1,
            "at least 1",
            self.max_simulation_steps,
        )?;
        let idle = self.start > 0 && !with_consistency;
        setting("method dmd.start", !idle, "0 without a consistency loss, which alone trains before it", self.start)?;
        if let Simulation::Fixed { times } = &self.simulation {
            let enough = times.len() as u64 + 1 >= self.max_simulation_steps;
            let got = format!("{} times for {} steps", times.len(), self.max_simulation_steps);
            setting("method dmd.simulation.times", enough, "one time fewer than max_simulation_steps", got)?;
            let falling = times.windows(2).all(|w| w[1].get() <= w[0].get()) && times.iter().all(|t| t.get() > 0.0);
            setting("method dmd.simulation.times", falling, "descending times above 0", format!("{times:?}"))?;
        }
        Ok(self.time.validate()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rcm(start: u64, freq: u64) -> Method {
        let time = TimeDistribution::LogNormal { mean: 0.0, std: 1.0 };
        Method::Rcm {
            consistency: Consistency::Scm(Scm { tangent: Tangent::Full, tangent_warmup: 0, scale: 100.0, time }),
            dmd: Dmd {
                scale: 1.0,
                start,
                student_update_freq: freq,
                max_simulation_steps: 4,
                simulation: Simulation::Random,
                time,
            },
        }
    }

    #[test]
    fn one_of_f_iterations_trains_the_student_and_the_counts_add_up() {
        for (start, freq) in [(0, 5), (7, 3), (0, 1), (100, 5)] {
            let m = rcm(start, freq);
            let (mut student, mut fake) = (0, 0);
            for it in 0..60 {
                match m.phase(it) {
                    Phase::Student { effective, dmd } => {
                        assert_eq!((effective, dmd), (student, it >= start), "iteration {it} of {start}/{freq}");
                        student += 1;
                    }
                    Phase::FakeScore { effective } => {
                        assert_eq!(effective, fake, "iteration {it} of {start}/{freq}");
                        fake += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn contradictory_settings_are_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Dmd)| {
            let Method::Rcm { consistency, mut dmd } = rcm(0, 5) else { unreachable!() };
            change(&mut dmd);
            Method::Rcm { consistency, dmd }.validate().unwrap_err().to_string()
        };
        assert!(refused(&|d| d.student_update_freq = 0).contains("student_update_freq"));
        assert!(refused(&|d| d.max_simulation_steps = 0).contains("max_simulation_steps"));
        assert!(refused(&|d| d.scale = f64::NAN).contains("scale"));
        assert!(refused(&|d| d.simulation = Simulation::Fixed { times: vec![] }).contains("times"));
        let Method::Rcm { dmd, .. } = rcm(10, 5) else { unreachable!() };
        assert!(Method::Dmd(dmd).validate().unwrap_err().to_string().contains("start"));
    }
}
