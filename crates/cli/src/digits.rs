//! The moving digits as training examples and as prompts.

use fewstep_data::{
    CHANNELS, Clip, DataOrder, Digits, FRAMES, HEIGHT, Split, TEXT_DIM, TEXT_LEN, WIDTH, text_embedding,
};
use fewstep_distill::examples::{ExampleSource, Examples};
use fewstep_nn::wan::WanConfig;
use fewstep_ops::Conditions;
use fewstep_tensor::Tensor;

use crate::error::Error;

/// [C, F, H, W] of one clip.
pub const CLIP: [usize; 4] = [CHANNELS, FRAMES, HEIGHT, WIDTH];

/// The endless list of training clips of a seed.
#[derive(Clone, Copy, Debug)]
pub struct DigitsSource(DataOrder);

impl DigitsSource {
    /// The clips of a split.
    ///
    /// # Errors
    /// Never for the data set inside the program.
    pub fn new(split: Split, seed: u64) -> Result<Self, Error> {
        Ok(DigitsSource(DataOrder::new(Digits::load()?, split, seed)))
    }

    /// Clips `position..position + n`.
    pub fn clips(&self, position: u64, n: usize) -> Vec<Clip> {
        self.0.batch(position, n)
    }
}

impl ExampleSource for DigitsSource {
    fn examples(&self, position: u64, n: usize) -> fewstep_distill::Result<Examples> {
        let clips = self.clips(position, n);
        let pixels = clips.iter().flat_map(|c| c.pixels.iter().copied()).collect::<Vec<f32>>();
        let captions: Vec<String> = clips.iter().map(|c| c.caption.to_string()).collect();
        let [c, f, h, w] = CLIP;
        Ok(Examples { x_0: Tensor::from_vec(pixels, &[n, c, f, h, w])?, conditions: conditions(&captions)? })
    }

    fn unconditional(&self, n: usize) -> fewstep_distill::Result<Conditions> {
        conditions(&vec![String::new(); n])
    }
}

/// Whether a network takes and gives clips with captions; if not, the setting at fault and how it should be.
///
/// # Errors
/// The first such setting.
pub fn suits_clips(network: &WanConfig) -> Result<(), (&'static str, String)> {
    let widths = [
        ("in_channels", network.in_channels, CHANNELS),
        ("out_channels", network.out_channels, CHANNELS),
        ("text_dim", network.text_dim, TEXT_DIM),
    ];
    if let Some((key, got, expected)) = widths.into_iter().find(|(_, got, expected)| got != expected) {
        return Err((key, format!("the clips and their captions need {expected}, got {got}")));
    }
    let [_, extents @ ..] = CLIP;
    if !network.patch.iter().zip(extents).all(|(&p, extent)| p > 0 && extent.is_multiple_of(p)) {
        return Err(("patch", format!("expected divisors of the clip's {extents:?}, got {:?}", network.patch)));
    }
    match network.image_dim {
        Some(width) => Err(("image_dim", format!("the clips come without images: leave it out, got {width}"))),
        None => Ok(()),
    }
}

/// Prompts as text embeddings [B, S, text_dim]; the empty one is the negative prompt.
///
/// # Errors
/// If a prompt holds a word that the vocabulary does not.
pub fn conditions(prompts: &[String]) -> fewstep_distill::Result<Conditions> {
    let mut values = Vec::with_capacity(prompts.len() * TEXT_LEN * TEXT_DIM);
    for prompt in prompts {
        values.extend(text_embedding(prompt).map_err(|e| fewstep_distill::Error::Examples(e.into()))?);
    }
    Ok(Conditions::text(Tensor::from_vec(values, &[prompts.len(), TEXT_LEN, TEXT_DIM])?))
}
