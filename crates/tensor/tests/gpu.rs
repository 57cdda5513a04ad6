//! Arithmetic on a GPU against the host's, with the kernels emulated.

use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

const DTYPES: [DType; 3] = [DType::F32, DType::F64, DType::Bf16];

fn noise(sample: u64, shape: &[usize], dtype: DType, device: Device) -> Tensor {
    arith::normal(&Stream::new(3, Purpose::Check, 1), sample, shape, dtype, device).unwrap()
}

fn gpu(t: &Tensor) -> Tensor {
    t.to_device(EMULATED).unwrap()
}

fn bits(t: &Tensor) -> Vec<u8> {
    t.to_device(Device::Cpu).unwrap().le_bytes().to_vec()
}

#[test]
fn noise_has_the_bits_of_the_host() {
    for dtype in DTYPES {
        for (first, shape) in [(0, &[3, 1027][..]), (u64::from(u32::MAX) - 1, &[2, 1]), (7, &[1, 33, 2]), (0, &[0, 4])]
        {
            for stream in
                [Stream::new(u64::MAX - 5, Purpose::Noise, 4_000_000_000), Stream::new(1, Purpose::Data, 0).step(9)]
            {
                let draw = |device| arith::normal(&stream, first, shape, dtype, device).unwrap();
                assert!(bits(&draw(EMULATED)) == bits(&draw(Device::Cpu)), "{shape:?} {dtype}");
            }
        }
    }
}

#[test]
fn sums_differences_and_combinations_have_the_bits_of_the_host() {
    for dtype in [DType::F32, DType::F64] {
        for shape in [&[3, 35][..], &[1, 2000], &[2, 8], &[4, 0]] {
            let (a, b, c) = (
                noise(0, shape, dtype, Device::Cpu),
                noise(9, shape, dtype, Device::Cpu),
                noise(18, shape, dtype, Device::Cpu),
            );
            let on = |f: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Tensor| {
                assert!(bits(&f(&gpu(&a), &gpu(&b), &gpu(&c))) == bits(&f(&a, &b, &c)), "{shape:?} {dtype}");
            };
            on(&|a, b, _| arith::add(a, b).unwrap());
            on(&|a, b, _| arith::sub(a, b).unwrap());
            on(&|a, b, _| {
                let mut sum = a.clone();
                arith::add_assign(&mut sum, b).unwrap();
                sum
            });
            let lists: Vec<Vec<f64>> =
                (0..3).map(|i| (0..shape[0]).map(|s| 0.3 + i as f64 - 1.7 * s as f64).collect()).collect();
            on(&|a, b, c| arith::combine(&[(&lists[0], a), (&lists[1], b), (&lists[2], c)]).unwrap());
        }
    }
}

#[test]
fn a_sum_in_place_leaves_what_shared_the_elements() {
    let (a, b) = (noise(0, &[3, 5], DType::F32, EMULATED), noise(9, &[3, 5], DType::F32, EMULATED));
    let (before, mut sum) = (bits(&a), a.clone());
    arith::add_assign(&mut sum, &b).unwrap();
    assert!(bits(&a) == before && bits(&sum) != before);
    let mut window = a.narrow(1, 2).unwrap();
    arith::add_assign(&mut window, &b.narrow(0, 2).unwrap()).unwrap();
    assert!(bits(&a) == before);
}

#[test]
fn every_conversion_has_the_bits_of_the_host() {
    let special = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e39,
        -1e39,
        0.0,
        -0.0,
        1.0 + 2f64.powi(-8),
        1.0 + 3.0 * 2f64.powi(-8),
    ];
    let drawn = noise(0, &[1, 700], DType::F64, Device::Cpu).to_vec_f64();
    let values: Vec<f64> = special.into_iter().chain(drawn.iter().map(|x| x * (40.0 * x).exp())).collect();
    let exact = Tensor::from_vec(values, &[709]).unwrap();
    for (from, to) in DTYPES.into_iter().flat_map(|from| DTYPES.map(|to| (from, to))) {
        let (host, there) = (exact.to_dtype(from).to_dtype(to), gpu(&exact.to_dtype(from)).to_dtype(to));
        for (i, (h, t)) in host.to_vec_f64().into_iter().zip(there.to_vec_f64()).enumerate() {
            assert!(h.to_bits() == t.to_bits() || h.is_nan() && t.is_nan(), "{from} to {to}, element {i}: {t} for {h}");
        }
    }
}

#[test]
fn a_double_is_rounded_to_bf16_once() {
    // Just above the middle between 1 and the next bf16: a float in between would be that middle, and round to even.
    let x = Tensor::from_vec(vec![1.0 + 2f64.powi(-8) + 2f64.powi(-40)], &[1]).unwrap();
    assert_eq!(gpu(&x).to_dtype(DType::Bf16).to_vec_f64(), [1.0 + 2f64.powi(-7)]);
}

#[test]
fn a_constant_fills_odd_lengths() {
    for dtype in DTYPES {
        let full = |device| Tensor::full(&[3, 7], 0.1, dtype, device);
        assert!(bits(&full(EMULATED)) == bits(&full(Device::Cpu)), "{dtype}");
    }
}

#[test]
fn sums_over_samples_are_those_of_the_host() {
    for dtype in [DType::F32, DType::F64] {
        for shape in [&[3, 35][..], &[2, 20_000], &[2, 0], &[0, 3]] {
            let (a, b) = (noise(0, shape, dtype, Device::Cpu), noise(9, shape, dtype, Device::Cpu));
            // Orders of summation differ: some ε over at most twenty thousand terms.
            let near = |got: &[f64], want: &[f64]| {
                assert!(
                    got.len() == want.len()
                        && got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-11 * (1.0 + w.abs())),
                    "{shape:?}"
                );
            };
            for term in [arith::Term::Square { by: 2.5 }, arith::Term::Magnitude, arith::Term::NonFinite] {
                near(&arith::sum_per_sample(&gpu(&a), term).unwrap(), &arith::sum_per_sample(&a, term).unwrap());
            }
            near(&[arith::sum_squares(&gpu(&a)).unwrap()], &[arith::sum_squares(&a).unwrap()]);
            let dots = [arith::dot_per_sample(&gpu(&a), &gpu(&b)).unwrap(), arith::dot_per_sample(&a, &b).unwrap()];
            near(&dots[0].to_vec_f64(), &dots[1].to_vec_f64());
        }
    }
}

#[test]
fn what_is_not_finite_is_counted() {
    let mut values = vec![1.0f32; 5000];
    (values[3], values[4097], values[4999]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let t = Tensor::from_vec(values, &[5, 1000]).unwrap();
    for dtype in DTYPES {
        let t = gpu(&t.to_dtype(dtype));
        assert_eq!(arith::count_non_finite(&t).unwrap(), 3);
        assert_eq!(arith::sum_per_sample(&t, arith::Term::NonFinite).unwrap(), [1.0, 0.0, 0.0, 0.0, 2.0]);
    }
}

#[test]
fn a_file_of_tensors_on_a_gpu_holds_their_elements() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let host = Tensor::from_vec(vec![1.5f32, -2.0, 3.25], &[3]).unwrap();
    let mut file = TensorFile::default();
    file.tensors.insert("w".into(), host.to_device(EMULATED).unwrap());
    for dtype in [None, Some(DType::Bf16)] {
        file.write_as(&path, dtype).unwrap();
        assert_eq!(TensorFile::read(&path).unwrap().get("w").unwrap().to_vec_f64(), host.to_vec_f64());
    }
}
