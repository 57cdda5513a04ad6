use std::sync::LazyLock;

use super::compiler::kernels;
use super::*;

const PRELUDE: &str = include_str!("../prelude.cuh");
const NAN: u32 = u32::MAX;

static EMULATOR: LazyLock<Emulator> = LazyLock::new(|| Emulator::new().unwrap());

fn compile(name: &str, text: &str) -> Result<Arc<Library>> {
    EMULATOR.compile(name, &format!("{PRELUDE}\n#line 1 \"{name}\"\n{text}"), &[("ELEMENT".into(), "float".into())])
}

static KERNELS: LazyLock<Arc<Library>> = LazyLock::new(|| compile("tests.cu", include_str!("tests.cu")).unwrap());

/// Runs a kernel of `tests.cu` whose parameters are pointers to `inputs`, then to `n` words, which it gives back.
fn run(kernel: &str, (blocks, threads, shared): (u32, u32, usize), inputs: &[&[u32]], n: usize) -> Result<Vec<u32>> {
    let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let mut addresses = Vec::new();
    for input in inputs {
        addresses.push(EMULATOR.alloc(input.len() * 4)?);
        EMULATOR.write(*addresses.last().unwrap(), &bytes(input))?;
    }
    let output = EMULATOR.alloc(n * 4)?;
    addresses.push(output);
    let mut args: Vec<*mut c_void> = addresses.iter_mut().map(|a| (a as *mut u64).cast()).collect();
    let ran = EMULATOR.launch(&KERNELS, kernel, [blocks, 1, 1], threads, shared, &mut args);
    let mut got = vec![0; n * 4];
    EMULATOR.read(output, &mut got)?;
    addresses.iter().for_each(|&address| EMULATOR.free(address));
    ran.map(|()| got.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect())
}

/// What a kernel is told off for.
fn defect(kernel: &str, extent: (u32, u32, usize), inputs: &[&[u32]], n: usize) -> String {
    match run(kernel, extent, inputs, n) {
        Err(EmulatorError::Kernel(message)) => message,
        other => panic!("{kernel}: {other:?}"),
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// Words that differ: multiples of an odd constant.
fn words(n: u32) -> Vec<u32> {
    (1..=n).map(|i| i.wrapping_mul(0x9e37_79b9)).collect()
}

/// bf16 tiles of moderate numbers, two elements a word, and their values.
fn tile(n: u32, seed: u32) -> (Vec<u32>, Vec<f64>) {
    let elements: Vec<u32> = words(n + seed)
        .split_off(seed as usize)
        .iter()
        .map(|w| (w >> 16 & 0x807f) | (0x3e80 + (w >> 3 & 0x180)))
        .collect();
    let values = elements.iter().map(|e| f64::from(f32::from_bits(e << 16))).collect();
    (elements.chunks(2).map(|e| e[0] | e[1] << 16).collect(), values)
}

fn product_is_right(kernel: &str) {
    let ((a, a_values), (b, b_values)) = (tile(256, 0), tile(128, 1000));
    let c: Vec<f32> = (0..128).map(|i| i as f32 / 7.0 - 9.0).collect();
    let c_bits: Vec<u32> = c.iter().map(|x| x.to_bits()).collect();
    let d = run(kernel, (1, 32, 0), &[&a, &b, &c_bits], 128).unwrap();
    for (at, d) in d.iter().enumerate() {
        let (m, n) = (at / 8, at % 8);
        let terms = (0..16).map(|k| a_values[m * 16 + k] * b_values[n * 16 + k]);
        let want: f64 = f64::from(c[at]) + terms.clone().sum::<f64>();
        // 16 sums, each rounded once, of partial sums no larger than the sum of magnitudes.
        let bound = 16.0 * f64::from(f32::EPSILON) / 2.0 * (f64::from(c[at].abs()) + terms.map(f64::abs).sum::<f64>());
        let got = f64::from(f32::from_bits(*d));
        assert!((got - want).abs() <= bound, "D[{m}][{n}] is {got}, not {want}");
    }
}

#[test]
fn mma_is_the_product_of_its_tiles() {
    product_is_right("product");
}

#[test]
fn ldmatrix_gives_the_fragments_of_mma_both_ways() {
    product_is_right("product_from_shared");
}

#[test]
fn shuffles_move_values_between_lanes() {
    let x = words(64);
    let y = run("shuffles", (1, 64, 0), &[&x], 192).unwrap();
    for i in 0..64 {
        let (warp, lane) = (i / 32 * 32, i % 32);
        assert_eq!(y[i], x[warp + (lane ^ 5)]);
        assert_eq!(y[64 + i], x[warp + i / 4 % 32]);
        assert_eq!(y[128 + i], x[warp + 31 - lane]);
    }
}

#[test]
fn sums_and_maxima_are_those_of_the_values() {
    // Small integers: every order of summation is exact.
    let x: Vec<f32> = (0..512).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
    let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    let y = run("sums", (2, 256, 0), &[&bits], 1024).unwrap();
    for i in 0..512 {
        assert_eq!(f32::from_bits(y[2 * i]), x[i / 256 * 256..][..256].iter().sum::<f32>());
        assert_eq!(f32::from_bits(y[2 * i + 1]), x[i / 32 * 32..][..32].iter().copied().fold(f32::MIN, f32::max));
    }
}

#[test]
fn bf16_is_the_nearest_even() {
    let special = [
        0x0000_0000,
        0x8000_0000,
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        1,
        0x0000_8000,
        0x7f80_0001,
        NAN,
    ];
    let x: Vec<u32> = special.into_iter().chain(words(1012)).collect();
    let y = run("rounded", (1, 1024, 0), &[&x], 2048).unwrap();
    let nearest = |bits: u32| {
        let x = f64::from(f32::from_bits(bits));
        if x.is_nan() {
            return 0x7fff;
        }
        // Of the two neighbours toward zero and away: beyond the largest, a step of the last binade.
        let (low, high) = (bits >> 16, (bits >> 16) + 1);
        let value = |b: u32| match b & 0x7fff {
            0x7f80 => f64::copysign(2f64.powi(128), x),
            _ => f64::from(f32::from_bits(b << 16)),
        };
        if !x.is_finite() {
            return low;
        }
        let (down, up) = ((x - value(low)).abs(), (value(high) - x).abs());
        if down < up || (down == up && low % 2 == 0) { low } else { high }
    };
    for i in 0..1024 {
        assert_eq!(y[2 * i], nearest(x[i]), "{:#x}", x[i]);
        assert_eq!(y[2 * i + 1], nearest(x[i]) | nearest(x[i ^ 1]) << 16, "{:#x}", x[i]);
    }
}

#[test]
fn arithmetic_is_rounded_once_and_never_contracted() {
    let x = 1.0 + 2f32.powi(-13);
    let y = run("arithmetic", (1, 1, 0), &[&[0x8000_0001, 6, 2.5f32.to_bits(), x.to_bits(), (-1.0f32).to_bits()]], 8)
        .unwrap();
    assert_eq!(y[0], 3);
    assert!((f32::from_bits(y[1]) - 2.5f32.exp2()).abs() <= 2.0 * 4.0 * f32::EPSILON);
    assert_eq!(y[2], 0);
    assert_eq!(f32::from_bits(y[3]), x * x - 1.0);
    assert_eq!(f32::from_bits(y[4]), x.mul_add(x, -1.0));
    assert_ne!(y[3], y[4]);
    // Below the normal numbers, which the device flushes.
    assert_eq!(y[5], 0);
    assert_eq!(f32::from_bits(y[6]), 0.4);
    assert_eq!(y[7], 0);
}

#[test]
fn copies_arrive_with_the_wait_for_their_group() {
    let x = words(64);
    let y = run("copies", (1, 8, 256), &[&x], 96).unwrap();
    for i in 0..8 {
        assert_eq!(y[4 * i..][..4], x[4 * (7 - i)..][..4]);
        assert_eq!(y[32 + 4 * i..][..4], [NAN; 4]);
        let late: &[u32] = if i == 0 { &[0; 4] } else { &x[32 + 4 * (7 - i)..][..4] };
        assert_eq!(y[64 + 4 * i..][..4], *late);
    }
}

#[test]
fn a_copy_that_is_not_waited_for_is_nan() {
    assert_eq!(run("forgets_to_wait", (1, 32, 0), &[&words(128)], 128).unwrap(), [NAN; 128]);
}

#[test]
fn fresh_memory_is_nan_in_every_block() {
    // The second block finds what the first found.
    assert_eq!(run("fresh", (2, 32, 128), &[], 128).unwrap(), [NAN; 128]);
    let address = EMULATOR.alloc(7).unwrap();
    let mut bytes = [0; 7];
    EMULATOR.read(address, &mut bytes).unwrap();
    assert_eq!(bytes, [0xff; 7]);
    EMULATOR.free(address);
}

#[test]
fn a_warp_barrier_orders_a_warp() {
    assert_eq!(run("swap_in_a_warp", (1, 32, 0), &[], 32).unwrap(), (0..32).rev().collect::<Vec<u32>>());
}

#[test]
fn bytes_of_a_word_are_apart() {
    let y = run("accesses_of_all_widths", (1, 128, 0), &[], 160).unwrap();
    assert_eq!(y[..32], (0..32).map(|i| 0x0302_0100 + 0x0404_0404 * i).collect::<Vec<u32>>());
    assert_eq!(
        y[32..],
        (0..128).map(|i| if i % 4 > 0 { 0 } else { [i / 16, 1, 2, 3][i as usize % 16 / 4] }).collect::<Vec<u32>>()
    );
    says(&defect("reads_across_words", (1, 32, 0), &[], 1), &["race: ", "static shared memory"]);
    for case in 0..32 {
        let (byte, byte_first, reads) = (case / 4, case / 2 % 2, case % 2);
        match run("writes_a_byte_of_a_word", (1, 2, 0), &[&[byte, byte_first, reads]], 1) {
            Ok(_) => assert!(byte >= 4),
            Err(e) => {
                says(&e.to_string(), &["race: ", "of static shared memory"]);
                assert!(byte < 4);
            }
        }
    }
}

#[test]
fn many_collectives_pass() {
    assert_eq!(run("many_collectives", (1, 128, 0), &[], 128).unwrap(), (0..128).collect::<Vec<u32>>());
}

#[test]
fn an_access_outside_of_a_buffer_is_named() {
    let x = words(60);
    let got = defect("reads_past_the_end", (1, 61, 0), &[&x], 61);
    says(
        &got,
        &["reads_past_the_end: block (0, 0, 0), thread (60, 0, 0): reads byte 240 of a buffer of 240 (tests.cu:"],
    );
    let got = defect("writes_past_the_end", (1, 32, 0), &[], 32);
    says(
        &got,
        &["writes_past_the_end: block (0, 0, 0), thread (31, 0, 0): writes byte 128 of a buffer of 128 (tests.cu:"],
    );
    // Where no page ends.
    says(
        &defect("writes_past_the_end", (1, 31, 0), &[], 31),
        &["thread (30, 0, 0): writes byte 124 of a buffer of 124"],
    );
    says(
        &defect("writes_before_the_start", (1, 1, 0), &[], 32),
        &["thread (0, 0, 0): writes 4 bytes before a buffer of 128"],
    );
    says(&defect("writes_far_away", (1, 1, 0), &[], 32), &["writes 0x", "which is no memory of a kernel"]);
    says(
        &defect("copies_past_the_end", (1, 32, 0), &[&words(126)], 1),
        &["thread (31, 0, 0): reads byte 504 of a buffer of 504"],
    );
}

#[test]
fn an_access_outside_of_shared_memory_is_named() {
    says(
        &defect("leaves_dynamic_shared", (1, 33, 128), &[], 33),
        &["thread (32, 0, 0): writes byte 128 of dynamic shared memory, which has 128"],
    );
    says(
        &defect("leaves_dynamic_shared", (1, 257, 1024), &[], 257),
        &["thread (256, 0, 0): writes byte 1024 of dynamic shared memory, which has 1024"],
    );
    assert!(run("leaves_dynamic_shared", (1, 256, 1024), &[], 256).is_ok());
    says(
        &defect("leaves_an_array", (1, 32, 0), &[&[1]], 32),
        &["thread (31, 0, 0)", "tests.cu:", "index outside of the array"],
    );
    assert!(run("leaves_an_array", (1, 32, 0), &[&[0]], 32).is_ok());
}

#[test]
fn undefined_arithmetic_and_alignment_are_named() {
    says(&defect("misaligned", (1, 1, 0), &[], 32), &["misaligned address", "tests.cu:"]);
    says(&defect("overflows", (1, 1, 0), &[&[65536]], 1), &["tests.cu:", "signed product overflows"]);
    assert_eq!(run("overflows", (1, 1, 0), &[&[7]], 1).unwrap(), [7 << 16]);
    says(&defect("recurses", (1, 1, 0), &[&[1]], 1), &["overflows its stack"]);
}

#[test]
fn races_on_shared_memory_are_named() {
    says(&defect("races_in_a_block", (1, 64, 0), &[], 64), &["race", "byte", "static shared memory", "tests.cu:"]);
    says(&defect("races_in_a_warp", (1, 32, 0), &[], 32), &["race"]);
    says(&defect("overwrites_what_is_read", (1, 64, 0), &[], 64), &["thread (40, 0, 0)", "race: writes"]);
    says(&defect("copies_over_what_is_read", (1, 64, 0), &[&words(256)], 256), &["race"]);
    // Whoever it is, in whatever order the others ran.
    for (who, threads, warp_meets) in (0..32).flat_map(|who| [(who, 32, 0), (who + 32, 64, 0), (who + 32, 64, 1)]) {
        says(&defect("one_writes_what_all_read", (1, threads, 0), &[&[who, warp_meets]], 64), &["race"]);
    }
    says(&defect("waits_but_meets_nobody", (1, 32, 0), &[&words(128)], 128), &["race"]);
}

#[test]
fn races_on_buffers_are_named() {
    says(&defect("races_in_a_buffer", (1, 64, 0), &[], 64), &["race", "byte", "of a buffer of 256", "tests.cu:"]);
    says(
        &defect("races_between_blocks", (2, 1, 0), &[], 1),
        &[
            "block (1, 0, 0), thread (0, 0, 0): race: writes byte 0 of a buffer of 4, which thread 0 of another block wrote",
        ],
    );
    says(
        &defect("overwrites_what_a_block_reads", (2, 1, 0), &[], 2),
        &["race: writes byte 4 of a buffer of 8, which thread 0 of another block read"],
    );
    // One launch after another, or a barrier between.
    assert!(run("races_between_blocks", (1, 1, 0), &[], 1).is_ok());
    assert_eq!(
        run("passes_through_a_buffer", (2, 64, 0), &[], 128).unwrap()[..64],
        (0..64).rev().collect::<Vec<u32>>()
    );
}

#[test]
fn copies_go_to_shared_memory_only() {
    says(
        &defect("copies_to_what_is_not_shared", (1, 1, 0), &[&words(4)], 4),
        &["copy_async16", "is not in shared memory"],
    );
}

#[test]
fn collectives_that_threads_miss_are_named() {
    says(
        &defect("some_miss_the_barrier", (1, 64, 0), &[], 64),
        &["thread (40, 0, 0): divergence: waits at warp_barrier while thread 32 waits at barrier"],
    );
    says(
        &defect("some_return_early", (1, 64, 0), &[], 64),
        &["thread (31, 0, 0): divergence: waits at barrier, but thread 63 has returned"],
    );
    says(&defect("lanes_return_early", (1, 32, 0), &[], 32), &["waits at shuffle, but thread 7 has returned"]);
    says(&defect("lanes_diverge", (1, 32, 0), &[], 32), &["divergence", "mma_bf16", "warp_barrier"]);
    says(&defect("shuffles_from_nobody", (1, 20, 0), &[], 20), &["shuffle from lane", "of a warp of 20 threads"]);
}

#[test]
fn a_kernel_may_have_a_name_of_the_host() {
    assert_eq!(run("index", (1, 4, 0), &[], 4).unwrap(), [0, 1, 2, 3]);
}

#[test]
fn a_defect_leaves_the_emulator_usable() {
    for _ in 0..3 {
        defect("reads_past_the_end", (1, 61, 0), &[&words(60)], 61);
        assert_eq!(run("reads_past_the_end", (1, 60, 0), &[&words(60)], 60).unwrap(), words(60));
    }
}

#[test]
fn kernels_are_found_behind_attributes() {
    let text = r#"extern "C" __global__ void a(int x) {} extern "C" __global__ void __launch_bounds__(128, (2)) b_2 (int x);
        extern "C" __global__ __launch_bounds__(64) void c(float* y)"#;
    assert_eq!(kernels(text), ["a", "b_2", "c"]);
}

#[test]
fn what_is_called_wrongly_is_named() {
    let EmulatorError::NoKernel { known, .. } =
        EMULATOR.launch(&KERNELS, "nothing", [1; 3], 1, 0, &mut []).unwrap_err()
    else {
        panic!()
    };
    assert!(known.contains(&"shuffles".to_string()));
    let got = EMULATOR.launch(&KERNELS, "shuffles", [1; 3], 1, 0, &mut []).unwrap_err();
    assert_eq!(got.to_string(), "shuffles has 2 parameters, not 0");
    says(&defect("fresh", (1, 1025, 0), &[], 1), &["1025 threads"]);
    says(&defect("fresh", (1, 32, 1 << 20), &[], 1), &["1048576 bytes of shared memory"]);
    assert!(EMULATOR.read(16, &mut [0]).is_err());
    let got = Compiler::named("no-such-compiler".into()).unwrap_err().to_string();
    says(&got, &["no C++ compiler", "no-such-compiler", "CXX"]);
}

#[test]
fn what_does_not_compile_is_named_by_line() {
    let got =
        compile("broken.cu", "\n\nextern \"C\" __global__ void k() { nothing(); }").map(drop).unwrap_err().to_string();
    says(&got, &["the kernels of broken.cu do not compile", "broken.cu:3", "nothing"]);
}

#[test]
fn a_library_is_compiled_once() {
    let made = || std::fs::metadata(&KERNELS.path).unwrap().modified().unwrap();
    let before = made();
    assert_eq!(compile("tests.cu", include_str!("tests.cu")).unwrap().path, KERNELS.path);
    assert_eq!(made(), before);
}
