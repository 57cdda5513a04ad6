// Convolution of 3 × 3 positions and up to 3 frames on Hopper (sm_90a): y[m, n] = bias[n] + Σ_k x(m, k)·W(n, k), bf16 with
// accumulators in float, rounded once. Step 1, one zero around each frame.
//
// Compiled with OUTPUTS, the outputs of a block (192, 96 or 8), and GROUPS, the warpgroups that compute (3 or 2); one more copies.
// A block has a tile of 8 columns of positions and of 8 rows for each 64 positions of a warpgroup, which are once 64 with 192
// outputs, else twice. A step of the sum is one frame, 32 channels, one column of the kernel and its three rows: the tile's
// positions with the row above and the one below are copied once, and the three rows of the kernel read them 8 positions, a
// whole pattern of the swizzle, apart. Zeros around a frame are what the copy engine puts beyond a tensor. Sums run over frames,
// channels, columns, rows, in this order, whatever the tile: the same bits on every run.
//
// Launch: min(multiprocessors, tiles) blocks along x, each takes every gridDim.x-th tile; 128·(GROUPS + 1) threads; SHARED bytes
// of dynamic shared memory. Tensor maps of boxes with swizzle of 64 bytes: of each frame [C, W, H, B] in boxes of
// [32, 8, rows + 2, 1], the second and third any where there are fewer; of the packed weights [C, 3, 3·frames, N] in boxes of
// [32, 1, 1, OUTPUTS]. C is a multiple of 32, N of OUTPUTS, or any with 8; y [B, H, W, N]; bias may be null.
//
// H200, 2026-11, ms (TFLOP/s), 27 taps: 384→384 outputs of 60 × 104 positions 0.093 (537), with three warpgroups 0.130 (382); of
// 120 × 208 0.26 (757); 192→192 of 240 × 416 0.28 (714); 96→96 of 480 × 832 0.31 (646); 96→3 0.13. cuDNN 9.19 on frames that lie
// side by side, without copy and bias: 0.18, 0.33, 0.37, 0.39, 0.30. The portable kernel: 0.21, 0.58, 0.63, 0.73, 0.36.

typedef ELEMENT T;

constexpr u32 EACH = OUTPUTS == 192 ? 1 : 2, THREADS = 128 * (GROUPS + 1);
constexpr u32 CHANNELS = 32, LINE = 2 * CHANNELS, KERNEL = 3;
constexpr u32 COLUMNS = 8, ROWS = GROUPS * EACH * 64 / COLUMNS;
/// Bytes of the positions and of the weights of a step, and of what is in flight.
constexpr u32 LEFT = (ROWS + KERNEL - 1) * COLUMNS * LINE, RIGHT = KERNEL * OUTPUTS * LINE, STAGE = LEFT + RIGHT;
constexpr u32 BARRIERS = 1024, SHARED = 232448, STAGES = (SHARED - BARRIERS) / STAGE;
static_assert(LEFT % 512 == 0 && RIGHT % 512 == 0, "whole patterns of the swizzle");

/// Rows of 32 bf16 with the swizzle of 64 bytes: groups of 8 follow each other. The next 16 of the sum are 32 bytes on.
__device__ __forceinline__ u64 operand_lines(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(8 * LINE >> 4) << 32 | (u64)2 << 62;
}

// D += A·B, or D = A·B, of 64 positions: as `wgmma_ss` of the wrappers, for other widths.
__device__ __forceinline__ void multiply(float (&d)[4], u64 a, u64 b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %6, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}"
        ", %4, %5, p, 1, 1, 0, 0; }"
        : WGMMA_4(0)
        : "l"(a), "l"(b), "r"((int)accumulate));
}
__device__ __forceinline__ void multiply(float (&d)[48], u64 a, u64 b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %50, 0; wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
        "}, %48, %49, p, 1, 1, 0, 0; }"
        : WGMMA_32(0), WGMMA_16(32)
        : "l"(a), "l"(b), "r"((int)accumulate));
}
__device__ __forceinline__ void multiply(float (&d)[96], u64 a, u64 b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %98, 0; wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
        "}, %96, %97, p, 1, 1, 0, 0; }"
        : WGMMA_32(0), WGMMA_32(32), WGMMA_32(64)
        : "l"(a), "l"(b), "r"((int)accumulate));
}

struct Sizes {
    u32 frames, b, h, w, c, n;
    __device__ __forceinline__ u32 across() const { return (w + COLUMNS - 1) / COLUMNS; }
    __device__ __forceinline__ u32 down() const { return (h + ROWS - 1) / ROWS; }
    __device__ __forceinline__ u32 blocks() const { return (n + OUTPUTS - 1) / OUTPUTS; }
    __device__ __forceinline__ u32 tiles() const { return b * down() * across() * blocks(); }
    __device__ __forceinline__ u32 steps() const { return frames * (c / CHANNELS) * KERNEL; }
};

/// Outputs from `output` on at the positions from `row` and `column` on.
struct Tile {
    u32 output, column, row, sample;
    __device__ __forceinline__ Tile(u32 i, const Sizes& s) {
        output = i % s.blocks() * OUTPUTS;
        i /= s.blocks();
        column = i % s.across() * COLUMNS;
        i /= s.across();
        row = i % s.down() * ROWS;
        sample = i / s.down();
    }
};

/// Copies what `consume` waits for, in that order. One thread.
__device__ __forceinline__ void produce(
    unsigned char* stages, u64* full, u64* empty, const TensorMap* const (&frames)[3], const TensorMap& weights, const Sizes& s) {
    RingPlace<STAGES> ring;
    for (u32 i = blockIdx.x; i < s.tiles(); i += gridDim.x) {
        Tile tile(i, s);
        for (u32 j = 0; j < s.frames; j++) {
            const TensorMap* frame = j == 0 ? frames[0] : j == 1 ? frames[1] : frames[2];
            for (u32 c = 0; c < s.c; c += CHANNELS) {
                for (u32 v = 0; v < KERNEL; v++) {
                    unsigned char* to = stages + ring.slot * STAGE;
                    barrier_wait(empty + ring.slot, ring.parity ^ 1);
                    barrier_expect(full + ring.slot, STAGE);
                    copy_box(to, *frame, full + ring.slot, c, (int)(tile.column + v) - 1, (int)tile.row - 1, tile.sample);
#pragma unroll
                    for (u32 u = 0; u < KERNEL; u++) {
                        unsigned char* row = to + LEFT + u * OUTPUTS * LINE;
                        copy_box(row, weights, full + ring.slot, c, v, j * KERNEL + u, tile.output);
                    }
                    ring.next();
                }
            }
        }
    }
}

/// Lets go of what a barrier guards. All warps that use it.
__device__ __forceinline__ void release(u64* empty) {
    if (lane_id() == 0) barrier_arrive(empty);
}

/// Rounds the sums of output `n` and of the next, if there are so many.
__device__ __forceinline__ void write(T* y, const T* bias, u32 n, u32 outputs, float low, float high) {
    if (OUTPUTS > 8) {
        if (bias != nullptr) low += widen(bias[n]), high += widen(bias[n + 1]);
        *reinterpret_cast<u32*>(y + n) = pack_bf16(low, high);
        return;
    }
    if (n < outputs) y[n] = narrow<T>(low + (bias != nullptr ? widen(bias[n]) : 0));
    if (n + 1 < outputs) y[n + 1] = narrow<T>(high + (bias != nullptr ? widen(bias[n + 1]) : 0));
}

/// The products of one warpgroup.
__device__ __forceinline__ void consume(
    u32 group, unsigned char* stages, u64* full, u64* empty, T* y, const T* bias, const Sizes& s) {
    RingPlace<STAGES> ring;
    u32 base = shared_address(stages), lane = lane_id(), warp = warp_id() % 4;
    for (u32 i = blockIdx.x; i < s.tiles(); i += gridDim.x) {
        float sum[EACH][OUTPUTS / 2];
        u32 before = 0;
        for (u32 step = 0; step < s.steps(); step++) {
            barrier_wait(full + ring.slot, ring.parity);
            u32 left = base + ring.slot * STAGE + group * EACH * 64 * LINE, right = base + ring.slot * STAGE + LEFT;
            wgmma_fence();
#pragma unroll
            for (u32 u = 0; u < KERNEL; u++) {
#pragma unroll
                for (u32 k = 0; k < 2; k++) {
#pragma unroll
                    for (u32 e = 0; e < EACH; e++) {
                        u64 a = operand_lines(left + (e * 64 + u * COLUMNS) * LINE + k * 32);
                        u64 b = operand_lines(right + u * OUTPUTS * LINE + k * 32);
                        multiply(sum[e], a, b, step > 0 || u > 0 || k > 0);
                    }
                }
            }
            wgmma_commit();
            // The products of the step before are done.
            wgmma_wait<1>();
            if (step > 0) release(empty + before);
            before = ring.slot;
            ring.next();
        }
        wgmma_wait<0>();
        release(empty + before);
#pragma unroll
        for (u32 e = 0; e < EACH; e++) wgmma_touch(sum[e]);
        Tile tile(i, s);
        u32 column = tile.column + lane / 4;
#pragma unroll
        for (u32 e = 0; e < EACH; e++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 row = tile.row + (group * EACH + e) * 8 + 2 * warp + half;
                if (row >= s.h || column >= s.w) continue;
                T* to = y + (((u64)tile.sample * s.h + row) * s.w + column) * s.n;
#pragma unroll
                for (u32 j = 0; j < OUTPUTS / 8; j++)
                    write(to, bias, tile.output + 8 * j + lane % 4 * 2, s.n, sum[e][4 * j + 2 * half], sum[e][4 * j + 2 * half + 1]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) convolve(
    const __grid_constant__ TensorMap frame0, const __grid_constant__ TensorMap frame1, const __grid_constant__ TensorMap frame2,
    const __grid_constant__ TensorMap weights, T* y, const T* bias, i64 frames, i64 b, i64 h, i64 w, i64 c, i64 n) {
    DYNAMIC_SHARED(shared);
    u64 *full = (u64*)(shared + STAGES * STAGE), *empty = full + STAGES;
    Sizes s = {(u32)frames, (u32)b, (u32)h, (u32)w, (u32)c, (u32)n};
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, 4 * GROUPS);
        }
        barrier_init_fence();
    }
    barrier();
    u32 group = warp_id() / 4;
    if (group == GROUPS) {
        registers_release<40>();
        const TensorMap* const maps[3] = {&frame0, &frame1, &frame2};
        if (threadIdx.x == GROUPS * 128) produce(shared, full, empty, maps, weights, s);
    } else {
        registers_claim<GROUPS == 3 ? 152 : 224>();
        consume(group, shared, full, empty, y, bias, s);
    }
}
