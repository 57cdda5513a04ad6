//! One training step of each objective: predictions asked of the networks, the pure loss, the gradient.
//!
//! Steps take their random numbers as arguments, so that they are functions and can be held against a reference.

use fewstep_diffusion::{Guidance, Predictor, RfTime, Shift, TrigTime, clean, diffuse};
use fewstep_ops::{Conditions, Grads, Network, Recompute};
use fewstep_tensor::{Tensor, arith};

use crate::Result;
use crate::method::{Dcm, Dmd, Scm, Simulation, Tangent};
use crate::objectives::{self, CriticTerms, DcmTerms, DmdTerms, Loss, ScmTerms};

/// The networks of a distillation.
#[derive(Debug)]
pub struct Roles<'a, N> {
    /// The generator of few steps.
    pub student: Predictor<'a, N>,
    /// The model that is distilled; frozen.
    pub teacher: Predictor<'a, N>,
    /// The score of the student's own distribution.
    pub fake_score: Predictor<'a, N>,
    /// The teacher's guidance.
    pub guidance: Guidance,
    /// What the backward pass keeps.
    pub recompute: Recompute,
    /// Factor on every gradient: 1/(global batch) for means over it.
    pub weight: f64,
}

/// A batch with its conditions; the conditions have the networks' dtype.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Clean samples `[B, C, F, H, W]`, f64.
    pub x_0: Tensor,
    /// Their conditions.
    pub conditions: Conditions,
    /// The empty or negative prompt's.
    pub unconditional: Conditions,
}

/// A time a sample, and noise of the samples' shape.
#[derive(Clone, Debug)]
pub struct Diffusion {
    /// Times.
    pub t: Vec<TrigTime>,
    /// Noise, f64.
    pub eps: Tensor,
}

/// The random numbers of a backward simulation of N steps.
#[derive(Clone, Debug)]
pub struct SimulationDraws {
    /// The state at the first time.
    pub start: Tensor,
    /// The first time: π/2.
    pub start_time: TrigTime,
    /// Candidate times t̂ of steps 2…N, each sample its own; what fixed simulations ignore.
    pub candidates: Vec<Vec<TrigTime>>,
    /// Fresh noise of steps 2…N.
    pub noise: Vec<Tensor>,
}

/// What an sCM step computed.
#[derive(Debug)]
pub struct ScmStep {
    /// Loss and cotangent.
    pub loss: Loss,
    /// ‖g‖ a sample.
    pub tangent_norm: Vec<f64>,
    /// The state.
    pub x_t: Tensor,
    /// F_θ.
    pub f_theta: Tensor,
    /// The teacher's guided F.
    pub f_teacher: Tensor,
    /// cos t·sin t·dF_θ⁻/dt.
    pub f_dot: Tensor,
}

/// What a dCM step computed.
#[derive(Debug)]
pub struct DcmStep {
    /// Loss and cotangent.
    pub loss: Loss,
    /// The times t_0 of the noisier point.
    pub t: Vec<TrigTime>,
    /// The state at t_0.
    pub x_t: Tensor,
    /// The student's x_0 from it.
    pub x_0: Tensor,
}

/// What a DMD or critic step computed.
#[derive(Debug)]
pub struct ScoreStep {
    /// Loss and cotangent.
    pub loss: Loss,
    /// The student's sample G.
    pub sample: Tensor,
    /// The re-noised sample.
    pub x_t: Tensor,
    /// x_0 that the fake score sees in it.
    pub x_0_fake: Tensor,
    /// x_0 that the guided teacher sees in it; DMD alone asks.
    pub x_0_teacher: Option<Tensor>,
}

impl<N: Network> Roles<'_, N> {
    fn weighted(&self, loss: &Loss) -> Result<Tensor> {
        Ok(arith::scale(&vec![self.weight; loss.per_sample.len()], &loss.f_bar)?)
    }

    fn teacher_velocity(&self, x_t: &Tensor, t: &[TrigTime], b: &Batch) -> Result<Tensor> {
        Ok(self.teacher.guided_velocity(x_t, t, &b.conditions, &b.unconditional, self.guidance)?)
    }

    /// sCM: trains the student towards a trajectory of constant x_0.
    ///
    /// # Errors
    /// If the batch does not fit the networks.
    pub fn scm(&self, c: &Scm, b: &Batch, d: &Diffusion, warmup: f64, grads: &mut Grads) -> Result<ScmStep> {
        let x_t = diffuse(&b.x_0, &d.eps, &d.t)?;
        let f_teacher = self.teacher_velocity(&x_t, &d.t, b)?;
        let f_dot = self.trajectory_derivative(c.tangent, &x_t, &d.t, &f_teacher, &b.conditions)?;
        let tape = self.student.velocity_tape(&x_t, &d.t, &b.conditions, self.recompute)?;
        let f_theta = tape.f().clone();
        let terms = ScmTerms {
            x_t: &x_t,
            t: &d.t,
            f_theta: &f_theta,
            f_teacher: &f_teacher,
            f_dot: &f_dot,
            warmup,
            scale: c.scale,
        };
        let objectives::Scm { loss, tangent_norm } = objectives::scm(&terms)?;
        tape.backward(self.weighted(&loss)?, grads)?;
        Ok(ScmStep { loss, tangent_norm, x_t, f_theta, f_teacher, f_dot })
    }

    /// cos t·sin t·dF/dt of the student along dx/dt = F_teacher.
    fn trajectory_derivative(
        &self,
        tangent: Tangent,
        x_t: &Tensor,
        t: &[TrigTime],
        f_teacher: &Tensor,
        conditions: &Conditions,
    ) -> Result<Tensor> {
        let cs: Vec<f64> = t.iter().map(|t| t.sin_cos()).map(|(s, c)| c * s).collect();
        let x_dot = arith::scale(&cs, f_teacher)?;
        match tangent {
            Tangent::Full => Ok(self.student.velocity_jvp((x_t, &x_dot), (t, &cs), conditions)?.1),
            Tangent::SemiContinuous { h } => {
                let still = vec![0.0; t.len()];
                let (f, in_x) = self.student.velocity_jvp((x_t, &x_dot), (t, &still), conditions)?;
                let in_t = self.time_quotient(h, &f, x_t, t, &cs, conditions)?;
                Ok(arith::add(&in_x, &in_t)?)
            }
            Tangent::Discrete { h } => {
                let (sin, cos): (Vec<f64>, Vec<f64>) = t.iter().map(|&t| step_back(t, h).sin_cos()).unzip();
                let minus: Vec<f64> = sin.iter().map(|s| -s).collect();
                let earlier = arith::combine(&[(&cos, x_t), (&minus, f_teacher)])?;
                let f = self.student.velocity(x_t, t, conditions)?;
                self.time_quotient(h, &f, &earlier, t, &cs, conditions)
            }
        }
    }

    /// cos t·sin t·(cos h·F(x_t, t) − F(x', t − h))/sin h, with h cut to t where it is longer, and 0 at t = 0.
    fn time_quotient(
        &self,
        h: f64,
        f: &Tensor,
        x: &Tensor,
        t: &[TrigTime],
        cs: &[f64],
        conditions: &Conditions,
    ) -> Result<Tensor> {
        let earlier = t.iter().map(|&t| Ok(TrigTime::new(t.get() - step_back(t, h).get())?));
        let earlier = earlier.collect::<Result<Vec<TrigTime>>>()?;
        let before = self.student.velocity(x, &earlier, conditions)?;
        let (mut now, mut then) = (Vec::new(), Vec::new());
        for (&t, &cs) in t.iter().zip(cs) {
            let (sin_h, cos_h) = step_back(t, h).sin_cos();
            let factor = if sin_h > 0.0 { cs / sin_h } else { 0.0 };
            now.push(factor * cos_h);
            then.push(-factor);
        }
        Ok(arith::combine(&[(&now, f), (&then, &before)])?)
    }

    /// dCM: trains the student's x_0 at t_0 towards its own x_0 some teacher steps later.
    ///
    /// `grid` is [`dcm_grid`]'s.
    ///
    /// # Errors
    /// If the batch does not fit the networks.
    pub fn dcm(&self, c: &Dcm, b: &Batch, grid: &[Vec<TrigTime>], eps: &Tensor, grads: &mut Grads) -> Result<DcmStep> {
        let t = grid.first().cloned().unwrap_or_default();
        let x_t = diffuse(&b.x_0, eps, &t)?;
        let mut x = x_t.clone();
        for pair in grid.windows(2) {
            let f = self.teacher_velocity(&x, &pair[0], b)?;
            let step: Vec<f64> = pair[0].iter().zip(&pair[1]).map(|(a, b)| b.get() - a.get()).collect();
            x = arith::combine(&[(&vec![1.0; t.len()], &x), (&step, &f)])?;
        }
        let last = grid.last().unwrap_or(&t);
        let target = clean(&x, &self.student.velocity(&x, last, &b.conditions)?, last)?;
        let tape = self.student.velocity_tape(&x_t, &t, &b.conditions, self.recompute)?;
        let x_0 = clean(&x_t, tape.f(), &t)?;
        let terms = DcmTerms { x_t: &x_t, t: &t, f_theta: tape.f(), target: &target, scale: c.scale };
        let loss = objectives::dcm(&terms)?;
        tape.backward(self.weighted(&loss)?, grads)?;
        Ok(DcmStep { loss, t, x_t, x_0 })
    }

    /// Runs the student from noise to the last step of a simulation: its state and time there.
    fn simulate(&self, c: &Dmd, b: &Batch, d: &SimulationDraws) -> Result<(Tensor, Vec<TrigTime>)> {
        let mut x = d.start.clone();
        let mut t = vec![d.start_time; b.x_0.shape()[0]];
        for (n, (candidates, eps)) in d.candidates.iter().zip(&d.noise).enumerate() {
            let x_0 = clean(&x, &self.student.velocity(&x, &t, &b.conditions)?, &t)?;
            match &c.simulation {
                Simulation::Random => t = candidates.iter().zip(&t).map(|(a, b)| a.min(*b)).collect(),
                Simulation::Fixed { times } => t = vec![times[n]; t.len()],
            }
            x = diffuse(&x_0, eps, &t)?;
        }
        Ok((x, t))
    }

    /// DMD: trains the student's samples to look as likely to the teacher as to the fake score.
    ///
    /// # Errors
    /// If the batch does not fit the networks.
    pub fn dmd(
        &self,
        c: &Dmd,
        b: &Batch,
        simulation: &SimulationDraws,
        d: &Diffusion,
        grads: &mut Grads,
    ) -> Result<ScoreStep> {
        let (x, t) = self.simulate(c, b, simulation)?;
        let tape = self.student.velocity_tape(&x, &t, &b.conditions, self.recompute)?;
        let sample = clean(&x, tape.f(), &t)?;
        let x_t = diffuse(&sample, &d.eps, &d.t)?;
        let x_0_fake = clean(&x_t, &self.fake_score.velocity(&x_t, &d.t, &b.conditions)?, &d.t)?;
        let x_0_teacher = clean(&x_t, &self.teacher_velocity(&x_t, &d.t, b)?, &d.t)?;
        let terms = DmdTerms { sample: &sample, t: &t, x_0_fake: &x_0_fake, x_0_teacher: &x_0_teacher, scale: c.scale };
        let loss = objectives::dmd(&terms)?;
        tape.backward(self.weighted(&loss)?, grads)?;
        Ok(ScoreStep { loss, sample, x_t, x_0_fake, x_0_teacher: Some(x_0_teacher) })
    }

    /// Critic: trains the fake score to denoise the student's samples. Gradients are the fake score's.
    ///
    /// # Errors
    /// If the batch does not fit the networks.
    pub fn critic(
        &self,
        c: &Dmd,
        b: &Batch,
        simulation: &SimulationDraws,
        d: &Diffusion,
        grads: &mut Grads,
    ) -> Result<ScoreStep> {
        let (x, t) = self.simulate(c, b, simulation)?;
        let sample = clean(&x, &self.student.velocity(&x, &t, &b.conditions)?, &t)?;
        let x_t = diffuse(&sample, &d.eps, &d.t)?;
        let tape = self.fake_score.velocity_tape(&x_t, &d.t, &b.conditions, self.recompute)?;
        let x_0_fake = clean(&x_t, tape.f(), &d.t)?;
        let loss = objectives::critic(&CriticTerms { sample: &sample, eps: &d.eps, t: &d.t, f_fake: tape.f() })?;
        tape.backward(self.weighted(&loss)?, grads)?;
        Ok(ScoreStep { loss, sample, x_t, x_0_fake, x_0_teacher: None })
    }
}

/// h, or t where that is shorter: a quotient never reaches past the clean end.
fn step_back(t: TrigTime, h: f64) -> TrigTime {
    TrigTime::new(h).map_or(t, |h| h.min(t))
}

/// t_0 … t_k of each sample: s_j = 1 − (u·(1 − kΔ) + jΔ), shifted, as TrigFlow times; u is uniform in [0, 1).
///
/// # Errors
/// If a u lies outside.
pub fn dcm_grid(c: &Dcm, u: &[f64]) -> Result<Vec<Vec<TrigTime>>> {
    let delta = 1.0 / c.steps as f64;
    let room = 1.0 - c.skip as f64 * delta;
    let point = |u: f64, j: u64| -> Result<TrigTime> {
        // Rounding may leave the last point a hair below 0.
        let s = (1.0 - (u * room + j as f64 * delta)).max(0.0);
        Ok(TrigTime::from(Shift::apply(c.shift, RfTime::new(s)?)))
    };
    (0..=c.skip).map(|j| u.iter().map(|&u| point(u, j)).collect()).collect()
}
