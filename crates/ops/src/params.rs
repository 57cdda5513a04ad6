use std::sync::Arc;

use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

use crate::{Error, Result};

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
}

/// The weights of one network. The network itself is structure alone, so student, teacher and average share it.
#[derive(Clone, Debug)]
pub struct Params {
    specs: Arc<[ParamSpec]>,
    tensors: Vec<Tensor>,
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
        Ok(Params { specs: specs.clone(), tensors })
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
        Ok(Params { specs: specs.clone(), tensors })
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

    /// The values, in order, to update.
    pub fn tensors_mut(&mut self) -> &mut [Tensor] {
        &mut self.tensors
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.specs.iter().map(|s| s.name.as_str()).zip(&self.tensors)
    }

    /// The number of scalars.
    pub fn count(&self) -> usize {
        self.tensors.iter().map(Tensor::len).sum()
    }

    /// The same weights in another dtype.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        Params { specs: self.specs.clone(), tensors: self.tensors.iter().map(|t| t.to_dtype(dtype)).collect() }
    }
}
