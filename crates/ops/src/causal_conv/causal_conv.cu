// Convolution of frames as a product without im2col: y[m, n] = bias[n] + Σ_k x(m, k)·W(n, k), its transposes alike.
//
// Positions m = (b, y, x) run over the output's grid; k = (j, u, v, c) over the frames given, the kernel's rows and columns and
// the input's channels. x(m, k) is read where the kernel stands, 0 outside the frame; for the transpose by the frames, the
// cotangent is read where the kernel could have stood.
//
// Layout: frames [B, H, W, C], y [B, H', W', N], W as given [O, I, KT, KH, KW] and packed [N, K], all of T; cotangents of W and
// bias are A. Accumulator A, rounded once. Grid: tiles of N × tiles of positions. Deterministic: sums over positions run over
// fixed parts, which are added in order. Alignment: none asked but by `convolve_tensor_cores`.

typedef ELEMENT T;
typedef Wide<T>::type A;

constexpr int FRAMES = 8;

struct Geometry {
    /// The grid of positions, the frames' extents and channels.
    int oh, ow, h, w, c;
    int kh, kw, stride, top, left;
    bool transposed;

    /// The place in the frame that output row and column read at row u and column v of the kernel, if there is one.
    __device__ __forceinline__ bool source(int row, int column, int u, int v, int& y, int& x) const {
        if (!transposed) {
            y = row * stride - top + u;
            x = column * stride - left + v;
        } else {
            y = row + top - u;
            x = column + left - v;
            if (stride != 1) {
                if (y < 0 || x < 0 || y % stride != 0 || x % stride != 0) return false;
                y /= stride;
                x /= stride;
            }
        }
        return (u32)y < (u32)h && (u32)x < (u32)w;
    }
};

/// A place k: frame, row and column of the kernel, channel.
struct Tap {
    int j = 0, u = 0, v = 0, c = 0;

    /// Goes on by so many places; true if the frame, row or column is another.
    __device__ __forceinline__ bool advance(int by, const Geometry& g) {
        c += by;
        bool moved = c >= g.c;
        while (c >= g.c) {
            c -= g.c;
            if (++v == g.kw) {
                v = 0;
                if (++u == g.kh) {
                    u = 0;
                    j++;
                }
            }
        }
        return moved;
    }
};

/// One position of the output's grid; `sample` is the frame's first position of its sample.
struct Position {
    int row, column, sample;
};
/// Position m, or one that reads nothing.
__device__ __forceinline__ Position position_of(i64 m, i64 positions, const Geometry& g) {
    constexpr int NOWHERE = -(1 << 28);
    if (m >= positions) return {g.transposed ? NOWHERE : NOWHERE / g.stride, 0, 0};
    int line = (int)m / g.ow, sample = line / g.oh;
    return {line - sample * g.oh, (int)m - line * g.ow, sample * g.h * g.w};
}

/// packed[a, start + t·tap + f·place + c] = W(a, c, first + t, f) for `taps` frames of the kernel, f over its rows and columns; 0
/// for c of `channels` or more. (a, c) is (output, input), or transposed (input, output). `depth` is the length of a packed row.
extern "C" __global__ void pack(
    T* packed, const T* w, i64 outer, i64 channels, i64 padded, i64 kt, i64 frame, i64 first, i64 taps, i64 start, i64 tap,
    i64 place, i64 depth, int transposed) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= outer * padded) return;
    i64 a = at / padded, c = at - a * padded;
    const T* from = w + (transposed ? c * outer + a : a * channels + c) * kt * frame + first * frame;
    T* to = packed + a * depth + start + c;
    for (i64 t = 0; t < taps; t++) {
        for (i64 f = 0; f < frame; f++) to[t * tap + f * place] = c < channels ? from[t * frame + f] : T();
    }
}

/// y[m, n] = bias[n]; n is a multiple of a pack, y 16-byte aligned. A thread has one pack.
extern "C" __global__ void repeat_bias(T* y, const T* bias, i64 positions, i64 n) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * Pack<T>::N;
    if (at >= positions * n) return;
    Pack<T> x;
#pragma unroll
    for (int e = 0; e < Pack<T>::N; e++) x.v[e] = bias[at % n + e];
    store16(y + at, x);
}

#define FRAME_PARAMETERS \
    const T *f0, const T *f1, const T *f2, const T *f3, const T *f4, const T *f5, const T *f6, const T *f7, i64 frames, i64 b, \
        i64 oh, i64 ow, i64 h, i64 w, i64 c, i64 kh, i64 kw, i64 stride, i64 top, i64 left
#define GEOMETRY(transposed) \
    {(int)oh, (int)ow, (int)h, (int)w, (int)c, (int)kh, (int)kw, (int)stride, (int)top, (int)left, transposed}
/// The frames by number, in shared memory; follow with a barrier.
#define LIST_FRAMES(list) \
    if (threadIdx.x == 0) { \
        list[0] = f0, list[1] = f1, list[2] = f2, list[3] = f3; \
        list[4] = f4, list[5] = f5, list[6] = f6, list[7] = f7; \
    }

#ifndef TILE_N
// --- by multiplications of single elements ---

constexpr int TILE = 64, STEP = 16, EACH = 4;
constexpr u32 THREADS = 256;

/// sum[r][c] += Σ a[k][4·(threadIdx.x / 16) + r]·b[k][4·(threadIdx.x % 16) + c]
__device__ __forceinline__ void multiply(A (&sum)[EACH][EACH], const A (&a)[STEP][TILE + 1], const A (&b)[STEP][TILE + 1]) {
    u32 row = threadIdx.x / 16 * EACH, column = threadIdx.x % 16 * EACH;
    for (int k = 0; k < STEP; k++) {
        A x[EACH], y[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) x[i] = a[k][row + i], y[i] = b[k][column + i];
#pragma unroll
        for (int r = 0; r < EACH; r++) {
#pragma unroll
            for (int c = 0; c < EACH; c++) sum[r][c] += x[r] * y[c];
        }
    }
}

extern "C" __global__ void convolve(T* y, const T* packed, const T* bias, i64 n, FRAME_PARAMETERS, int transposed) {
    __shared__ A a[STEP][TILE + 1], b_tile[STEP][TILE + 1];
    __shared__ const T* list[FRAMES];
    LIST_FRAMES(list)
    barrier();
    Geometry g = GEOMETRY(transposed != 0);
    i64 positions = b * oh * ow, depth = frames * kh * kw * c, tiles = (n + TILE - 1) / TILE;
    i64 m0 = blockIdx.x / tiles * TILE, n0 = blockIdx.x % tiles * TILE;
    int k = threadIdx.x % STEP, group = threadIdx.x / STEP;
    Tap tap;
    tap.advance(k, g);
    Position at[EACH];
    for (int r = 0; r < EACH; r++) at[r] = position_of(m0 + group + r * (THREADS / STEP), positions, g);
    A sum[EACH][EACH] = {};
    for (i64 step = 0; step < depth; step += STEP) {
        barrier();
#pragma unroll
        for (int r = 0; r < EACH; r++) {
            int line = group + r * (THREADS / STEP), sy, sx;
            bool inside = step + k < depth && g.source(at[r].row, at[r].column, tap.u, tap.v, sy, sx);
            a[k][line] = inside ? widen(list[tap.j][((i64)at[r].sample + (i64)sy * g.w + sx) * g.c + tap.c]) : A(0);
            b_tile[k][line] = step + k < depth && n0 + line < n ? widen(packed[(n0 + line) * depth + step + k]) : A(0);
        }
        barrier();
        multiply(sum, a, b_tile);
        tap.advance(STEP, g);
    }
    for (int r = 0; r < EACH; r++) {
        i64 m = m0 + threadIdx.x / 16 * EACH + r;
        for (int e = 0; e < EACH; e++) {
            i64 column = n0 + threadIdx.x % 16 * EACH + e;
            if (m >= positions || column >= n) continue;
            y[m * n + column] = narrow<T>(sum[r][e] + (bias != nullptr ? widen(bias[column]) : A(0)));
        }
    }
}

/// partial[s, o, k] = Σ ȳ[m, o]·x(m, k) over part s of the positions. Grid: tiles of (o, k) × parts.
extern "C" __global__ void weight_products(A* partial, const T* y_bar, i64 n, i64 part, FRAME_PARAMETERS) {
    __shared__ A a[STEP][TILE + 1], b_tile[STEP][TILE + 1];
    __shared__ const T* list[FRAMES];
    LIST_FRAMES(list)
    barrier();
    Geometry g = GEOMETRY(false);
    i64 positions = b * oh * ow, depth = frames * kh * kw * c, tiles = (depth + TILE - 1) / TILE;
    i64 o0 = blockIdx.x / tiles * TILE, k0 = blockIdx.x % tiles * TILE;
    i64 first = blockIdx.y * part, last = first + part < positions ? first + part : positions;
    int column = threadIdx.x % TILE, group = threadIdx.x / TILE;
    i64 k = k0 + column;
    Tap tap;
    tap.c = (int)(k % c), tap.v = (int)(k / c % kw), tap.u = (int)(k / c / kw % kh), tap.j = (int)(k / c / kw / kh);
    A sum[EACH][EACH] = {};
    for (i64 step = first; step < last; step += STEP) {
        barrier();
        for (int r = 0; r < STEP * TILE / (int)THREADS; r++) {
            int line = group + r * (THREADS / TILE), sy, sx;
            i64 m = step + line;
            Position p = position_of(m, last, g);
            bool inside = m < last && k < depth && g.source(p.row, p.column, tap.u, tap.v, sy, sx);
            a[line][column] = m < last && o0 + column < n ? widen(y_bar[m * n + o0 + column]) : A(0);
            b_tile[line][column] = inside ? widen(list[tap.j][((i64)p.sample + (i64)sy * g.w + sx) * g.c + tap.c]) : A(0);
        }
        barrier();
        multiply(sum, a, b_tile);
    }
    for (int r = 0; r < EACH; r++) {
        i64 o = o0 + threadIdx.x / 16 * EACH + r;
        for (int e = 0; e < EACH; e++) {
            i64 at = k0 + threadIdx.x % 16 * EACH + e;
            if (o < n && at < depth) partial[(blockIdx.y * n + o) * depth + at] = sum[r][e];
        }
    }
}

/// W_bar[o, i, t, f] = Σ over parts of partial[s, o, (t − skipped, f, i)]; 0 for the `skipped` first frames of the kernel.
extern "C" __global__ void sum_weight_products(
    A* w_bar, const A* partial, i64 parts, i64 o, i64 i, i64 kt, i64 frame, i64 skipped) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x, taps = kt * frame;
    if (at >= o * i * taps) return;
    i64 channel = at / taps % i, output = at / taps / i, tap = at % taps - skipped * frame;
    i64 depth = (kt - skipped) * frame * i;
    A sum = 0;
    if (tap >= 0) {
        for (i64 s = 0; s < parts; s++) sum += partial[(s * o + output) * depth + tap * i + channel];
    }
    w_bar[at] = sum;
}

/// partial[s, o] = Σ ȳ[m, o] over part s of the positions. Grid: columns, 32 a block × parts.
extern "C" __global__ void sum_positions(A* partial, const T* y_bar, i64 positions, i64 n, i64 part) {
    __shared__ A lines[THREADS / WARP][WARP];
    i64 column = (i64)blockIdx.x * WARP + lane_id(), first = blockIdx.y * part;
    i64 last = first + part < positions ? first + part : positions;
    A sum = 0;
    if (column < n) {
        for (i64 m = first + warp_id(); m < last; m += THREADS / WARP) sum += widen(y_bar[m * n + column]);
    }
    lines[warp_id()][lane_id()] = sum;
    barrier();
    if (warp_id() != 0 || column >= n) return;
    for (u32 line = 1; line < THREADS / WARP; line++) sum += lines[line][lane_id()];
    partial[blockIdx.y * n + column] = sum;
}

/// sum[o] = Σ_s partial[s, o]
extern "C" __global__ void sum_parts(A* sum, const A* partial, i64 parts, i64 n) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    A total = 0;
    for (i64 s = 0; s < parts; s++) total += partial[s * n + at];
    sum[at] = total;
}

#else
// --- by tensor cores: T is bf16, C a multiple of 8, frames and packed weights 16-byte aligned ---

// H100, 2026-11, TFLOP/s at 384→384 channels of 120 × 208, 192 of 240 × 416 and 96 of 480 × 832 positions, 27 taps:
//   128 × 96, 2 × 2 warps, steps of 64: 329, 346, 276; steps of 32: 306, 294, 269; 4 × 2 warps, steps of 32: 263, 246, 239;
//   256 × 96, 4 × 2 warps, steps of 64: 346, 303, 248; 128 × 128, 2 × 2 warps, steps of 32: 285, 271, 246.
// Of few outputs, 96→3 of 480 × 832: 256 × 32, 4 × 1 warps 0.34 ms; 4 × 2 warps 0.37; 128 × 32, 4 × 2 warps 0.51.
#if TILE_N == 32
constexpr int TILE_M = 256, WARPS_M = 4, WARPS_N = 1, STEP = 32, STAGES = 4;
#else
constexpr int TILE_M = 128, WARPS_M = 2, WARPS_N = 2, STEP = 64, STAGES = 3;
#endif
constexpr int CHUNKS = STEP / 8, COPIERS = WARPS_M * WARPS_N * WARP;
constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N, TILES_M = WARP_M / 16, TILES_N = WARP_N / 8;
constexpr int LINES = COPIERS / CHUNKS, LINES_M = TILE_M / LINES, LINES_N = (TILE_N + LINES - 1) / LINES;
static_assert(TILE_M % (16 * WARPS_M) == 0 && TILE_N % (16 * WARPS_N) == 0 && TILE_M % LINES == 0, "whole fragments");

/// Lines of chunks, permuted so that the eight lines of an ldmatrix lie in different banks.
__device__ __forceinline__ bf16* chunk_at(bf16* tile, int line, int chunk) {
    return tile + line * STEP + (chunk ^ (STEP == 64 ? line & 7 : line >> 1 & 3)) * 8;
}

/// What one thread copies: one chunk of lines LINES apart of both tiles, step after step.
struct Copy {
    Tap tap;
    const bf16* frame;
    i64 k;
    /// Of each line of the left tile: row, column, the sample's first position, and the place read where it is inside.
    int rows[LINES_M], columns[LINES_M], samples[LINES_M];
    u32 places[LINES_M];
    u32 inside;

    __device__ __forceinline__ void move(const Geometry& g, const bf16* const* list, i64 frames) {
        inside = 0;
        if (tap.j >= frames) return;
        frame = list[tap.j];
#pragma unroll
        for (int r = 0; r < LINES_M; r++) {
            int y, x;
            bool valid = g.source(rows[r], columns[r], tap.u, tap.v, y, x);
            places[r] = ((u32)samples[r] + (u32)y * (u32)g.w + (u32)x) * (u32)g.c;
            inside |= (u32)valid << r;
        }
    }
};

extern "C" __global__ void __launch_bounds__(COPIERS, 2) convolve_tensor_cores(
    T* y, const T* packed, const T* bias, i64 n, FRAME_PARAMETERS, int transposed) {
    __shared__ const T* list[FRAMES];
    DYNAMIC_SHARED(shared);
    LIST_FRAMES(list)
    barrier();
    bf16 *left_tiles = reinterpret_cast<bf16*>(shared), *right_tiles = left_tiles + STAGES * TILE_M * STEP;
    Geometry g = GEOMETRY(transposed != 0);
    i64 positions = b * oh * ow, depth = frames * kh * kw * c, tiles = (n + TILE_N - 1) / TILE_N;
    i64 m0 = blockIdx.x / tiles * TILE_M, n0 = blockIdx.x % tiles * TILE_N;
    int chunk = threadIdx.x % CHUNKS, line = threadIdx.x / CHUNKS;

    Copy copy;
    copy.k = chunk * 8;
    copy.tap.advance(chunk * 8, g);
#pragma unroll
    for (int r = 0; r < LINES_M; r++) {
        Position p = position_of(m0 + line + r * LINES, positions, g);
        copy.rows[r] = p.row, copy.columns[r] = p.column, copy.samples[r] = p.sample;
    }
    copy.move(g, list, frames);
    const bf16* weights = packed + (n0 + line) * depth;

    auto start_copy = [&](int stage) {
        bf16 *left = left_tiles + stage * TILE_M * STEP, *right = right_tiles + stage * TILE_N * STEP;
#pragma unroll
        for (int r = 0; r < LINES_M; r++) {
            bool valid = copy.inside >> r & 1;
            copy_async16(chunk_at(left, line + r * LINES, chunk), valid ? copy.frame + copy.places[r] + copy.tap.c : packed, valid);
        }
#pragma unroll
        for (int r = 0; r < LINES_N; r++) {
            int at = line + r * LINES;
            if (TILE_N % LINES != 0 && at >= TILE_N) continue;
            bool valid = copy.k < depth && n0 + at < n;
            copy_async16(chunk_at(right, at, chunk), valid ? weights + r * LINES * depth + copy.k : packed, valid);
        }
        copy.k += STEP;
        if (copy.tap.advance(STEP, g)) copy.move(g, list, frames);
    };

    int steps = (int)((depth + STEP - 1) / STEP);
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < steps) start_copy(stage);
        copy_async_commit();
    }
    int warp_m = warp_id() % WARPS_M * WARP_M, warp_n = warp_id() / WARPS_M * WARP_N, lane = lane_id();
    float sum[TILES_M][TILES_N][4] = {};
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        barrier();
        if (step + STAGES - 1 < steps) start_copy((step + STAGES - 1) % STAGES);
        copy_async_commit();
        bf16 *left = left_tiles + step % STAGES * TILE_M * STEP, *right = right_tiles + step % STAGES * TILE_N * STEP;
#pragma unroll
        for (int k = 0; k < STEP / 16; k++) {
            u32 a[TILES_M][4], b_pair[TILES_N / 2][4];
#pragma unroll
            for (int i = 0; i < TILES_M; i++) {
                ldmatrix_x4(a[i], chunk_at(left, warp_m + i * 16 + lane % 16, 2 * k + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < TILES_N / 2; j++) {
                ldmatrix_x4(b_pair[j], chunk_at(right, warp_n + j * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < TILES_M; i++) {
#pragma unroll
                for (int j = 0; j < TILES_N; j++) {
                    u32 b_tile[2] = {b_pair[j / 2][j % 2 * 2], b_pair[j / 2][j % 2 * 2 + 1]};
                    mma_bf16(sum[i][j], a[i], b_tile);
                }
            }
        }
    }
    copy_async_wait<0>();
#pragma unroll
    for (int i = 0; i < TILES_M; i++) {
#pragma unroll
        for (int j = 0; j < TILES_N; j++) {
            i64 column = n0 + warp_n + j * 8 + lane % 4 * 2;
            float at0 = bias != nullptr && column < n ? widen(bias[column]) : 0;
            float at1 = bias != nullptr && column + 1 < n ? widen(bias[column + 1]) : 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                i64 m = m0 + warp_m + i * 16 + lane / 4 + half * 8;
                if (m >= positions || column >= n) continue;
                T* to = y + m * n + column;
                float low = sum[i][j][2 * half] + at0, high = sum[i][j][2 * half + 1] + at1;
                if (n % 2 == 0) {
                    *reinterpret_cast<u32*>(to) = pack_bf16(low, high);
                } else {
                    to[0] = narrow<bf16>(low);
                    if (column + 1 < n) to[1] = narrow<bf16>(high);
                }
            }
        }
    }
}
#endif
