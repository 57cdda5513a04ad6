use std::sync::Arc;

use fewstep_tensor::cuda::memory;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

use crate::adapters::Adapters;
use crate::{Adapter, Error, Result};

/// A parameter's place in its network's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(pub usize);

/// How a parameter starts when a network is trained from nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Zeros: biases, output layers.
    Zeros,
    /// Ones: gains.
    Ones,
    /// Independent normal numbers of this standard deviation.
    Normal(f64),
}

/// Name, shape and initial value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// The canonical name.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// The initial value.
    pub init: Init,
    /// Whether it stays in f32 where the network computes in bf16: gains, modulation, the path of the time.
    pub wide: bool,
}

/// The weights of one network. The network itself is structure alone, so student, teacher and average share it.
#[derive(Clone, Debug)]
pub struct Params {
    specs: Arc<[ParamSpec]>,
    tensors: Vec<Tensor>,
    adapters: Arc<Adapters>,
}

impl Params {
    /// Draws initial values: parameter i is "sample" i of the seed's `Init` stream.
    ///
    /// # Errors
    /// If the dtype cannot be drawn.
    pub fn init(specs: &Arc<[ParamSpec]>, seed: u64, dtype: DType, device: Device) -> Result<Self> {
        let stream = Stream::new(seed, Purpose::Init, 0);
        let mut tensors = Vec::with_capacity(specs.len());
        for (i, spec) in specs.iter().enumerate() {
            tensors.push(match spec.init {
                Init::Zeros => Tensor::zeros(&spec.shape, dtype, device),
                Init::Ones => Tensor::full(&spec.shape, 1.0, dtype, device),
                Init::Normal(std) => {
                    let flat = [1, spec.shape.iter().product()];
                    let draws = arith::normal(&stream, i as u64, &flat, dtype, device)?;
                    arith::scale(&[std], &draws)?.reshape(&spec.shape)?
                }
            });
        }
        Ok(Params { specs: specs.clone(), tensors, adapters: Arc::default() })
    }

    /// Takes tensors in the order of the specs.
    ///
    /// # Errors
    /// If the number or a shape differs.
    pub fn new(specs: &Arc<[ParamSpec]>, tensors: Vec<Tensor>) -> Result<Self> {
        if specs.len() != tensors.len() {
            return Err(Error::input("params", format!("{} tensors", specs.len()), tensors.len()));
        }
        for (spec, t) in specs.iter().zip(&tensors) {
            if spec.shape != t.shape() {
                return Err(Error::Parameter {
                    name: spec.name.clone(),
                    expected: spec.shape.clone(),
                    got: t.shape().to_vec(),
                    dtype: t.dtype(),
                });
            }
        }
        Ok(Params { specs: specs.clone(), tensors, adapters: Arc::default() })
    }

    /// The value of a parameter.
    pub fn get(&self, id: ParamId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// Names, shapes and initial values, in order.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    /// The values, in order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub(crate) fn with_adapters(self, adapters: Arc<Adapters>) -> Self {
        Params { adapters, ..self }
    }

    /// The adapter of a weight, if it has one.
    pub fn adapter(&self, id: ParamId) -> Option<Adapter> {
        self.adapters.get(id)
    }

    /// Weights with adapters, in order.
    pub fn adapters(&self) -> impl Iterator<Item = (ParamId, Adapter)> {
        self.adapters.of.iter().map(|(&i, &a)| (ParamId(i), a))
    }

    /// Whether adapters are trained in place of the weights.
    pub fn is_adapted(&self) -> bool {
        self.adapters.frozen > 0
    }

    /// Whether a parameter stays as it is: no gradient of it is computed.
    pub fn is_frozen(&self, id: ParamId) -> bool {
        self.adapters.is_frozen(id)
    }

    /// Specs of the parameters that are trained: all of them, or with adapters theirs alone.
    pub fn trained_specs(&self) -> &[ParamSpec] {
        &self.specs[self.adapters.frozen..]
    }

    /// Values of the parameters that are trained, in order.
    pub fn trained(&self) -> &[Tensor] {
        &self.tensors[self.adapters.frozen..]
    }

    /// Values of the parameters that are trained, in order, to update.
    pub fn trained_mut(&mut self) -> &mut [Tensor] {
        &mut self.tensors[self.adapters.frozen..]
    }

    /// The same network with other trained values; the frozen ones are shared.
    ///
    /// # Errors
    /// If the number or a shape differs.
    pub fn with_trained(&self, trained: Vec<Tensor>) -> Result<Self> {
        let frozen = self.tensors[..self.adapters.frozen].iter().cloned();
        let all = frozen.chain(trained).collect();
        Ok(Params::new(&self.specs, all)?.with_adapters(self.adapters.clone()))
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.specs.iter().map(|s| s.name.as_str()).zip(&self.tensors)
    }

    /// The number of scalars.
    pub fn count(&self) -> usize {
        self.tensors.iter().map(Tensor::len).sum()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.tensors.first().map_or(Device::Cpu, Tensor::device)
    }

    /// The weights as a network on a device computes with them: in `dtype`, but for those that stay wide. Shares what is as
    /// it should be.
    ///
    /// # Errors
    /// If a GPU has no memory for them, or a copy fails.
    pub fn to(&self, device: Device, dtype: DType) -> Result<Self> {
        let moved = |(t, spec): (&Tensor, &ParamSpec)| {
            let dtype = if spec.wide { dtype.wide() } else { dtype };
            // The narrower of the two crosses over to the device.
            let first = if dtype.size() < t.dtype().size() { t.to_dtype(dtype) } else { t.clone() };
            Ok(first.to_device(device)?.to_dtype(dtype))
        };
        let tensors = memory::counted_as(memory::Kind::Weights, || {
            self.tensors.iter().zip(&*self.specs).map(moved).collect::<Result<_>>()
        })?;
        Ok(Params { specs: self.specs.clone(), tensors, adapters: self.adapters.clone() })
    }

    /// The same weights in another dtype.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        let tensors = self.tensors.iter().map(|t| t.to_dtype(dtype)).collect();
        Params { specs: self.specs.clone(), tensors, adapters: self.adapters.clone() }
    }
}
