// q̄ of y = softmax(scale·q·kᵀ + bias)·v, on tensor cores from sm_80 on, and the statistics that both backward kernels read.
//
//   p = exp(s − log-sum-exp),  δ = Σ ȳ·y over V,  s̄ = p·(ȳ·vᵀ − δ),  q̄ = scale·s̄·k
//
// Layouts, masks and packed samples as in `portable_forward.cu`; ȳ as y, q̄ as q. The statistics are f32 [N, B, L'] with every
// sample padded to L', a multiple of 64 (packed: [N, (⌊total / 64⌋ + B)·64]): the log-sum-exp in units of the exponent of 2, +∞
// for a row without keys and for padding, which makes every p zero there; and δ.
//
// δ from y, which is rounded to bf16, has an error that all keys of a row share; relative to what distinguishes the keys it
// grows with their number, and with the mean of v. The second kernel finds it, r = Σ p·(ȳ·vᵀ − δ) over the keys, corrects
// q̄ by −r·Σ p·k, and stores δ + r.
//
// attention_delta: grid [⌈L' / 8⌉, N, B], 8 warps, a row each. attention_backward_queries: grid [⌈L / ROWS⌉, N, B], WARPS warps
// of 16·TILES queries, keys in tiles of KEYS. Scores, sums and q̄ in f32; s̄ is rounded to bf16. No atomics.

constexpr int ROWS = WARPS * TILES * 16;
constexpr int KN = KEYS / 8, QN = K_WIDTH / 8;

/// Places in shared memory, in elements.
constexpr int Q_TILE = ROWS * K_PITCH, Y_TILE = ROWS * V_PITCH, K_TILE = KEYS * K_PITCH, V_TILE = KEYS * V_PITCH;
constexpr int K_PLACE = Q_TILE + Y_TILE, V_PLACE = K_PLACE + STAGES * K_TILE;

/// o += s̄·k, mean += p·k
__device__ __forceinline__ void accumulate(float (&o)[TILES][QN][4], float (&mean)[TILES][QN][4],
                                           const float (&s_bar)[TILES][KN][4], const float (&p)[TILES][KN][4],
                                           const bf16* k) {
#pragma unroll
    for (int j = 0; j < KN; j += 2) {
        u32 a[TILES][4], weights[TILES][4], b[4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            as_operand(a[t], s_bar[t][j], s_bar[t][j + 1]);
            as_operand(weights[t], p[t][j], p[t][j + 1]);
        }
#pragma unroll
        for (int n = 0; n < QN; n += 2) {
            ldmatrix_x4_trans(b, k + j * 8 * K_PITCH + n * 8);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma_pair(o[t][n], o[t][n + 1], a[t], b);
                mma_pair(mean[t][n], mean[t][n + 1], weights[t], b);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) attention_delta(const bf16* y, const bf16* y_bar,
                                                                 const float* log_sum_exp, float* exponents,
                                                                 float* deltas, const int* starts_q, i64 l,
                                                                 i64 y_stride, i64 y_bar_stride) {
    const Rows queries = rows_of(blockIdx.z, l, starts_q);
    const i64 row = blockIdx.x * (i64)8 + warp_id();
    if (row >= (queries.count + 63) / 64 * 64) return;
    float delta = 0.0f, exponent = INFINITE;
    if (row < queries.count) {
        const bf16* a = y + (queries.first + row) * y_stride + blockIdx.y * VALUE;
        const bf16* b = y_bar + (queries.first + row) * y_bar_stride + blockIdx.y * VALUE;
        for (int i = lane_id() * 8; i < VALUE; i += 256) {
            const Pack<bf16> u = load16(a + i), w = load16(b + i);
            for (int j = 0; j < 8; j++) delta += widen(u.v[j]) * widen(w.v[j]);
        }
        delta = warp_sum(delta);
        const float natural = log_sum_exp[statistics_row(l, starts_q) + row];
        if (natural != -INFINITE) exponent = natural * LOG2_E;
    }
    if (lane_id() != 0) return;
    const i64 at = padded_row(l, starts_q) + row;
    exponents[at] = exponent;
    deltas[at] = delta;
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries(
    const bf16* q, const bf16* k, const bf16* v, const bf16* y_bar, const float* exponents, float* deltas,
    bf16* q_bar, const float* bias, i64 bias_sample, i64 bias_head, i64 bias_row, const unsigned char* allowed,
    i64 allowed_sample, i64 allowed_head, i64 allowed_row, const int* starts_q, const int* starts_k, i64 l, i64 s,
    i64 q_stride, i64 k_stride, i64 v_stride, i64 y_bar_stride, i64 q_bar_stride, double scale) {
    DYNAMIC_SHARED(shared);
    bf16 *q_tile = reinterpret_cast<bf16*>(shared), *y_tile = q_tile + Q_TILE;
    bf16 *k_tile = q_tile + K_PLACE, *v_tile = q_tile + V_PLACE;

    const Rows queries = rows_of(blockIdx.z, l, starts_q), keys = rows_of(blockIdx.z, s, starts_k);
    const int first = (int)blockIdx.x * ROWS;
    if (first >= queries.count) return;
    // The tile of the last `left` keys. Where they lie is computed again: it would cost registers to keep.
    auto copy_keys = [&](int stage, int left) {
        const Rows keys = rows_of(blockIdx.z, s, starts_k);
        const i64 from = keys.first + keys.count - left;
        copy_rows<KEYS, HEAD>(k_tile + stage * K_TILE, k + from * k_stride + blockIdx.y * HEAD, k_stride, left);
        copy_rows<KEYS, VALUE>(v_tile + stage * V_TILE, v + from * v_stride + blockIdx.y * VALUE, v_stride, left);
    };
    copy_rows<ROWS, HEAD>(q_tile, q + (queries.first + first) * q_stride + blockIdx.y * HEAD, q_stride,
                          queries.count - first);
    copy_rows<ROWS, VALUE>(y_tile, y_bar + (queries.first + first) * y_bar_stride + blockIdx.y * VALUE, y_bar_stride,
                           queries.count - first);
    copy_keys(0, keys.count);
    copy_async_commit();

    const float exponent = (float)scale * LOG2_E;
    const bf16* q_lane = q_tile + (int)warp_id() * TILES * 16 * K_PITCH + lane_by_row<K_PITCH>();
    const bf16* y_lane = y_tile + (int)warp_id() * TILES * 16 * V_PITCH + lane_by_row<V_PITCH>();
    const int row_in_tile = (int)(warp_id() * (TILES * 16) + lane_id() / 4), pair = (int)lane_id() % 4 * 2;

    float top[TILES][2], delta[TILES][2], rest[TILES][2], o[TILES][QN][4], mean[TILES][QN][4];
    const i64 statistics = padded_row(l, starts_q) + first + row_in_tile;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = t * 16 + half * 8;
            const bool in = first + row_in_tile + row < queries.count;
            top[t][half] = in ? exponents[statistics + row] : INFINITE;
            delta[t][half] = in ? deltas[statistics + row] : 0.0f;
            rest[t][half] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < QN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[t][n][i] = mean[t][n][i] = 0.0f;
    }

#pragma unroll 1
    for (int left = keys.count, stage = 0; left > 0; left -= KEYS, stage = STAGES - 1 - stage) {
        copy_async_wait<0>();
        barrier();
        if (STAGES == 2 && left > KEYS) copy_keys(1 - stage, left - KEYS);
        copy_async_commit();

        float p[TILES][KN][4], s_bar[TILES][KN][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int n = 0; n < KN; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    p[t][n][i] = 0.0f;
                    s_bar[t][n][i] = -delta[t][i / 2];
                }
        multiply_transposed<K_WIDTH>(p, q_lane, k_tile + stage * K_TILE + lane_by_column<K_PITCH>());
        const Mask<float> mask(bias, bias_sample, bias_head, bias_row, allowed, allowed_sample, allowed_head, allowed_row);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int n = 0; n < KN; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float shift = -top[t][i / 2];
                    bool in = true;
                    if (MASK) {
                        const int row = first + row_in_tile + t * 16 + i / 2 * 8, key = pair + n * 8 + i % 2;
                        float added = 0.0f;
                        in = row < queries.count && key < left && mask.allows(row, keys.count - left + key, added);
                        shift += added * LOG2_E;
                    }
                    p[t][n][i] = in ? exp2_fast(p[t][n][i] * exponent + shift) : 0.0f;
                }
        if (!MASK && left < KEYS) {
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int n = 0; n < KN; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (pair + n * 8 + i % 2 >= left) p[t][n][i] = 0.0f;
        }
        multiply_transposed<V_WIDTH>(s_bar, y_lane, v_tile + stage * V_TILE + lane_by_column<V_PITCH>());
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int n = 0; n < KN; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s_bar[t][n][i] *= p[t][n][i];
                    rest[t][i / 2] += s_bar[t][n][i];
                }
        accumulate(o, mean, s_bar, p, k_tile + stage * K_TILE + lane_by_row<K_PITCH>());
        if (STAGES == 1) {
            barrier();
            if (left > KEYS) copy_keys(0, left - KEYS);
            copy_async_commit();
        }
    }

    // The lanes of a row have read its δ.
    warp_barrier();
    // Read again: it would cost registers to keep.
    const Rows rows = rows_of(blockIdx.z, l, starts_q);
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + row_in_tile + t * 16 + half * 8;
            const float r = row_sum(rest[t][half]);
            if (row >= rows.count) continue;
            if (pair == 0) deltas[statistics + t * 16 + half * 8] = delta[t][half] + r;
#pragma unroll
            for (int n = 0; n < QN; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) o[t][n][i] -= r * mean[t][n][i];
            bf16* to = q_bar + (rows.first + row) * q_bar_stride + blockIdx.y * HEAD;
            store_row<HEAD>(to, o[t], half, (float)scale);
        }
}
