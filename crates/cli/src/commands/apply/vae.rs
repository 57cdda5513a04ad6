//! The autoencoder: videos and images to normalised latents and back.

use std::ops::ControlFlow;
use std::time::Instant;

use fewstep_nn::vae::{Step, Tile, VaeConfig, VaeOptions, WanVae};
use fewstep_ops::Params;
use fewstep_tensor::Tensor;
use fewstep_tensor::file::TensorFile;

use super::compute;
use crate::args::ApplyArgs;
use crate::error::{Error, Result};
use crate::interrupt::{self, Interrupted};
use crate::status;
use crate::terminal::Progress;

/// What is read and what is written for it, by encoding.
const ENCODED: [(&str, &str); 2] = [("video", "enc_video"), ("image", "enc_image")];
/// The same, by decoding.
const DECODED: [(&str, &str); 2] = [("z", "dec_video"), ("z1", "dec_image")];

type Observe<'o> = &'o mut dyn FnMut(Step) -> ControlFlow<()>;

/// Shows each chunk of frames, and passes on a request to finish.
struct Watch {
    progress: Option<Progress>,
    interrupted: Interrupted,
}

impl Watch {
    fn hear(&mut self, verb: &str, step: Step) -> ControlFlow<()> {
        let total = (step.chunks * step.tiles) as u64;
        let progress = self.progress.get_or_insert_with(|| Progress::new(verb, total));
        progress.advance(1);
        if self.interrupted.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Latents of `video` and `image`, whichever the inputs hold; `None` if interrupted.
///
/// # Errors
/// If the weights or an input refuses.
pub fn encode(args: &ApplyArgs) -> Result<Option<TensorFile>> {
    run(args, "Encoding", ENCODED, |vae, params, x, options, observe| vae.encode(params, x, options, observe))
}

/// Videos of `z` and `z1`, whichever the inputs hold; `None` if interrupted.
///
/// # Errors
/// If the weights or an input refuses.
pub fn decode(args: &ApplyArgs) -> Result<Option<TensorFile>> {
    run(args, "Decoding", DECODED, |vae, params, x, options, observe| vae.decode(params, x, options, observe))
}

fn run(
    args: &ApplyArgs,
    verb: &str,
    names: [(&str, &str); 2],
    apply: impl Fn(&WanVae, &Params, &Tensor, &VaeOptions, Observe<'_>) -> fewstep_nn::Result<Tensor>,
) -> Result<Option<TensorFile>> {
    if args.jvp || args.grad {
        return Err(Error::Argument("--jvp and --grad are for wan; leave them out for the autoencoder".into()));
    }
    let weights = fewstep_formats::read_weights(&args.weights)?;
    let vae = WanVae::new(VaeConfig::of_weights(&weights)?)?;
    let compute = compute(args)?;
    let params = compute.weights(&vae.load_from(&weights, &args.weights, compute.dtype.wide())?)?;
    drop(weights);
    let inputs = TensorFile::read(&args.inputs)?;
    let options = options(args);
    let interrupted = interrupt::install().map_err(Error::io(&args.output))?;
    let mut output = TensorFile::default();
    for (from, to) in names {
        let Some(x) = inputs.tensors.get(from) else { continue };
        let mut watch = Watch { progress: None, interrupted: interrupted.clone() };
        let began = Instant::now();
        fewstep_tensor::reset_peak();
        let y = match apply(&vae, &params, x, &options, &mut |step| watch.hear(verb, step)) {
            Err(fewstep_nn::Error::Stopped) => return Ok(None),
            other => other?,
        };
        drop(watch);
        let peak = fewstep_tensor::memory().1 as f64 * 1e-9;
        let seconds = began.elapsed().as_secs_f64();
        status!("Made", "{to} {:?} in {seconds:.2} s, {peak:.2} GB of tensors at most", y.shape());
        output.tensors.insert(to.into(), y);
    }
    if output.tensors.is_empty() {
        let held: Vec<&str> = inputs.tensors.keys().map(String::as_str).take(12).collect();
        let [a, b] = names.map(|(from, _)| from);
        let problem = format!("the inputs hold neither '{a}' nor '{b}'; they hold {}", held.join(", "));
        return Err(Error::Argument(problem));
    }
    Ok(Some(output))
}

fn options(args: &ApplyArgs) -> VaeOptions {
    let budget = |mb: usize| Tile::Auto { budget_bytes: mb.saturating_mul(1_000_000) };
    VaeOptions { tile: args.budget_mb.map_or_else(Tile::default, budget) }
}
