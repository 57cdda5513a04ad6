//! The published implementations' own numbers: time maps, preconditioning, schedules, trajectories.
//!
//! Errors are relative to max|reference|. Shifts, step counts and σ_max are read from tensor names and the header.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fewstep_diffusion::{
    Error, Karras, RfTime, Sampler, Schedule, Shift, Sigma, Space, Step, TimeDistribution, TrigTime, Wrapper,
};
use fewstep_tensor::Tensor;
use fewstep_tensor::file::TensorFile;

/// f64 maps against f64 maps.
const TABLE: f64 = 1e-12;
/// The published schedules and UniPC's coefficients are f32; 17 units in the last place of a number below 1.
const SINGLE: f64 = 1e-6;

fn fixture(name: &str) -> TensorFile {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or(PathBuf::from(here), PathBuf::from);
    TensorFile::read(&folder.join(format!("{name}.safetensors"))).unwrap()
}

fn header(f: &TensorFile) -> serde_json::Value {
    serde_json::from_str(&f.metadata["json"]).unwrap()
}

fn values(f: &TensorFile, name: &str) -> Vec<f64> {
    f.get(name).unwrap().to_vec_f64()
}

fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    assert!(!want.is_empty(), "{what}: nothing to compare");
    let top = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    let gap = got.iter().zip(want).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    println!("{what}: {:.1e}", gap / top);
    assert!(gap <= tolerance * top, "{what}: {:e} of {top}, tolerance {tolerance:e}", gap / top);
}

/// The number that follows a key in a dotted name: 2.5 for "shift" in "unipc.n4.shift2.5.sigmas".
fn number(name: &str, key: &str) -> f64 {
    let starts = name.match_indices(key).filter(|&(i, _)| i == 0 || name[..i].ends_with('.'));
    let mut rest = starts.map(|(i, _)| &name[i + key.len()..]).filter(|r| r.starts_with(|c: char| c.is_ascii_digit()));
    let rest = rest.next().unwrap_or_else(|| panic!("no number after '{key}' in '{name}'"));
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].trim_end_matches('.').parse().unwrap()
}

fn shift_of(name: &str) -> Shift {
    Shift::new(number(name, "shift")).unwrap()
}

/// First and last part of a dotted name.
fn ends(name: &str) -> Option<(&str, &str)> {
    Some((name.split_once('.')?.0, name.rsplit_once('.')?.1))
}

/// Runs a sampler on recorded model outputs, one a step, and returns the state after each.
fn replay(sampler: Sampler, schedule: &Schedule, start: &Tensor, outputs: &Tensor) -> Vec<f64> {
    let mut states = vec![];
    let shape = start.shape().to_vec();
    let model = |_: &Tensor, step: Step| Ok::<_, Error>(outputs.narrow(step.index, 1)?.reshape(&shape)?);
    sampler.sample(schedule, start, model, |_, x| states.extend(x.to_vec_f64())).unwrap();
    states
}

#[test]
fn time_maps_are_the_references() {
    let f = fixture("rcm_time_tables");
    let trig: Vec<_> = values(&f, "trig").into_iter().map(|t| TrigTime::new(t).unwrap()).collect();
    let rf: Vec<_> = values(&f, "rf").into_iter().map(|t| RfTime::new(t).unwrap()).collect();
    let to_rf: Vec<f64> = trig.iter().map(|&t| RfTime::from(t).get()).collect();
    assert_close("trig_to_rf", &to_rf, &values(&f, "trig_to_rf"), TABLE);
    let to_trig: Vec<f64> = rf.iter().map(|&t| TrigTime::from(t).get()).collect();
    assert_close("rf_to_trig", &to_trig, &values(&f, "rf_to_trig"), TABLE);
    let shifts: Vec<_> = f.tensors.keys().filter(|k| k.starts_with("shift")).collect();
    assert!(!shifts.is_empty());
    for name in shifts {
        let k = shift_of(name);
        let shifted: Vec<f64> = rf.iter().map(|&u| k.apply(u).get()).collect();
        assert_close(name, &shifted, &values(&f, name), TABLE);
        let back: Vec<f64> = values(&f, name).into_iter().map(|t| k.invert(RfTime::new(t).unwrap()).get()).collect();
        assert_close(&format!("{name} inverted"), &back, &values(&f, "rf"), TABLE);
    }
}

#[test]
fn preconditioning_and_its_time_derivatives_are_the_references() {
    let f = fixture("rcm_time_tables");
    let trig: Vec<_> = values(&f, "trig").into_iter().map(|t| TrigTime::new(t).unwrap()).collect();
    let rows = |at: &dyn Fn(TrigTime) -> fewstep_diffusion::time::Coefficients| {
        let all: Vec<_> = trig.iter().map(|&t| at(t)).collect();
        [
            all.iter().map(|c| c.c_skip).collect::<Vec<f64>>(),
            all.iter().map(|c| c.c_out).collect(),
            all.iter().map(|c| c.c_in).collect(),
            all.iter().map(|c| c.c_noise).collect(),
        ]
    };
    let (values_at, slopes_at) =
        (rows(&|t| Wrapper::Rf1000.coefficients(t)), rows(&|t| Wrapper::Rf1000.derivatives(t)));
    let slopes = f.get("d_precond").unwrap();
    let [4, n] = slopes.dims().unwrap() else { panic!("four rows of derivatives") };
    assert_eq!(n, trig.len());
    for (i, name) in ["c_skip", "c_out", "c_in", "c_noise"].into_iter().enumerate() {
        assert_close(name, &values_at[i], &values(&f, name), TABLE);
        let want = slopes.narrow(i, 1).unwrap().to_vec_f64();
        assert_close(&format!("d {name}/dt"), &slopes_at[i], &want, TABLE);
    }
}

#[test]
fn the_training_times_are_the_references() {
    let f = fixture("rcm_losses");
    let header = header(&f);
    let arguments = |name: &str| -> Vec<f64> {
        let text = header[name].as_str().unwrap();
        let inside = text[text.find('(').unwrap() + 1..].trim_end_matches(')');
        inside.split(',').map(|x| x.trim().parse().unwrap()).collect()
    };
    let (g, d) = (arguments("p_G"), arguments("p_D"));
    let p_g = TimeDistribution::LogNormal { mean: g[0], std: g[1] };
    let p_d = TimeDistribution::UniformShift { shift: Shift::new(d[0]).unwrap() };
    let mut seen = BTreeMap::from([("time", 0), ("D_time", 0)]);
    for (variant, setup) in header["variants"].as_object().unwrap() {
        let last = setup["draws"].as_array().unwrap().iter().rposition(|d| d == "rand");
        let (distribution, what, draw) = match setup["step"].as_str().unwrap() {
            step if step.contains("scm") => (p_g, "time", 0),
            step if step.contains("dcm") => continue,
            _ => (p_d, "D_time", last.unwrap()),
        };
        let draws = values(&f, &format!("{variant}.draw{draw}"));
        let got: Vec<f64> = draws.iter().map(|&z| distribution.time(z).unwrap().get()).collect();
        // Some variants record the time in f32 in the f64 run as well.
        let want = f.get(&format!("{variant}.f64.{what}")).unwrap();
        let tolerance = if want.dtype() == fewstep_tensor::DType::F64 { TABLE } else { SINGLE };
        assert_close(&format!("{variant} {what}"), &got, &want.to_vec_f64(), tolerance);
        *seen.get_mut(what).unwrap() += 1;
    }
    assert!(seen.values().all(|&n| n > 0), "{seen:?}");
}

#[test]
fn the_teachers_schedules_are_the_references() {
    let f = fixture("rcm_samplers");
    let mut seen = 0;
    for name in f.tensors.keys() {
        let Some((sampler @ ("euler" | "unipc"), what)) = ends(name) else { continue };
        let sigma_max = Sigma::new(number(name, "sig")).unwrap();
        let schedule = Schedule::rcm_teacher(number(name, "n") as usize, shift_of(name), sigma_max).unwrap();
        let want = values(&f, name);
        match what {
            "sigmas" => {
                // The reference's Euler keeps the final 0 apart.
                let levels = schedule.steps() + usize::from(sampler == "unipc");
                assert_close(name, &schedule.levels()[..levels], &want, SINGLE);
            }
            "timesteps" => assert_close(name, schedule.timesteps(), &want, SINGLE),
            other => panic!("unknown table {other}"),
        }
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn the_teachers_trajectories_are_the_references() {
    let f = fixture("rcm_samplers");
    let (x, v) = (f.get("traj.x0").unwrap(), f.get("traj.v").unwrap());
    let config = &header(&f)["traj_cfg"];
    let float = |key: &str| config[key].as_f64().unwrap();
    let (shift, sigma_max) = (Shift::new(float("shift")).unwrap(), Sigma::new(float("sigma_max")).unwrap());
    let schedule = Schedule::rcm_teacher(v.shape()[0], shift, sigma_max).unwrap();
    for (name, sampler) in [("euler", Sampler::Euler), ("unipc", Sampler::UniPc)] {
        let levels = values(&f, &format!("traj.{name}.sigmas"));
        assert_close(&format!("{name} levels"), &schedule.levels()[..levels.len()], &levels, SINGLE);
        let want = values(&f, &format!("traj.{name}"));
        assert_close(&format!("{name} trajectory"), &replay(sampler, &schedule, x, v), &want, SINGLE);
    }
}

#[test]
fn diffusers_and_cosmos_schedules_and_trajectories_are_the_references() {
    let f = fixture("hf_schedulers");
    let (x, v) = (f.get("x0").unwrap(), f.get("v").unwrap());
    let cosmos = Karras::cosmos().unwrap();
    let mut seen = BTreeMap::new();
    for name in f.tensors.keys() {
        let Some((family, what)) = ends(name) else { continue };
        let n = number(name, "n") as usize;
        let (sampler, schedule) = match family {
            "fmeuler" => (Sampler::Euler, Schedule::diffusers_euler(n, shift_of(name))),
            "unipc" => (Sampler::UniPc, Schedule::diffusers_unipc(n, shift_of(name))),
            "cosmos_karras" => (Sampler::Euler, Schedule::karras_euler(n, cosmos)),
            "cosmos_ab2" => (Sampler::AdamsBashforth { clean: false }, Schedule::cosmos_ab2(n, cosmos)),
            other => panic!("unknown scheduler {other}"),
        };
        let schedule = schedule.unwrap();
        let want = values(&f, name);
        match what {
            "sigmas" => assert_close(name, schedule.levels(), &want, SINGLE),
            // Whole numbers: truncation leaves nothing to tolerate.
            "timesteps" if family == "unipc" => assert_eq!(schedule.timesteps(), want, "{name}"),
            "timesteps" => assert_close(name, schedule.timesteps(), &want, SINGLE),
            "traj" => {
                // Cosmos's own sampler was started from σ_max·ε, the others from ε as it is.
                let first = if family == "cosmos_ab2" { schedule.levels()[0] } else { 1.0 };
                let start = x.to_vec_f64().iter().map(|x| first * x).collect();
                let start = Tensor::from_vec(start, x.shape()).unwrap();
                assert_close(name, &replay(sampler, &schedule, &start, v), &want, SINGLE);
            }
            other => panic!("unknown table {other}"),
        }
        *seen.entry((family, what)).or_insert(0) += 1;
    }
    for family in ["fmeuler", "unipc", "cosmos_karras", "cosmos_ab2"] {
        assert!(seen.contains_key(&(family, "traj")) && seen.contains_key(&(family, "sigmas")), "{family}: {seen:?}");
    }
}

#[test]
fn sampling_from_the_published_levels_themselves_gives_the_published_trajectories() {
    let f = fixture("rcm_samplers");
    let (x, v) = (f.get("traj.x0").unwrap(), f.get("traj.v").unwrap());
    let n = v.shape()[0];
    for (name, sampler) in [("euler", Sampler::Euler), ("unipc", Sampler::UniPc)] {
        let mut levels = values(&f, &format!("traj.{name}.sigmas"));
        levels.resize(n + 1, 0.0);
        let timesteps = levels[..n].iter().map(|l| 1000.0 * l).collect();
        let schedule = Schedule::from_levels(Space::Flow, levels, timesteps).unwrap();
        let want = values(&f, &format!("traj.{name}"));
        assert_close(&format!("{name} from its levels"), &replay(sampler, &schedule, x, v), &want, SINGLE);
    }
}
