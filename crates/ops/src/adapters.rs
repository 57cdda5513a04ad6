//! Low-rank adapters: a frozen weight W [O, I] is used as W + c·B·A with A [r, I] and B [O, r] trained in its place.
//!
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.

use std::collections::BTreeMap;
use std::sync::Arc;

use fewstep_tensor::cuda::{Factor, multiply};
use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith, dispatch_float};

use crate::{Error, Init, ParamId, ParamSpec, Params, Result};

/// The end of a matrix's name, in whose place an adapter's matrices have theirs.
const WEIGHT: &str = ".weight";
/// The ends of the names of A and B, as the published files of adapters spell them.
const ENDS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
/// Sub-stream of the initial values, so that A is not drawn from the numbers that drew W.
const SUB_STREAM: u64 = 1;

/// The adapter of one weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adapter {
    /// A [r, I].
    pub a: ParamId,
    /// B [O, r].
    pub b: ParamId,
    /// c.
    pub scale: f64,
}

/// The adapters of a network's weights, and how many of its parameters, the first ones, they leave frozen.
#[derive(Debug, Default)]
pub struct Adapters {
    pub(crate) frozen: usize,
    pub(crate) of: BTreeMap<usize, Adapter>,
}

impl Adapters {
    /// Gives matrices adapters of rank r with factor c = `scale`: the parameters with A [r, I] and B [O, r] of each after the
    /// weights, pair by pair, and which belong to which.
    ///
    /// # Errors
    /// If a target is no matrix, there is none, or the rank is 0.
    pub fn declare(
        specs: &[ParamSpec],
        targets: &[ParamId],
        rank: usize,
        scale: f64,
    ) -> Result<(Arc<[ParamSpec]>, Self)> {
        if rank == 0 || targets.is_empty() {
            let got = format!("rank {rank}, {} targets", targets.len());
            return Err(Error::input("adapters", "a rank of 1 or more, and targets", got));
        }
        let (mut all, mut of) = (specs.to_vec(), BTreeMap::new());
        for &id in targets {
            let spec = &specs[id.0];
            let (Some(name), &[outputs, inputs]) = (spec.name.strip_suffix(WEIGHT), spec.shape.as_slice()) else {
                return Err(Error::input("adapters", "a matrix NAME.weight [O, I]", (&spec.name, &spec.shape)));
            };
            let spec = |end, shape: [usize; 2], init| ParamSpec {
                name: format!("{name}{end}"),
                shape: shape.into(),
                init,
                wide: false,
            };
            of.insert(id.0, Adapter { a: ParamId(all.len()), b: ParamId(all.len() + 1), scale });
            all.extend([
                spec(ENDS[0], [rank, inputs], Init::Normal(spread(inputs))),
                spec(ENDS[1], [outputs, rank], Init::Zeros),
            ]);
        }
        Ok((all.into(), Adapters { frozen: specs.len(), of }))
    }

    /// The adapter of a weight, if it has one.
    pub fn get(&self, id: ParamId) -> Option<Adapter> {
        self.of.get(&id.0).copied()
    }

    /// Whether a parameter stays as it is: no gradient of it is computed.
    pub fn is_frozen(&self, id: ParamId) -> bool {
        id.0 < self.frozen
    }
}

impl Params {
    /// Freezes every weight and gives these matrices adapters of rank r with factor c = `scale`; their matrices follow the
    /// weights in the list, pair by pair. The frozen tensors are shared with `self`, not copied, and keep their dtype.
    ///
    /// A is drawn with variance 1/(3·I), as the published programs do, and B is zero: the network computes what it did.
    ///
    /// # Errors
    /// If there are adapters already, a target is no matrix, or the rank is 0.
    pub fn adapted(&self, targets: &[ParamId], rank: usize, scale: f64, seed: u64, dtype: DType) -> Result<Self> {
        if self.adapters().next().is_some() {
            return Err(Error::input("adapters", "no adapters yet", format!("{}", self.adapters().count())));
        }
        let (specs, adapters) = Adapters::declare(self.specs(), targets, rank, scale)?;
        let (stream, mut tensors) = (Stream::new(seed, Purpose::Init, SUB_STREAM), self.tensors().to_vec());
        for (&id, pair) in targets.iter().zip(specs[self.specs().len()..].chunks(2)) {
            let (inputs, outputs) = (pair[0].shape[1], pair[1].shape[0]);
            let flat = [1, rank * inputs];
            let draws = arith::normal(&stream, id.0 as u64, &flat, dtype, self.device())?;
            tensors.push(arith::scale(&[spread(inputs)], &draws)?.reshape(&[rank, inputs])?);
            tensors.push(Tensor::zeros(&[outputs, rank], dtype, self.device()));
        }
        Params::new(&specs, tensors).map(|p| p.with_adapters(Arc::new(adapters)))
    }

    /// The weights of a network without adapters: W + c·B·A, computed in the adapters' dtype and rounded to W's. Tensors that
    /// no adapter changes are shared with `self`.
    ///
    /// # Errors
    /// Never for adapters that [`Params::adapted`] made.
    pub fn merged(&self) -> Result<Self> {
        if !self.is_adapted() {
            return Ok(self.clone());
        }
        let n = self.tensors().len() - self.trained().len();
        let specs: Arc<[ParamSpec]> = self.specs()[..n].into();
        let mut tensors = self.tensors()[..n].to_vec();
        for (id, adapter) in self.adapters() {
            tensors[id.0] = merge(&tensors[id.0], self.get(adapter.a), self.get(adapter.b), adapter.scale)?;
        }
        Params::new(&specs, tensors)
    }
}

/// Standard deviation of A at the start.
fn spread(inputs: usize) -> f64 {
    (3.0 * inputs as f64).powf(-0.5)
}

fn merge(w: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let ([outputs, rank], [_, inputs]) = (b.dims::<2>()?, a.dims::<2>()?);
    let mut wide = w.to_dtype(a.dtype());
    if let Device::Cuda(_) = w.device() {
        let factor = |tensor| Factor { tensor, transposed: false };
        let scaled = arith::scale(&vec![scale; outputs], b)?;
        wide.make_unique()?;
        multiply([outputs, inputs, rank], factor(&scaled), factor(a), None, &wide, true)?;
        return Ok(wide.to_dtype(w.dtype()));
    }
    dispatch_float!("adapters", a.dtype(), T => {
        let (a, b) = (Mat::new(a.as_slice::<T>()?, rank, inputs, inputs), Mat::new(b.as_slice::<T>()?, outputs, rank, rank));
        let out = MatMut::new(wide.make_mut::<T>()?, outputs, inputs, inputs);
        gemm(out, true, <T as fewstep_tensor::math::Real>::lit(scale), b, a, Threads::Pool);
        Ok::<(), Error>(())
    })?;
    Ok(wide.to_dtype(w.dtype()))
}
