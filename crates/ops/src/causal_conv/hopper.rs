//! Launches of the kernel for Hopper: bulk tensor copies and warpgroup products. What it takes is written in its source.

use fewstep_tensor::cuda::{Launch, Source, TensorMap, Tiling, Variant, gpu};
use fewstep_tensor::{DType, Tensor};

use super::geometry::Extents;
use crate::Result;

const SOURCE: Source =
    Source::new("causal_conv_hopper", &[include_str!("../attention/hopper.cuh"), include_str!("hopper.cu")]);
/// Rows and columns of the kernels that it is written for.
const KERNEL: usize = 3;
/// Frames that it takes.
const FRAMES: usize = 3;
/// Channels of a step.
const CHANNELS: usize = 32;
const COLUMNS: usize = 8;
/// Outputs of a block, the widest first: those of the autoencoder's layers.
const WIDE: [usize; 2] = [192, 96];
/// Outputs of a block where there are few, and blocks of them at most: each reads all positions.
const NARROW: usize = 8;
const MANY_NARROW: usize = 4;
/// Warpgroups that compute, in the order in which they are preferred.
const GROUPS: [usize; 2] = [3, 2];
const WARPGROUP: usize = 128;
const SHARED: usize = 232_448;

/// The division of the output among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    outputs: usize,
    groups: usize,
}

impl Tiles {
    /// The tiles of a convolution of so many frames and channels, if the kernel computes it on a GPU of this compute
    /// capability. By extents alone, and the sums do not depend on the tiles: the number of multiprocessors changes no bit.
    pub fn of(
        e: &Extents,
        dtype: DType,
        (frames, channels): (usize, usize),
        capability: (i32, i32),
        multiprocessors: usize,
    ) -> Option<Self> {
        let kernel = [e.kh, e.kw, e.stride, e.top, e.left] == [KERNEL, KERNEL, 1, 1, 1] && [e.oh, e.ow] == [e.h, e.w];
        let some = e.b * e.h * e.w * e.o > 0 && (1..=FRAMES).contains(&frames) && channels > 0;
        let fits = kernel && some && channels.is_multiple_of(CHANNELS);
        if !(dtype == DType::Bf16 && capability == (9, 0) && fits) {
            return None;
        }
        let divides = |outputs: &usize| e.o.is_multiple_of(*outputs);
        let outputs = WIDE.into_iter().find(divides).or((e.o <= MANY_NARROW * NARROW).then_some(NARROW))?;
        // The tiles of a block follow each other, and each takes a time that its rows tell.
        let time = |&groups: &usize| {
            let tiles = Tiles { outputs, groups };
            tiles.count(e).div_ceil(multiprocessors.max(1)) * groups
        };
        let groups = GROUPS.into_iter().min_by_key(time)?;
        let tiles = Tiles { outputs, groups };
        (tiles.count(e) < 1 << 31).then_some(tiles)
    }

    fn rows(self) -> usize {
        let each = if self.outputs == WIDE[0] { 1 } else { 2 };
        self.groups * each * 64 / COLUMNS
    }

    fn count(self, e: &Extents) -> usize {
        e.b * e.h.div_ceil(self.rows()) * e.w.div_ceil(COLUMNS) * e.o.div_ceil(self.outputs)
    }

    fn defines(self) -> [(&'static str, usize); 2] {
        [("OUTPUTS", self.outputs), ("GROUPS", self.groups)]
    }
}

/// Every variant of the kernel, so that they can be compiled where there is no such GPU.
pub fn hopper_convolutions() -> Vec<Variant> {
    let tiles = WIDE.into_iter().chain([NARROW]).flat_map(|outputs| GROUPS.map(|groups| Tiles { outputs, groups }));
    let defines = |t: Tiles| t.defines().map(|(name, value)| (name.to_string(), value.to_string()));
    let element = || ("ELEMENT".to_string(), "bf16".to_string());
    tiles.map(|t| Variant { source: SOURCE, defines: [element()].into_iter().chain(defines(t)).collect() }).collect()
}

/// Boxes of an array of bf16 whose extents are given fastest first.
fn map(t: &Tensor, extents: [usize; 4], tile: [usize; 4]) -> Result<TensorMap> {
    let extents = extents.map(|n| n as u64);
    let row = 2 * extents[0];
    let tiling = Tiling {
        address: t.address()?,
        extents: extents.to_vec(),
        strides: vec![row, row * extents[1], row * extents[1] * extents[2]],
        tile: tile.map(|n| n as u32).to_vec(),
    };
    Ok(gpu(t.device())?.tensor_map(&tiling).map_err(fewstep_tensor::Error::from)?)
}

/// y = bias + W∗x, of one to three frames and packed W.
pub(super) fn run(
    e: &Extents,
    tiles: Tiles,
    frames: &[&Tensor],
    w: &Tensor,
    bias: Option<&Tensor>,
    y: &Tensor,
) -> Result<()> {
    let channels = frames[0].last_dim();
    let blocks = gpu(y.device())?.properties().multiprocessors.min(tiles.count(e));
    let launch = Launch::new(y.device(), &SOURCE, y.dtype(), "convolve")?;
    let mut launch = tiles.defines().into_iter().fold(launch, |l, (name, value)| l.define(name, value));
    launch = launch.grid([blocks, 1, 1]).threads(WARPGROUP * (tiles.groups + 1)).shared(SHARED);
    for j in 0..FRAMES {
        let (frame, rows) = (frames[j.min(frames.len() - 1)], tiles.rows() + KERNEL - 1);
        launch = launch.map(map(frame, [channels, e.w, e.h, e.b], [CHANNELS, COLUMNS, rows, 1])?);
    }
    let rows_of_kernels = KERNEL * frames.len();
    let weights = map(w, [channels, KERNEL, rows_of_kernels, e.o], [CHANNELS, 1, 1, tiles.outputs])?;
    let launch = launch.map(weights).tensor(y).optional(bias);
    let sizes = [frames.len(), e.b, e.h, e.w, channels, e.o];
    Ok(sizes.into_iter().fold(launch, Launch::size).run()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CausalConv, Padding};

    /// The tiles of three frames on an H200.
    fn tiles(o: usize, i: usize, [h, w]: [usize; 2], stride: usize) -> Option<Tiles> {
        let op = CausalConv { stride, padding: Padding::around(1) };
        let frame: &[usize] = &[1, h, w, i];
        let e = Extents::new(&op, &[&[o, i, 3, 3, 3], &[o], frame, frame, frame]).unwrap();
        Tiles::of(&e, DType::Bf16, (3, i), (9, 0), 132)
    }

    #[test]
    fn widths_of_the_autoencoder_are_served_and_others_are_not() {
        let of = |outputs, groups| Some(Tiles { outputs, groups });
        assert_eq!(tiles(384, 384, [120, 208], 1), of(192, 3));
        assert_eq!(tiles(192, 192, [240, 416], 1), of(192, 3));
        assert_eq!(tiles(96, 96, [480, 832], 1), of(96, 3));
        assert_eq!(tiles(3, 96, [480, 832], 1), of(8, 3));
        assert_eq!(tiles(32, 384, [60, 104], 1), of(8, 2));
        assert_eq!(tiles(40, 384, [60, 104], 1), None);
        assert_eq!(tiles(100, 96, [60, 104], 1), None);
        assert_eq!(tiles(96, 16, [60, 104], 1), None);
        assert_eq!(tiles(96, 96, [60, 104], 2), None);
    }

    #[test]
    fn smaller_tiles_are_taken_where_they_fill_the_gpu_better() {
        // 78 blocks of 24 rows leave 54 multiprocessors idle; 104 of 16 rows are done in two thirds of the time.
        assert_eq!(tiles(384, 384, [60, 104], 1), Some(Tiles { outputs: 192, groups: 2 }));
        // As in the cases of `fewstep verify`.
        for (outputs, o, h, w) in [(192, 192, 71, 350), (96, 96, 143, 350), (8, 3, 143, 702)] {
            assert_eq!(tiles(o, 32, [h, w], 1), Some(Tiles { outputs, groups: 3 }));
        }
    }

    #[test]
    fn other_gpus_and_dtypes_are_not_served() {
        let op = CausalConv { stride: 1, padding: Padding::around(1) };
        let e = Extents::new(&op, &[&[96, 96, 3, 3], &[96], &[1, 8, 8, 96]]).unwrap();
        assert!(Tiles::of(&e, DType::Bf16, (1, 96), (9, 0), 132).is_some());
        assert_eq!(Tiles::of(&e, DType::F32, (1, 96), (9, 0), 132), None);
        assert_eq!(Tiles::of(&e, DType::Bf16, (1, 96), (8, 0), 108), None);
        assert_eq!(Tiles::of(&e, DType::Bf16, (1, 96), (12, 0), 170), None);
        assert_eq!(Tiles::of(&e, DType::Bf16, (4, 96), (9, 0), 132), None);
    }
}
