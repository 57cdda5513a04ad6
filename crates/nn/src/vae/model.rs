use std::sync::Arc;

use fewstep_ops::{Error, Mode, ParamSpec, Params, Result};

use super::VaeConfig;
use super::layers::{Layer, Memory};
use crate::build::Builder;

/// The Wan autoencoder: video `[B, 3, 1 + 4k, 8h, 8w]` in [−1, 1] ↔ latent `[B, 16, 1 + k, h, w]`.
#[derive(Debug)]
pub struct WanVae {
    config: VaeConfig,
    specs: Arc<[ParamSpec]>,
    pub(super) encoder: Vec<Layer>,
    pub(super) decoder: Vec<Layer>,
}

/// A half of the autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Frames `[B, H, W, 3]` → μ and log σ² `[B, H/8, W/8, 2·latent]`, not normalised.
    Encoder,
    /// Latent frames `[B, h, w, latent]`, not normalised → frames `[B, 8h, 8w, 3]`.
    Decoder,
}

/// A half that takes a video frame by frame, in any mode.
///
/// What the published code caches between chunks is what the layers here remember between frames. The first frame gives
/// one; after it, the encoder gives one for every four, the decoder four for every one.
#[derive(Debug)]
pub struct Stream<'n, V> {
    layers: &'n [Layer],
    memories: Vec<Memory<V>>,
}

impl<V: Clone> Stream<'_, V> {
    /// Takes the next frame and hands on each frame that it completes.
    ///
    /// # Errors
    /// If the frame does not fit the network, or `emit` fails.
    pub fn push<M: Mode<Value = V>, E: From<Error>>(
        &mut self,
        m: &M,
        x: V,
        emit: &mut dyn FnMut(V) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        advance(m, self.layers, &mut self.memories, x, emit)
    }
}

/// Depth first: a frame goes all the way before the next one starts, so that few are alive at once.
fn advance<M: Mode, E: From<Error>>(
    m: &M,
    layers: &[Layer],
    memories: &mut [Memory<M::Value>],
    x: M::Value,
    emit: &mut dyn FnMut(M::Value) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    match (layers, memories) {
        ([layer, layers @ ..], [memory, memories @ ..]) => {
            for y in layer.step(m, memory, x)? {
                advance(m, layers, memories, y, emit)?;
            }
            Ok(())
        }
        _ => emit(x),
    }
}

impl WanVae {
    /// The structure of a network of this configuration.
    ///
    /// # Errors
    /// If the configuration is impossible.
    pub fn new(config: VaeConfig) -> crate::Result<Self> {
        config.validate()?;
        let mut b = Builder::default();
        let (encoder, decoder) = (encoder(&mut b, &config), decoder(&mut b, &config));
        Ok(WanVae { config, specs: b.finish().into(), encoder, decoder })
    }

    /// The network's extents.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Its parameters' names, shapes and initial values.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    pub(super) fn layers(&self, half: Half) -> &[Layer] {
        match half {
            Half::Encoder => &self.encoder,
            Half::Decoder => &self.decoder,
        }
    }

    /// A half at the beginning of a video.
    pub fn stream<V>(&self, half: Half) -> Stream<'_, V> {
        let layers = self.layers(half);
        Stream { layers, memories: layers.iter().map(|_| Memory::empty()).collect() }
    }

    pub(super) fn refuse_foreign(&self, params: &Params) -> Result<()> {
        if Arc::ptr_eq(params.specs(), &self.specs) || params.specs() == &self.specs {
            return Ok(());
        }
        let expected = format!("the {} parameters of this autoencoder", self.specs.len());
        Err(Error::input("wan vae", expected, params.specs().len()))
    }
}

fn encoder(b: &mut Builder, config: &VaeConfig) -> Vec<Layer> {
    let widths = config.widths();
    let mut layers = vec![Layer::conv(b, "encoder.conv1", 3, widths[0], 3)];
    let (mut index, mut width) = (0, widths[0]);
    for (level, &next) in widths.iter().enumerate() {
        for _ in 0..config.blocks {
            layers.push(Layer::residual(b, &format!("encoder.downsamples.{index}"), width, next));
            (index, width) = (index + 1, next);
        }
        if level < 3 {
            layers.push(Layer::down(b, &format!("encoder.downsamples.{index}"), width, level > 0));
            index += 1;
        }
    }
    layers.extend(middle(b, "encoder.middle", width));
    layers.push(Layer::head(b, "encoder.head", width, 2 * config.latent));
    layers.push(Layer::conv(b, "conv1", 2 * config.latent, 2 * config.latent, 1));
    layers
}

fn decoder(b: &mut Builder, config: &VaeConfig) -> Vec<Layer> {
    let widths = config.widths();
    let mut width = widths[3];
    let mut layers = vec![Layer::conv(b, "conv2", config.latent, config.latent, 1)];
    layers.push(Layer::conv(b, "decoder.conv1", config.latent, width, 3));
    layers.extend(middle(b, "decoder.middle", width));
    let mut index = 0;
    for (level, &next) in widths.iter().rev().enumerate() {
        for _ in 0..=config.blocks {
            layers.push(Layer::residual(b, &format!("decoder.upsamples.{index}"), width, next));
            (index, width) = (index + 1, next);
        }
        if level < 3 {
            layers.push(Layer::up(b, &format!("decoder.upsamples.{index}"), width, level < 2));
            (index, width) = (index + 1, width / 2);
        }
    }
    layers.push(Layer::head(b, "decoder.head", width, 3));
    layers
}

fn middle(b: &mut Builder, name: &str, width: usize) -> [Layer; 3] {
    let first = Layer::residual(b, &format!("{name}.0"), width, width);
    let attention = Layer::middle(b, &format!("{name}.1"), width);
    [first, attention, Layer::residual(b, &format!("{name}.2"), width, width)]
}
