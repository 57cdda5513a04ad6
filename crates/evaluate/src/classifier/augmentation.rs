use fewstep_data::{HEIGHT, WIDTH};
use fewstep_tensor::random::{Purpose, Stream};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How training clips are disturbed, so that the classifier judges imperfect clips by what they show.
///
/// A disturbed clip is blurred towards the mean of each 3×3 neighbourhood, its ink is multiplied by a gain and Gaussian
/// noise is added; each clip draws its own strengths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// The share of clips that are disturbed at all, in [0, 1].
    pub share: f64,
    /// The largest weight of the blurred clip, in [0, 1].
    pub blur: f64,
    /// Least and largest gain.
    pub gain: [f64; 2],
    /// The largest standard deviation of the noise, in units of pixels in [-1, 1]; a square law makes little noise likely.
    pub noise: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Augmentation { share: 0.75, blur: 0.6, gain: [0.75, 1.1], noise: 0.4 }
    }
}

impl Augmentation {
    pub(super) fn validate(&self) -> Result<()> {
        let unit = |x: f64| (0.0..=1.0).contains(&x);
        let [least, most] = self.gain;
        let checks = [
            ("augmentation.share", unit(self.share), "from 0 to 1", self.share),
            ("augmentation.blur", unit(self.blur), "from 0 to 1", self.blur),
            ("augmentation.gain", least >= 0.0 && least <= most && most.is_finite(), "ascending, 0 or more", least),
            ("augmentation.noise", self.noise >= 0.0 && self.noise.is_finite(), "0 or more", self.noise),
        ];
        match checks.into_iter().find(|check| !check.1) {
            Some((key, _, expected, got)) => Err(Error::Setting { key, expected, got: got.to_string() }),
            None => Ok(()),
        }
    }

    /// Disturbs the clip [C, F, H, W] seen at a position of a training run: a function of (seed, position).
    pub(super) fn apply(&self, pixels: &mut [f32], seed: u64, position: u64) {
        let u = Stream::new(seed, Purpose::Dropout, 0).uniform(position, 4);
        if u[0] >= self.share {
            return;
        }
        let weight = (self.blur * u[1]) as f32;
        let gain = (self.gain[0] + (self.gain[1] - self.gain[0]) * u[2]) as f32;
        let noise = (self.noise * u[3] * u[3]) as f32;
        let z = Stream::new(seed, Purpose::Noise, 0).normal(position, pixels.len());
        for frame in pixels.chunks_exact_mut(HEIGHT * WIDTH) {
            let blurred = blurred(frame);
            frame.iter_mut().zip(blurred).for_each(|(x, mean)| *x += weight * (mean - *x));
        }
        // Black is -1 and stays black.
        pixels.iter_mut().zip(z).for_each(|(x, z)| *x = gain * (*x + 1.0) - 1.0 + noise * z);
    }
}

/// The mean of each 3×3 neighbourhood of a frame [H, W]; at the border, of what there is of it.
fn blurred(frame: &[f32]) -> Vec<f32> {
    let mean = |i: usize| {
        let (row, column) = (i / WIDTH, i % WIDTH);
        let rows = row.saturating_sub(1)..(row + 2).min(HEIGHT);
        let columns = column.saturating_sub(1)..(column + 2).min(WIDTH);
        let count = rows.len() * columns.len();
        let sum: f32 = rows.map(|r| frame[r * WIDTH..][columns.clone()].iter().sum::<f32>()).sum();
        sum / count as f32
    };
    (0..HEIGHT * WIDTH).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use fewstep_data::{Digits, Split};

    use super::*;

    fn clip() -> Vec<f32> {
        Digits::load().unwrap().clip(Split::Train, 1, 0).pixels
    }

    #[test]
    fn a_share_of_zero_leaves_clips_as_they_are() {
        let mut pixels = clip();
        Augmentation { share: 0.0, ..Augmentation::default() }.apply(&mut pixels, 1, 2);
        assert_eq!(pixels, clip());
    }

    #[test]
    fn a_disturbed_clip_is_a_function_of_seed_and_position() {
        let disturbed = |seed, position| {
            let mut pixels = clip();
            Augmentation { share: 1.0, ..Augmentation::default() }.apply(&mut pixels, seed, position);
            pixels
        };
        assert_eq!(disturbed(1, 2), disturbed(1, 2));
        assert_ne!(disturbed(1, 2), disturbed(2, 2));
        assert_ne!(disturbed(1, 2), disturbed(1, 3));
    }

    #[test]
    fn gain_and_blur_keep_a_black_frame_black() {
        let mut pixels = vec![-1.0; HEIGHT * WIDTH];
        Augmentation { share: 1.0, noise: 0.0, ..Augmentation::default() }.apply(&mut pixels, 1, 2);
        assert!(pixels.iter().all(|x| (x + 1.0).abs() < 1e-6));
    }
}
