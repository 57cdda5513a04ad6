// y = softmax(scale·q·kᵀ + bias)·v and its tangent, on tensor cores from sm_80 on.
//
//   ẏ = (Σ h·v + Σ p·v̇)/ℓ − (Σ h/ℓ)·y,  p = exp(s − max), ℓ = Σ p, h = p·(ṡ − c), ṡ = scale·(q̇·k + q·k̇)
//
// q [B, L, N, K], k [B, S, N, K], v [B, S, N, V] and their tangents in bf16, tokens `*_stride` elements apart (a tangent as
// its primal) → y, ẏ [B, L, N, V] in bf16, log-sum-exp [B, N, L] in f32. With `starts_q`, `starts_k` [B + 1] the samples lie
// one after another, [total, N, ·] and [N, total]. Q_DOT, K_DOT, V_DOT say which tangents there are; without any this is the
// plain forward, and what concerns y is the same code for all. Any c leaves ẏ as it is; near the mean of ṡ it keeps h small,
// and so its rounding to bf16. It follows the mean over the keys so far, and ȯ with it: ȯ −= (c − c_before)·o.
//
// Grid [⌈L / ROWS⌉, N, B], WARPS warps of 16·TILES queries. FlashAttention-2 (arXiv:2307.08691): keys in tiles of KEYS with a
// running maximum, scores and sums in f32, p and h rounded to bf16. Tiles come by cp.async, STAGES of them in shared memory;
// with one, keys arrive during the product with the values and values during the scores. No atomics: the same bits every run.
// Addresses 16-byte aligned, strides multiples of 8 elements, scale > 0.

constexpr int ROWS = WARPS * TILES * 16;
constexpr int KN = KEYS / 8, VN = V_WIDTH / 8;
constexpr bool SCORES_MOVE = Q_DOT || K_DOT;
constexpr bool MOVES = SCORES_MOVE || V_DOT;

/// Places in shared memory, in elements.
constexpr int Q_TILE = ROWS * K_PITCH, K_TILE = KEYS * K_PITCH, V_TILE = KEYS * V_PITCH;
constexpr int K_PLACE = Q_TILE * (1 + Q_DOT), V_PLACE = K_PLACE + STAGES * K_TILE * (1 + K_DOT);

/// c is moved once the mean of ṡ is farther from it than this part of the mean of |ṡ − c|: rounding grows by its square.
constexpr float CENTRED = 0.125f;

/// What a lane knows of its rows 8·half + lane / 4 of each tile.
struct Softmax {
    /// The largest score so far; of this lane's columns Σ p, Σ p·(ṡ − c) and Σ p·|ṡ − c|; c; without the scale.
    float top[TILES][2], sum[TILES][2], sum_dot[TILES][2], spread[TILES][2], centre[TILES][2];
};

/// p = q·kᵀ, h = q̇·kᵀ + q·k̇ᵀ − c
__device__ __forceinline__ void scores(float (&p)[TILES][KN][4], float (&h)[TILES][KN][4], const Softmax& state,
                                       const bf16* q, const bf16* k) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < KN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[t][n][i] = 0.0f;
                h[t][n][i] = -state.centre[t][i / 2];
            }
#pragma unroll STEPS
    for (int d = 0; d < K_WIDTH; d += 16) {
        u32 a[TILES][4], a_dot[TILES][4], b[4], b_dot[4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            ldmatrix_x4(a[t], q + t * 16 * K_PITCH + d);
            if (Q_DOT) ldmatrix_x4(a_dot[t], q + Q_TILE + t * 16 * K_PITCH + d);
        }
#pragma unroll
        for (int n = 0; n < KN; n += 2) {
            ldmatrix_x4(b, k + n * 8 * K_PITCH + d);
            if (K_DOT) ldmatrix_x4(b_dot, k + K_TILE + n * 8 * K_PITCH + d);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma_pair(p[t][n], p[t][n + 1], a[t], b);
                if (Q_DOT) mma_pair(h[t][n], h[t][n + 1], a_dot[t], b);
                if (K_DOT) mma_pair(h[t][n], h[t][n + 1], a[t], b_dot);
            }
        }
    }
}

/// o += p·v, ȯ += h·v + p·v̇
__device__ __forceinline__ void accumulate(float (&o)[TILES][VN][4], float (&o_dot)[TILES][VN][4],
                                           const float (&p)[TILES][KN][4], const float (&h)[TILES][KN][4],
                                           const bf16* v) {
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
        u32 a[TILES][4], a_dot[TILES][4], b[4], b_dot[4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            as_operand(a[t], p[t][2 * j], p[t][2 * j + 1]);
            if (SCORES_MOVE) as_operand(a_dot[t], h[t][2 * j], h[t][2 * j + 1]);
        }
#pragma unroll
        for (int n = 0; n < VN; n += 2) {
            ldmatrix_x4_trans(b, v + j * 16 * V_PITCH + n * 8);
            if (V_DOT) ldmatrix_x4_trans(b_dot, v + V_TILE + j * 16 * V_PITCH + n * 8);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma_pair(o[t][n], o[t][n + 1], a[t], b);
                if (SCORES_MOVE) mma_pair(o_dot[t][n], o_dot[t][n + 1], a_dot[t], b);
                if (V_DOT) mma_pair(o_dot[t][n], o_dot[t][n + 1], a[t], b_dot);
            }
        }
    }
}

/// Scores to p, and ṡ − c to h = p·(ṡ − c), of one row of a tile. `unit` is that of the scores in the exponent of 2. What was
/// summed before is worth `shrink` now. If the mean of ṡ so far has left c by much, `shift` is to be added to c.
__device__ __forceinline__ void soften(float (&p)[KN][4], float (&h)[KN][4], Softmax& state, int t, int half, float unit,
                                       float scale, float& shrink, float& shift) {
    const int from = 2 * half, to = from + 2;
    const float before = state.top[t][half];
    float top = before;
#pragma unroll
    for (int n = 0; n < KN; n++) top = fmaxf(top, fmaxf(p[n][from], p[n][from + 1]));
    top = row_max(top);
    state.top[t][half] = top;
    // A row that no key was allowed to yet keeps zeros.
    const float base = top == -INFINITE ? 0.0f : mul_rn(top, unit);
    shrink = exp2_fast(fma_rn(before, unit, -base));
    // The tile's sum apart: many small probabilities would each be lost beside a sum that holds a large one.
    float part = 0.0f;
#pragma unroll
    for (int n = 0; n < KN; n++)
#pragma unroll
        for (int i = from; i < to; i++) {
            p[n][i] = exp2_fast(fma_rn(p[n][i], unit, -base));
            part = add_rn(part, p[n][i]);
        }
    float& sum = state.sum[t][half];
    sum = fma_rn(sum, shrink, part);
    if (!SCORES_MOVE) return;
    float &sum_dot = state.sum_dot[t][half], &spread = state.spread[t][half];
    sum_dot *= shrink;
    spread *= shrink;
#pragma unroll
    for (int n = 0; n < KN; n++)
#pragma unroll
        for (int i = from; i < to; i++) {
            h[n][i] *= p[n][i];
            sum_dot += h[n][i];
            spread += fabsf(h[n][i]);
            h[n][i] *= scale;
        }
    const float total = row_sum(sum_dot), whole = row_sum(spread), weight = row_sum(sum);
    shift = fabsf(total) > CENTRED * whole ? total / weight : 0.0f;
}

__device__ __forceinline__ void rescale(float (&o)[VN][4], float (&o_dot)[VN][4], const float (&shrink)[2]) {
#pragma unroll
    for (int n = 0; n < VN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            o[n][i] = mul_rn(o[n][i], shrink[i / 2]);
            if (MOVES) o_dot[n][i] *= shrink[i / 2];
        }
}

/// c += shift for what is summed and for the tile at hand.
__device__ __forceinline__ void recentre(const float (&o)[VN][4], float (&o_dot)[VN][4], const float (&p)[KN][4],
                                         float (&h)[KN][4], Softmax& state, int t, const float (&shift)[2],
                                         float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float scaled = shift[half] * scale;
#pragma unroll
        for (int n = 0; n < VN; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) o_dot[n][i] -= scaled * o[n][i];
#pragma unroll
        for (int n = 0; n < KN; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) h[n][i] -= scaled * p[n][i];
        state.centre[t][half] += shift[half];
        state.sum_dot[t][half] -= shift[half] * state.sum[t][half];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
    const bf16* q, const bf16* k, const bf16* v, const bf16* q_dot, const bf16* k_dot, const bf16* v_dot, bf16* y,
    bf16* y_dot, float* log_sum_exp, const float* bias, i64 bias_sample, i64 bias_head, i64 bias_row,
    const unsigned char* allowed, i64 allowed_sample, i64 allowed_head, i64 allowed_row, const int* starts_q,
    const int* starts_k, i64 l, i64 s, i64 q_stride, i64 k_stride, i64 v_stride, i64 y_stride, double scale) {
    DYNAMIC_SHARED(shared);
    bf16* q_tile = reinterpret_cast<bf16*>(shared);
    bf16 *k_tile = q_tile + K_PLACE, *v_tile = q_tile + V_PLACE;

    const Rows queries = rows_of(blockIdx.z, l, starts_q), keys = rows_of(blockIdx.z, s, starts_k);
    const int first = (int)blockIdx.x * ROWS;
    if (first >= queries.count) return;
    // The next tile of keys and of values to come, in units of 16 bytes.
    u32 k_at = (u32)((keys.first * k_stride + blockIdx.y * HEAD) / 8);
    u32 v_at = (u32)((keys.first * v_stride + blockIdx.y * VALUE) / 8);

    auto copy_keys = [&](int stage, int rows) {
        bf16* to = k_tile + stage * K_TILE * (1 + K_DOT);
        copy_rows<KEYS, HEAD>(to, k + k_at * (i64)8, k_stride, rows);
        if (K_DOT) copy_rows<KEYS, HEAD>(to + K_TILE, k_dot + k_at * (i64)8, k_stride, rows);
        k_at += (u32)(KEYS / 8 * k_stride);
    };
    auto copy_values = [&](int stage, int rows) {
        bf16* to = v_tile + stage * V_TILE * (1 + V_DOT);
        copy_rows<KEYS, VALUE>(to, v + v_at * (i64)8, v_stride, rows);
        if (V_DOT) copy_rows<KEYS, VALUE>(to + V_TILE, v_dot + v_at * (i64)8, v_stride, rows);
        v_at += (u32)(KEYS / 8 * v_stride);
    };
    const i64 q_at = (queries.first + first) * q_stride + blockIdx.y * HEAD;
    copy_rows<ROWS, HEAD>(q_tile, q + q_at, q_stride, queries.count - first);
    if (Q_DOT) copy_rows<ROWS, HEAD>(q_tile + Q_TILE, q_dot + q_at, q_stride, queries.count - first);
    copy_keys(0, keys.count);
    if (STAGES == 2) copy_values(0, keys.count);
    copy_async_commit();

    // Where a mask adds to the scores they are brought to units of one in the exponent of 2.
    const float exponent = (float)scale * LOG2_E, unit = MASK ? 1.0f : exponent;
    const bf16* q_lane = q_tile + (int)warp_id() * TILES * 16 * K_PITCH + lane_by_row<K_PITCH>();
    const bf16 *k_lane = k_tile + lane_by_column<K_PITCH>(), *v_lane = v_tile + lane_by_row<V_PITCH>();
    const int row_in_tile = (int)(warp_id() * (TILES * 16) + lane_id() / 4), pair = (int)lane_id() % 4 * 2;

    Softmax state;
    float o[TILES][VN][4], o_dot[TILES][VN][4];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int n = 0; n < VN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[t][n][i] = o_dot[t][n][i] = 0.0f;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            state.top[t][half] = -INFINITE;
            state.sum[t][half] = state.sum_dot[t][half] = state.spread[t][half] = state.centre[t][half] = 0.0f;
        }
    }

#pragma unroll 1
    for (int left = keys.count, stage = 0; left > 0; left -= KEYS, stage = STAGES - 1 - stage) {
        const int next = STAGES - 1 - stage;
        copy_async_wait<0>();
        barrier();
        if (STAGES == 1) copy_values(stage, left);
        if (STAGES == 2 && left > KEYS) {
            copy_keys(next, left - KEYS);
            copy_values(next, left - KEYS);
        }
        copy_async_commit();

        float p[TILES][KN][4], h[TILES][KN][4];
        scores(p, h, state, q_lane, k_lane + stage * K_TILE * (1 + K_DOT));
        if (STAGES == 1) {
            copy_async_wait<0>();
            barrier();
            if (left > KEYS) copy_keys(next, left - KEYS);
            copy_async_commit();
        }

        if (MASK) {
            const Mask<float> mask(bias, bias_sample, bias_head, bias_row, allowed, allowed_sample, allowed_head, allowed_row);
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int n = 0; n < KN; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int row = first + row_in_tile + t * 16 + i / 2 * 8, key = pair + n * 8 + i % 2;
                        float added = 0.0f;
                        bool in = row < queries.count && key < left && mask.allows(row, keys.count - left + key, added);
                        p[t][n][i] = in ? fma_rn(p[t][n][i], exponent, mul_rn(added, LOG2_E)) : -INFINITE;
                    }
        } else if (left < KEYS) {
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int n = 0; n < KN; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (pair + n * 8 + i % 2 >= left) p[t][n][i] = -INFINITE;
        }

#pragma unroll
        for (int t = 0; t < TILES; t++) {
            float shrink[2], shift[2] = {0.0f, 0.0f};
#pragma unroll
            for (int half = 0; half < 2; half++)
                soften(p[t], h[t], state, t, half, unit, (float)scale, shrink[half], shift[half]);
            // Most tiles leave the maximum as it is, and c.
            if (shrink[0] != 1.0f || shrink[1] != 1.0f) rescale(o[t], o_dot[t], shrink);
            if (SCORES_MOVE && (shift[0] != 0.0f || shift[1] != 0.0f))
                recentre(o[t], o_dot[t], p[t], h[t], state, t, shift, (float)scale);
        }
        warp_barrier();
        accumulate(o, o_dot, p, h, v_lane + stage * V_TILE * (1 + V_DOT));
    }

    // Read again: it would cost registers to keep.
    const Rows rows = rows_of(blockIdx.z, l, starts_q);
    const i64 statistics = statistics_row(l, starts_q);
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float sum = row_sum(state.sum[t][half]);
            const float inverse = sum == 0.0f ? 0.0f : div_rn(1.0f, sum);
            const float mean_dot = row_sum(state.sum_dot[t][half]) * inverse * (float)scale;
#pragma unroll
            for (int n = 0; n < VN; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    o[t][n][i] = mul_rn(o[t][n][i], inverse);
                    if (MOVES) o_dot[t][n][i] = o_dot[t][n][i] * inverse - mean_dot * o[t][n][i];
                }
            const int row = first + row_in_tile + t * 16 + half * 8;
            if (row >= rows.count) continue;
            const i64 at = (rows.first + row) * y_stride + blockIdx.y * VALUE;
            store_row<VALUE>(y + at, o[t], half, 1.0f);
            if (MOVES) store_row<VALUE>(y_dot + at, o_dot[t], half, 1.0f);
            if (pair == 0) {
                const float natural = mul_rn(state.top[t][half], unit) * LN_2 + logf(sum);
                log_sum_exp[statistics + row] = sum == 0.0f ? -INFINITE : natural;
            }
        }
}
