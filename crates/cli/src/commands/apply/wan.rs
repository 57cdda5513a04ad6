//! The diffusion transformer: forward, Jacobian-vector product and gradients.

use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Compute, Conditions, Forward, Grads, Network, ParamId, Params, Plain, Recompute, Reverse};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Device, Tensor};

use super::compute;
use crate::args::ApplyArgs;
use crate::error::{Error, Result};

/// Bare weights with the inputs of a file.
pub struct Bare {
    /// The network.
    pub wan: Wan,
    /// Its weights.
    pub params: Params,
    inputs: TensorFile,
    compute: Compute,
}

impl Bare {
    /// Reads weights and inputs.
    ///
    /// # Errors
    /// If a file cannot be read, or the weights are no Wan network's.
    pub fn read(
        weights: &std::path::Path,
        inputs: &std::path::Path,
        heads: Option<usize>,
        patch: [usize; 3],
        compute: Compute,
    ) -> Result<Self> {
        let file = fewstep_formats::read_weights(weights)?;
        let wan = Wan::new(WanConfig::of_weights(&file, heads, patch)?)?;
        let params = compute.weights(&wan.load_from(&file, weights, compute.dtype.wide())?)?;
        Ok(Bare { wan, params, inputs: TensorFile::read(inputs)?, compute })
    }

    /// An input where and as the network computes; times stay f64, on the host.
    ///
    /// # Errors
    /// If the file holds none of this name.
    pub fn input(&self, name: &str) -> Result<Tensor> {
        let tensor = self.inputs.tensors.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.inputs.tensors.keys().map(String::as_str).take(12).collect();
            Error::Argument(format!("the inputs hold no tensor '{name}'; they hold {}", names.join(", ")))
        })?;
        match name {
            "t" | "dt" => Ok(tensor.to_dtype(DType::F64)),
            _ => Ok(tensor.to_dtype(self.compute.dtype).to_device(self.compute.device)?),
        }
    }

    /// ctx, clip and y.
    ///
    /// # Errors
    /// If there is no ctx.
    pub fn conditions(&self) -> Result<Conditions> {
        let optional = |name: &str| self.inputs.tensors.contains_key(name).then(|| self.input(name)).transpose();
        Ok(Conditions { text: self.input("ctx")?, image: optional("clip")?, latent: optional("y")? })
    }
}

/// out; jvp; gradients.
///
/// # Errors
/// If the weights or an input refuses.
pub fn run(args: &ApplyArgs) -> Result<TensorFile> {
    let patch: [usize; 3] =
        args.patch.clone().try_into().map_err(|_| Error::Argument("--patch takes three numbers".into()))?;
    let bare = Bare::read(&args.weights, &args.inputs, args.heads, patch, compute(args)?)?;
    let mut output = TensorFile::default();
    let mut put = |name: &str, t: &Tensor| -> Result<()> {
        output.tensors.insert(name.to_string(), t.to_device(Device::Cpu)?);
        Ok(())
    };
    if args.jvp {
        let m = Forward::new(&bare.params);
        let x = m.input(bare.input("x")?, Some(bare.input("dx")?));
        let t = m.input(bare.input("t")?, Some(bare.input("dt")?));
        let y = bare.wan.forward(&m, &x, &t, &bare.conditions()?.in_mode(&m))?;
        put("out", &y.primal)?;
        if let Some(tangent) = &y.tangent {
            put("jvp", tangent)?;
        }
    } else if !args.grad {
        let m = Plain::new(&bare.params);
        let y = bare.wan.forward(&m, &bare.input("x")?, &bare.input("t")?, &bare.conditions()?.in_mode(&m))?;
        put("out", &y)?;
    }
    if args.grad {
        for (name, t) in gradients(&bare)? {
            put(&name, &t)?;
        }
    }
    Ok(output)
}

fn gradients(bare: &Bare) -> Result<Vec<(String, Tensor)>> {
    let m = Reverse::new(&bare.params, Recompute::Nothing);
    let (x, t) = (m.input(bare.input("x")?), m.input(bare.input("t")?));
    let given = bare.conditions()?;
    let text = m.input(given.text.clone());
    let conditions = Conditions { text: text.clone(), ..given.in_mode(&m) };
    let y = bare.wan.forward(&m, &x, &t, &conditions)?;
    let mut all = vec![("out".to_string(), y.value().clone())];
    let mut grads = Grads::new(&bare.params);
    let bars = m.backward(&y, bare.input("loss_w")?, &mut grads)?;
    for (name, v) in [("grad_x", &x), ("grad_t", &t), ("grad_ctx", &text)] {
        all.extend(bars.get(v).map(|b| (name.to_string(), b.clone())));
    }
    for (i, spec) in bare.params.specs().iter().enumerate() {
        all.extend(grads.get(ParamId(i)).map(|g| (format!("grad.{}", spec.name), g.clone())));
    }
    Ok(all)
}
