use fewstep_tensor::DType;
use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::random::{Purpose, Stream};

use super::*;

/// One tensor of one element, one of a whole and a half lane, one of more than two pieces.
const SHAPES: [&[usize]; 3] = [&[1], &[4, 3], &[3, 11_000]];

fn names() -> Vec<String> {
    ["head.bias", "head.weight", "body.weight"].map(String::from).to_vec()
}

fn draw<T: Real>(iteration: u64) -> Vec<Tensor> {
    let stream = Stream::new(7, Purpose::Check, iteration);
    let one = |(i, shape): (usize, &&[usize])| {
        let values = stream.normal(i as u64, shape.iter().product());
        Tensor::from_vec(values.iter().map(|&x| T::lit(f64::from(x))).collect::<Vec<T>>(), shape).unwrap()
    };
    SHAPES.iter().enumerate().map(one).collect()
}

fn config() -> AdamWConfig {
    AdamWConfig { learning_rate: 1e-2, weight_decay: 0.1, warmup_steps: 4, warmup_start: 0.1, ..AdamWConfig::default() }
}

fn taken(step: Step) -> StepStats {
    match step {
        Step::Taken(stats) => stats,
        Step::Skipped(bad) => panic!("skipped for {bad:?}"),
    }
}

fn bits(tensors: &[Tensor]) -> Vec<u32> {
    tensors.iter().flat_map(|t| t.as_slice::<f32>().unwrap()).map(|x| x.to_bits()).collect()
}

/// The published update, one element at a time in f64, with plain decay before the step as in Algorithm 2.
struct Reference {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Reference {
    fn step(&mut self, c: &AdamWConfig, k: i32, g: &[f64]) {
        let max = c.clip_norm.unwrap_or(f64::INFINITY);
        let clip = (max / (g.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-6)).min(1.0);
        let warm = c.warmup_start + (1.0 - c.warmup_start) * (f64::from(k - 1) / c.warmup_steps as f64).min(1.0);
        let lr = c.learning_rate * warm;
        let [b1, b2] = c.betas;
        for i in 0..g.len() {
            let g = clip * g[i];
            self.m[i] = b1 * self.m[i] + (1.0 - b1) * g;
            self.v[i] = b2 * self.v[i] + (1.0 - b2) * g * g;
            let (m_hat, v_hat) = (self.m[i] / (1.0 - b1.powi(k)), self.v[i] / (1.0 - b2.powi(k)));
            self.p[i] -= lr * (m_hat / (v_hat.sqrt() + c.eps) + c.weight_decay * self.p[i]);
        }
    }
}

fn flat(tensors: &[Tensor]) -> Vec<f64> {
    tensors.iter().flat_map(Tensor::to_vec_f64).collect()
}

fn compare_with_reference<T: Real>(config: &AdamWConfig, half_ulp: f64) {
    const STEPS: u64 = 30;
    let mut params = draw::<T>(0);
    let start = flat(&params);
    let mut reference = Reference { m: vec![0.0; start.len()], v: vec![0.0; start.len()], p: start.clone() };
    let mut optimizer = AdamW::new(config.clone(), &names(), &params).unwrap();
    for k in 1..=STEPS {
        let grads = draw::<T>(k);
        let before = flat(&params);
        let stats = taken(optimizer.step(&mut params, &grads, 1.0).unwrap());
        reference.step(config, k as i32, &flat(&grads));
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let moved: Vec<f64> = flat(&params).iter().zip(&before).map(|(a, b)| a - b).collect();
        assert!((stats.grad_norm / norm(&flat(&grads)) - 1.0).abs() < 1e-12);
        // The norm is of differences in T, each exact to half an ulp of a parameter.
        assert!((stats.update_norm / norm(&moved) - 1.0).abs() < 1e-12 + 100.0 * half_ulp / config.learning_rate);
    }
    // Each step rounds a parameter (|θ| < 5 here) once, and an update of at most 10 η by about 20 roundings of its own
    // and 1.5 of each earlier step's second moment.
    let n = STEPS as f64;
    let tolerance = n * half_ulp * (5.0 + 10.0 * config.learning_rate * (20.0 + 1.5 * n));
    let worst = flat(&params).iter().zip(&reference.p).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "worst difference {worst:e}, tolerance {tolerance:e}");
    let moved = flat(&params).iter().zip(&start).filter(|(a, b)| (*a - *b).abs() > 100.0 * tolerance).count();
    assert!(moved * 10 > start.len() * 9, "only {moved} of {} parameters moved far enough to tell", start.len());
}

#[test]
fn thirty_steps_match_the_published_formula_with_and_without_momentum_and_clipping() {
    for betas in [[0.0, 0.999], [0.9, 0.95]] {
        for clip_norm in [None, Some(3.0)] {
            let config = AdamWConfig { betas, clip_norm, ..config() };
            compare_with_reference::<f32>(&config, 2f64.powi(-24));
            compare_with_reference::<f64>(&config, 2f64.powi(-53));
        }
    }
}

#[test]
fn the_learning_rate_rises_linearly_from_its_start_factor_and_then_stays() {
    let c = AdamWConfig { learning_rate: 2e-6, ..AdamWConfig::default() };
    assert_eq!(c.learning_rate_after(0), 2e-6 * 1e-6);
    assert!((c.learning_rate_after(50) / 1.000001e-6 - 1.0).abs() < 1e-12);
    assert_eq!(c.learning_rate_after(100), 2e-6);
    assert_eq!(c.learning_rate_after(1_000_000), 2e-6);
    assert_eq!(AdamWConfig { warmup_steps: 0, ..c }.learning_rate_after(0), 2e-6);
}

#[test]
fn the_scale_multiplies_the_learning_rate_of_the_one_step() {
    let mut params = draw::<f32>(0);
    let mut optimizer = AdamW::new(AdamWConfig { warmup_steps: 0, ..config() }, &names(), &params).unwrap();
    let before = bits(&params);
    let stats = taken(optimizer.step(&mut params, &draw::<f32>(1), 0.0).unwrap());
    assert_eq!((stats.learning_rate, stats.update_norm), (0.0, 0.0));
    assert_eq!(bits(&params), before);
    assert_eq!(taken(optimizer.step(&mut params, &draw::<f32>(2), 0.5).unwrap()).learning_rate, 5e-3);
}

#[test]
fn weight_decay_at_the_published_settings_is_not_lost_to_rounding() {
    // η·λ = 2e-8 is below half an ulp of 1, so a factor 1 − ηλ would be exactly 1 in f32. Subtracted together with
    // gradient steps of many sizes, the decay turns up in the sum over many parameters.
    const N: usize = 30_000;
    let start: Vec<f32> = (0..N).map(|i| 0.5 + 0.49 * i as f32 / N as f32).collect();
    let moved = |weight_decay| {
        let mut params = vec![Tensor::from_vec(start.clone(), &[3, 10_000]).unwrap()];
        let config = AdamWConfig { weight_decay, warmup_steps: 0, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, &["w".into()], &params).unwrap();
        // The first step only fills the second moment: it would move every parameter by ±η, which rounds alike.
        for k in 0..=2 {
            let grads = Stream::new(3, Purpose::Check, k).normal(0, N);
            let scale = if k == 0 { 0.0 } else { 1.0 };
            let grads = [Tensor::from_vec(grads, &[3, 10_000]).unwrap()];
            let _ = taken(optimizer.step(&mut params, &grads, scale).unwrap());
        }
        flat(&params).iter().zip(&start).map(|(a, &b)| f64::from(b) - a).sum::<f64>()
    };
    let decayed = moved(0.01) - moved(0.0);
    let expected = 2.0 * 2e-6 * 0.01 * start.iter().map(|&x| f64::from(x)).sum::<f64>();
    // Rounding moves each of 60,000 sums by up to half an ulp of 6e-8, twice the decay: 5e-6 in all, 0.6% of 9e-4.
    assert!((decayed / expected - 1.0).abs() < 0.05, "{decayed:e} of {expected:e}");
}

#[test]
fn a_resumed_optimiser_continues_bitwise() {
    for betas in [[0.0, 0.999], [0.9, 0.999]] {
        let config = AdamWConfig { betas, ..config() };
        let mut params = draw::<f32>(0);
        let mut whole = AdamW::new(config.clone(), &names(), &params).unwrap();
        for k in 1..=3 {
            let _ = taken(whole.step(&mut params, &draw::<f32>(k), 1.0).unwrap());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("optim.safetensors");
        whole.export().unwrap().write(&path).unwrap();
        let mut resumed_params: Vec<Tensor> = params.clone();
        let mut resumed = AdamW::new(config, &names(), &draw::<f32>(9)).unwrap();
        resumed.import(&TensorFile::read(&path).unwrap()).unwrap();
        for k in 4..=6 {
            let a = taken(whole.step(&mut params, &draw::<f32>(k), 1.0).unwrap());
            let b = taken(resumed.step(&mut resumed_params, &draw::<f32>(k), 1.0).unwrap());
            assert_eq!(a, b);
        }
        assert_eq!(bits(&params), bits(&resumed_params));
        assert_eq!(resumed.steps_taken(), 6);
    }
}

#[test]
fn an_import_that_does_not_fit_changes_nothing() {
    let params = draw::<f32>(0);
    let mut optimizer = AdamW::new(config(), &names(), &params).unwrap();
    let good = optimizer.export().unwrap();
    let with_momentum = AdamWConfig { betas: [0.9, 0.999], ..config() };
    let foreign = AdamW::new(with_momentum, &names(), &params).unwrap().export().unwrap();
    let mut missing = good.clone();
    missing.tensors.remove("exp_avg_sq.head.bias");
    let stepless = TensorFile { metadata: Default::default(), ..good.clone() };
    let mut bad_step = good;
    bad_step.metadata.insert("step".into(), "-3".into());
    for file in [foreign, missing, stepless, bad_step] {
        assert!(optimizer.import(&file).is_err());
        assert_eq!(optimizer.steps_taken(), 0);
        assert!(flat(&optimizer.exp_avg_sq).iter().all(|&v| v == 0.0));
    }
}

#[test]
fn non_finite_gradients_skip_the_step_and_leave_every_state_untouched() {
    let mut params = draw::<f32>(0);
    let mut optimizer = AdamW::new(AdamWConfig { betas: [0.9, 0.999], ..config() }, &names(), &params).unwrap();
    let _ = taken(optimizer.step(&mut params, &draw::<f32>(1), 1.0).unwrap());
    let state = |o: &AdamW| (bits(&o.exp_avg), bits(&o.exp_avg_sq), o.steps_taken());
    let (params_before, state_before) = (bits(&params), state(&optimizer));
    // 1e20 is finite, but its square is not, and would sit in the second moment for ever.
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20] {
        let mut grads = draw::<f32>(2);
        grads[1].make_mut::<f32>().unwrap()[11] = poison;
        grads[2].make_mut::<f32>().unwrap()[20_000..20_003].fill(poison);
        let Step::Skipped(bad) = optimizer.step(&mut params, &grads, 1.0).unwrap() else {
            panic!("a gradient of {poison} was used");
        };
        assert_eq!(bad, NonFinite { count: 4, name: "head.weight".into(), index: 1 });
        assert_eq!(bits(&params), params_before);
        assert_eq!(state(&optimizer), state_before);
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut params = draw::<f32>(0);
            let mut optimizer =
                AdamW::new(AdamWConfig { clip_norm: Some(1.0), ..config() }, &names(), &params).unwrap();
            let stats: Vec<_> =
                (1..=3).map(|k| taken(optimizer.step(&mut params, &draw::<f32>(k), 1.0).unwrap())).collect();
            (bits(&params), stats)
        })
    };
    let one = run(1);
    assert!([2, 3, 7].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn gradients_of_another_network_are_refused_by_name() {
    let mut params = draw::<f32>(0);
    let mut optimizer = AdamW::new(config(), &names(), &params).unwrap();
    let mut grads = draw::<f32>(1);
    grads[2] = Tensor::from_vec(vec![0f32; 3], &[3]).unwrap();
    let e = optimizer.step(&mut params, &grads, 1.0).unwrap_err().to_string();
    assert!(e.contains("gradient of 'body.weight'") && e.contains("[3, 11000]"), "{e}");
    assert!(optimizer.step(&mut params, &draw::<f64>(1), 1.0).is_err());
    assert!(optimizer.step(&mut params, &draw::<f32>(1)[..2], 1.0).is_err());
}

#[test]
fn settings_out_of_range_and_unknown_keys_are_refused_by_name() {
    let c = AdamWConfig::default;
    let bad = [
        (AdamWConfig { learning_rate: -1.0, ..c() }, "learning_rate"),
        (AdamWConfig { learning_rate: f64::NAN, ..c() }, "learning_rate"),
        (AdamWConfig { betas: [1.0, 0.9], ..c() }, "betas[0]"),
        (AdamWConfig { betas: [0.0, -0.1], ..c() }, "betas[1]"),
        (AdamWConfig { eps: 0.0, ..c() }, "eps"),
        (AdamWConfig { clip_norm: Some(0.0), ..c() }, "clip_norm"),
    ];
    for (config, key) in bad {
        let e = AdamW::new(config, &names(), &draw::<f32>(0)).unwrap_err().to_string();
        assert!(e.contains(key), "{e}");
    }
    assert_eq!(serde_json::from_str::<AdamWConfig>("{}").unwrap(), AdamWConfig::default());
    assert!(serde_json::from_str::<AdamWConfig>(r#"{"lr": 1}"#).unwrap_err().to_string().contains("lr"));
}

/// Draws rounded to eighths: sums of their squares are exact in f64, in any order.
fn draw_eighths<T: Real>(iteration: u64) -> Vec<Tensor> {
    let rounded = |t: Tensor| {
        let eighths = t.to_vec_f64().iter().map(|x| T::lit((x * 8.0).round() / 8.0)).collect::<Vec<T>>();
        Tensor::from_vec(eighths, t.shape()).unwrap()
    };
    draw::<T>(iteration).into_iter().map(rounded).collect()
}

fn on_gpu(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| t.to_device(EMULATED).unwrap()).collect()
}

fn steps_on_a_gpu_are_those_of_the_host<T: Real>(config: &AdamWConfig, copied: DType) {
    let start = draw::<T>(0);
    let mut state = [start.clone(), on_gpu(&start)].map(|params| {
        let averages = params.clone();
        // The second has no copy: its network computes with the master.
        let copies: Vec<Option<Tensor>> =
            params.iter().enumerate().map(|(i, p)| (i != 1).then(|| p.to_dtype(copied))).collect();
        (AdamW::new(config.clone(), &names(), &params).unwrap(), params, averages, copies)
    });
    for k in 1..=3 {
        let grads = draw_eighths::<T>(k);
        let grads = [grads.clone(), on_gpu(&grads)];
        let stats: Vec<StepStats> = state
            .iter_mut()
            .zip(&grads)
            .map(|((optimizer, params, averages, copies), grads)| {
                let copies = copies.iter_mut().map(Option::as_mut).collect();
                let followers = Followers { average: Some((averages, 0.25)), copies };
                taken(optimizer.step_with(params, grads, 0.5, followers).unwrap())
            })
            .collect();
        let [(cpu, p, e, c), (gpu, p_gpu, e_gpu, c_gpu)] = &state;
        assert_eq!(flat(p), flat(p_gpu));
        assert_eq!(flat(e), flat(e_gpu));
        assert_eq!((flat(&cpu.exp_avg), flat(&cpu.exp_avg_sq)), (flat(&gpu.exp_avg), flat(&gpu.exp_avg_sq)));
        let copies = |c: &[Option<Tensor>]| c.iter().flatten().map(|c| (c.dtype(), c.to_vec_f64())).collect::<Vec<_>>();
        assert_eq!(copies(c), copies(c_gpu));
        assert_eq!(copies(c_gpu)[1].1, p_gpu[2].to_dtype(copied).to_vec_f64(), "copies follow");
        assert_eq!(stats[0].grad_norm, stats[1].grad_norm);
        assert_eq!(stats[0].clip_factor, stats[1].clip_factor);
        // 33,000 terms, each sum rounded to an ulp in another order.
        assert!((stats[0].update_norm / stats[1].update_norm - 1.0).abs() < 1e-12);
    }
}

#[test]
fn a_gpu_takes_the_steps_of_the_host_bit_for_bit() {
    for betas in [[0.0, 0.999], [0.9, 0.95]] {
        let config = AdamWConfig { betas, clip_norm: Some(3.0), ..config() };
        steps_on_a_gpu_are_those_of_the_host::<f32>(&config, DType::Bf16);
        steps_on_a_gpu_are_those_of_the_host::<f64>(&config, DType::F32);
    }
}

#[test]
fn a_gpu_counts_unusable_gradients_and_leaves_every_state_untouched() {
    let mut params = on_gpu(&draw::<f32>(0));
    let mut optimizer = AdamW::new(AdamWConfig { betas: [0.9, 0.999], ..config() }, &names(), &params).unwrap();
    let _ = taken(optimizer.step(&mut params, &on_gpu(&draw::<f32>(1)), 1.0).unwrap());
    let state = |o: &AdamW| (flat(&o.exp_avg), flat(&o.exp_avg_sq), o.steps_taken());
    let (params_before, state_before) = (flat(&params), state(&optimizer));
    for poison in [f32::NAN, f32::NEG_INFINITY, 1e20] {
        let mut grads = draw::<f32>(2);
        grads[1].make_mut::<f32>().unwrap()[11] = poison;
        grads[2].make_mut::<f32>().unwrap()[20_000..20_003].fill(poison);
        let Step::Skipped(bad) = optimizer.step(&mut params, &on_gpu(&grads), 1.0).unwrap() else {
            panic!("a gradient of {poison} was used");
        };
        assert_eq!(bad, NonFinite { count: 4, name: "head.weight".into(), index: 1 });
        assert_eq!(flat(&params), params_before);
        assert_eq!(state(&optimizer), state_before);
    }
}

#[test]
fn parameters_shared_with_another_tensor_are_left_as_they_were_there() {
    let shared = on_gpu(&draw::<f32>(0));
    let mut params = shared.clone();
    let mut optimizer = AdamW::new(config(), &names(), &params).unwrap();
    let _ = taken(optimizer.step(&mut params, &on_gpu(&draw::<f32>(1)), 1.0).unwrap());
    assert_eq!(flat(&shared), flat(&draw::<f32>(0)));
    assert_ne!(flat(&params), flat(&shared));
}
