//! `fewstep plan`: what a sampling or a distillation takes, before anything is loaded.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use fewstep_nn::wan::WanConfig;
use fewstep_ops::Recompute;
use fewstep_pipeline::Parts;
use fewstep_plan::{Change, Hardware, Latent, Plan, Precision, Request, Work, plan, suggest};

use super::bench::{gemm_rate, median};
use crate::error::{Error, Result};
use crate::terminal::print;

/// What describes a network in its folder.
const CONFIG: &str = "config.json";
/// How presets with two experts begin.
const TWO_EXPERTS: &str = "wan2.2-";
const GIB: f64 = (1u64 << 30) as f64;
/// Elements that a measured copy moves: beyond any cache.
const COPY: usize = 1 << 25;
/// Text tokens of a Wan, and of the digits' captions.
const TEXT_TOKENS: [usize; 2] = [512, 8];

/// Methods that a plan can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodArg {
    /// Consistency and distribution matching
    Rcm,
    /// Continuous-time consistency
    Scm,
    /// Distribution matching
    Dmd,
    /// Discrete-time consistency
    Dcm,
    /// Sampling alone
    Sample,
}

/// What the backward pass keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepArg {
    /// Every activation
    Everything,
    /// Block inputs and attention outputs
    Attention,
    /// Block inputs alone
    Inputs,
}

/// Precisions that a plan can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Single precision throughout
    F32,
    /// bf16 weights and activations with f32 masters
    Bf16,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Network, such as wan2.1-t2v-1.3b
    #[arg(long, required_unless_present = "config")]
    pub preset: Option<String>,
    /// Folder of a model, or its config.json (the original's or diffusers'), in place of a preset
    #[arg(long, value_name = "PATH", conflicts_with = "preset")]
    pub config: Option<PathBuf>,
    /// Width and height in pixels; 832x480, or the digits' 16x16
    #[arg(long, value_name = "WxH", value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Frames of video; 81, or the digits' 6
    #[arg(long)]
    pub frames: Option<usize>,
    /// Samples on a device in one pass
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// What is run
    #[arg(long, value_enum, default_value = "rcm")]
    pub method: MethodArg,
    /// Steps of sampling
    #[arg(long, default_value_t = 4)]
    pub steps: usize,
    /// Sample with guidance: two predictions a step
    #[arg(long)]
    pub guided: bool,
    /// Dtypes; bf16 on GPUs and f32 on CPUs where not given
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// What the backward pass keeps
    #[arg(long, value_enum, default_value = "attention")]
    pub recompute: KeepArg,
    /// Devices that weights and optimiser state are sharded over
    #[arg(long, default_value_t = 1)]
    pub devices: usize,
    /// Devices that share the tokens of one sample
    #[arg(long, default_value_t = 1)]
    pub context_parallel: usize,
    /// Rank of trained adapters; all weights are trained where not given
    #[arg(long)]
    pub rank: Option<usize>,
    /// Keep a first moment, which the published beta of 0 does not need
    #[arg(long)]
    pub first_moment: bool,
    /// Text tokens
    #[arg(long)]
    pub text_tokens: Option<usize>,
    /// Device: cpu (measured), h100, h200 or a100
    #[arg(long, default_value = "cpu")]
    pub hardware: String,
    /// Memory of a device in GiB, if not the hardware's
    #[arg(long, value_name = "GIB", allow_negative_numbers = true)]
    pub memory: Option<f64>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

fn size(text: &str) -> std::result::Result<[usize; 2], String> {
    let edges = text.split_once('x').and_then(|(w, h)| Some([w.parse().ok()?, h.parse().ok()?]));
    edges.ok_or_else(|| "give width and height as in 832x480".to_string())
}

/// The `config.json` of a model, and how many networks it has.
fn described(path: &Path) -> Result<(PathBuf, usize)> {
    if !path.is_dir() {
        return Ok((path.to_path_buf(), 1));
    }
    let networks = Parts::find(path)?.transformers;
    let folder = |p: &PathBuf| if p.is_dir() { Some(p.clone()) } else { p.parent().map(Path::to_path_buf) };
    let folders = networks.iter().filter_map(folder).chain([path.to_path_buf()]);
    let found = folders.map(|f| f.join(CONFIG)).find(|p| p.is_file());
    Ok((found.unwrap_or_else(|| path.join(CONFIG)), networks.len().max(1)))
}

/// The name, the extents and the number of the networks.
fn network(args: &PlanArgs) -> Result<(String, WanConfig, usize)> {
    if let Some(given) = &args.config {
        let (path, networks) = described(given)?;
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let json = serde_json::from_str(&text)
            .map_err(|e| Error::Argument(format!("{}: {e}; give the config.json of a Wan", path.display())))?;
        return Ok((given.display().to_string(), WanConfig::from_json(&json)?, networks));
    }
    let name = args.preset.clone().unwrap_or_default();
    match WanConfig::preset(&name) {
        Some(config) => {
            let networks = if name.starts_with(TWO_EXPERTS) { 2 } else { 1 };
            Ok((name, config, networks))
        }
        None => {
            let names = WanConfig::PRESETS.map(|(n, _)| n);
            let nearest = names.into_iter().max_by(|a, b| strsim::jaro(a, &name).total_cmp(&strsim::jaro(b, &name)));
            let nearest = nearest.unwrap_or_default();
            let names = names.join(", ");
            Err(Error::Argument(format!("no network '{name}'; did you mean '{nearest}'? there are {names}")))
        }
    }
}

fn request(args: &PlanArgs, config: WanConfig) -> Result<Request> {
    let pixels = config.out_channels == WanConfig::digits().out_channels;
    let [size, frames, text] =
        if pixels { [[16, 16], [6, 6], [TEXT_TOKENS[1]; 2]] } else { [[832, 480], [81, 81], [TEXT_TOKENS[0]; 2]] };
    let latent = Latent::of(&config, args.size.unwrap_or(size), args.frames.unwrap_or(frames[0]))?;
    let precision =
        args.precision.unwrap_or(if args.hardware == "cpu" { PrecisionArg::F32 } else { PrecisionArg::Bf16 });
    Ok(Request {
        text_tokens: args.text_tokens.unwrap_or(text[0]),
        batch: args.batch,
        precision: match precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
        },
        recompute: match args.recompute {
            KeepArg::Everything => Recompute::Nothing,
            KeepArg::Attention => Recompute::AllButAttention,
            KeepArg::Inputs => Recompute::Everything,
        },
        devices: args.devices,
        context: args.context_parallel,
        work: match args.method {
            MethodArg::Rcm => Work::Rcm,
            MethodArg::Scm => Work::Scm,
            MethodArg::Dmd => Work::Dmd,
            MethodArg::Dcm => Work::Dcm,
            MethodArg::Sample => Work::Sample { steps: args.steps, guided: args.guided },
        },
        lora: args.rank,
        first_moment: args.first_moment,
        ..Request::new(config, latent)
    })
}

fn hardware(args: &PlanArgs) -> Result<Hardware> {
    let mut hardware = match args.hardware.as_str() {
        "cpu" => Hardware::measured(1e9 * gemm_rate(), copy_rate(), machine_memory()),
        name => Hardware::published(name)?,
    };
    match args.memory {
        Some(gib) if gib > 0.0 && gib.is_finite() => hardware.memory = (gib * GIB) as u64,
        Some(gib) => return Err(Error::Argument(format!("--memory {gib}: give a number of GiB above 0"))),
        None => {}
    }
    Ok(hardware)
}

/// Bytes a second that a copy reads and writes: the median of a few.
fn copy_rate() -> f64 {
    use rayon::prelude::*;
    let (from, mut to) = (vec![1.0f32; COPY], vec![0.0f32; COPY]);
    let mut once = || {
        let began = Instant::now();
        let part = COPY / rayon::current_num_threads().max(1) + 1;
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        began.elapsed().as_secs_f64()
    };
    once();
    2.0 * std::mem::size_of_val(from.as_slice()) as f64 / median((0..5).map(|_| once()).collect())
}

/// Bytes of the machine's memory; where the system does not say, as much as any plan takes.
fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

/// Runs the command.
///
/// # Errors
/// If the network, the video or the devices cannot be.
pub fn run(args: &PlanArgs) -> Result<()> {
    let (name, config, experts) = network(args)?;
    let request = Request { experts, ..request(args, config)? };
    request.validate()?;
    let hardware = hardware(args)?;
    let plan = plan(&request, &hardware)?;
    let changes = suggest(&request, &hardware, &plan)?;
    if args.json {
        let json = serde_json::json!({
            "network": name, "request": request, "hardware": hardware, "plan": plan, "total": plan.total(),
            "fits": plan.fits(), "changes": changes,
        });
        return print(format_args!("{json}\n"));
    }
    print(table(&name, &request, &hardware, &plan, &changes))
}

fn table(name: &str, r: &Request, h: &Hardware, p: &Plan, changes: &[Change]) -> String {
    let Latent { frames, height, width } = r.latent;
    let mut out = format!(
        "{name}: {}{:.3} billion parameters, {:.3} trained; {} tokens ({frames} x {height} x {width} latents)\n",
        if r.experts > 1 { format!("{} experts of ", r.experts) } else { String::new() },
        p.parameters as f64 / 1e9,
        p.trained as f64 / 1e9,
        p.tokens
    );
    out += &format!("{}, {} device(s); {}\n\n{:28} {:>12}\n", h.name, r.devices, h.source, "memory of a device", "GiB");
    for kind in p.memory.iter().filter(|k| k.bytes > 0) {
        out += &format!("  {:26} {:>12.3}\n", kind.name, kind.bytes as f64 / GIB);
    }
    out += &format!("  {:26} {:>12.3}  of {:.1}\n\n", "total", p.total() as f64 / GIB, p.capacity as f64 / GIB);
    out += &format!(
        "{:28} {:>7} {:>12} {:>10} {:>10} {:>10}\n",
        "phase", "times", "TFLOP", "GB moved", "seconds", "peak GiB"
    );
    for phase in &p.phases {
        let (tera, giga) = (phase.flops() / 1e12, phase.bytes() / 1e9);
        let peak = phase.peak as f64 / GIB;
        out += &format!(
            "{:28} {:>7.2} {tera:>12.3} {giga:>10.2} {:>10.3} {peak:>10.3}\n",
            phase.name, phase.times, phase.seconds
        );
        for (op, w) in phase.ops.iter().filter(|(_, w)| w.seconds > phase.seconds / 100.0) {
            let (tera, giga) = (w.flops / 1e12, w.bytes / 1e9);
            out += &format!("  {op:34} {tera:>12.3} {giga:>10.2} {:>10.3}\n", w.seconds);
        }
    }
    let unit = if matches!(r.work, Work::Sample { .. }) { "the sampling" } else { "a mean iteration" };
    out += &format!("{unit}: {:.3} s\n\n", p.seconds);
    if p.fits() {
        return out + "It fits.\n";
    }
    out += "It does not fit. What would change that, the cheapest first:\n";
    out += &format!("  {:52} {:>10} {:>10} {:>10}  fits\n", "change", "saves GiB", "total GiB", "seconds");
    for c in changes {
        let (saves, total) = (c.saves as f64 / GIB, c.total as f64 / GIB);
        let fits = if c.fits { "yes" } else { "no" };
        out += &format!("  {:52} {saves:>10.2} {total:>10.2} {:>10.2}  {fits}\n", c.change, c.seconds);
    }
    out
}
