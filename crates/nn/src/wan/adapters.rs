//! Adapters in the names that diffusers and PEFT load.

use std::collections::BTreeMap;

use fewstep_ops::{Network, ParamId, ParamSpec, Params};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor};

use super::{Wan, WanLayout};
use crate::weights::Layout;
use crate::{Error, Result};

/// What diffusers puts before every name of the transformer.
const PREFIX: &str = "transformer.";
/// The ends of a weight's and its adapter's names.
const WEIGHT: &str = ".weight";
const ENDS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
/// The factor of an adapter is alpha/rank.
const ALPHA: &str = ".alpha";

impl Wan {
    fn adapter_layout(&self) -> WanLayout {
        WanLayout::Diffusers { patch: self.config().patch }
    }

    /// The adapters as diffusers names them, `transformer.MODULE.lora_A.weight`, `.lora_B.weight` and `.alpha`, in their own
    /// dtype. Those of the patch embedding are kernels of convolutions there.
    ///
    /// # Errors
    /// If the weights are not this network's, or have no adapters.
    pub fn store_adapters(&self, params: &Params) -> Result<TensorFile> {
        if !params.is_adapted() {
            return Err(Error::Adapters { expected: "weights with adapters".into(), got: "weights alone".into() });
        }
        let (layout, mut file) = (self.adapter_layout(), TensorFile::default());
        for (id, adapter) in params.adapters() {
            let (a, b) = (params.get(adapter.a), params.get(adapter.b));
            let [rank, _] = a.dims::<2>()?;
            let module = module(&layout, &params.specs()[id.0]);
            let shapes = stored_shapes(&layout, &params.specs()[id.0], rank);
            let tensors = [a.reshape(&shapes[0])?, b.reshape(&shapes[1])?];
            for (end, t) in ENDS.into_iter().zip(tensors) {
                file.tensors.insert(format!("{module}{end}"), t);
            }
            let alpha = Tensor::from_vec(vec![(adapter.scale * rank as f64) as f32], &[])?;
            file.tensors.insert(format!("{module}{ALPHA}"), alpha);
        }
        Ok(file)
    }

    /// Weights with the adapters of a file in diffusers' names, in a compute dtype; alpha is the rank where the file has
    /// none.
    ///
    /// # Errors
    /// If a tensor is not that of an adapter of this network, one of a pair is missing or misshapen, or ranks or factors
    /// differ between layers.
    pub fn load_adapters(&self, params: &Params, file: &TensorFile, dtype: DType) -> Result<Params> {
        let layout = self.adapter_layout();
        let mut left: BTreeMap<&str, &Tensor> = file.tensors.iter().map(|(k, t)| (k.as_str(), t)).collect();
        let (mut targets, mut trained, mut common) = (Vec::new(), Vec::new(), None);
        for (i, spec) in self.specs().iter().enumerate().filter(|(_, s)| s.shape.len() == 2) {
            let module = module(&layout, spec);
            let [a, b] = ENDS.map(|end| left.remove(format!("{module}{end}").as_str()));
            let (Some(a), Some(b)) = (a, b) else {
                if a.is_some() || b.is_some() {
                    return Err(Error::Adapters {
                        expected: format!("A and B of {module}"),
                        got: "one of them".into(),
                    });
                }
                continue;
            };
            let rank = a.shape().first().copied().unwrap_or(0);
            let shapes = stored_shapes(&layout, spec, rank);
            if a.shape() != shapes[0] || b.shape() != shapes[1] {
                let got = format!("{:?} and {:?}", a.shape(), b.shape());
                return Err(Error::Adapters {
                    expected: format!("{module}: {:?} and {:?}", shapes[0], shapes[1]),
                    got,
                });
            }
            let alpha = left.remove(format!("{module}{ALPHA}").as_str());
            let alpha = alpha.and_then(|t| t.to_vec_f64().first().copied()).unwrap_or(rank as f64);
            let this = (rank, alpha / rank.max(1) as f64);
            if *common.get_or_insert(this) != this {
                return Err(Error::Adapters {
                    expected: format!("rank and factor {common:?} in every layer"),
                    got: format!("{this:?} in {module}"),
                });
            }
            targets.push(ParamId(i));
            trained.push(a.reshape(&[rank, spec.shape[1]])?.to_dtype(dtype));
            trained.push(b.reshape(&[spec.shape[0], rank])?.to_dtype(dtype));
        }
        if let Some(stranger) = left.keys().next() {
            return Err(Error::Adapters {
                expected: "names of this network's layers".into(),
                got: stranger.to_string(),
            });
        }
        let (rank, scale) = common.unwrap_or((0, 0.0));
        Ok(params.adapted(&targets, rank, scale, 0, dtype)?.with_trained(trained)?)
    }
}

/// The name of the layer that a weight belongs to, as diffusers spells it with its prefix.
fn module(layout: &WanLayout, spec: &ParamSpec) -> String {
    let name = layout.name_of(&spec.name);
    format!("{PREFIX}{}", name.strip_suffix(WEIGHT).unwrap_or(&name))
}

/// The shapes of A and B in the file: matrices, or where the layer is a convolution its kernel and one of extent 1.
fn stored_shapes(layout: &WanLayout, spec: &ParamSpec, rank: usize) -> [Vec<usize>; 2] {
    let weight = layout.shape_of(spec);
    let mut a = weight.clone();
    a[0] = rank;
    let mut b = vec![1; weight.len()];
    (b[0], b[1]) = (weight[0], rank);
    [a, b]
}
