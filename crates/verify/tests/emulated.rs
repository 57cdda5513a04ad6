//! The checks on a device that is emulated on the host: the kernels' own code, without a GPU.

use std::path::PathBuf;

use fewstep_tensor::cuda::EMULATED;
use fewstep_verify::{Check, Row, fixtures, numbers, ops};

fn folder() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from)
}

/// Runs checks, and fails with all that failed.
#[track_caller]
fn hold(checks: impl IntoIterator<Item = Check>) {
    let rows: Vec<Row> = checks.into_iter().flat_map(|c| c.run()).collect();
    for r in &rows {
        let Row { what, case, dtype, error, allowed, seconds, .. } = r;
        println!("{what:20} {dtype:>5} {error:9.2e} of {allowed:9.2e} in {seconds:6.2} s: {case}");
    }
    let failed: Vec<String> =
        rows.iter().filter(|r| !r.ok).map(|r| format!("{} {} {:?}", r.case, r.dtype, r.failure)).collect();
    assert!(failed.is_empty() && !rows.is_empty(), "{failed:#?}");
}

/// The cases of some ops that are small enough.
#[track_caller]
fn hold_ops(names: &[&str]) {
    let small = ops::cases(EMULATED).into_iter().enumerate().filter(|(_, c)| !c.is_large());
    hold(
        small.filter(|(_, c)| names.contains(&c.op().name())).flat_map(|(i, c)| ops::checks_of(EMULATED, c, i as u64)),
    );
}

const ELEMENTWISE: [&str; 5] = ["activation", "multiply", "scale", "cast", "combine"];
const PRODUCTS: [&str; 2] = ["linear", "linear_gelu"];
const ROWS: [&str; 5] = ["add", "gated_residual", "layer_norm_modulate", "layer_norm_affine", "channel_norm"];
const HEADS: [&str; 2] = ["attention", "relative_attention"];
const PLACES: [&str; 7] = ["causal_conv", "upsample", "rearrange", "slice", "concat", "reshape", "embedding"];
const TIMES: [&str; 2] = ["time_embedding", "coefficient"];

#[test]
fn elementwise_ops_hold() {
    hold_ops(&ELEMENTWISE);
}

#[test]
fn products_hold() {
    hold_ops(&PRODUCTS);
}

#[test]
fn ops_over_rows_hold() {
    hold_ops(&ROWS);
}

#[test]
fn norms_with_rotations_hold() {
    hold_ops(&["rms_norm_rope"]);
}

#[test]
fn attention_holds() {
    hold_ops(&HEADS);
}

#[test]
fn ops_that_move_or_convolve_hold() {
    hold_ops(&PLACES);
}

#[test]
fn ops_of_times_hold() {
    hold_ops(&TIMES);
}

#[test]
fn every_op_has_a_case_and_a_test() {
    let tested = [&ELEMENTWISE[..], &PRODUCTS, &ROWS, &["rms_norm_rope"], &HEADS, &PLACES, &TIMES].concat();
    let cases = ops::cases(EMULATED);
    for case in &cases {
        assert!(tested.contains(&case.op().name()), "{case:?}");
    }
    for name in tested {
        assert!(cases.iter().any(|c| c.op().name() == name && !c.is_large()), "no case of {name}");
    }
}

#[test]
fn random_numbers_conversions_and_sums_hold() {
    hold(numbers::checks(EMULATED));
}

#[test]
fn the_published_numbers_hold() {
    // One layout of weights, and of the training steps one of each kind: the others run the same kernels.
    let once = ["diffusers", "umt5_weights_hf_f32", "clip_weights_hf", "scm_", "dmd_fix"];
    let checks = fixtures::checks(EMULATED, &folder()).unwrap().into_iter();
    hold(checks.filter(|c| !once.iter().any(|o| c.case().contains(o))));
}
