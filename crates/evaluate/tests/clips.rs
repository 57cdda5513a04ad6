//! What the evaluator says of clips whose worth is known.

use std::sync::OnceLock;

use fewstep_data::{Caption, Clip, Digits, Direction, Split};
use fewstep_evaluate::{Error, Evaluator, Measures, Reference, TrainConfig, train};
use fewstep_tensor::random::{Purpose, Stream};

const SAMPLES: usize = 1000;
/// Seeds of the reference and of what stands for generated clips.
const SEEDS: [u64; 2] = [1, 2];

type Captioned = (Caption, Vec<f32>);

fn evaluator() -> &'static Evaluator {
    static EVALUATOR: OnceLock<Evaluator> = OnceLock::new();
    EVALUATOR.get_or_init(|| Evaluator::new().unwrap())
}

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| evaluator().reference(Split::HeldOut, SEEDS[0], SAMPLES).unwrap())
}

/// The first `n` clips of a split that are wanted, each from its own draw.
fn clips(split: Split, n: usize, wanted: impl Fn(&Clip) -> bool) -> Vec<Captioned> {
    let digits = Digits::load().unwrap();
    let all = (0..).map(|i| digits.clip(split, SEEDS[1], i));
    all.filter(wanted).take(n).map(|clip| (clip.caption, clip.pixels)).collect()
}

fn measures(generated: &[Captioned]) -> Measures {
    evaluator().evaluate(generated, reference()).unwrap()
}

fn held_out() -> Measures {
    measures(&clips(Split::HeldOut, SAMPLES, |_| true))
}

#[test]
fn the_shipped_classifier_reads_held_out_clips() {
    let got = measures(&clips(Split::HeldOut, 500, |_| true));
    for accuracy in [got.digit_accuracy, got.colour_accuracy, got.direction_accuracy, got.caption_accuracy] {
        assert!(accuracy >= 0.97, "{got}");
    }
}

#[test]
fn clips_under_other_captions_are_read_as_what_they_show() {
    let mut generated = clips(Split::HeldOut, 500, |_| true);
    let captions: Vec<Caption> = generated.iter().map(|g| g.0).collect();
    for (i, g) in generated.iter_mut().enumerate() {
        g.0 = Caption { direction: captions[(i + 1) % 500].direction, ..g.0 };
    }
    let got = measures(&generated);
    // One direction in eight is right by chance: four standard errors of 1.5 %.
    assert!(got.digit_accuracy > 0.97 && (got.direction_accuracy - 0.125).abs() < 0.06, "{got}");
    assert!(got.caption_accuracy <= got.direction_accuracy, "{got}");
}

#[test]
fn held_out_clips_have_high_precision_and_recall_against_others() {
    let got = held_out();
    assert!(got.precision > 0.9 && got.recall > 0.9, "{got}");
}

#[test]
fn missing_directions_cost_recall_and_not_precision() {
    let half = clips(Split::HeldOut, SAMPLES, |clip| Direction::ALL[..4].contains(&clip.caption.direction));
    let (half, all) = (measures(&half), held_out());
    assert!(half.recall < all.recall - 0.2 && half.precision > 0.9 && half.frechet > 3.0 * all.frechet, "{half}");
}

#[test]
fn one_source_image_for_each_digit_costs_recall_and_not_precision() {
    let mut of_digit = [None; 10];
    let digits = Digits::load().unwrap();
    for clip in (0..1000).map(|i| digits.clip(Split::HeldOut, 3, i)) {
        of_digit[clip.caption.digit.index()].get_or_insert(clip.source);
    }
    let one = clips(Split::HeldOut, SAMPLES, |clip| of_digit[clip.caption.digit.index()] == Some(clip.source));
    let (one, all) = (measures(&one), held_out());
    assert!(one.recall < all.recall - 0.2 && one.precision > 0.9 && one.frechet > 2.0 * all.frechet, "{one}");
}

#[test]
fn one_clip_for_each_caption_costs_recall() {
    let digits = Digits::load().unwrap();
    // Twice the captions' number, so that a ball does not reach from one caption to the next.
    let n = 2000;
    let clip_of = |caption| digits.clip_of(Split::HeldOut, 5, caption_index(caption), caption).pixels;
    let generated = clips(Split::HeldOut, n, |_| true).into_iter().map(|(caption, _)| (caption, clip_of(caption)));
    let reference = evaluator().reference(Split::HeldOut, SEEDS[0], n).unwrap();
    let got = evaluator().evaluate(&generated.collect::<Vec<_>>(), &reference).unwrap();
    assert!(got.recall < 0.7 && got.caption_accuracy > 0.9, "{got}");
}

fn caption_index(caption: Caption) -> u64 {
    Caption::all().position(|c| c == caption).unwrap() as u64
}

#[test]
fn the_distance_grows_with_noise_that_the_caption_survives() {
    let noisy = |std: f32| {
        let stream = Stream::new(3, Purpose::Check, 0);
        let mut generated = clips(Split::HeldOut, SAMPLES, |_| true);
        for (i, (_, pixels)) in generated.iter_mut().enumerate() {
            let z = stream.normal(i as u64, pixels.len());
            pixels.iter_mut().zip(z).for_each(|(x, z)| *x += std * z);
        }
        measures(&generated)
    };
    let (none, some, much) = (held_out(), noisy(0.2), noisy(0.4));
    assert!(none.frechet < some.frechet && 2.0 * some.frechet < much.frechet, "{none}\n{some}\n{much}");
    assert!(some.caption_accuracy > 0.95, "{some}");
}

#[test]
fn two_digits_at_once_cost_precision_and_distance() {
    let clips = clips(Split::HeldOut, 2 * SAMPLES, |_| true);
    let mean = |pair: &[Captioned]| {
        let pixels = pair[0].1.iter().zip(&pair[1].1).map(|(a, b)| (a + b) / 2.0).collect();
        (pair[0].0, pixels)
    };
    let (mixed, all) = (measures(&clips.chunks(2).map(mean).collect::<Vec<_>>()), held_out());
    assert!(mixed.precision < all.precision - 0.1 && mixed.frechet > 5.0 * all.frechet, "{mixed}");
}

#[test]
fn a_clip_with_a_non_finite_pixel_is_named() {
    let mut generated = clips(Split::HeldOut, 40, |_| true);
    generated[23].1[100] = f32::NAN;
    generated[23].1[200] = f32::INFINITY;
    let e = evaluator().evaluate(&generated, reference()).unwrap_err();
    assert!(matches!(e, Error::NonFinitePixels { sample: 23, count: 2, first: 100 }), "{e}");
}

#[test]
fn a_clip_of_another_size_is_named() {
    let mut generated = clips(Split::HeldOut, 40, |_| true);
    generated[31].1.pop();
    let e = evaluator().evaluate(&generated, reference()).unwrap_err();
    assert!(matches!(e, Error::ClipSize { sample: 31, expected: 4608, got: 4607 }), "{e}");
}

#[test]
fn finite_pixels_beyond_any_range_give_an_error_and_no_number() {
    let mut generated = clips(Split::HeldOut, 40, |_| true);
    generated[7].1.fill(f32::MAX);
    let e = evaluator().evaluate(&generated, reference()).unwrap_err();
    assert!(matches!(e, Error::NonFiniteFeature { sample: 7, .. }), "{e}");
}

#[test]
fn no_clips_are_too_few() {
    let e = evaluator().evaluate::<Vec<f32>>(&[], reference()).unwrap_err();
    assert!(matches!(e, Error::TooFewSamples { got: 0, .. }), "{e}");
}

#[test]
fn a_clips_features_do_not_depend_on_its_company() {
    let pixels: Vec<_> = clips(Split::HeldOut, 50, |_| true).into_iter().map(|g| g.1).collect();
    let together = evaluator().features(&pixels).unwrap();
    let alone = evaluator().features(&pixels[41..42]).unwrap();
    // The last bits may differ: a product of few rows takes another kernel.
    let close = together.row(41).iter().zip(alone.row(0)).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + b.abs()));
    assert!(close, "{:?}\n{:?}", together.row(41), alone.row(0));
}

#[test]
fn measures_survive_json_and_stand_under_their_heading() {
    let got = measures(&clips(Split::HeldOut, 40, |_| true));
    let json = serde_json::to_string(&got).unwrap();
    let back: Measures = serde_json::from_str(&json).unwrap();
    assert_eq!((back.samples, back.to_string()), (40, got.to_string()));
    assert_eq!(got.to_string().chars().count(), Measures::HEADING.chars().count());
}

#[test]
#[ignore = "a minute: trains the classifier from nothing"]
fn training_with_the_defaults_gives_a_classifier_as_good_as_the_shipped_one() {
    let evaluator = Evaluator::with_weights(train(&TrainConfig::default(), |_| {}).unwrap()).unwrap();
    let reference = evaluator.reference(Split::HeldOut, SEEDS[0], SAMPLES).unwrap();
    let got = evaluator.evaluate(&clips(Split::HeldOut, SAMPLES, |_| true), &reference).unwrap();
    assert!(got.caption_accuracy > 0.98 && got.recall > 0.9, "{got}");
}
