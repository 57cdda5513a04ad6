//! The autoencoder's convolutions at 480 by 832 pixels, and a whole decoding.

use std::ops::ControlFlow;
use std::time::Instant;

use fewstep_nn::vae::{VaeConfig, VaeOptions, WanVae};
use fewstep_ops::{CausalConv, Padding, Params};
use fewstep_tensor::{DType, Device, Tensor};

use super::kernels::{Bench, forward};
use super::{Row, median};
use crate::error::Result;

/// Frames, inputs and outputs, kernel, height and width.
type Shape = (usize, [usize; 2], [usize; 3], [usize; 2]);

const AROUND: [Shape; 12] = [
    (3, [384, 384], [3, 3, 3], [60, 104]),
    (3, [192, 384], [3, 3, 3], [120, 208]),
    (3, [384, 384], [3, 3, 3], [120, 208]),
    (3, [192, 192], [3, 3, 3], [240, 416]),
    (3, [96, 96], [3, 3, 3], [480, 832]),
    (1, [384, 192], [1, 3, 3], [240, 416]),
    (1, [192, 96], [1, 3, 3], [480, 832]),
    (3, [96, 3], [3, 3, 3], [480, 832]),
    (3, [3, 96], [3, 3, 3], [480, 832]),
    (3, [384, 32], [3, 3, 3], [60, 104]),
    (3, [384, 768], [3, 1, 1], [120, 208]),
    (1, [192, 384], [1, 1, 1], [120, 208]),
];
/// Those that halve height and width: channels, height and width.
const HALVING: [(usize, [usize; 2]); 2] = [(96, [480, 832]), (384, [120, 208])];
/// Latent frames, height and width of 81 frames of 480 by 832 pixels.
const LATENT: [usize; 3] = [21, 60, 104];

impl Bench {
    pub(super) fn convolutions(&mut self) -> Result<()> {
        for (frames, channels, kernel, frame) in AROUND {
            let op = CausalConv { stride: 1, padding: Padding::around(kernel[2] / 2) };
            self.convolution(op, frames, channels, kernel, frame)?;
        }
        let padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
        for (channels, frame) in HALVING {
            self.convolution(CausalConv { stride: 2, padding }, 1, [channels; 2], [1, 3, 3], frame)?;
        }
        self.decoding()
    }

    fn convolution(
        &mut self,
        op: CausalConv,
        frames: usize,
        [i, o]: [usize; 2],
        [kt, kh, kw]: [usize; 3],
        [h, w]: [usize; 2],
    ) -> Result<()> {
        let (weight, bias) = (self.half(0, &[o, i, kt, kh, kw])?, self.half(1, &[o])?);
        let all = (0..frames).map(|f| self.half(2 + f as u64, &[1, h, w, i])).collect::<Result<Vec<_>>>()?;
        let x: Vec<&Tensor> = [&weight, &bias].into_iter().chain(&all).collect();
        let positions = (h / op.stride) * (w / op.stride);
        let flops = 2.0 * (positions * o) as f64 * (frames * kh * kw * i) as f64;
        let by = if op.stride == 1 { String::new() } else { format!("/{}", op.stride) };
        let name = format!("vae convolution {i}->{o} {kt}x{kh}x{kw} of {h}x{w}{by}");
        self.measure(name, (flops, 0.0), forward(&op, x))
    }

    /// The autoencoder's decoding of 81 frames, until they are on the host.
    fn decoding(&mut self) -> Result<()> {
        let name = "vae decoding 81x480x832".to_string();
        if !self.is_wanted(&name) {
            return Ok(());
        }
        self.progress.note(&name);
        let vae = WanVae::new(VaeConfig::wan21())?;
        let params = Params::init(vae.specs(), 0, DType::F32, Device::Cpu)?.to(self.device, DType::Bf16)?;
        let [f, h, w] = LATENT;
        let latent = self.draw(0, &[1, vae.config().latent, f, h, w], DType::F32)?.to_device(Device::Cpu)?;
        let mut seconds = Vec::new();
        self.gpu.reset_peak();
        // The first warms up.
        for _ in 0..=self.repeat {
            let (began, options) = (Instant::now(), VaeOptions::default());
            let mut go_on = |_| ControlFlow::Continue(());
            let drop_frames = |_| Ok::<_, fewstep_nn::Error>(());
            vae.decode_frames(&params, &latent, &options, &mut go_on, drop_frames)?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        seconds.remove(0);
        self.progress.advance(1);
        let peak_gb = self.gpu.usage().peak as f64 * 1e-9;
        self.rows.push(Row { name, seconds: median(seconds), flops: 0.0, bytes: 0.0, peak_gb });
        Ok(())
    }
}
