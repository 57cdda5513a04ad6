//! Tensors in members: `.pt` as `torch.save` writes a bare tensor, or `.safetensors` with one tensor.

use std::path::Path;

use fewstep_formats::torch;
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Element, Tensor, bf16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

use crate::{Error, Result};

/// How a tensor is encoded in a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// `.pt`: what `torch.save(tensor)` writes; the published form.
    #[default]
    Torch,
    /// `.safetensors` with one tensor, whatever its name.
    Safetensors,
}

impl Encoding {
    /// The end of a member's name.
    pub fn extension(self) -> &'static str {
        match self {
            Encoding::Torch => "pt",
            Encoding::Safetensors => "safetensors",
        }
    }

    /// The bytes of a member; the same for the same tensor. `name` is the tensor's name where the form has one.
    ///
    /// # Errors
    /// If the form cannot hold the tensor.
    pub fn encode(self, tensor: &Tensor, name: &str) -> Result<Vec<u8>> {
        match self {
            Encoding::Torch => Ok(torch::encode_tensor(tensor)?),
            Encoding::Safetensors => safetensors(tensor, name),
        }
    }

    /// The one tensor in a member's bytes.
    ///
    /// # Errors
    /// If the bytes are damaged or hold anything else.
    pub fn decode(self, bytes: &[u8]) -> Result<Tensor> {
        match self {
            Encoding::Torch => Ok(torch::decode_tensor(bytes)?),
            Encoding::Safetensors => {
                let file = TensorFile::parse(bytes, Path::new("member"))?;
                match file.tensors.len() {
                    1 => Ok(file.tensors.into_values().collect::<Vec<_>>().swap_remove(0)),
                    n => Err(Error::Tensor(format!("expected one tensor, got {n}"))),
                }
            }
        }
    }
}

fn safetensors(tensor: &Tensor, name: &str) -> Result<Vec<u8>> {
    let bf16 = tensor.to_dtype(DType::Bf16);
    let bytes: Vec<u8> = bf16.as_slice::<bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect();
    let invalid = |e: safetensors::SafeTensorError| Error::Tensor(e.to_string());
    let view = TensorView::new(Dtype::BF16, tensor.shape().to_vec(), &bytes).map_err(invalid)?;
    safetensors::serialize([(name, view)], None).map_err(invalid)
}

/// How many elements are NaN or infinite.
pub fn count_non_finite(tensor: &Tensor) -> usize {
    fn count<T: Element>(tensor: &Tensor, bad: impl Fn(&T) -> bool + Sync) -> usize {
        // The caller matched on the dtype.
        tensor.as_slice::<T>().map_or(0, |s| s.par_chunks(1 << 16).map(|c| c.iter().filter(|x| bad(x)).count()).sum())
    }
    match tensor.dtype() {
        DType::Bf16 => count(tensor, |x: &bf16| x.to_bits() & 0x7f80 == 0x7f80),
        DType::F32 => count(tensor, |x: &f32| !x.is_finite()),
        DType::F64 => count(tensor, |x: &f64| !x.is_finite()),
    }
}
