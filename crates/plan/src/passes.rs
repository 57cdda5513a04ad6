//! Passes of a denoiser on shapes.

use std::rc::Rc;
use std::sync::Arc;

use fewstep_diffusion::{Denoiser, Wrapper};
use fewstep_nn::wan::Wan;
use fewstep_ops::{
    Adapters, Conditions, Ghost, GhostGrads, Ledger, Meta, Network, ParamId, ParamSpec, Pass, Trace, Traced,
};
use fewstep_tensor::DType;

use crate::{Request, Result, Work};

/// A denoiser with the shapes of one batch.
pub struct Passes {
    pub(crate) ledger: Rc<Ledger>,
    denoiser: Denoiser<Wan>,
    state: Meta,
    text: Meta,
    image: Option<Meta>,
    latent: Option<Meta>,
    table: Meta,
    dtype: DType,
    adapted: Option<(Arc<[ParamSpec]>, Arc<Adapters>)>,
    recompute: fewstep_ops::Recompute,
}

/// The conditions of a batch; ghosts of the memory they take.
pub type Held = Conditions<Ghost>;

/// A prediction that waits for its cotangent.
pub struct GhostTape {
    mode: Trace,
    f: Traced,
    _table: Ghost,
}

/// Whether a parameter is a matrix of a block: what adapters are put on.
pub fn is_target(spec: &ParamSpec) -> bool {
    spec.name.starts_with("blocks.") && spec.name.ends_with(".weight") && spec.shape.len() == 2
}

fn adapted(specs: &[ParamSpec], rank: usize) -> Result<(Arc<[ParamSpec]>, Arc<Adapters>)> {
    let targets = specs.iter().enumerate().filter(|(_, s)| is_target(s)).map(|(i, _)| ParamId(i));
    let (specs, adapters) = Adapters::declare(specs, &targets.collect::<Vec<_>>(), rank, 1.0)?;
    Ok((specs, Arc::new(adapters)))
}

impl Passes {
    /// The passes of a request, in memory of their own.
    ///
    /// # Errors
    /// If the network is impossible.
    pub fn new(r: &Request) -> Result<Self> {
        let c = &r.network;
        let dtype = r.precision.dtype();
        let video = |channels| [r.batch, channels, r.latent.frames, r.latent.height, r.latent.width];
        let beside = c.in_channels - c.out_channels;
        // Cosines and sines.
        let table = Meta::new(&[r.tokens(), c.head_dim() / 2, 2], DType::F32);
        let network = Wan::new(c.clone())?;
        let trains = !matches!(r.work, Work::Sample { .. });
        let rank = r.lora.filter(|_| trains);
        let adapted = rank.map(|rank| adapted(network.specs(), rank)).transpose()?;
        Ok(Passes {
            ledger: Ledger::new(r.precision.is_of_cpu()),
            denoiser: Denoiser::new(network, Wrapper::Rf1000),
            state: Meta::new(&video(c.out_channels), DType::F64),
            text: Meta::new(&[r.batch, r.text_tokens, c.text_dim], dtype),
            image: c.image_dim.map(|d| Meta::new(&[r.batch, r.image_tokens(), d], dtype)),
            latent: (beside > 0).then(|| Meta::new(&video(beside), dtype)),
            table,
            dtype,
            adapted,
            recompute: r.recompute,
        })
    }

    /// The parameters of the network, adapters aside.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        self.denoiser.network().specs()
    }

    /// The parameters of a role that is trained: the network's, and the adapters where they are trained.
    pub fn all_specs(&self) -> &Arc<[ParamSpec]> {
        self.adapted.as_ref().map_or_else(|| self.specs(), |(specs, _)| specs)
    }

    /// The parameters that are trained.
    pub fn trained_specs(&self) -> &[ParamSpec] {
        self.adapted.as_ref().map_or_else(|| &self.specs()[..], |(specs, _)| &specs[self.specs().len()..])
    }

    /// A state: f64, the shape of the samples.
    pub fn state(&self) -> Ghost {
        self.ledger.ghost(self.state.clone())
    }

    /// The conditions of a batch.
    pub fn conditions(&self) -> Held {
        let ghost = |m: &Meta| self.ledger.ghost(m.clone());
        Conditions {
            text: ghost(&self.text),
            image: self.image.as_ref().map(ghost),
            latent: self.latent.as_ref().map(ghost),
        }
    }

    fn trace(&self, pass: Pass) -> Trace {
        let trace = Trace::new(&self.ledger, self.all_specs(), self.dtype, pass);
        match &self.adapted {
            Some((_, adapters)) => trace.with_adapters(adapters),
            None => trace,
        }
    }

    fn run(&self, m: &Trace, x: Traced, moving: bool, c: &Held) -> Result<Traced> {
        let times = || self.ledger.ghost(Meta::new(&self.state.shape[..1], DType::F64));
        let t = m.input(times(), moving.then(times));
        let value = |g: &Ghost| m.input(g.clone(), None);
        let conditions = Conditions {
            text: value(&c.text),
            image: c.image.as_ref().map(value),
            latent: c.latent.as_ref().map(value),
        };
        Ok(self.denoiser.velocity(m, &x, &t, &conditions)?)
    }

    fn table(&self) -> Ghost {
        self.ledger.ghost(self.table.clone())
    }

    /// F of a role that is trained.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    pub fn velocity(&self, x: &Ghost, c: &Held) -> Result<Ghost> {
        self.forward(&self.trace(Pass::Plain), x, c)
    }

    /// F of the teacher, which has no adapters.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    pub fn teacher_velocity(&self, x: &Ghost, c: &Held) -> Result<Ghost> {
        self.forward(&Trace::new(&self.ledger, self.specs(), self.dtype, Pass::Plain), x, c)
    }

    fn forward(&self, m: &Trace, x: &Ghost, c: &Held) -> Result<Ghost> {
        let _table = self.table();
        Ok(self.run(m, m.input(x.clone(), None), false, c)?.primal().clone())
    }

    /// (F, Ḟ).
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    pub fn velocity_jvp(&self, x: &Ghost, x_dot: &Ghost, c: &Held) -> Result<(Ghost, Ghost)> {
        let _table = self.table();
        let m = self.trace(Pass::Jvp);
        let y = self.run(&m, m.input(x.clone(), Some(x_dot.clone())), true, c)?;
        let tangent = y.tangent().cloned().unwrap_or_else(|| self.state());
        Ok((y.primal().clone(), tangent))
    }

    /// F on a tape.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    pub fn velocity_tape(&self, x: &Ghost, c: &Held) -> Result<GhostTape> {
        let table = self.table();
        let mode = self.trace(Pass::Tape(self.recompute));
        let f = self.run(&mode, mode.input(x.clone(), None), false, c)?;
        Ok(GhostTape { mode, f, _table: table })
    }
}

impl GhostTape {
    /// F.
    pub fn f(&self) -> &Ghost {
        self.f.primal()
    }

    /// Adds the gradients.
    ///
    /// # Errors
    /// As the ops.
    pub fn backward(self, f_bar: Ghost, grads: &mut GhostGrads) -> Result<()> {
        Ok(self.mode.backward(&self.f, f_bar, grads)?)
    }
}
