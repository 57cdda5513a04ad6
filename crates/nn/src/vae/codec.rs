//! Videos to latents and back: normalisation, chunks, tiles.

use std::ops::ControlFlow;

use fewstep_ops::{Error as OpError, Params, Plain};
use fewstep_tensor::math::Real;
use fewstep_tensor::{DType, Device, Tensor, dispatch_float};
use rayon::prelude::*;

use super::tile::{Plan, SCALE, values_per_position};
use super::{Half, Tile, WanVae};
use crate::{Error, Result};

/// Frames of a latent frame after the first.
const FRAMES: usize = 4;
const NAME: &str = "wan vae";

/// How to run the autoencoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VaeOptions {
    /// How frames are cut.
    pub tile: Tile,
}

/// What has just been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Latent frames of this tile done.
    pub chunk: usize,
    /// Latent frames of the video.
    pub chunks: usize,
    /// Tiles done before this one.
    pub tile: usize,
    /// Tiles of a frame.
    pub tiles: usize,
}

/// Hears of each step, and may ask to stop.
type Observer<'o> = dyn FnMut(Step) -> ControlFlow<()> + 'o;

/// A window of a frame at the pace of one half's input: first row and column, height, width.
type Window = [usize; 4];

/// A factor and a term for each channel.
type Scaling = Vec<(f64, f64)>;

/// What a run of a half needs to know.
struct Job<'a> {
    half: Half,
    /// [B, C, F, H, W]
    input: &'a Tensor,
    plan: Plan,
    /// Positions of the input and of the output along an axis for a latent position.
    units: [usize; 2],
    scaling: [Scaling; 2],
    /// Latent frames.
    chunks: usize,
}

impl Job<'_> {
    /// Input frames of a chunk.
    fn frames(&self, chunk: usize) -> std::ops::Range<usize> {
        match self.half {
            Half::Decoder => chunk..chunk + 1,
            Half::Encoder if chunk == 0 => 0..1,
            Half::Encoder => 1 + (chunk - 1) * FRAMES..1 + chunk * FRAMES,
        }
    }

    /// The input frames of a chunk within a window, scaled, on the host.
    fn chunk(&self, chunk: usize, window: Window) -> Result<Vec<Tensor>> {
        let scaled =
            |f| dispatch_float!(NAME, self.input.dtype(), T => frame::<T>(self.input, f, window, &self.scaling[0]));
        self.frames(chunk).map(scaled).collect()
    }

    /// Whole frames of the output as a video of this shape.
    fn video(&self, frames: &[Tensor], shape: [usize; 5]) -> Result<Tensor> {
        dispatch_float!(NAME, self.input.dtype(), T => {
            let mut out = Tensor::zeros(&shape, self.input.dtype(), Device::Cpu);
            let mut canvas = Canvas::<T> { out: out.make_mut()?, shape, scaling: &self.scaling[1] };
            frames.iter().enumerate().try_for_each(|(f, y)| canvas.put(f, [0, 0], None, y))?;
            Ok(out)
        })
    }

    /// Windows of the tiles in the input and where they begin in the output, with their rows and columns of tiles.
    fn tiles(&self) -> Vec<(Window, [usize; 2], [usize; 2])> {
        let ([i, o], p) = (self.units, &self.plan);
        let each = |r: usize, c: usize| {
            let (y, x) = (p.rows.starts[r], p.columns.starts[c]);
            ([y * i, x * i, p.rows.size * i, p.columns.size * i], [y * o, x * o], [r, c])
        };
        let columns = p.columns.starts.len();
        (0..p.len()).map(|k| each(k / columns, k % columns)).collect()
    }
}

/// Frame `f` of a window of x [B, C, F, H, W], scaled, as [B, h, w, C].
fn frame<T: Real>(x: &Tensor, f: usize, [y0, x0, h, w]: Window, scaling: &[(f64, f64)]) -> Result<Tensor> {
    let [b, c, frames, height, width] = x.dims()?;
    let xs = x.as_slice::<T>()?;
    let scaling: Vec<(T, T)> = scaling.iter().map(|&(a, b)| (T::lit(a), T::lit(b))).collect();
    Ok(Tensor::cpu_with(&[b, h, w, c], |out: &mut [T]| {
        out.par_chunks_mut((w * c).max(1)).enumerate().for_each(|(row, out)| {
            let (b, y) = (row / h, y0 + row % h);
            for (channel, &(factor, term)) in scaling.iter().enumerate() {
                let from = &xs[(((b * c + channel) * frames + f) * height + y) * width + x0..][..w];
                let to = out.iter_mut().skip(channel).step_by(c);
                to.zip(from).for_each(|(o, &x)| *o = x.fma(factor, term));
            }
        });
    }))
}

/// The result [B, C, F, H, W], filled frame by frame and tile by tile.
struct Canvas<'a, T> {
    out: &'a mut [T],
    shape: [usize; 5],
    scaling: &'a [(f64, f64)],
}

impl<T: Real> Canvas<'_, T> {
    /// Adds a tile's frame y [B, h, w, ≥ C] with weights of its rows and columns; without weights it is the frame.
    fn put(&mut self, f: usize, [y0, x0]: [usize; 2], weights: Option<[&[f64]; 2]>, y: &Tensor) -> Result<()> {
        let [_, c, frames, height, width] = self.shape;
        let [_, h, w, channels] = y.dims()?;
        let (ys, scaling) = (y.as_slice::<T>()?, self.scaling);
        self.out.par_chunks_mut((height * width).max(1)).enumerate().for_each(|(plane, out)| {
            let (b, channel) = (plane / frames / c, plane / frames % c);
            if plane % frames != f {
                return;
            }
            let (factor, term) = (T::lit(scaling[channel].0), T::lit(scaling[channel].1));
            for row in 0..h {
                let to = out[(y0 + row) * width + x0..][..w].iter_mut();
                let from = ys[(b * h + row) * w * channels..].iter().skip(channel).step_by(channels);
                let scaled = from.map(|&y| y.fma(factor, term));
                match weights {
                    None => to.zip(scaled).for_each(|(o, y)| *o = y),
                    Some([rows, columns]) => {
                        let weight = columns.iter().map(|c| T::lit(c * rows[row]));
                        to.zip(scaled).zip(weight).for_each(|((o, y), w)| *o = y.fma(w, *o));
                    }
                }
            }
        });
        Ok(())
    }
}

impl WanVae {
    /// The normalised mean latent `[B, 16, 1 + k, H/8, W/8]` of a video `[B, 3, 1 + 4k, H, W]` in [−1, 1]; an image is a
    /// video of one frame. In the dtype of the weights; (μ − mean)/std for each channel.
    ///
    /// # Errors
    /// If the video has another number of frames or channels, or a height or width that 8 does not divide (the message
    /// names the nearest that fit); if the weights are another network's, the budget is too small, or `observe` asks to stop.
    pub fn encode(
        &self,
        params: &Params,
        video: &Tensor,
        options: &VaeOptions,
        observe: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let [b, f, h, w] = video_extents(video)?;
        let statistics = self.config().mean.iter().zip(&self.config().std);
        let job = Job {
            half: Half::Encoder,
            input: &self.prepare(params, video)?,
            plan: self.plan(Half::Encoder, dtype(params), options, [b, h / SCALE, w / SCALE])?,
            units: [SCALE, 1],
            scaling: [vec![(1.0, 0.0); 3], statistics.map(|(m, s)| (1.0 / s, -m / s)).collect()],
            chunks: 1 + (f - 1) / FRAMES,
        };
        self.whole(params, &job, [b, self.config().latent, job.chunks, h / SCALE, w / SCALE], observe)
    }

    /// The video `[B, 3, 1 + 4k, 8h, 8w]` of a normalised latent `[B, 16, 1 + k, h, w]`, not clamped, in the dtype of the
    /// weights.
    ///
    /// # Errors
    /// If the latent has other axes or channels, the weights are another network's, the budget is too small, or `observe`
    /// asks to stop.
    pub fn decode(
        &self,
        params: &Params,
        latent: &Tensor,
        options: &VaeOptions,
        observe: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let [b, f, h, w] = self.latent_extents(latent)?;
        let input = self.prepare(params, latent)?;
        let job = self.decoding(params, &input, options)?;
        self.whole(params, &job, [b, 3, 1 + (f - 1) * FRAMES, h * SCALE, w * SCALE], observe)
    }

    /// As [`WanVae::decode`], handing each chunk of frames `[B, 3, 1 or 4, 8h, 8w]` on as it is done.
    ///
    /// With one tile the video is never whole in memory, and a GPU computes the next chunk while `each` takes one. With several
    /// it is, since a tile is decoded to its end before the next begins, and the chunks are handed on at the end.
    ///
    /// # Errors
    /// As [`WanVae::decode`], or what `each` returns.
    pub fn decode_frames<E: From<Error>>(
        &self,
        params: &Params,
        latent: &Tensor,
        options: &VaeOptions,
        observe: &mut Observer<'_>,
        mut each: impl FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let [b, _, h, w] = self.latent_extents(latent)?;
        let input = self.prepare(params, latent)?;
        let job = self.decoding(params, &input, options)?;
        if job.plan.is_whole() {
            return self.run(params, &job, [0, 0, h, w], &mut |chunk, frames| {
                each(job.video(&frames, [b, 3, frames.len(), h * SCALE, w * SCALE])?)?;
                Ok(report(observe, Step { chunk: chunk + 1, chunks: job.chunks, tile: 0, tiles: 1 })?)
            });
        }
        let video = self.whole(params, &job, [b, 3, 1 + (job.chunks - 1) * FRAMES, h * SCALE, w * SCALE], observe)?;
        for chunk in 0..job.chunks {
            let (start, len) = if chunk == 0 { (0, 1) } else { (1 + (chunk - 1) * FRAMES, FRAMES) };
            let slice = fewstep_ops::Slice { axis: 2, start, len };
            each(fewstep_ops::Op::forward(&slice, &[&video]).map_err(Error::from)?.y)?;
        }
        Ok(())
    }

    fn decoding<'a>(&self, params: &Params, latent: &'a Tensor, options: &VaeOptions) -> Result<Job<'a>> {
        let [b, f, h, w] = self.latent_extents(latent)?;
        let statistics = self.config().mean.iter().zip(&self.config().std);
        Ok(Job {
            half: Half::Decoder,
            input: latent,
            plan: self.plan(Half::Decoder, dtype(params), options, [b, h, w])?,
            units: [1, SCALE],
            scaling: [statistics.map(|(&m, &s)| (s, m)).collect(), vec![(1.0, 0.0); 3]],
            chunks: f,
        })
    }

    /// Rows and columns of a tile and the number of tiles, for frames of b·h·w latent positions in a compute dtype.
    ///
    /// # Errors
    /// If the budget is too small.
    pub fn tiles(
        &self,
        half: Half,
        dtype: DType,
        options: &VaeOptions,
        frame: [usize; 3],
    ) -> Result<([usize; 2], usize)> {
        let plan = self.plan(half, dtype, options, frame)?;
        Ok(([plan.rows.size, plan.columns.size], plan.len()))
    }

    fn plan(&self, half: Half, dtype: DType, options: &VaeOptions, [b, h, w]: [usize; 3]) -> Result<Plan> {
        let area = if half == Half::Encoder { SCALE * SCALE } else { 1 };
        let bytes = dtype.size().saturating_mul(b);
        let bytes = values_per_position(self.layers(half), area).saturating_mul(bytes);
        Ok(Plan::new(options.tile, [h, w], bytes)?)
    }

    /// The input on the host, as wide as the weights' dtype at least, if they are this network's.
    fn prepare(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        self.refuse_foreign(params)?;
        Ok(x.to_device(Device::Cpu)?.to_dtype(dtype(params).wide()))
    }

    fn latent_extents(&self, latent: &Tensor) -> Result<[usize; 4]> {
        let z = self.config().latent;
        match *latent.shape() {
            [b, c, f, h, w] if c == z && b * f * h * w > 0 => Ok([b, f, h, w]),
            _ => Err(refuse(format!("a latent [B, {z}, F, H, W] with no axis of 0"), latent)),
        }
    }

    /// Takes a window through a half and hands on the frames of each chunk, on the host. While a device computes a chunk, the
    /// host hands on the one before and prepares the next.
    fn run<E: From<Error>>(
        &self,
        params: &Params,
        job: &Job<'_>,
        window: Window,
        each: &mut dyn FnMut(usize, Vec<Tensor>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let (m, mut stream) = (Plain::new(params), self.stream(job.half));
        let (mut next, mut before): (_, Option<Vec<Tensor>>) = (job.chunk(0, window)?, None);
        let mut hand_on =
            |chunk, made: &[Tensor]| each(chunk, made.iter().map(|y| y.to_dtype(y.dtype().wide())).collect());
        for chunk in 0..job.chunks {
            let mut made = Vec::new();
            for x in std::mem::take(&mut next) {
                stream.push(&m, there(params, x)?, &mut |y| -> Result<()> {
                    made.push(y);
                    Ok(())
                })?;
            }
            if let Some(made) = before.take() {
                hand_on(chunk - 1, &made)?;
            }
            if chunk + 1 < job.chunks {
                next = job.chunk(chunk + 1, window)?;
            }
            let here = |y: &Tensor| Ok(y.to_device(Device::Cpu)?);
            let made = made.iter().map(here).collect::<Result<Vec<_>>>()?;
            match params.device() {
                // All is done when it is asked for.
                Device::Cpu => hand_on(chunk, &made)?,
                Device::Cuda(_) => before = Some(made),
            }
        }
        before.map_or(Ok(()), |made| hand_on(job.chunks - 1, &made))
    }

    /// Every tile from the first frame to the last, blended.
    fn whole(&self, params: &Params, job: &Job<'_>, shape: [usize; 5], observe: &mut Observer<'_>) -> Result<Tensor> {
        dispatch_float!(NAME, job.input.dtype(), T => {
            let mut out = Tensor::zeros(&shape, job.input.dtype(), Device::Cpu);
            let mut canvas = Canvas::<T> { out: out.make_mut()?, shape, scaling: &job.scaling[1] };
            self.fill(params, job, &mut canvas, observe)?;
            Ok(out)
        })
    }

    fn fill<T: Real>(
        &self,
        params: &Params,
        job: &Job<'_>,
        canvas: &mut Canvas<'_, T>,
        observe: &mut Observer<'_>,
    ) -> Result<()> {
        let tiles = job.plan.len();
        let (rows, columns) = (job.plan.rows.weights(job.units[1]), job.plan.columns.weights(job.units[1]));
        for (tile, (window, place, [r, c])) in job.tiles().into_iter().enumerate() {
            let weights = (tiles > 1).then(|| [rows[r].as_slice(), columns[c].as_slice()]);
            let mut done = 0;
            self.run(params, job, window, &mut |chunk, frames| -> Result<()> {
                for y in &frames {
                    canvas.put(done, place, weights, y)?;
                    done += 1;
                }
                report(observe, Step { chunk: chunk + 1, chunks: job.chunks, tile, tiles })
            })?;
        }
        Ok(())
    }
}

/// A frame where the weights are, in their dtype.
fn there(params: &Params, x: Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(dtype(params)).to_device(params.device())?)
}

fn report(observe: &mut Observer<'_>, step: Step) -> Result<()> {
    match observe(step) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}

fn dtype(params: &Params) -> DType {
    params.tensors().first().map_or(DType::F32, Tensor::dtype)
}

fn refuse(expected: String, got: &Tensor) -> Error {
    Error::Op(OpError::input(NAME, expected, got.shape()))
}

fn video_extents(video: &Tensor) -> Result<[usize; 4]> {
    let &[b, 3, f, h, w] = video.shape() else {
        return Err(refuse("a video [B, 3, F, H, W]".into(), video));
    };
    if b == 0 || f == 0 || f % FRAMES != 1 {
        let below = f.saturating_sub(1) / FRAMES * FRAMES + 1;
        let above = below + FRAMES;
        return Err(refuse(format!("1 + 4k frames, at least one video: {below} or {above} frames are nearest"), video));
    }
    if h == 0 || w == 0 || h % SCALE != 0 || w % SCALE != 0 {
        let near = |n: usize| (n / SCALE * SCALE).max(SCALE);
        let expected = format!("a height and width that {SCALE} divides: crop to {} x {}, or pad", near(h), near(w));
        return Err(refuse(expected, video));
    }
    Ok([b, f, h, w])
}
