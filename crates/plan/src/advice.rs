//! What to change where a plan does not fit.

use fewstep_ops::Recompute;
use serde::Serialize;

use crate::{Hardware, Latent, Plan, Request, Result, Work, plan};

/// Rank of the adapters that are suggested.
const RANK: usize = 64;
/// Devices that are suggested at most.
const MAX_DEVICES: usize = 1024;

/// A change with what it brings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What to change, as the command line spells it.
    pub change: String,
    /// Bytes a device that it saves.
    pub saves: i64,
    /// Bytes a device after it.
    pub total: u64,
    /// Seconds of an iteration or sampling after it.
    pub seconds: f64,
    /// Whether it fits after it.
    pub fits: bool,
}

type Step = (String, Request);

/// Each change alone, those that are enough first and then by the seconds that they lead to; where none is enough, also all
/// of them one upon another until they are.
///
/// # Errors
/// If the request cannot be.
pub fn suggest(r: &Request, hardware: &Hardware, now: &Plan) -> Result<Vec<Change>> {
    if now.fits() {
        return Ok(Vec::new());
    }
    let mut alone = Vec::new();
    for (change, request) in changes(r) {
        let after = plan(&request, hardware)?;
        alone.push(Change::of(change, now, &after));
    }
    alone.sort_by(|a, b| b.fits.cmp(&a.fits).then(a.seconds.total_cmp(&b.seconds)));
    if alone.iter().any(|c| c.fits) {
        return Ok(alone);
    }
    let (mut together, mut request, mut names) = (None, r.clone(), Vec::new());
    for i in 0..changes(r).len() {
        let Some((name, next)) = changes(&request).into_iter().find(|(n, _)| !names.contains(n)) else { break };
        let after = plan(&next, hardware)?;
        names.push(name);
        request = next;
        let change = Change::of(names.join(" "), now, &after);
        let done = change.fits || i > 16;
        together = Some(change);
        if done {
            break;
        }
    }
    alone.extend(together);
    Ok(alone)
}

impl Change {
    fn of(change: String, now: &Plan, after: &Plan) -> Self {
        let saves = now.total() as i64 - after.total() as i64;
        Change { change, saves, total: after.total(), seconds: after.seconds, fits: after.fits() }
    }
}

fn changes(r: &Request) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::new();
    let mut add = |name: String, request: Request| {
        if request != *r && request.validate().is_ok() {
            out.push((name, request));
        }
    };
    let training = !matches!(r.work, Work::Sample { .. });
    if training {
        if r.recompute == Recompute::Nothing {
            add("--recompute attention".into(), Request { recompute: Recompute::AllButAttention, ..r.clone() });
        }
        if r.recompute != Recompute::Everything {
            add("--recompute inputs".into(), Request { recompute: Recompute::Everything, ..r.clone() });
        }
        if r.lora.is_none() {
            add(format!("--rank {RANK}"), Request { lora: Some(RANK), ..r.clone() });
        }
    }
    if r.batch > 1 {
        add(format!("--batch {}", r.batch / 2), Request { batch: r.batch / 2, ..r.clone() });
    }
    if r.latent.frames > 1 {
        let frames = r.latent.frames.div_ceil(2);
        let pixels = if r.network.out_channels == 16 { 4 * (frames - 1) + 1 } else { frames };
        add(format!("--frames {pixels}"), Request { latent: Latent { frames, ..r.latent }, ..r.clone() });
    }
    let mut devices = r.devices * 2;
    while devices <= MAX_DEVICES && devices <= 8 * r.devices {
        add(format!("--devices {devices}"), Request { devices, ..r.clone() });
        devices *= 2;
    }
    for context in [2, 4, 8].map(|n| n * r.context) {
        let devices = r.devices.max(context);
        let name = format!("--devices {devices} --context-parallel {context}");
        add(name, Request { devices, context, ..r.clone() });
    }
    out
}
