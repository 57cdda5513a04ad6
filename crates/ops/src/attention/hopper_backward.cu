// Backward of scaled dot-product attention on Hopper (sm_90a): q̄, k̄ and v̄ of y = softmax(scale·q·kᵀ)·v for each head.
//
//   P = exp(scale·q·kᵀ − lse)   δ = Σ ȳ∘y over a row   Ṡ = P∘(ȳ·vᵀ − δ)
//   v̄ = Pᵀ·ȳ   k̄ = scale·Ṡᵀ·q   q̄ = scale·Ṡ·k
//
// q, y, ȳ, q̄ are [B, L, N, HEAD] and k, v, k̄, v̄ [B, S, N, HEAD] in bf16; L, S ≥ 1; HEAD is 64 or 128. Products of bf16
// accumulate in float; P and Ṡ are computed in float and rounded to bf16 as operands. attention_backward_keys (k̄, v̄) and
// attention_backward_queries (q̄) compute the scores each, 7 products instead of 5: no block adds to what another wrote, so the
// bits are the same on every run, and either can be left out.
//
// One warpgroup of a block starts the copies; each of the two others owns a tile of 64 keys (with the scores transposed) or of
// 64 queries. The tiles of the other side stream past, so that P and Ṡ leave the accumulators of one product as the register
// operand of the next. P is computed during ȳ·vᵀ and Ṡ during Pᵀ·ȳ, 16 columns ahead of the product that reads them, and the
// scores of the next tile follow at once.
//
// Launch, in this order; x, y, z of the grid are rows, N, B:
//   attention_backward_rows     256 threads; x = ceil(padded / (2048 / HEAD)). Writes `stats`, float [B, N, 2, padded]: the
//                               log-sum-exp in base 2, then δ; zeros from L on. padded: L rounded up to 64.
//   attention_backward_keys     384 threads, 165432 (HEAD = 128) or 83512 (64) bytes of shared memory: KeysRing::BYTES;
//                               x = ceil(S / 128) · parts.
//   attention_backward_sum      where parts > 1: 256 threads; x = ceil(S / (2048 / HEAD)).
//   attention_backward_queries  384 threads, 229464 or 114776 bytes: QueriesRing::BYTES; x = ceil(L / 128).
// With few keys, `parts` > 1 shares the queries out among blocks, each of which leaves its terms of k̄ and v̄ in `sums`, float
// [parts, 2, B, N, S, HEAD], which is not touched otherwise; at most padded / 64 parts. 264 / (ceil(S / 128)·N·B) fills an H100
// twice: for 32,760 queries, 512 keys and 12 heads 5 parts take 0.33 ms, one 0.65 ms.
//
// Each TensorMap is of a 4-d bf16 tensor: dims [HEAD, N, rows, B], strides [2·HEAD, 2·token, 2·batch] bytes (multiples of 16,
// as the address), box [64, 1, 64, 1], element strides 1, no interleave, 128-byte swizzle, zero fill. Strides among the
// parameters are in elements; y, ȳ and, for the sum, k̄ and v̄ are 16-byte aligned and their strides multiples of 8.

constexpr u32 GROUP = 128; // threads of a warpgroup
constexpr u32 GROUPS = 2;  // warpgroups with a tile of their own
constexpr int TILE = 64;   // rows of a tile
constexpr u32 PANELS = HEAD / 64;
constexpr u32 PANEL = TILE * PANEL_ROW;
constexpr u32 LANES = HEAD / 8; // threads of a row of 16-byte accesses
constexpr float LOG2_E = 1.4426950408889634f;

/// Starts a copy of contiguous bytes to shared memory, both 16-byte aligned; the barrier counts them. One thread.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, u64* b, u32 bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(b)) : "memory");
}

/// The shared memory of a block: the own tiles of two operands, `STAGES` tiles of the two that stream past with `FLOATS` values
/// for each of their rows, the barriers.
template <u32 STAGES, u32 FLOATS> struct Ring {
    static constexpr u32 OPERAND = PANELS * PANEL;
    static constexpr u32 BYTES = 2 * GROUPS * OPERAND + STAGES * (2 * OPERAND + FLOATS * TILE * 4) + (2 * STAGES + 1) * 8;

    unsigned char* base;

    __device__ unsigned char* own(u32 operand, u32 group) const { return base + (2 * group + operand) * OPERAND; }
    __device__ unsigned char* tile(u32 operand, u32 stage) const { return own(operand, GROUPS + stage); }
    __device__ float* floats(u32 stage) const { return reinterpret_cast<float*>(tile(0, STAGES)) + stage * FLOATS * TILE; }
    __device__ u64* loaded() const { return reinterpret_cast<u64*>(floats(STAGES)); }
    __device__ u64* full(u32 stage) const { return loaded() + 1 + stage; }
    __device__ u64* empty(u32 stage) const { return loaded() + 1 + STAGES + stage; }

    /// All threads of the block.
    __device__ void init() const {
        if (threadIdx.x == 0) {
            barrier_init(loaded(), 1);
            for (u32 i = 0; i < STAGES; i++) {
                barrier_init(full(i), 1);
                // Each thread gives a tile back for itself: one for its warp takes as long, and racecheck cannot follow that.
                barrier_init(empty(i), GROUPS * GROUP);
            }
            barrier_init_fence();
        }
        barrier();
    }
    /// Starts the copies of a tile. One thread.
    __device__ void load(unsigned char* to, const TensorMap& map, u64* counted, int row) const {
        for (u32 p = 0; p < PANELS; p++) copy_box(to + p * PANEL, map, counted, p * 64, blockIdx.y, row, blockIdx.z);
    }
    /// Starts the copies of the block's own tiles. One thread.
    __device__ void load_own(const TensorMap& a, const TensorMap& b, int row) const {
        barrier_expect(loaded(), 2 * GROUPS * OPERAND);
        for (u32 g = 0; g < GROUPS; g++) {
            load(own(0, g), a, loaded(), row + g * TILE);
            load(own(1, g), b, loaded(), row + g * TILE);
        }
    }
    /// Starts the copies of tiles `begin`..`end` as room comes, with FLOATS rows of `from`, `pitch` apart. One thread.
    __device__ void stream(const TensorMap& a, const TensorMap& b, const float* from, i64 pitch, int begin, int end) const {
        u32 stage = 0, parity = 1;
#pragma unroll 1
        for (int row = begin * TILE; row < end * TILE; row += TILE) {
            barrier_wait(empty(stage), parity);
            barrier_expect(full(stage), 2 * OPERAND + FLOATS * TILE * 4);
            load(tile(0, stage), a, full(stage), row);
            load(tile(1, stage), b, full(stage), row);
            for (int i = 0; i < int(FLOATS); i++)
                copy_bytes(floats(stage) + i * TILE, from + i * pitch + row, full(stage), TILE * 4);
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
    }
};
// On an H100 its power is the limit (1×12×32760×128: 30.7 ms): from 2 to 6 tiles in flight take the same time and tiles of up
// to 112 rows within 3 %. Lost: blocks in pairs that share tiles by multicast (34.6 ms); one pass of 5 products with q̄ added
// by the blocks in order (31.3 ms; in any order 30.4 ms).
constexpr u32 KEYS_STAGES = 3, QUERIES_STAGES = 5;
typedef Ring<KEYS_STAGES, 2> KeysRing;
typedef Ring<QUERIES_STAGES, 0> QueriesRing;
static_assert(KeysRing::BYTES == (HEAD == 128 ? 165432 : 83512) && QueriesRing::BYTES == (HEAD == 128 ? 229464 : 114776));

/// D = A·Bᵀ of two tiles. One group of products.
__device__ __forceinline__ void dot(float (&d)[TILE / 2], u64 a, u64 b) {
#pragma unroll
    for (u32 i = 0; i < HEAD / 16; i++) {
        u32 at = i / 4 * PANEL + i % 4 * 32;
        wgmma_ss<SUM_ALONG_COLUMNS, SUM_ALONG_COLUMNS>(d, advance(a, at), advance(b, at), i > 0);
    }
    wgmma_commit();
}
/// D += A·B of columns 16i..16i+16 of A, accumulators of a product packed in place, and the same rows of B. One group.
template <int N> __device__ __forceinline__ void add_product(float (&d)[N], const u32 (&a)[4], u64 b, int i) {
    wgmma_fence();
    wgmma_rs<SUM_ALONG_ROWS>(d, a, advance(b, 16 * i * PANEL_ROW), true);
    wgmma_commit();
}
/// Columns 16i..16i+16 of an accumulator as the register operand.
template <int N> __device__ __forceinline__ void pack(u32 (&a)[4], const float (&d)[N], int i) {
#pragma unroll
    for (int j = 0; j < 4; j++) a[j] = pack_bf16(d[8 * i + 2 * j], d[8 * i + 2 * j + 1]);
}
/// Writes scale·D as bf16 over the warpgroup's own tile in shared memory, and that to the tensor from `row` on.
template <int N>
__device__ __forceinline__ void store(const TensorMap& map, unsigned char* own, float (&d)[N], float scale, int row) {
    u32 at = warp_id() % 4 * 16 + lane_id() % 16;
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) d[8 * i + j] *= scale;
        u32 a[4];
        pack(a, d, i);
        stmatrix_x4(own + i / 4 * PANEL + swizzle(at, i % 4 * 2 + lane_id() / 16), a);
    }
    fence_async();
    named_barrier(warp_id() / 4, GROUP);
    if (threadIdx.x % GROUP == 0) {
        for (u32 p = 0; p < PANELS; p++) store_box(map, own + p * PANEL, p * 64, blockIdx.y, row, blockIdx.z);
        store_commit();
    }
}
/// Writes the first `rows` rows of D as they are.
template <int N> __device__ __forceinline__ void store_sums(float* to, const float (&d)[N], i64 rows) {
    u32 row = warp_id() % 4 * 16 + lane_id() / 4;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        u32 at = row + i % 2 * 8;
        float* pair = to + at * HEAD + i / 2 * 8 + lane_id() % 4 * 2;
        if (at < rows) *reinterpret_cast<float2*>(pair) = make_float2(d[2 * i], d[2 * i + 1]);
    }
}
template <int N> __device__ __forceinline__ void zero(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) d[i] = 0;
    wgmma_touch(d);
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_rows(
    const bf16* y, const bf16* y_bar, const float* lse, float* stats, i64 l, i64 padded, i64 y_token, i64 y_batch,
    i64 y_bar_token, i64 y_bar_batch) {
    i64 row = (i64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    i64 head = (i64)blockIdx.z * gridDim.y + blockIdx.y;
    u32 at = blockIdx.y * HEAD + threadIdx.x % LANES * 8;
    float delta = 0;
    if (row < l) {
        Pack<bf16> a = load16(y + blockIdx.z * y_batch + row * y_token + at);
        Pack<bf16> b = load16(y_bar + blockIdx.z * y_bar_batch + row * y_bar_token + at);
#pragma unroll
        for (int i = 0; i < 8; i++) delta += widen(a.v[i]) * widen(b.v[i]);
    }
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) delta += shuffle_xor(delta, mask);
    if (row < padded && threadIdx.x % LANES == 0) {
        stats[2 * head * padded + row] = row < l ? lse[head * l + row] * LOG2_E : 0;
        stats[(2 * head + 1) * padded + row] = delta;
    }
}

extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) attention_backward_keys(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap y_bar, const __grid_constant__ TensorMap k,
    const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap k_bar, const __grid_constant__ TensorMap v_bar,
    const float* stats, float* sums, i64 s, i64 padded, int parts, double scale) {
    DYNAMIC_SHARED(shared);
    KeysRing ring{shared};
    int blocks = gridDim.x / parts, part = blockIdx.x / blocks, tiles = padded / TILE;
    int begin = (i64)tiles * part / parts, end = (i64)tiles * (part + 1) / parts;
    int row = blockIdx.x % blocks * (GROUPS * TILE);
    i64 head = (i64)blockIdx.z * gridDim.y + blockIdx.y;
    u32 group = shuffle(warp_id() / 4, 0);
    ring.init();
    if (group == 0) {
        registers_release<24>();
        if (threadIdx.x == 0) {
            ring.load_own(k, v, row);
            ring.stream(q, y_bar, stats + 2 * head * padded, padded, begin, end);
        }
    } else {
        registers_claim<240>();
        group--;
        row += group * TILE;
        float c = (float)scale * LOG2_E;
        float k_sum[HEAD / 2], v_sum[HEAD / 2];
        zero(k_sum);
        zero(v_sum);
        u64 k_rows = operand_rows(shared_address(ring.own(0, group)));
        u64 v_rows = operand_rows(shared_address(ring.own(1, group)));
        u32 stage = 0, last = 0, parity = 0;
        barrier_wait(ring.loaded(), 0);
        for (int tile = begin; tile < end; tile++) {
            // Transposed scores: rows are keys, columns queries. Arrays of their own for P and Ṡ: writing to an accumulator
            // would have the compiler wait for all products.
            float scores[TILE / 2], p_bar[TILE / 2], p[TILE / 2], s_bar[TILE / 2];
            u32 p_operand[TILE / 16][4], s_operand[TILE / 16][4];
            const float2* lse = reinterpret_cast<const float2*>(ring.floats(stage)) + lane_id() % 4;
            const float2* delta = lse + TILE / 2;
            u64 q_rows = operand_columns(shared_address(ring.tile(0, stage)), PANEL);
            u64 y_bar_rows = operand_columns(shared_address(ring.tile(1, stage)), PANEL);

            barrier_wait(ring.full(stage), parity);
            wgmma_fence();
            dot(scores, k_rows, operand_rows(shared_address(ring.tile(0, stage))));
            dot(p_bar, v_rows, operand_rows(shared_address(ring.tile(1, stage))));
            wgmma_wait<1>();
            wgmma_touch(scores);
            // The products of the tile before are done too.
            if (tile > begin) barrier_arrive(ring.empty(last));
#pragma unroll
            for (int i = 0; i < TILE / 16; i++) {
#pragma unroll
                for (int j = 8 * i; j < 8 * i + 8; j++) {
                    float2 m = lse[j / 4 * 4];
                    p[j] = exp2_fast(fma_rn(scores[j], c, j % 2 ? -m.y : -m.x));
                }
                pack(p_operand[i], p, i);
                add_product(v_sum, p_operand[i], y_bar_rows, i);
            }
            wgmma_wait<TILE / 16>();
            wgmma_touch(p_bar);
#pragma unroll
            for (int i = 0; i < TILE / 16; i++) {
#pragma unroll
                for (int j = 8 * i; j < 8 * i + 8; j++) {
                    float2 d = delta[j / 4 * 4];
                    s_bar[j] = p[j] * (p_bar[j] - (j % 2 ? d.y : d.x));
                }
                pack(s_operand[i], s_bar, i);
                add_product(k_sum, s_operand[i], q_rows, i);
            }
            // Frees P's registers for the next tile's scores.
            wgmma_wait<TILE / 16>();
            last = stage;
            if (++stage == KEYS_STAGES) stage = 0, parity ^= 1;
        }
        wgmma_wait<0>();
        wgmma_touch(k_sum);
        wgmma_touch(v_sum);
        if (parts > 1) {
            i64 heads = (i64)gridDim.z * gridDim.y;
            store_sums(sums + ((2 * part * heads + head) * s + row) * HEAD, k_sum, s - row);
            store_sums(sums + (((2 * part + 1) * heads + head) * s + row) * HEAD, v_sum, s - row);
        } else {
            store(k_bar, ring.own(0, group), k_sum, (float)scale, row);
            store(v_bar, ring.own(1, group), v_sum, 1, row);
            store_wait_read<0>();
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_sum(
    const float* sums, bf16* k_bar, bf16* v_bar, i64 s, int parts, i64 k_token, i64 k_batch, i64 v_token, i64 v_batch,
    double scale) {
    i64 row = (i64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    i64 heads = (i64)gridDim.z * gridDim.y, head = (i64)blockIdx.z * gridDim.y + blockIdx.y;
    if (row >= s) return;
    for (int of_v = 0; of_v < 2; of_v++) {
        float sum[8] = {};
        for (int part = 0; part < parts; part++) {
            const float* from = sums + (((2 * part + of_v) * heads + head) * s + row) * HEAD + threadIdx.x % LANES * 8;
            Pack<float> a = load16(from), b = load16(from + 4);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += i < 4 ? a.v[i % 4] : b.v[i % 4];
        }
        Pack<bf16> out;
#pragma unroll
        for (int i = 0; i < 8; i++) out.v[i] = to_bf16(of_v ? sum[i] : sum[i] * (float)scale);
        bf16* to = of_v ? v_bar + blockIdx.z * v_batch + row * v_token : k_bar + blockIdx.z * k_batch + row * k_token;
        store16(to + blockIdx.y * HEAD + threadIdx.x % LANES * 8, out);
    }
}

extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) attention_backward_queries(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap y_bar, const __grid_constant__ TensorMap k,
    const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap q_bar, const float* stats, i64 l, i64 s, i64 padded,
    double scale) {
    DYNAMIC_SHARED(shared);
    QueriesRing ring{shared};
    int tiles = (s + TILE - 1) / TILE;
    int row = blockIdx.x * (GROUPS * TILE);
    u32 group = shuffle(warp_id() / 4, 0);
    ring.init();
    if (group == 0) {
        registers_release<24>();
        if (threadIdx.x == 0) {
            ring.load_own(q, y_bar, row);
            ring.stream(k, v, nullptr, 0, 0, tiles);
        }
    } else {
        registers_claim<240>();
        group--;
        row += group * TILE;
        float c = (float)scale * LOG2_E;
        float q_sum[HEAD / 2], lse[2], delta[2];
        zero(q_sum);
        const float* from = stats + 2 * ((i64)blockIdx.z * gridDim.y + blockIdx.y) * padded;
        for (int i = 0; i < 2; i++) {
            i64 at = row + warp_id() % 4 * 16 + lane_id() / 4 + 8 * i;
            lse[i] = at < l ? from[at] : 0;
            delta[i] = at < l ? from[padded + at] : 0;
        }
        u64 q_rows = operand_rows(shared_address(ring.own(0, group)));
        u64 y_bar_rows = operand_rows(shared_address(ring.own(1, group)));
        u32 stage = 0, last = 0, parity = 0;
        barrier_wait(ring.loaded(), 0);
        for (int tile = 0; tile < tiles; tile++) {
            float scores[TILE / 2], p_bar[TILE / 2], p[TILE / 2], s_bar[TILE / 2];
            u32 s_operand[TILE / 16][4];
            u64 k_rows = operand_columns(shared_address(ring.tile(0, stage)), PANEL);

            barrier_wait(ring.full(stage), parity);
            wgmma_fence();
            dot(scores, q_rows, operand_rows(shared_address(ring.tile(0, stage))));
            dot(p_bar, y_bar_rows, operand_rows(shared_address(ring.tile(1, stage))));
            wgmma_wait<1>();
            wgmma_touch(scores);
            if (tile > 0) barrier_arrive(ring.empty(last));
#pragma unroll
            for (int j = 0; j < TILE / 2; j++) p[j] = exp2_fast(fma_rn(scores[j], c, -lse[j / 2 % 2]));
            // A key of zeros beyond the last still has a probability, infinite perhaps.
            if (i64 valid = s - (i64)tile * TILE; valid < TILE) {
#pragma unroll
                for (int j = 0; j < TILE / 2; j++)
                    if (j / 4 * 8 + lane_id() % 4 * 2 + j % 2 >= valid) p[j] = 0;
            }
            wgmma_wait<0>();
            wgmma_touch(p_bar);
#pragma unroll
            for (int i = 0; i < TILE / 16; i++) {
#pragma unroll
                for (int j = 8 * i; j < 8 * i + 8; j++) s_bar[j] = p[j] * (p_bar[j] - delta[j / 2 % 2]);
                pack(s_operand[i], s_bar, i);
                add_product(q_sum, s_operand[i], k_rows, i);
            }
            last = stage;
            if (++stage == QUERIES_STAGES) stage = 0, parity ^= 1;
        }
        wgmma_wait<0>();
        wgmma_touch(q_sum);
        store(q_bar, ring.own(0, group), q_sum, (float)scale, row);
        store_wait_read<0>();
    }
}
