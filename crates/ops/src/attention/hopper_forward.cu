// Scaled dot-product attention and its tangent on Hopper (sm_90a), bf16 with accumulators in float.
//
//   S = scale·Q·Kᵀ,  P = exp(S − lse),  y = P·V,  lse = log Σ exp S
//   Ṡ = scale·(Q̇·Kᵀ + Q·K̇ᵀ),  h = Σ P∘Ṡ over the keys,  ẏ = P·V̇ + (P∘Ṡ)·V − h·y
//
// Compiled with HEAD = K = V: 64 or 128, and TANGENTS, the sum of 1: of q, 2: of k, 4: of v; without tangents the forward
// rule. The primal is computed by the same operations in the same order whatever TANGENTS: y and lse have the same bits.
// No sum depends on the order of blocks or warps: every run gives the same bits.
//
// One warpgroup copies, the others compute: each has 64 queries and walks over the keys 64 at a time with a running
// maximum (FlashAttention-2, arXiv:2307.08691). Products of one tile run while the exponentials of the next are taken
// (FlashAttention-3, arXiv:2407.08608); the tangent in the same pass (rCM, arXiv:2510.08431, algorithm 2). P and P∘Ṡ are
// rounded to bf16 for the tensor cores. ẏ is the same for Ṡ and Ṡ − c with one c for a query: c follows the mean of Ṡ, so
// that the rounding of P∘Ṡ is relative to the spread of Ṡ, not to its size.
//
// Launch of `attention`: min(multiprocessors, ⌈L / (64·WARPGROUPS)⌉·N·B) blocks along x, each takes every gridDim.x-th tile
// of queries; 128·(WARPGROUPS + 1) threads, where WARPGROUPS is 3 without tangents and 2 with; 232,448 bytes of dynamic
// shared memory. Parameters, in this order:
//   TensorMap q, k, v, q̇, k̇, v̇; of a tangent that TANGENTS lacks any, it is not read;
//   bf16* y [B, L, N·HEAD], bf16* ẏ, null without tangents, float* lse [B, N, L]; packed, y and ẏ 16-byte aligned;
//   i64 B, N, L, S; all at least 1, tiles of queries of all heads and samples below 2³¹;
//   double scale; positive.
// Each tensor map: bf16, extents [HEAD, N, L or S, B], fastest first, strides in bytes [2·HEAD, from token to token, from
// sample to sample], boxes of [64, 1, 64, 1], swizzle of 128 bytes, no interleave, element strides of 1, zeros beyond the
// tensor. Address and strides are multiples of 16 bytes.
//
// Milliseconds (TFLOP/s) on H100s of 80 GB, 12 heads of 128, 32760 queries and as many keys / 512 keys: forward 9.2 to 10.0
// (715 to 657) / 0.22, cuDNN's 11.1 (594) / 0.23; tangents of q, k, v 28 to 29 (704 to 680) / 0.62; of q 21 (620) / 0.47.
// Slower: the forward with two warpgroups 11.3, in turns 10.2; all tangents without turns 34.

constexpr bool Q_DOT = TANGENTS & 1, K_DOT = TANGENTS & 2, V_DOT = TANGENTS & 4;
constexpr bool S_DOT = Q_DOT || K_DOT;

constexpr float LOG2_E = 1.4426950408889634f, LOG_2 = 0.69314718055994531f;
/// Below all scores.
__device__ __forceinline__ float lowest() { return as_float(0xff800000); }

/// Queries of a warpgroup and keys of a tile.
constexpr u32 TILE = 64;
/// Warpgroups that compute. With tangents the accumulators of three do not fit in the registers.
constexpr u32 WARPGROUPS = TANGENTS ? 2 : 3;
/// Whether these take turns: the products of one while another takes exponentials.
constexpr bool TURNS = TANGENTS != 0;
constexpr u32 THREADS = 128 * (WARPGROUPS + 1);
constexpr u32 WARPS = 4 * WARPGROUPS;

/// Bytes of shared memory: all that a block can have, of it 1024 for the barriers.
constexpr u32 SHARED = 232448, BARRIERS = 1024;
constexpr u32 PANEL = TILE * PANEL_ROW;
constexpr u32 PANELS = HEAD / 64;
/// Bytes of a tile of one tensor, of the queries of a block, and of a slot: a tile of k and k̇, or of v and v̇.
constexpr u32 MATRIX = PANELS * PANEL;
constexpr u32 QUERIES = WARPGROUPS * MATRIX * (Q_DOT ? 2 : 1);
constexpr u32 SLOT = MATRIX * (K_DOT || V_DOT ? 2 : 1);
/// Queries of the next block are copied early where that leaves enough slots.
constexpr u32 QUERY_SLOTS = 2 * QUERIES + 6 * SLOT + BARRIERS <= SHARED ? 2 : 1;
constexpr u32 SLOTS = (SHARED - BARRIERS - QUERY_SLOTS * QUERIES) / SLOT;

struct Shared {
    unsigned char *queries, *slots;
    u64 *full, *empty, *queries_full, *queries_empty;
    __device__ __forceinline__ Shared(unsigned char* base) {
        queries = base;
        slots = queries + QUERY_SLOTS * QUERIES;
        full = (u64*)(slots + SLOTS * SLOT);
        empty = full + SLOTS;
        queries_full = empty + SLOTS;
        queries_empty = queries_full + QUERY_SLOTS;
    }
    __device__ __forceinline__ void init() const {
        for (u32 i = 0; i < SLOTS + QUERY_SLOTS; i++) {
            barrier_init(i < SLOTS ? full + i : queries_full + i - SLOTS, 1);
            barrier_init(i < SLOTS ? empty + i : queries_empty + i - SLOTS, WARPS);
        }
        barrier_init_fence();
    }
};

struct Sizes {
    u32 batches, heads, queries, keys;
    __device__ __forceinline__ u32 blocks() const { return (queries + WARPGROUPS * TILE - 1) / (WARPGROUPS * TILE); }
    __device__ __forceinline__ u32 tiles() const { return (keys + TILE - 1) / TILE; }
};

/// Queries from `row` on, of one head of one sample.
struct Block {
    u32 row, head, batch;
    __device__ __forceinline__ Block(u32 i, const Sizes& n) {
        row = i % n.blocks() * WARPGROUPS * TILE;
        head = i / n.blocks() % n.heads;
        batch = i / n.blocks() / n.heads;
    }
};

struct Tensors {
    const TensorMap *q, *k, *v, *q_dot, *k_dot, *v_dot;
};

// --- copies -----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void copy_tile(unsigned char* to, const TensorMap* map, u64* full, const Block& b, u32 row) {
#pragma unroll
    for (u32 p = 0; p < PANELS; p++) copy_box(to + p * PANEL, *map, full, 64 * p, b.head, row, b.batch);
}

/// A tile of keys or values, and of their tangent where there is one.
template <bool DOT> __device__ __forceinline__ void copy_keys(
    const Shared& shared, RingPlace<SLOTS>& ring, const TensorMap* x, const TensorMap* x_dot, const Block& b, u32 tile) {
    unsigned char* to = shared.slots + ring.slot * SLOT;
    u64* full = shared.full + ring.slot;
    barrier_wait(shared.empty + ring.slot, ring.parity ^ 1);
    barrier_expect(full, MATRIX * (DOT ? 2 : 1));
    copy_tile(to, x, full, b, tile * TILE);
    if (DOT) copy_tile(to + MATRIX, x_dot, full, b, tile * TILE);
    ring.next();
}

__device__ __forceinline__ void copy_queries(const Shared& shared, RingPlace<QUERY_SLOTS>& ring, const Tensors& x, const Block& b) {
    unsigned char* to = shared.queries + ring.slot * QUERIES;
    u64* full = shared.queries_full + ring.slot;
    barrier_wait(shared.queries_empty + ring.slot, ring.parity ^ 1);
    barrier_expect(full, QUERIES);
    for (u32 w = 0; w < WARPGROUPS; w++) {
        copy_tile(to + w * MATRIX, x.q, full, b, b.row + w * TILE);
        if (Q_DOT) copy_tile(to + (WARPGROUPS + w) * MATRIX, x.q_dot, full, b, b.row + w * TILE);
    }
    ring.next();
}

/// Copies what `consume` waits for, in that order. One thread.
__device__ __forceinline__ void produce(const Shared& shared, const Tensors& x, const Sizes& n) {
    RingPlace<SLOTS> ring;
    RingPlace<QUERY_SLOTS> queries;
    for (u32 i = blockIdx.x; i < n.blocks() * n.heads * n.batches; i += gridDim.x) {
        Block b(i, n);
        copy_keys<K_DOT>(shared, ring, x.k, x.k_dot, b, 0);
        copy_queries(shared, queries, x, b);
        for (u32 t = 1; t < n.tiles(); t++) {
            copy_keys<K_DOT>(shared, ring, x.k, x.k_dot, b, t);
            copy_keys<V_DOT>(shared, ring, x.v, x.v_dot, b, t - 1);
        }
        copy_keys<V_DOT>(shared, ring, x.v, x.v_dot, b, n.tiles() - 1);
    }
}

// --- products ---------------------------------------------------------------------------------------------------------

/// D (+)= X·Yᵀ of two tiles in shared memory.
__device__ __forceinline__ void product_rows(float (&d)[32], u32 x, u32 y, bool accumulate) {
#pragma unroll
    for (u32 i = 0; i < HEAD / 16; i++) {
        u32 at = i / 4 * PANEL + i % 4 * 32;
        wgmma_ss<SUM_ALONG_COLUMNS, SUM_ALONG_COLUMNS>(d, operand_rows(x + at), operand_rows(y + at), accumulate || i > 0);
    }
}
/// D += X·Y, X in registers.
__device__ __forceinline__ void product_columns(float (&d)[HEAD / 2], const u32 (&x)[4][4], u32 y) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) wgmma_rs<SUM_ALONG_ROWS>(d, x[i], operand_columns(y + i * 16 * PANEL_ROW, PANEL), true);
}

__device__ __forceinline__ float quad_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}

/// Lets go of what a barrier guards. All warps that use it.
__device__ __forceinline__ void release(u64* empty) {
    if (lane_id() == 0) barrier_arrive(empty);
}

// --- one warpgroup's queries --------------------------------------------------------------------------------------------

/// What a thread holds: of two queries (element i of an accumulator belongs to query i / 2 % 2) a part of the columns.
struct Rows {
    /// Scores, then probabilities; their tangents, then H = P∘(Ṡ − c). P and H are not yet divided by the sum.
    float s[32], s_dot[32];
    /// P·V, and P·V̇ + H·V.
    float o[HEAD / 2], o_dot[HEAD / 2];
    /// P and H, as operands.
    u32 p[4][4], h[4][4];
    /// The maximum of the scores in units of log 2, and of this thread's columns: Σ P, Σ H. c.
    float max[2], sum[2], moved[2], centre[2];
    /// exp(old maximum − new maximum).
    float factor[2];

    __device__ __forceinline__ Rows() {
#pragma unroll
        for (u32 i = 0; i < HEAD / 2; i++) o[i] = o_dot[i] = 0;
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            max[r] = lowest();
            sum[r] = moved[r] = centre[r] = 0;
        }
    }

    __device__ __forceinline__ void scores(u32 q, u32 k) { product_rows(s, q, k, false); }
    __device__ __forceinline__ void scores_dot(u32 q, u32 k) {
        if (K_DOT) product_rows(s_dot, q, k + MATRIX, false);
        if (Q_DOT) product_rows(s_dot, q + WARPGROUPS * MATRIX, k, K_DOT);
    }
    __device__ __forceinline__ void values(u32 v) {
        product_columns(o, p, v);
        if (V_DOT) product_columns(o_dot, p, v + MATRIX);
        if (S_DOT) product_columns(o_dot, h, v);
    }
    __device__ __forceinline__ void touch_outputs() {
        wgmma_touch(o);
        if (TANGENTS) wgmma_touch(o_dot);
    }

    /// Keys from `valid` on do not exist.
    __device__ __forceinline__ void mask(u32 valid) {
#pragma unroll
        for (u32 i = 0; i < 32; i++)
            if (8 * (i / 4) + 2 * (lane_id() % 4) + i % 2 >= valid) s[i] = lowest();
    }

    /// P in the place of S, by the new maximum. `unit` is scale/log 2.
    __device__ __forceinline__ void exponentials(float unit) {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            float raised = s[2 * r], part = 0;
#pragma unroll
            for (u32 i = 0; i < 32; i += 4) raised = fmaxf(raised, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
            raised = fmaxf(max[r], mul_rn(quad_max(raised), unit));
            factor[r] = exp2_fast(add_rn(max[r], -raised));
            max[r] = raised;
#pragma unroll
            for (u32 i = 0; i < 32; i++) {
                if (i / 2 % 2 != r) continue;
                s[i] = exp2_fast(fma_rn(s[i], unit, -raised));
                part = add_rn(part, s[i]);
            }
            sum[r] = fma_rn(sum[r], factor[r], part);
        }
    }

    /// Whether the maximum of a query of this warp has moved.
    __device__ __forceinline__ bool raised() const { return __any_sync(0xffffffff, factor[0] != 1 || factor[1] != 1); }

    __device__ __forceinline__ void rescale() {
#pragma unroll
        for (u32 i = 0; i < HEAD / 2; i++) {
            o[i] = mul_rn(o[i], factor[i / 2 % 2]);
            if (TANGENTS) o_dot[i] = mul_rn(o_dot[i], factor[i / 2 % 2]);
        }
    }

    /// Waits for all products, then adapts the sums to a moved maximum.
    __device__ __forceinline__ void settle(bool raised) {
        // The wait stands in both branches: in front of them it would be moved up, before the exponentials.
        wgmma_touch(s);
        if (raised) {
            wgmma_wait<0>();
            touch_outputs();
            rescale();
        } else {
            wgmma_wait<0>();
            touch_outputs();
        }
        if (S_DOT) wgmma_touch(s_dot);
    }

    /// H in the place of Ṡ.
    __device__ __forceinline__ void weigh(float scale) {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            float part = 0;
#pragma unroll
            for (u32 i = 0; i < 32; i++) {
                if (i / 2 % 2 != r) continue;
                s_dot[i] = mul_rn(s[i], fma_rn(s_dot[i], scale, -centre[r]));
                part = add_rn(part, s_dot[i]);
            }
            moved[r] = fma_rn(moved[r], factor[r], part);
        }
    }

    /// Makes c the mean of Ṡ so far, of queries whose maximum has moved.
    __device__ __forceinline__ void recentre() {
        float by[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            by[r] = __fdividef(quad_sum(moved[r]), quad_sum(sum[r]));
            if (factor[r] == 1) by[r] = 0;
            centre[r] += by[r];
            moved[r] = fma_rn(-by[r], sum[r], moved[r]);
        }
#pragma unroll
        for (u32 i = 0; i < 32; i++) s_dot[i] = fma_rn(-by[i / 2 % 2], s[i], s_dot[i]);
#pragma unroll
        for (u32 i = 0; i < HEAD / 2; i++) o_dot[i] = fma_rn(-by[i / 2 % 2], o[i], o_dot[i]);
    }

    __device__ __forceinline__ void pack() {
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            p[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
            if (S_DOT) h[i / 4][i % 4] = pack_bf16(s_dot[2 * i], s_dot[2 * i + 1]);
        }
    }

    /// y and ẏ in the place of the sums; returns the log-sum-exp of query r.
    __device__ __forceinline__ float finish(u32 r) {
        float total = quad_sum(sum[r]), inverse = div_rn(1.0f, total), mean = S_DOT ? mul_rn(quad_sum(moved[r]), inverse) : 0;
#pragma unroll
        for (u32 i = 0; i < HEAD / 2; i++) {
            if (i / 2 % 2 != r) continue;
            o[i] = mul_rn(o[i], inverse);
            if (TANGENTS) o_dot[i] = fma_rn(-mean, o[i], mul_rn(o_dot[i], inverse));
        }
        return LOG_2 * (max[r] + log2f(total));
    }
};

/// Row r of two of an accumulator. The four lanes of a row exchange their pairs, so that each writes 16 bytes at once.
__device__ __forceinline__ void store_row(bf16* to, const float (&d)[HEAD / 2], u32 r, bool inside) {
    u32 lane = lane_id() % 4;
    bool odd = lane & 1, high = lane & 2;
#pragma unroll
    for (u32 j = 0; j < HEAD / 8; j += 4) {
        u32 x[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = pack_bf16(d[4 * (j + i) + 2 * r], d[4 * (j + i) + 2 * r + 1]);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 y = shuffle_xor(high ? x[i] : x[i + 2], 2);
            (high ? x[i] : x[i + 2]) = y;
        }
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
            u32 y = shuffle_xor(odd ? x[i] : x[i + 1], 1);
            (odd ? x[i] : x[i + 1]) = y;
        }
        if (inside) *(uint4*)(to + 8 * (j + lane)) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

struct Outputs {
    bf16 *y, *y_dot;
    float* lse;
    __device__ __forceinline__ void store(Rows& x, const Block& b, u32 w, const Sizes& n) const {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            float log_sum = x.finish(r);
            u32 row = b.row + w * TILE + threadIdx.x % 128 / 32 * 16 + lane_id() / 4 + 8 * r;
            bool inside = row < n.queries;
            i64 at = (((i64)b.batch * n.queries + row) * n.heads + b.head) * HEAD;
            if (inside && lane_id() % 4 == 0) lse[((i64)b.batch * n.heads + b.head) * n.queries + row] = log_sum;
            store_row(y + at, x.o, r, inside);
            if (TANGENTS) store_row(y_dot + at, x.o_dot, r, inside);
        }
    }
};

/// The warpgroups that compute, one after another.
struct Turns {
    u32 w;
    __device__ __forceinline__ Turns(u32 w) : w(w) {
        if (TURNS && w + 1 == WARPGROUPS) give();
    }
    __device__ __forceinline__ void take() const {
        if (TURNS) named_barrier(1 + w, 256);
    }
    __device__ __forceinline__ void give() const {
        if (TURNS) named_barrier_arrive(1 + (w + 1) % WARPGROUPS, 256);
    }
    /// The last turn given is not taken otherwise.
    __device__ __forceinline__ void end() const {
        if (w == 0) take();
    }
};

__device__ __forceinline__ void first_tile(Rows& x, const Shared& shared, RingPlace<SLOTS>& ring, u32 q, u32 keys, float scale) {
    u32 k = shared_address(shared.slots) + ring.slot * SLOT;
    barrier_wait(shared.full + ring.slot, ring.parity);
    wgmma_fence();
    x.scores(q, k);
    if (S_DOT) x.scores_dot(q, k);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_touch(x.s);
    if (S_DOT) wgmma_touch(x.s_dot);
    release(shared.empty + ring.slot);
    ring.next();
    if (keys < TILE) x.mask(keys);
    x.exponentials(scale * LOG2_E);
    if (S_DOT) {
        x.weigh(scale);
        x.recentre();
    }
    x.pack();
}

/// Scores of the next tile of keys and the values of the tile before. `keys` from the first of this tile on.
__device__ __forceinline__ void next_tile(
    Rows& x, const Shared& shared, RingPlace<SLOTS>& ring, const Turns& turns, u32 q, u32 keys, float scale) {
    RingPlace<SLOTS> k_ring = ring;
    ring.next();
    u32 k = shared_address(shared.slots) + k_ring.slot * SLOT, v = shared_address(shared.slots) + ring.slot * SLOT;
    barrier_wait(shared.full + k_ring.slot, k_ring.parity);
    turns.take();
    x.touch_outputs();
    wgmma_fence();
    x.scores(q, k);
    if (!S_DOT) wgmma_commit();
    barrier_wait(shared.full + ring.slot, ring.parity);
    x.values(v);
    wgmma_commit();
    if (S_DOT) {
        // The registers of P and H are those of Ṡ.
        wgmma_wait<0>();
        x.touch_outputs();
        wgmma_fence();
        x.scores_dot(q, k);
        wgmma_commit();
        turns.give();
        wgmma_touch(x.s);
    } else {
        turns.give();
        wgmma_wait<1>();
        wgmma_touch(x.s);
        release(shared.empty + k_ring.slot);
    }
    if (keys < TILE) x.mask(keys);
    x.exponentials(scale * LOG2_E);
    bool raised = x.raised();
    x.settle(raised);
    if (S_DOT) release(shared.empty + k_ring.slot);
    release(shared.empty + ring.slot);
    ring.next();
    if (S_DOT) {
        x.weigh(scale);
        if (raised) x.recentre();
    }
    x.pack();
}

__device__ __forceinline__ void last_values(Rows& x, const Shared& shared, RingPlace<SLOTS>& ring) {
    barrier_wait(shared.full + ring.slot, ring.parity);
    x.touch_outputs();
    wgmma_fence();
    x.values(shared_address(shared.slots) + ring.slot * SLOT);
    wgmma_commit();
    wgmma_wait<0>();
    x.touch_outputs();
    release(shared.empty + ring.slot);
    ring.next();
}

/// Warpgroup w of those that compute.
__device__ __forceinline__ void consume(const Shared& shared, const Sizes& n, u32 w, const Outputs& out, float scale) {
    RingPlace<SLOTS> ring;
    RingPlace<QUERY_SLOTS> queries;
    Turns turns(w);
    for (u32 i = blockIdx.x; i < n.blocks() * n.heads * n.batches; i += gridDim.x) {
        u32 q = shared_address(shared.queries) + queries.slot * QUERIES + w * MATRIX;
        barrier_wait(shared.queries_full + queries.slot, queries.parity);
        Rows x;
        first_tile(x, shared, ring, q, n.keys, scale);
        for (u32 t = 1; t < n.tiles(); t++) next_tile(x, shared, ring, turns, q, n.keys - t * TILE, scale);
        release(shared.queries_empty + queries.slot);
        queries.next();
        last_values(x, shared, ring);
        out.store(x, Block(i, n), w, n);
    }
    turns.end();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const __grid_constant__ TensorMap q_dot, const __grid_constant__ TensorMap k_dot,
    const __grid_constant__ TensorMap v_dot,
    bf16* y, bf16* y_dot, float* lse, i64 batches, i64 heads, i64 queries, i64 keys, double scale) {
    DYNAMIC_SHARED(base);
    Shared shared(base);
    Sizes n = {(u32)batches, (u32)heads, (u32)queries, (u32)keys};
    if (threadIdx.x == 0) shared.init();
    barrier();
    // The same in all lanes, which the compiler cannot know by itself.
    u32 w = shuffle(threadIdx.x / 128, 0);
    if (w == WARPGROUPS) {
        registers_release<TANGENTS ? 24 : 32>();
        if (threadIdx.x % 128 == 0) produce(shared, {&q, &k, &v, &q_dot, &k_dot, &v_dot}, n);
    } else {
        registers_claim<TANGENTS ? 240 : 160>();
        consume(shared, n, w, {y, y_dot, lse}, (float)scale);
    }
}
