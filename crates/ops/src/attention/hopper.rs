//! Launches of the kernels for Hopper: bulk tensor copies and warpgroup products. What each takes is written in its source.

use fewstep_tensor::cuda::{Launch, Source, TensorMap, Tiling, Variant, gpu};
use fewstep_tensor::{DType, Tensor};

use super::Extents;
use crate::Result;

const WRAPPERS: &str = include_str!("hopper.cuh");
const FORWARD: Source = Source::new("attention_hopper_forward", &[WRAPPERS, include_str!("hopper_forward.cu")]);
const BACKWARD: Source = Source::new("attention_hopper_backward", &[WRAPPERS, include_str!("hopper_backward.cu")]);

/// Widths of a head that the kernels are written for.
const WIDTHS: [usize; 2] = [64, 128];
const WARPGROUP: usize = 128;
/// Rows of one warpgroup's tile, and of a copy.
const TILE: usize = 64;
/// Columns of a copy: 128 bytes, the width of the swizzle.
const COLUMNS: u32 = 64;
/// Shared memory of a block of the forward kernel.
const FORWARD_SHARED: usize = 232_448;
/// Rows of a block of the backward kernels, their threads, and what the kernels of rows take.
const BACKWARD_ROWS: usize = 128;
const BACKWARD_THREADS: usize = 384;
const ROWS_THREADS: usize = 256;
const ROWS_COLUMNS: usize = 2048;
/// Tiles in flight and floats a row beside them: of the kernel over keys, and of that over queries.
const KEYS_STAGES: usize = 3;
const KEYS_FLOATS: usize = 2;
const QUERIES_STAGES: usize = 5;
const QUERIES_FLOATS: usize = 0;
/// Blocks of the kernel over keys below which several share the queries of a tile of keys: two for each multiprocessor of an
/// H100, and the same everywhere, so that the sums do not depend on the GPU.
const BLOCKS: usize = 264;

/// Whether these kernels compute an attention on a GPU of this compute capability: by extents alone, so that the rules agree
/// on the primal bit for bit.
pub(super) fn serves(e: &Extents, dtype: DType, capability: (i32, i32)) -> bool {
    let some = [e.b, e.l, e.s].iter().all(|&n| n > 0) && e.b * e.n * e.l.div_ceil(TILE) < 1 << 31;
    dtype == DType::Bf16 && capability == (9, 0) && e.k == e.v && WIDTHS.contains(&e.k) && e.scale > 0.0 && some
}

/// Every variant of these kernels, so that they can be compiled where there is no such GPU.
pub fn hopper_kernels() -> Vec<Variant> {
    let define = |name: &str, value: &dyn ToString| (name.to_string(), value.to_string());
    let variant =
        |source, head: usize| Variant { source, defines: vec![define("ELEMENT", &"bf16"), define("HEAD", &head)] };
    let mut all = Vec::new();
    for head in WIDTHS {
        all.push(variant(BACKWARD, head));
        for tangents in 0..8 {
            let mut forward = variant(FORWARD, head);
            forward.defines.push(define("TANGENTS", &tangents));
            all.push(forward);
        }
    }
    all
}

/// [B, rows, N, HEAD] as the copy engine sees it.
fn map(e: &Extents, t: &Tensor, rows: usize) -> Result<TensorMap> {
    let row = (2 * e.n * e.k) as u64;
    let tiling = Tiling {
        address: t.address()?,
        extents: [e.k, e.n, rows, e.b].map(|n| n as u64).to_vec(),
        strides: vec![2 * e.k as u64, row, row * rows as u64],
        tile: vec![COLUMNS, 1, TILE as u32, 1],
    };
    Ok(gpu(t.device())?.tensor_map(&tiling).map_err(fewstep_tensor::Error::from)?)
}

/// Bytes of the ring of tiles in a block's shared memory.
fn ring(e: &Extents, stages: usize, floats: usize) -> usize {
    let operand = TILE * 2 * e.k;
    4 * operand + stages * (2 * operand + floats * TILE * 4) + (2 * stages + 1) * 8
}

/// y, ẏ where there is one, and the log-sum-exp [B, N, L].
pub(super) fn forward(
    e: &Extents,
    x: &[Tensor],
    x_dot: &[Option<Tensor>],
    (y, y_dot, log_sum_exp): (&Tensor, Option<&Tensor>, &Tensor),
) -> Result<()> {
    let tangents: u32 = x_dot.iter().enumerate().map(|(i, t)| u32::from(t.is_some()) << i).sum();
    let groups = if tangents == 0 { 3 } else { 2 };
    let tiles = e.l.div_ceil(TILE * groups) * e.n * e.b;
    let blocks = gpu(y.device())?.properties().multiprocessors.min(tiles);
    let rows = [e.l, e.s, e.s];
    let mut launch = Launch::new(y.device(), &FORWARD, y.dtype(), "attention")?
        .define("HEAD", e.k)
        .define("TANGENTS", tangents)
        .grid([blocks, 1, 1])
        .threads(WARPGROUP * (groups + 1))
        .shared(FORWARD_SHARED);
    for (t, rows) in x.iter().zip(rows) {
        launch = launch.map(map(e, t, rows)?);
    }
    // The map of a tangent that is not there is not read.
    for ((t, dot), rows) in x.iter().zip(x_dot).zip(rows) {
        launch = launch.map(map(e, dot.as_ref().unwrap_or(t), rows)?);
    }
    let launch = launch.tensor(y).optional(y_dot).tensor(log_sum_exp);
    Ok(launch.size(e.b).size(e.n).size(e.l).size(e.s).real(e.scale).run()?)
}

/// q̄, k̄ and v̄, those that are wanted, from q, k, v, ȳ, y and the log-sum-exp.
pub(super) fn backward(
    e: &Extents,
    [q, k, v, y_bar]: [&Tensor; 4],
    (y, log_sum_exp): (&Tensor, &Tensor),
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let (dtype, device) = (y.dtype(), y.device());
    let launch = |kernel| Ok::<_, crate::Error>(Launch::new(device, &BACKWARD, dtype, kernel)?.define("HEAD", e.k));
    let (token, padded) = (e.n * e.k, e.l.next_multiple_of(TILE));
    let per_block = ROWS_COLUMNS / e.k;
    let stats = Tensor::empty(&[e.b, e.n, 2, padded], DType::F32, device)?;
    launch("attention_backward_rows")?
        .grid([padded.div_ceil(per_block), e.n, e.b])
        .threads(ROWS_THREADS)
        .tensor(y)
        .tensor(y_bar)
        .tensor(log_sum_exp)
        .tensor(&stats)
        .size(e.l)
        .size(padded)
        .size(token)
        .size(token * e.l)
        .size(token)
        .size(token * e.l)
        .run()?;
    let maps = |launch: Launch<'static>| -> Result<Launch<'static>> {
        let maps = [map(e, q, e.l)?, map(e, y_bar, e.l)?, map(e, k, e.s)?, map(e, v, e.s)?];
        Ok(maps.into_iter().fold(launch, Launch::map))
    };
    let mut bars = vec![None, None, None];
    if wanted[1] || wanted[2] {
        let [k_bar, v_bar] = [Tensor::empty(k.shape(), dtype, device)?, Tensor::empty(v.shape(), dtype, device)?];
        let blocks = e.s.div_ceil(BACKWARD_ROWS);
        let parts = (BLOCKS / (blocks * e.n * e.b)).clamp(1, padded / TILE);
        let sums = if parts > 1 { parts * 2 * e.b * e.n * e.s * e.k } else { 0 };
        let sums = Tensor::empty(&[sums], DType::F32, device)?;
        maps(launch("attention_backward_keys")?)?
            .map(map(e, &k_bar, e.s)?)
            .map(map(e, &v_bar, e.s)?)
            .grid([blocks * parts, e.n, e.b])
            .threads(BACKWARD_THREADS)
            .shared(ring(e, KEYS_STAGES, KEYS_FLOATS))
            .tensor(&stats)
            .tensor(&sums)
            .size(e.s)
            .size(padded)
            .size(parts)
            .real(e.scale)
            .run()?;
        if parts > 1 {
            launch("attention_backward_sum")?
                .grid([e.s.div_ceil(per_block), e.n, e.b])
                .threads(ROWS_THREADS)
                .tensor(&sums)
                .tensor(&k_bar)
                .tensor(&v_bar)
                .size(e.s)
                .size(parts)
                .size(token)
                .size(token * e.s)
                .size(token)
                .size(token * e.s)
                .real(e.scale)
                .run()?;
        }
        bars[1] = wanted[1].then_some(k_bar);
        bars[2] = wanted[2].then_some(v_bar);
    }
    if wanted[0] {
        let q_bar = Tensor::empty(q.shape(), dtype, device)?;
        maps(launch("attention_backward_queries")?)?
            .map(map(e, &q_bar, e.l)?)
            .grid([e.l.div_ceil(BACKWARD_ROWS), e.n, e.b])
            .threads(BACKWARD_THREADS)
            .shared(ring(e, QUERIES_STAGES, QUERIES_FLOATS))
            .tensor(&stats)
            .size(e.l)
            .size(e.s)
            .size(padded)
            .real(e.scale)
            .run()?;
        bars[0] = Some(q_bar);
    }
    Ok(bars)
}
