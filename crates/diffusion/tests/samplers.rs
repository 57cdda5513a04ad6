//! Samplers on models with a known answer, and on hostile ones.

use fewstep_diffusion::{Error, Karras, RfTime, Sampler, Schedule, Shift, Sigma, Space, Step};
use fewstep_tensor::{DType, Device, Tensor};

fn tensor(v: &[f64]) -> Tensor {
    Tensor::from_vec(v.to_vec(), &[v.len()]).unwrap()
}

fn teacher(n: usize) -> Schedule {
    Schedule::rcm_teacher(n, Shift::new(3.0).unwrap(), Sigma::new(80.0).unwrap()).unwrap()
}

/// x_0 of Gaussian data of variance `var`, the exact denoiser E[x_0 | x_0 + σ·ε].
fn denoise(x: f64, sigma: f64, var: f64) -> f64 {
    x * var / (var + sigma * sigma)
}

const VAR: f64 = 0.25;

/// The velocity ε − x_0 of Gaussian data in τ.
fn flow_model(x: &Tensor, step: Step) -> Result<Tensor, Error> {
    let (tau, sigma) = (step.level, Sigma::from(RfTime::new(step.level)?).get());
    let v: Vec<f64> = x.to_vec_f64().iter().map(|x| (x - denoise(x / (1.0 - tau), sigma, VAR)) / tau).collect();
    Ok(tensor(&v))
}

fn sigma_model(x: &Tensor, step: Step) -> Result<Tensor, Error> {
    Ok(tensor(&x.to_vec_f64().iter().map(|x| denoise(*x, step.level, VAR)).collect::<Vec<_>>()))
}

/// The exact end of the probability-flow ODE from x at (1−τ, τ) for Gaussian data: x·√VAR/√((1−τ)²·VAR + τ²).
fn flow_error(sampler: Sampler, n: usize) -> f64 {
    let schedule = teacher(n);
    let tau = schedule.levels()[0];
    let got = sampler.sample(&schedule, &tensor(&[1.0]), flow_model, |_, _| {}).unwrap().to_vec_f64()[0];
    (got - VAR.sqrt() / ((1.0 - tau).powi(2) * VAR + tau * tau).sqrt()).abs()
}

fn sigma_error(n: usize) -> f64 {
    let schedule = Schedule::cosmos_ab2(n, Karras::cosmos().unwrap()).unwrap();
    let (first, last) = (schedule.levels()[0], schedule.levels()[n]);
    let ab2 = Sampler::AdamsBashforth { clean: false };
    let got = ab2.sample(&schedule, &tensor(&[first]), sigma_model, |_, _| {}).unwrap().to_vec_f64()[0];
    (got - first * ((VAR + last * last) / (VAR + first * first)).sqrt()).abs()
}

#[test]
fn euler_converges_at_first_order() {
    let ratio = flow_error(Sampler::Euler, 100) / flow_error(Sampler::Euler, 200);
    assert!((1.8..2.3).contains(&ratio), "halving the step divided the error by {ratio}");
}

#[test]
fn unipc_converges_at_second_order_and_beats_euler() {
    // Its ends are of first order, so the ratio reaches 4 late; 2 would be first order.
    let ratio = flow_error(Sampler::UniPc, 400) / flow_error(Sampler::UniPc, 800);
    assert!((3.5..4.5).contains(&ratio), "halving the step divided the error by {ratio}");
    assert!(flow_error(Sampler::UniPc, 50) < 0.1 * flow_error(Sampler::Euler, 50));
}

#[test]
fn adams_bashforth_converges_at_second_order() {
    let ratio = sigma_error(100) / sigma_error(200);
    assert!((3.5..4.6).contains(&ratio), "halving the step divided the error by {ratio}");
}

#[test]
fn the_clean_pass_returns_the_networks_last_prediction() {
    let schedule = Schedule::cosmos_ab2(5, Karras::cosmos().unwrap()).unwrap();
    let mut calls = vec![];
    let model = |x: &Tensor, step: Step| {
        calls.push((step.index, step.of, step.level));
        sigma_model(x, step)
    };
    let (mut before, mut seen) = (None, 0);
    let x = tensor(&[80.0, -3.0]);
    let got = Sampler::AdamsBashforth { clean: true }.sample(&schedule, &x, model, |step, x| {
        seen += 1;
        if step.index == 4 {
            before = Some(x.clone());
        }
    });
    let last = *schedule.levels().last().unwrap();
    let want: Vec<f64> = before.unwrap().to_vec_f64().iter().map(|x| denoise(*x, last, VAR)).collect();
    assert_eq!(got.unwrap().to_vec_f64(), want);
    assert_eq!((calls.len(), seen), (6, 6));
    assert_eq!(calls[5], (5, 6, last));
}

#[test]
fn the_state_is_f64_even_from_single_precision_noise_and_models() {
    let x = Tensor::from_vec(vec![0.5f32, -0.25], &[2]).unwrap();
    let single = |x: &Tensor, step: Step| {
        assert_eq!(x.dtype(), DType::F64);
        Ok::<_, Error>(flow_model(x, step)?.to_dtype(DType::F32))
    };
    let got = Sampler::UniPc.sample(&teacher(4), &x, single, |_, x| assert_eq!(x.dtype(), DType::F64)).unwrap();
    assert_eq!(got.dtype(), DType::F64);
}

#[test]
fn a_closures_own_error_comes_through() {
    #[derive(Debug)]
    enum Mine {
        Cancelled,
        #[expect(dead_code, reason = "carries the sampler's error for the message")]
        Sampler(Error),
    }
    impl From<Error> for Mine {
        fn from(e: Error) -> Self {
            Mine::Sampler(e)
        }
    }
    let stop = |x: &Tensor, step: Step| if step.index == 2 { Err(Mine::Cancelled) } else { Ok(x.clone()) };
    assert!(matches!(Sampler::Euler.sample(&teacher(5), &tensor(&[1.0]), stop, |_, _| {}), Err(Mine::Cancelled)));
}

#[test]
fn hostile_models_are_errors_that_name_the_step() {
    let bad = |value: f64, shape: &[usize]| Tensor::full(shape, value, DType::F64, Device::Cpu);
    for sampler in [Sampler::Euler, Sampler::UniPc] {
        let nan = |x: &Tensor, s: Step| Ok::<_, Error>(if s.index == 1 { bad(f64::NAN, x.shape()) } else { x.clone() });
        let e = sampler.sample(&teacher(3), &tensor(&[1.0, 2.0]), nan, |_, _| {}).unwrap_err();
        assert!(matches!(e, Error::NonFinite { step: 1, count: 2, of: 2, .. }), "{e}");
        let long = |_: &Tensor, _: Step| Ok::<_, Error>(bad(0.0, &[3]));
        let e = sampler.sample(&teacher(3), &tensor(&[1.0, 2.0]), long, |_, _| {}).unwrap_err();
        assert!(matches!(e, Error::OutputShape { step: 0, .. }), "{e}");
        let inf = tensor(&[f64::INFINITY]);
        assert!(sampler.sample(&teacher(3), &inf, flow_model, |_, _| {}).is_err());
    }
}

#[test]
fn a_sampler_refuses_a_schedule_it_cannot_step_through() {
    let karras = Karras::cosmos().unwrap();
    let x = tensor(&[1.0]);
    let run = |s: Sampler, schedule: &Schedule| s.sample(schedule, &x, |x, _| Ok::<_, Error>(x.clone()), |_, _| {});
    let (unipc, ab2) = (Sampler::UniPc, Sampler::AdamsBashforth { clean: false });
    let sigma = Schedule::cosmos_ab2(4, karras).unwrap();
    assert!(matches!(run(unipc, &sigma), Err(Error::WrongSpace { .. })));
    assert!(matches!(run(ab2, &teacher(4)), Err(Error::WrongSpace { .. })));
    let repeated = Schedule::karras_euler(4, karras).unwrap();
    assert!(run(Sampler::Euler, &repeated).is_ok());
    assert!(matches!(run(ab2, &repeated), Err(Error::NotDecreasing { index: 4, .. })));
    let from_one = Schedule::diffusers_euler(4, Shift::NONE).unwrap();
    let message = run(unipc, &from_one).unwrap_err().to_string();
    assert!(message.contains("finite σ"), "{message}");
    let to_zero = Schedule::from_levels(Space::Sigma, vec![1.0, 0.0], vec![1.0]).unwrap();
    assert!(run(ab2, &to_zero).is_err());
}

#[test]
fn an_empty_batch_stays_empty() {
    let x = Tensor::zeros(&[0, 4], DType::F32, Device::Cpu);
    for sampler in [Sampler::Euler, Sampler::UniPc] {
        let got = sampler.sample(&teacher(3), &x, |x, _| Ok::<_, Error>(x.clone()), |_, _| {}).unwrap();
        assert_eq!(got.shape(), [0, 4]);
    }
}

#[test]
fn samplers_are_written_by_name_and_unknown_keys_do_not_parse() {
    let parse = serde_json::from_str::<Sampler>;
    assert_eq!(parse("\"euler\"").unwrap(), Sampler::Euler);
    assert_eq!(parse("\"unipc\"").unwrap(), Sampler::UniPc);
    let ab2 = parse(r#"{"adams_bashforth": {"clean": true}}"#).unwrap();
    assert_eq!(ab2, Sampler::AdamsBashforth { clean: true });
    assert!(parse(r#"{"adams_bashforth": {"clean": true, "order": 3}}"#).is_err());
    assert!(parse("\"heun\"").is_err());
}
