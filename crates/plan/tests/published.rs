//! Plans against what is known of the published networks.

use fewstep_nn::wan::WanConfig;
use fewstep_plan::{Hardware, Latent, Precision, Request, Work, plan};

fn published(config: WanConfig) -> Request {
    let latent = Latent::of(&config, [832, 480], 81).unwrap();
    Request { precision: Precision::Bf16, ..Request::new(config, latent) }
}

#[test]
fn published_networks_have_their_sizes() {
    let h100 = Hardware::published("h100").unwrap();
    // Counted in the published checkpoints: 1.42 and 14.29 billion.
    for (config, billions) in [(WanConfig::t2v_1_3b(), 1.42), (WanConfig::t2v_14b(), 14.29)] {
        let r = Request { work: Work::Sample { steps: 1, guided: false }, ..published(config) };
        let p = plan(&r, &h100).unwrap();
        assert_eq!(p.tokens, 32_760);
        assert!((p.parameters as f64 / 1e9 / billions - 1.0).abs() < 0.005, "{}", p.parameters);
    }
}

#[test]
fn the_published_recipe_keeps_34_bytes_a_parameter() {
    let r = Request { first_moment: true, ..published(WanConfig::t2v_1_3b()) };
    let p = plan(&r, &Hardware::published("h100").unwrap()).unwrap();
    assert_eq!(p.resident(), 34 * p.parameters);
}

#[test]
fn products_are_those_of_the_formula() {
    let r = Request { work: Work::Sample { steps: 1, guided: false }, ..published(WanConfig::t2v_1_3b()) };
    let p = plan(&r, &Hardware::published("h100").unwrap()).unwrap();
    let (l, s, d, ffn, layers) = (32_760.0, 512.0, 1536.0, 8960.0, 30.0);
    let linear = l * (6.0 * d * d + 2.0 * d * ffn) + s * 2.0 * d * d;
    let attention = 2.0 * l * (l + s) * d;
    let ends = l * d * (64.0 + 64.0) + s * (4096.0 * d + d * d) + (256.0 + d + 6.0 * d) * d;
    let formula = 2.0 * (layers * (linear + attention) + ends);
    assert!(
        (p.phases.iter().find(|p| p.name == "network forward").unwrap().product_flops() / formula - 1.0).abs() < 1e-12
    );
}

#[test]
fn a_sampling_encodes_its_prompts_draws_and_decodes() {
    let r = Request { work: Work::Sample { steps: 4, guided: true }, ..published(WanConfig::t2v_1_3b()) };
    let p = plan(&r, &Hardware::published("h100").unwrap()).unwrap();
    let phases: Vec<(&str, f64)> = p.phases.iter().map(|p| (p.name, p.times)).collect();
    // In f32 the autoencoder cuts 832 x 480 into two tiles to stay within its own budget of memory; in bf16 it need not.
    assert_eq!(phases, [("text encoder", 2.0), ("network forward", 8.0), ("VAE decode", 1.0)]);
    let single = plan(&Request { precision: Precision::F32, ..r }, &Hardware::measured(1e11, 1e10, 1 << 35)).unwrap();
    assert_eq!(single.phases[2].times, 2.0);
    // umT5-xxl: four matrices of attention and three of the gated layer in each of 24 blocks, on 512 tokens.
    let (d, ffn) = (4096.0, 10_240.0);
    assert_eq!(p.phases[0].ops["linear"].flops, 24.0 * 2.0 * 512.0 * (4.0 * d * d + 3.0 * d * ffn));
}

#[test]
fn two_experts_have_twice_the_weights_and_the_same_work() {
    let r = Request { work: Work::Sample { steps: 4, guided: true }, ..published(WanConfig::t2v_14b()) };
    let h100 = Hardware::published("h100").unwrap();
    let [one, two] = [1, 2].map(|experts| plan(&Request { experts, ..r.clone() }, &h100).unwrap());
    assert_eq!(two.memory[0].bytes, 2 * one.memory[0].bytes);
    assert_eq!(two.seconds, one.seconds);
}
