//! Memory by kind, work by phase, time.

use std::collections::BTreeMap;

use fewstep_ops::{Call, GhostGrads, ParamSpec};
use serde::Serialize;

use crate::parts::{Part, decoder, text_encoder};
use crate::passes::Passes;
use crate::{Hardware, Precision, Request, Result, Work};

/// Bytes of an f32: masters, moments, average.
const SINGLE: u64 = 4;

/// One kind of memory on one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kind {
    /// What it holds.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// Work of one op in a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct OpWork {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Seconds by the roofline.
    pub seconds: f64,
}

/// One phase of an iteration, on one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// What it does.
    pub name: &'static str,
    /// How often it runs in a mean iteration, or in one sampling.
    pub times: f64,
    /// Once, by op.
    pub ops: BTreeMap<&'static str, OpWork>,
    /// Bytes sent and received once.
    pub transferred: f64,
    /// Most tensor memory beyond weights, in bytes.
    pub peak: u64,
    /// Seconds of it once, transfers hidden behind the work where that takes longer.
    pub seconds: f64,
}

impl Phase {
    /// Operations once.
    pub fn flops(&self) -> f64 {
        self.ops.values().map(|w| w.flops).sum()
    }

    /// Operations of matrix products and attention once: what utilisation is told by.
    pub fn product_flops(&self) -> f64 {
        ["linear", "linear_gelu", "attention"].iter().filter_map(|op| self.ops.get(op)).map(|w| w.flops).sum()
    }

    /// Bytes read and written once.
    pub fn bytes(&self) -> f64 {
        self.ops.values().map(|w| w.bytes).sum()
    }
}

/// What a request takes, a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Tokens of a sample.
    pub tokens: usize,
    /// Parameters of one network.
    pub parameters: u64,
    /// Parameters that are trained in one network.
    pub trained: u64,
    /// Memory by kind.
    pub memory: Vec<Kind>,
    /// Phases.
    pub phases: Vec<Phase>,
    /// Seconds of a mean iteration, or of a sampling.
    pub seconds: f64,
    /// Bytes of the device.
    pub capacity: u64,
}

impl Plan {
    /// Bytes in all, at the peak.
    pub fn total(&self) -> u64 {
        self.memory.iter().map(|k| k.bytes).sum()
    }

    /// Bytes of weights, masters, moments and average for each parameter, before sharding changes them.
    pub fn resident(&self) -> u64 {
        let kinds = ["weights", "masters", "moments", "average"];
        self.memory.iter().filter(|k| kinds.contains(&k.name)).map(|k| k.bytes).sum()
    }

    /// Whether it fits.
    pub fn fits(&self) -> bool {
        self.total() <= self.capacity
    }
}

/// Whether the method has a consistency term (true: in continuous time), and distribution matching.
fn terms(work: Work) -> (Option<bool>, bool) {
    match work {
        Work::Sample { .. } => (None, false),
        Work::Scm => (Some(true), false),
        Work::Dcm => (Some(false), false),
        Work::Dmd => (None, true),
        Work::Rcm => (Some(true), true),
    }
}

/// Estimates memory, work and time on a device.
///
/// Sharding divides weights, optimiser state and gradients; context parallelism divides tokens. Transfers overlap with
/// work.
///
/// # Errors
/// If the request cannot be.
pub fn plan(r: &Request, hardware: &Hardware) -> Result<Plan> {
    r.validate()?;
    let passes = Passes::new(r)?;
    let count = |specs: &[ParamSpec], f: &dyn Fn(&ParamSpec) -> u64| specs.iter().map(f).sum::<u64>();
    let parameters = count(passes.specs(), &elements);
    let trained = count(passes.trained_specs(), &elements);
    let mut phases: Vec<Phase> = Vec::new();
    let mut known: Vec<(Runs, Phase)> = Vec::new();
    for (name, times, runs) in schedule(r) {
        let same = known.iter().find(|(k, _)| *k == runs).map(|(_, p)| p.clone());
        let once = same.map_or_else(|| phase(r, hardware, runs), Ok)?;
        known.push((runs, once.clone()));
        phases.push(Phase { name, times, ..once });
    }
    let parts = Parts::of(r)?;
    let memory = match r.work {
        Work::Sample { guided, .. } => sampling(r, &passes, parameters, guided, &parts)?,
        _ => training(r, &passes, parameters, trained)?,
    };
    if let Some(part) = &parts.text {
        phases.insert(0, of_part(part, hardware));
    }
    phases.extend(parts.decoder.as_ref().map(|part| of_part(part, hardware)));
    let seconds = phases.iter().map(|p: &Phase| p.times * p.seconds).sum();
    Ok(Plan { tokens: r.tokens(), parameters, trained, memory, phases, seconds, capacity: hardware.memory })
}

/// What sampling needs beside the network.
struct Parts {
    text: Option<Part>,
    decoder: Option<Part>,
}

impl Parts {
    fn of(r: &Request) -> Result<Self> {
        match r.work {
            Work::Sample { guided, .. } => Ok(Parts { text: text_encoder(r, guided)?, decoder: decoder(r)? }),
            _ => Ok(Parts { text: None, decoder: None }),
        }
    }
}

fn of_part(part: &Part, hardware: &Hardware) -> Phase {
    let ops = by_op(&part.calls, hardware, 1.0);
    let seconds = ops.values().map(|w| w.seconds).sum();
    Phase { name: part.name, times: part.times, ops, transferred: 0.0, peak: part.peak, seconds }
}

fn elements(s: &ParamSpec) -> u64 {
    s.shape.iter().map(|&n| n as u64).product()
}

/// The fullest of three stages: the prompts are encoded, and the encoder let go; then the networks sample; then the
/// autoencoder decodes. The networks are there all the time, the autoencoder from the second stage on.
fn sampling(r: &Request, passes: &Passes, parameters: u64, guided: bool, parts: &Parts) -> Result<Vec<Kind>> {
    passes.sampling_step(guided)?;
    let weights = |part: &Option<Part>| part.as_ref().map_or(0, |p| p.weights);
    let peak = |part: &Option<Part>| part.as_ref().map_or(0, |p| p.peak);
    let (text, vae) = (weights(&parts.text), weights(&parts.decoder));
    let drawing = passes.ledger.peak().div_ceil(r.context as u64);
    let stages = [(0, vae, drawing), (0, vae, peak(&parts.decoder)), (text, 0, peak(&parts.text))];
    let [drawing, decoding, encoding] = stages.map(|(t, v, a)| (t + v + a, (t, v, a)));
    let (_, (text, vae, activations)) =
        [decoding, encoding].into_iter().fold(drawing, |a, b| if b.0 > a.0 { b } else { a });
    let networks = parameters * r.experts as u64 * r.precision.dtype().size() as u64;
    Ok(vec![
        Kind { name: "weights", bytes: networks.div_ceil(r.devices as u64) },
        Kind { name: "text encoder", bytes: text },
        Kind { name: "autoencoder", bytes: vae },
        Kind { name: "activations", bytes: activations },
        Kind { name: "communication", bytes: buffers(r, passes) },
    ])
}

fn training(r: &Request, passes: &Passes, parameters: u64, trained: u64) -> Result<Vec<Kind>> {
    let (consistency, matching) = terms(r.work);
    let element = r.precision.dtype().size() as u64;
    let learners = 1 + u64::from(matching);
    // Teacher and learners; adapters share the teacher's weights.
    let weights = parameters + learners * trained;
    let masters = if r.precision == Precision::Bf16 { learners * trained * SINGLE } else { 0 };
    let moments = learners * trained * SINGLE * (1 + u64::from(r.first_moment));
    let shard = |bytes: u64| bytes.div_ceil(r.devices as u64);

    passes.student_iteration(consistency, matching.then_some(r.simulation_steps))?;
    if matching {
        passes.critic_iteration(r.simulation_steps)?;
    }
    // On the tape all gradients are there at the peak or come to be while activations go.
    let gradients = trained * element;
    let activations = passes.ledger.peak().saturating_sub(gradients);
    Ok(vec![
        Kind { name: "weights", bytes: shard(weights * element) },
        Kind { name: "masters", bytes: shard(masters) },
        Kind { name: "moments", bytes: shard(moments) },
        Kind { name: "average", bytes: shard(trained * SINGLE) },
        Kind { name: "gradients", bytes: shard(gradients) },
        Kind { name: "activations", bytes: activations.div_ceil(r.context as u64) },
        Kind { name: "communication", bytes: buffers(r, passes) },
    ])
}

/// Two blocks' gathered weights and one block's whole gradients; queries, keys and values on their way, both ways.
fn buffers(r: &Request, passes: &Passes) -> u64 {
    let element = r.precision.dtype().size() as u64;
    let block: u64 = passes.specs().iter().filter(|s| s.name.starts_with("blocks.0.")).map(elements).sum();
    let gathered = if r.devices > 1 { (2 + u64::from(!matches!(r.work, Work::Sample { .. }))) * block } else { 0 };
    let tokens = (r.batch * r.tokens()).div_ceil(r.context) as u64;
    let exchanged = if r.context > 1 { 2 * 3 * tokens * r.network.dim as u64 } else { 0 };
    (gathered + exchanged) * element
}

/// What a phase runs.
#[derive(Clone, Copy, PartialEq)]
enum Runs {
    Teacher,
    Forward,
    Jvp,
    Gradient,
}

/// How often each phase runs in a mean iteration, where one of F trains the student, or in a sampling.
fn schedule(r: &Request) -> Vec<(&'static str, f64, Runs)> {
    if let Work::Sample { steps, guided } = r.work {
        return vec![("network forward", steps as f64 * if guided { 2.0 } else { 1.0 }, Runs::Teacher)];
    }
    let (consistency, matching) = terms(r.work);
    let student = if matching { 1.0 / r.student_every as f64 } else { 1.0 };
    let of = |yes: bool| f64::from(u8::from(yes));
    let terms = of(consistency.is_some()) + of(matching);
    // Simulations take 0 to N − 1 steps before their last; the critic's last is a plain forward too.
    let before = (r.simulation_steps - 1) as f64 / 2.0;
    let rollouts = of(matching) * (before + 1.0 - student) + of(consistency == Some(false)) * student;
    let all = [
        ("teacher forward", 2.0 * terms * student, Runs::Teacher),
        ("student JVP", of(consistency == Some(true)) * student, Runs::Jvp),
        ("student forward + backward", terms * student, Runs::Gradient),
        ("student rollout", rollouts, Runs::Forward),
        ("fake-score forward", of(matching) * student, Runs::Forward),
        ("critic forward + backward", of(matching) * (1.0 - student), Runs::Gradient),
    ];
    all.into_iter().filter(|(_, times, _)| *times > 0.0).collect()
}

/// One run of a phase by itself.
fn phase(r: &Request, hardware: &Hardware, runs: Runs) -> Result<Phase> {
    let p = Passes::new(r)?;
    let (x, c, f_bar) = (p.state(), p.conditions(), p.state());
    let live = p.ledger.live();
    match runs {
        Runs::Teacher => drop(p.teacher_velocity(&x, &c)?),
        Runs::Forward => drop(p.velocity(&x, &c)?),
        Runs::Jvp => drop(p.velocity_jvp(&x, &x, &c)?),
        Runs::Gradient => p.velocity_tape(&x, &c)?.backward(f_bar, &mut GhostGrads::new(p.all_specs()))?,
    }
    let share = 1.0 / r.context as f64;
    let ops = by_op(&p.ledger.take_calls(), hardware, share);
    let transferred = transferred(r, &p, runs);
    let work: f64 = ops.values().map(|w| w.seconds).sum();
    let seconds = work.max(hardware.transfer(transferred));
    Ok(Phase { name: "", times: 1.0, ops, transferred, peak: p.ledger.peak() - live, seconds })
}

/// Work by op, `share` of it.
fn by_op(calls: &[Call], hardware: &Hardware, share: f64) -> BTreeMap<&'static str, OpWork> {
    let mut ops: BTreeMap<&'static str, OpWork> = BTreeMap::new();
    for call in calls {
        let w = ops.entry(call.op).or_default();
        w.flops += call.flops * share;
        w.bytes += call.bytes * share;
        w.seconds += hardware.seconds(call) * share;
    }
    ops
}

/// Bytes that a device sends in a phase: weights gathered in each direction of the pass, gradients reduced, and queries,
/// keys, values and outputs of self-attention exchanged.
fn transferred(r: &Request, p: &Passes, runs: Runs) -> f64 {
    let element = r.precision.dtype().size() as f64;
    let parameters = p.specs().iter().map(elements).sum::<u64>() as f64;
    let trained = p.trained_specs().iter().map(elements).sum::<u64>() as f64;
    let (gathered, exchanges) = match runs {
        Runs::Teacher | Runs::Forward => (parameters, 1.0),
        Runs::Jvp => (parameters, 2.0),
        Runs::Gradient => (2.0 * parameters + trained, 3.0),
    };
    let others = |n: usize| (n - 1) as f64 / n as f64;
    let tokens = r.batch as f64 * r.tokens() as f64 / r.context as f64;
    let layer = 4.0 * tokens * r.network.dim as f64;
    let exchanged = exchanges * layer * r.network.layers as f64 * others(r.context);
    (gathered * others(r.devices) + exchanged) * element
}
