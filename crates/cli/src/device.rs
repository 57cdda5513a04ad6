//! The device that a command computes on.

use fewstep_diffusion::{Predictor, TrigTime};
use fewstep_ops::{Compute, Conditions, Grads, Network, Recompute};
use fewstep_tensor::cuda::{cache_problem, gpu};
use fewstep_tensor::{DType, Device, Tensor};

use crate::args::DeviceArg;
use crate::error::Result;
use crate::terminal::Progress;
use crate::{status, warning};

/// Opens a device and says which it is.
///
/// # Errors
/// If it cannot be used; the message says what is missing and what to do.
pub fn open(device: DeviceArg) -> Result<Compute> {
    let compute = Compute::on(device.0);
    let Device::Cuda(_) = device.0 else { return Ok(compute) };
    let gpu = gpu(device.0)?;
    let properties = gpu.properties();
    status!("Device", "{}, {} GB, {}", properties.name, properties.memory / 1_000_000_000, compute.dtype);
    Ok(compute)
}

/// Says what a GPU runs on, where numbers are to be told to others.
///
/// # Errors
/// If the device cannot be used.
pub fn say_software(device: Device) -> Result<()> {
    if let Device::Cuda(_) = device {
        status!("Software", "{}", gpu(device)?.software());
    }
    Ok(())
}

/// What computes there: the GPU's name, or the threads of a CPU.
///
/// # Errors
/// If the device cannot be used.
pub fn name(device: Device) -> Result<String> {
    Ok(match device {
        Device::Cpu => format!("{} threads", rayon::current_num_threads()),
        Device::Cuda(_) => gpu(device)?.properties().name.clone(),
    })
}

/// What a network will be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Predictions.
    Forward,
    /// Predictions, tangents and gradients.
    All,
}

/// Makes ready the kernels that a network launches. `x` is the shape of the states to come.
///
/// # Errors
/// If the network refuses the shape, or a kernel does not compile.
pub fn prepare_network<N: Network>(
    model: Predictor<'_, N>,
    x: &[usize],
    conditions: &Conditions,
    (compute, passes): (Compute, Passes),
) -> Result<()> {
    if compute.device == Device::Cpu {
        return Ok(());
    }
    let (x, t) = (Tensor::empty(x, DType::F64, compute.device)?, vec![TrigTime::NOISE; x[0]]);
    let conditions = compute.conditions(conditions)?;
    prepare(compute, || {
        model.velocity(&x, &t, &conditions)?;
        if passes == Passes::All {
            model.velocity_jvp((&x, &x), (&t, &vec![1.0; t.len()]), &conditions)?;
            let tape = model.velocity_tape(&x, &t, &conditions, Recompute::Everything)?;
            tape.backward(x.clone(), &mut Grads::new(model.params))?;
        }
        Ok(())
    })
}

/// Makes ready the kernels that `pass` launches, several at a time: they take a while the first time. On a CPU there is nothing
/// to do. The pass runs without computing anything.
///
/// # Errors
/// If the pass fails, or a kernel does not compile.
pub fn prepare<T>(compute: Compute, pass: impl FnOnce() -> Result<T>) -> Result<()> {
    let Device::Cuda(_) = compute.device else { return Ok(()) };
    let gpu = gpu(compute.device)?;
    let (ran, variants) = gpu.noting(pass);
    ran?;
    let mut progress = Progress::new("Compiling", variants.len() as u64);
    gpu.prepare(&variants, |_| progress.advance(1))?;
    drop(progress);
    if let Some(problem) = cache_problem() {
        warning!("{problem}; every start compiles them again. Name a folder that can be written in FEWSTEP_CACHE");
    }
    Ok(())
}
