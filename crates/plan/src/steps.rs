//! Training iterations on shapes: what `fewstep_distill::steps` and its loop hold, while they hold it.

use fewstep_ops::{Ghost, GhostGrads};

use crate::Result;
use crate::passes::{Held, Passes};

/// A batch: states in f64, both conditions.
struct Batch {
    _x_0: Ghost,
    conditions: Held,
    unconditional: Held,
}

impl Passes {
    fn batch(&self) -> Batch {
        Batch { _x_0: self.state(), conditions: self.conditions(), unconditional: self.conditions() }
    }

    /// The teacher's guided F: both predictions, then their combination.
    fn teacher(&self, x: &Ghost, b: &Batch) -> Result<Ghost> {
        let _cond = self.teacher_velocity(x, &b.conditions)?;
        let _uncond = self.teacher_velocity(x, &b.unconditional)?;
        Ok(self.state())
    }

    /// What a loss makes: a residual, its cotangent, and that weighted.
    fn pull(&self, tape: crate::passes::GhostTape, grads: &mut GhostGrads) -> Result<()> {
        let residual = self.state();
        let _f_bar = self.state();
        drop(residual);
        tape.backward(self.state(), grads)
    }

    fn scm(&self, b: &Batch, grads: &mut GhostGrads) -> Result<()> {
        let (_eps, x_t) = (self.state(), self.state());
        let _f_teacher = self.teacher(&x_t, b)?;
        let (f, _f_dot) = {
            let x_dot = self.state();
            self.velocity_jvp(&x_t, &x_dot, &b.conditions)?
        };
        drop(f);
        let tape = self.velocity_tape(&x_t, &b.conditions)?;
        let _f_theta = tape.f().clone();
        self.pull(tape, grads)
    }

    fn dcm(&self, b: &Batch, grads: &mut GhostGrads) -> Result<()> {
        let (_eps, x_t) = (self.state(), self.state());
        let f = self.teacher(&x_t, b)?;
        let x = self.state();
        drop(f);
        let target = self.velocity(&x, &b.conditions)?;
        let _x_0 = self.state();
        drop(target);
        let tape = self.velocity_tape(&x_t, &b.conditions)?;
        let _prediction = self.state();
        self.pull(tape, grads)
    }

    /// The backward simulation of N − 1 steps: the state it ends in.
    fn simulate(&self, b: &Batch, noise: &[Ghost], start: &Ghost) -> Result<Ghost> {
        let mut x = start.clone();
        // Later steps take and hold what the second does.
        for _ in noise.iter().take(2) {
            let x_0 = {
                let _f = self.velocity(&x, &b.conditions)?;
                self.state()
            };
            x = self.state();
            drop(x_0);
        }
        Ok(x)
    }

    fn dmd(&self, b: &Batch, steps: usize, grads: &mut GhostGrads) -> Result<()> {
        let start = self.state();
        let noise: Vec<Ghost> = (1..steps).map(|_| self.state()).collect();
        let _eps = self.state();
        let x = self.simulate(b, &noise, &start)?;
        let tape = self.velocity_tape(&x, &b.conditions)?;
        let (_sample, x_t) = (self.state(), self.state());
        let x_0 = |f: Ghost| {
            let x_0 = self.state();
            drop(f);
            x_0
        };
        let _fake = x_0(self.velocity(&x_t, &b.conditions)?);
        let _teacher = x_0(self.teacher(&x_t, b)?);
        let (_gap, _difference) = (self.state(), self.state());
        self.pull(tape, grads)
    }

    /// One iteration that trains the student: its peak beyond what is resident, gradients included.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    pub fn student_iteration(&self, consistency: Option<bool>, simulation: Option<usize>) -> Result<()> {
        let mut grads = GhostGrads::new(self.all_specs());
        let batch = self.batch();
        match consistency {
            Some(true) => self.scm(&batch, &mut grads)?,
            Some(false) => self.dcm(&batch, &mut grads)?,
            None => {}
        }
        simulation.map_or(Ok(()), |steps| self.dmd(&batch, steps, &mut grads))
    }

    /// One iteration that trains the fake score.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    pub fn critic_iteration(&self, steps: usize) -> Result<()> {
        let (mut grads, b) = (GhostGrads::new(self.all_specs()), self.batch());
        let start = self.state();
        let noise: Vec<Ghost> = (1..steps).map(|_| self.state()).collect();
        let _eps = self.state();
        let x = self.simulate(&b, &noise, &start)?;
        let _sample = {
            let _f = self.velocity(&x, &b.conditions)?;
            self.state()
        };
        let x_t = self.state();
        let tape = self.velocity_tape(&x_t, &b.conditions)?;
        let _x_0_fake = self.state();
        self.pull(tape, &mut grads)
    }

    /// One sampling step with its solver's history: a state, two predictions, the branches of guidance.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    pub fn sampling_step(&self, guided: bool) -> Result<()> {
        let b = self.batch();
        let (x, _history) = (self.state(), [self.state(), self.state()]);
        if guided {
            self.teacher(&x, &b)?;
        } else {
            let _f = self.teacher_velocity(&x, &b.conditions)?;
            let (_x_0, _fresh) = (self.state(), self.state());
        }
        Ok(())
    }
}
