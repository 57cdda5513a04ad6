//! One network in training: weights, optimiser and averaged weights.

use std::collections::BTreeMap;

use fewstep_ops::{Compute, Grads, Params};
use fewstep_tensor::Device;
use fewstep_tensor::file::TensorFile;

use crate::ema::{PowerEma, PowerProfile};
use crate::optimizer::{AdamW, AdamWConfig, Followers, Step};
use crate::parameters::{pack, unpack};
use crate::{Error, Result};

/// A network's weights with what trains them. Of a network with adapters, master weights, moments and average are those of
/// the adapters alone; the frozen weights are no part of its state.
#[derive(Debug)]
pub struct Learner {
    role: &'static str,
    names: Vec<String>,
    compute: Compute,
    /// The masters of what is trained, beside what is frozen.
    params: Params,
    /// What networks compute with where that is not the masters themselves.
    copy: Option<Params>,
    optimizer: AdamW,
    ema: Option<PowerEma>,
    whole: bool,
}

impl Learner {
    /// Starts from these weights, the masters, on the device. `role` names its files in a checkpoint.
    ///
    /// # Errors
    /// If the optimiser's settings are refused, or a GPU has no memory for them.
    pub fn new(
        role: &'static str,
        params: Params,
        compute: Compute,
        optimizer: AdamWConfig,
        average: Option<PowerProfile>,
    ) -> Result<Self> {
        let names: Vec<String> = params.trained_specs().iter().map(|s| s.name.clone()).collect();
        let optimizer = AdamW::new(optimizer, &names, params.trained())?;
        let ema = average.map(|profile| PowerEma::new(profile, params.trained()));
        let mut learner = Learner { role, names, compute, params, copy: None, optimizer, ema, whole: true };
        learner.refresh()?;
        Ok(learner)
    }

    /// The weights that networks compute with.
    pub fn params(&self) -> &Params {
        self.copy.as_ref().unwrap_or(&self.params)
    }

    /// Copies the masters for networks to compute with, where those do not take the masters themselves.
    fn refresh(&mut self) -> Result<()> {
        self.copy = match self.compute.device {
            Device::Cpu => None,
            Device::Cuda(_) => Some(self.compute.weights(&self.params)?),
        };
        Ok(())
    }

    /// The averaged weights (of adapters, A and B each), or the masters themselves where none are kept.
    ///
    /// # Errors
    /// Never: the average has the network's shapes.
    pub fn averaged(&self) -> Result<Params> {
        Ok(match &self.ema {
            Some(ema) => self.params.with_trained(ema.weights().to_vec())?,
            None => self.params.clone(),
        })
    }

    /// One optimiser step at `lr_scale` times the learning rate; the average follows as that of step `k`. Neither
    /// happens if a gradient is not finite.
    ///
    /// # Errors
    /// If the gradients are not this network's, or a GPU has no memory for the step; nothing is then changed.
    pub fn update(&mut self, grads: Grads, k: u64, lr_scale: f64) -> Result<Step> {
        let grads = grads.into_tensors(&self.params);
        // What stays wide is shared with the masters, which are written in place; the rest is written with them.
        let mut copies = self.copy.take().map_or(Vec::new(), |copy| {
            let pairs = copy.trained().iter().zip(self.params.trained());
            pairs.map(|(c, p)| (c.dtype() != p.dtype()).then(|| c.clone())).collect()
        });
        let followers = Followers {
            average: self.ema.as_mut().map(|ema| ema.following(k)),
            copies: copies.iter_mut().map(Option::as_mut).collect(),
        };
        let step = self.optimizer.step_with(self.params.trained_mut(), &grads, lr_scale, followers);
        if !copies.is_empty() {
            let trained = copies.into_iter().zip(self.params.trained()).map(|(c, p)| c.unwrap_or_else(|| p.clone()));
            self.copy = Some(self.params.with_trained(trained.collect())?);
        }
        self.whole = step.as_ref().err().is_none_or(Error::is_out_of_memory);
        step
    }

    /// Whether the state is that after whole updates: not if one failed on the way, for another reason than memory.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Adds weights, optimiser state and average to a checkpoint's files.
    ///
    /// # Errors
    /// Never for lists that belong together, as these do.
    pub fn export(&self, files: &mut BTreeMap<String, TensorFile>) -> Result<()> {
        let tensors = pack("", &self.names, self.params.trained())?;
        files.insert(self.role.into(), TensorFile { tensors, ..Default::default() });
        files.insert(format!("optim_{}", self.role), self.optimizer.export()?);
        if let Some(ema) = &self.ema {
            files.insert(format!("{}_ema", self.role), ema.export(&self.names)?);
        }
        Ok(())
    }

    /// Takes over the state of a checkpoint.
    ///
    /// # Errors
    /// If a file is missing or not this network's.
    pub fn import(&mut self, files: &BTreeMap<String, TensorFile>) -> Result<()> {
        let file = |name: String| {
            let missing = || Error::parameters("the checkpoint", format!("a file '{name}'"), "none");
            files.get(&name).ok_or_else(missing)
        };
        let tensors = unpack(file(self.role.into())?, "", &self.names, self.params.trained())?;
        self.params = self.params.with_trained(tensors)?;
        self.refresh()?;
        self.optimizer.import(file(format!("optim_{}", self.role))?)?;
        match &mut self.ema {
            Some(ema) => ema.import(file(format!("{}_ema", self.role))?, &self.names),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fewstep_ops::{Init, ParamSpec};
    use fewstep_tensor::cuda::EMULATED;
    use fewstep_tensor::{DType, Tensor};

    use super::*;

    /// A matrix, and a gain that stays wide. Without gradients only the decay moves them.
    fn learner(device: Device) -> Learner {
        let spec =
            |name: &str, shape: &[usize], init, wide| ParamSpec { name: name.into(), shape: shape.into(), init, wide };
        let specs: Arc<[ParamSpec]> =
            [spec("w", &[30, 40], Init::Normal(1.0), false), spec("gain", &[40], Init::Ones, true)].into();
        let params = Params::init(&specs, 1, DType::F32, Device::Cpu).unwrap().to(device, DType::F32).unwrap();
        let config = AdamWConfig { learning_rate: 0.1, weight_decay: 1.0, warmup_steps: 0, ..AdamWConfig::default() };
        Learner::new("student", params, Compute::on(device), config, Some(PowerProfile::new(0.1).unwrap())).unwrap()
    }

    fn values(params: &Params) -> Vec<Vec<f64>> {
        params.tensors().iter().map(Tensor::to_vec_f64).collect()
    }

    #[test]
    fn a_network_on_a_gpu_computes_with_the_masters_of_the_host_rounded_after_every_step() {
        let (mut here, mut there) = (learner(Device::Cpu), learner(EMULATED));
        for k in 0..3 {
            let dtypes: Vec<DType> = there.params().tensors().iter().map(Tensor::dtype).collect();
            assert_eq!(dtypes, [DType::Bf16, DType::F32]);
            let rounded: Vec<Vec<f64>> =
                here.params().tensors().iter().zip(dtypes).map(|(t, dtype)| t.to_dtype(dtype).to_vec_f64()).collect();
            assert_eq!(values(there.params()), rounded, "before step {k}");
            assert_eq!(values(&there.averaged().unwrap()), values(&here.averaged().unwrap()));
            for learner in [&mut here, &mut there] {
                let before = values(&learner.params);
                let grads = Grads::new(&learner.params);
                assert!(matches!(learner.update(grads, k, 1.0).unwrap(), Step::Taken(_)));
                assert_ne!(values(&learner.params), before);
            }
        }
    }
}
