//! Random numbers, conversions, sums, and steps of the optimiser.

use fewstep_distill::optimizer::{AdamW, AdamWConfig, Followers, Step};
use fewstep_ops::suite::Margin;
use fewstep_tensor::arith::{self, Term};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor};

use crate::{Check, Error, Result, dtypes};

const SEED: u64 = 5;

/// Every check of a device.
pub fn checks(device: Device) -> Vec<Check> {
    let check = |what: &str, case: &str, prove: fn(Device, DType) -> Result<Margin>| {
        let launch = move |dtype| prove(device, dtype).map(drop);
        let prove = move |dtype| prove(device, dtype).map_err(|e| e.to_string());
        Check::new((what, case), dtypes(device), launch, prove)
    };
    vec![
        check("normal numbers", "the bits of the generator, in every sample", normals),
        check("conversion", "the bits of the host's, of and to every dtype", conversions),
        check("sums", "squares, magnitudes, products and non-finite values", sums),
        check("arithmetic", "sums, differences and combinations", arithmetic),
        optimizer(device),
    ]
}

/// Steps of AdamW with its average and its copies in bf16: the bits of the host's.
fn optimizer(device: Device) -> Check {
    let prove = move |dtype| steps(device, dtype).map_err(|e| e.to_string());
    Check::new(
        ("adamw", "parameters, averages and copies after three steps, with and without a first moment and clipping"),
        &[DType::F32],
        move |dtype| steps(device, dtype).map(drop),
        prove,
    )
}

fn steps(device: Device, dtype: DType) -> Result<Margin> {
    let shapes: [&[usize]; 4] = [&[1], &[4, 3], &[3, 11_000], &[7, 129]];
    let names: Vec<String> = (0..shapes.len()).map(|i| format!("weight {i}")).collect();
    let draw = |purpose, to: Device| -> Result<Vec<Tensor>> {
        // Eighths, whose squares are summed exactly: then clipping is by the same factor whatever the order.
        let eighths = |t: &Tensor| t.to_vec_f64().iter().map(|x| (8.0 * x).round() / 8.0).collect::<Vec<f64>>();
        let drawn = fewstep_ops::suite::draw(SEED, purpose, &shapes)?;
        let one = |t: &Tensor| Tensor::from_vec(eighths(t), t.shape())?.to_dtype(dtype).to_device(to);
        Ok(drawn.iter().map(one).collect::<fewstep_tensor::Result<_>>()?)
    };
    let mut pairs = Vec::new();
    for (betas, clip_norm) in [([0.0, 0.999], None), ([0.9, 0.95], Some(1.0))] {
        let config = AdamWConfig { learning_rate: 1e-2, warmup_steps: 4, betas, clip_norm, ..AdamWConfig::default() };
        let run = |to: Device| -> Result<Vec<Tensor>> {
            let (mut params, mut averages) = (draw(0, to)?, draw(1, to)?);
            let mut copies: Vec<Tensor> = params.iter().map(|p| p.to_dtype(DType::Bf16)).collect();
            let mut optimizer = AdamW::new(config.clone(), &names, &params)?;
            for k in 2..5 {
                let copies = copies.iter_mut().map(Some).collect();
                let followers = Followers { average: Some((&mut averages, 0.25)), copies };
                let step = optimizer.step_with(&mut params, &draw(k, to)?, 0.5, followers)?;
                if let Step::Skipped(bad) = step {
                    let reason = format!("{} gradients that are not finite in {}", bad.count, bad.name);
                    return Err(Error::Fixture { name: "adamw".into(), reason });
                }
            }
            Ok([params, averages, copies].concat())
        };
        pairs.extend(run(device)?.into_iter().zip(run(Device::Cpu)?));
    }
    same(&pairs)
}

/// Something that holds bit for bit: the share of elements that differ, of which none may.
fn same(pairs: &[(Tensor, Tensor)]) -> Result<Margin> {
    let (mut other, mut all) = (0, 0);
    for (a, b) in pairs {
        let (a, b) = (a.to_device(Device::Cpu)?, b.to_device(Device::Cpu)?);
        let size = a.dtype().size().max(1);
        let (a, b) = (a.le_bytes().to_vec(), b.le_bytes().to_vec());
        other += a.chunks(size).zip(b.chunks(size)).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
        all += a.len() / size;
    }
    Ok(Margin { error: other as f64 / all.max(1) as f64, allowed: 0.0 })
}

fn normals(device: Device, dtype: DType) -> Result<Margin> {
    let mut pairs = Vec::new();
    for (first, samples, row) in [(0u64, 3, 1000), (7, 1, 5), (1 << 31, 2, 4099), (0, 0, 3), (9, 2, 0), (3, 5, 1)] {
        let stream = Stream::new(SEED << 33, Purpose::Noise, 12).step(3);
        let drawn: Vec<f32> = (0..samples).flat_map(|i| stream.normal(first + i, row)).collect();
        let shape = [samples as usize, row];
        let want = Tensor::from_vec(drawn, &shape)?.to_dtype(dtype);
        pairs.push((arith::normal(&stream, first, &shape, dtype, device)?, want));
    }
    same(&pairs)
}

/// Numbers of every size, ties between neighbours, and what is no number.
fn numbers(n: usize) -> Vec<f64> {
    let special = [
        0.0,
        -0.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1.0 + f64::powi(2.0, -8),
        1.0 + 3.0 * f64::powi(2.0, -8),
        1.0 + f64::powi(2.0, -8) + f64::powi(2.0, -40),
        1.0 - f64::powi(2.0, -9),
        f64::from(f32::MAX),
        f64::powi(2.0, 127) * 1.998,
        f64::powi(2.0, -130),
        -f64::powi(2.0, -149),
        f64::powi(2.0, -151),
        f64::MAX,
        f64::MIN_POSITIVE,
    ];
    let drawn = Stream::new(SEED, Purpose::Check, 7).normal(0, n);
    let drawn = drawn.into_iter().enumerate().map(|(i, x)| f64::from(x) * f64::powi(2.0, (i % 60) as i32 - 30));
    special.into_iter().chain(drawn).collect()
}

fn conversions(device: Device, dtype: DType) -> Result<Margin> {
    let host = numbers(1001);
    let n = host.len();
    let host = Tensor::from_vec(host, &[n])?.to_dtype(dtype);
    let there = host.to_device(device)?;
    let mut pairs = vec![(there.clone(), host.clone())];
    for to in [DType::F64, DType::F32, DType::Bf16] {
        pairs.push((there.to_dtype(to), host.to_dtype(to)));
        pairs.push((there.narrow(1, n - 1)?.to_dtype(to), host.narrow(1, n - 1)?.to_dtype(to)));
    }
    pairs.push((Tensor::full(&[37], 0.1, dtype, device), Tensor::full(&[37], 0.1, dtype, Device::Cpu)));
    pairs.push((Tensor::zeros(&[37], dtype, device), Tensor::zeros(&[37], dtype, Device::Cpu)));
    same(&pairs)
}

/// The error of a sum of n terms relative to the sum of their magnitudes, of which n roundings of f64 are allowed.
fn held(margin: &mut Margin, got: f64, terms: impl Iterator<Item = f64> + Clone) {
    let (want, scale): (f64, f64) = (terms.clone().sum(), terms.clone().map(f64::abs).sum());
    let allowed = terms.count().max(1) as f64 * f64::EPSILON;
    let error = (got - want).abs() / scale.max(f64::MIN_POSITIVE);
    *margin = margin.nearer(Margin { error, allowed });
}

fn sums(device: Device, dtype: DType) -> Result<Margin> {
    let mut margin = Margin::default();
    for (samples, row) in [(3usize, 1000), (1, 7), (2, 16 * 1024 + 5), (2, 40_000), (1, 100_003)] {
        let draw = |purpose| -> Result<Tensor> {
            let stream = Stream::new(SEED, Purpose::Check, purpose);
            Ok(arith::normal(&stream, 0, &[samples, row], DType::F64, Device::Cpu)?.to_dtype(dtype))
        };
        let (a, b) = (draw(1)?, draw(2)?);
        let (a_there, b_there) = (a.to_device(device)?, b.to_device(device)?);
        let (a, b) = (a.to_vec_f64(), b.to_vec_f64());
        let squares = arith::sum_per_sample(&a_there, Term::Square { by: 0.7 })?;
        let magnitudes = arith::sum_per_sample(&a_there, Term::Magnitude)?;
        let products = arith::dot_per_sample(&a_there, &b_there)?.to_vec_f64();
        for s in 0..samples {
            let (a, b) = (&a[s * row..][..row], &b[s * row..][..row]);
            held(&mut margin, squares[s], a.iter().map(|x| 0.7 * x * x));
            held(&mut margin, magnitudes[s], a.iter().map(|x| x.abs()));
            held(&mut margin, products[s], a.iter().zip(b).map(|(a, b)| a * b));
        }
        held(&mut margin, arith::sum_squares(&a_there)?, a.iter().map(|x| x * x));
        let mut marked = a.clone();
        marked[0] = f64::NAN;
        marked[row / 2] = f64::INFINITY;
        let marked = Tensor::from_vec(marked, &[samples, row])?.to_dtype(dtype).to_device(device)?;
        let counted = arith::count_non_finite(&marked)? as f64;
        margin = margin.nearer(Margin { error: (counted - 2.0).abs(), allowed: 0.0 });
    }
    Ok(margin)
}

fn arithmetic(device: Device, dtype: DType) -> Result<Margin> {
    let mut pairs = Vec::new();
    for shape in [&[3usize, 1000][..], &[1, 5], &[0, 4], &[2, 4099]] {
        let drawn = fewstep_ops::suite::draw(SEED, 1, &[shape, shape])?;
        let host: Vec<Tensor> = drawn.iter().map(|t| t.to_dtype(dtype)).collect();
        let there = host.iter().map(|t| t.to_device(device)).collect::<fewstep_tensor::Result<Vec<_>>>()?;
        let exact: Vec<Tensor> = host.iter().map(|t| t.to_dtype(DType::F64)).collect();
        // Of narrow numbers a sum is exact in f64, so that one rounding makes it.
        let sum = |f: fn(&Tensor, &Tensor) -> fewstep_tensor::Result<Tensor>| -> Result<Tensor> {
            Ok(f(&exact[0], &exact[1])?.to_dtype(dtype))
        };
        pairs.push((arith::add(&there[0], &there[1])?, sum(arith::add)?));
        pairs.push((arith::sub(&there[0], &there[1])?, sum(arith::sub)?));
        let mut onto = there[0].clone();
        arith::add_assign(&mut onto, &there[1])?;
        pairs.push((onto, sum(arith::add)?));
        let (a, b) = (vec![0.3; shape[0]], vec![-1.7; shape[0]]);
        let combined = arith::combine(&[(&a, &exact[0]), (&b, &exact[1])])?.to_dtype(dtype);
        pairs.push((arith::combine(&[(&a, &there[0]), (&b, &there[1])])?, combined));
    }
    same(&pairs)
}
