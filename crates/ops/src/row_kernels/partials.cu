// out[g, c] = Σ over s of partials[g·slabs + s, c], in a fixed order: the same bits on every run; of one or two sums at once.
//
// Blocks of 32 warps, along 32 columns each: warp w adds the lines w, w + 32, …, then the warps' sums are added in order.

typedef Wide<ELEMENT>::type A;

constexpr int LINES = 32;

/// Block (b, i) adds a tile of columns of sum i.
extern "C" __global__ void __launch_bounds__(LINES * WARP)
add_partials(A* out0, const A* partials0, A* out1, const A* partials1, i64 slabs, i64 d) {
    __shared__ A shared[LINES][WARP];
    const A* partials = blockIdx.y == 0 ? partials0 : partials1;
    A* out = blockIdx.y == 0 ? out0 : out1;
    const u32 tiles = (u32)((d + WARP - 1) / WARP);
    const i64 group = blockIdx.x / tiles, column = (i64)(blockIdx.x % tiles) * WARP + lane_id();
    A sum = 0;
    if (column < d) {
#pragma unroll 8
        for (i64 s = warp_id(); s < slabs; s += LINES) sum += partials[(group * slabs + s) * d + column];
    }
    shared[warp_id()][lane_id()] = sum;
    barrier();
    if (warp_id() > 0 || column >= d) return;
    for (int line = 1; line < LINES; line++) sum += shared[line][lane_id()];
    out[group * d + column] = sum;
}
