// k̄ and v̄ of y = softmax(scale·q·kᵀ + bias)·v, on tensor cores from sm_80 on.
//
//   v̄ = pᵀ·ȳ,  k̄ = scale·s̄ᵀ·q,  p and s̄ as in `portable_backward_queries.cu`
//
// Layouts, masks, packed samples and statistics as there; k̄ as k, v̄ as v. Grid [⌈S / ROWS⌉, N, B], WARPS warps of 16 keys; queries
// in tiles of QUERIES, a divisor of 64. The scores are computed transposed, so that they are already the left operand of the
// products with ȳ and q. Scores and sums in f32; p and s̄ are rounded to bf16. No atomics.

constexpr int ROWS = WARPS * 16;
constexpr int KN = K_WIDTH / 8, VN = V_WIDTH / 8, QN = QUERIES / 8;

/// Places in shared memory, in elements; statistics are two floats a query.
constexpr int K_TILE = ROWS * K_PITCH, V_TILE = ROWS * V_PITCH, Q_TILE = QUERIES * K_PITCH, Y_TILE = QUERIES * V_PITCH;
constexpr int Q_PLACE = K_TILE + V_TILE, Y_PLACE = Q_PLACE + STAGES * Q_TILE, S_PLACE = Y_PLACE + STAGES * Y_TILE;

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys(
    const bf16* q, const bf16* k, const bf16* v, const bf16* y_bar, const float* exponents, const float* deltas,
    bf16* k_bar, bf16* v_bar, const float* bias, i64 bias_sample, i64 bias_head, i64 bias_row,
    const unsigned char* allowed, i64 allowed_sample, i64 allowed_head, i64 allowed_row, const int* starts_q,
    const int* starts_k, i64 l, i64 s, i64 q_stride, i64 k_stride, i64 v_stride, i64 y_bar_stride, i64 k_bar_stride,
    i64 v_bar_stride, double scale) {
    DYNAMIC_SHARED(shared);
    bf16 *k_tile = reinterpret_cast<bf16*>(shared), *v_tile = k_tile + K_TILE;
    bf16 *q_tile = k_tile + Q_PLACE, *y_tile = k_tile + Y_PLACE;
    float* statistics = reinterpret_cast<float*>(k_tile + S_PLACE);

    const Rows queries = rows_of(blockIdx.z, l, starts_q), keys = rows_of(blockIdx.z, s, starts_k);
    const int first = (int)blockIdx.x * ROWS;
    if (first >= keys.count) return;
    // The next tile of queries and their cotangents to come, in units of 16 bytes.
    u32 q_at = (u32)((queries.first * q_stride + blockIdx.y * HEAD) / 8);
    u32 y_at = (u32)((queries.first * y_bar_stride + blockIdx.y * VALUE) / 8);
    const i64 padded = padded_row(l, starts_q);
    auto copy_queries = [&](int stage, int first_query) {
        const int rows = queries.count - first_query;
        copy_rows<QUERIES, HEAD>(q_tile + stage * Q_TILE, q + q_at * (i64)8, q_stride, rows);
        copy_rows<QUERIES, VALUE>(y_tile + stage * Y_TILE, y_bar + y_at * (i64)8, y_bar_stride, rows);
        q_at += (u32)(QUERIES / 8 * q_stride);
        y_at += (u32)(QUERIES / 8 * y_bar_stride);
        if (threadIdx.x < QUERIES / 2) {
            const int i = threadIdx.x % (QUERIES / 4) * 4;
            const bool second = threadIdx.x >= QUERIES / 4;
            copy_async16(statistics + (stage * 2 + second) * QUERIES + i,
                         (second ? deltas : exponents) + padded + first_query + i, true);
        }
    };
    copy_rows<ROWS, HEAD>(k_tile, k + (keys.first + first) * k_stride + blockIdx.y * HEAD, k_stride, keys.count - first);
    copy_rows<ROWS, VALUE>(v_tile, v + (keys.first + first) * v_stride + blockIdx.y * VALUE, v_stride,
                           keys.count - first);
    if (queries.count > 0) copy_queries(0, 0);
    copy_async_commit();

    const float exponent = (float)scale * LOG2_E;
    const bf16* k_lane = k_tile + (int)warp_id() * 16 * K_PITCH + lane_by_row<K_PITCH>();
    const bf16* v_lane = v_tile + (int)warp_id() * 16 * V_PITCH + lane_by_row<V_PITCH>();
    const int row_in_tile = (int)(warp_id() * 16 + lane_id() / 4), pair = (int)lane_id() % 4 * 2;

    float k_sum[1][KN][4], v_sum[1][VN][4];
#pragma unroll
    for (int n = 0; n < KN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) k_sum[0][n][i] = 0.0f;
#pragma unroll
    for (int n = 0; n < VN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) v_sum[0][n][i] = 0.0f;

#pragma unroll 1
    for (int first_query = 0, stage = 0; first_query < queries.count;
         first_query += QUERIES, stage = STAGES - 1 - stage) {
        copy_async_wait<0>();
        barrier();
        if (STAGES == 2 && first_query + QUERIES < queries.count) copy_queries(1 - stage, first_query + QUERIES);
        copy_async_commit();

        const float* at = statistics + stage * 2 * QUERIES + pair;
        const bf16 *q_here = q_tile + stage * Q_TILE, *y_here = y_tile + stage * Y_TILE;
        float p[1][QN][4], s_bar[1][QN][4];
#pragma unroll
        for (int n = 0; n < QN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[0][n][i] = 0.0f;
        multiply_transposed<K_WIDTH>(p, k_lane, q_here + lane_by_column<K_PITCH>());
        const Mask<float> mask(bias, bias_sample, bias_head, bias_row, allowed, allowed_sample, allowed_head, allowed_row);
#pragma unroll
        for (int n = 0; n < QN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float shift = -at[n * 8 + i % 2];
                bool in = true;
                if (MASK) {
                    const int row = first_query + pair + n * 8 + i % 2, key = first + row_in_tile + i / 2 * 8;
                    float added = 0.0f;
                    in = row < queries.count && key < keys.count && mask.allows(row, key, added);
                    shift += added * LOG2_E;
                }
                p[0][n][i] = in ? exp2_fast(p[0][n][i] * exponent + shift) : 0.0f;
            }
        multiply(v_sum, p, y_here + lane_by_row<V_PITCH>());
#pragma unroll
        for (int n = 0; n < QN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s_bar[0][n][i] = -at[QUERIES + n * 8 + i % 2];
        multiply_transposed<V_WIDTH>(s_bar, v_lane, y_here + lane_by_column<V_PITCH>());
#pragma unroll
        for (int n = 0; n < QN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s_bar[0][n][i] *= p[0][n][i];
        multiply(k_sum, s_bar, q_here + lane_by_row<K_PITCH>());
        if (STAGES == 1) {
            barrier();
            if (first_query + QUERIES < queries.count) copy_queries(0, first_query + QUERIES);
            copy_async_commit();
        }
    }

    // Read again: it would cost registers to keep.
    const Rows rows = rows_of(blockIdx.z, s, starts_k);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first + row_in_tile + half * 8;
        if (row >= rows.count) continue;
        const i64 at = rows.first + row;
        store_row<HEAD>(k_bar + at * k_bar_stride + blockIdx.y * HEAD, k_sum[0], half, (float)scale);
        store_row<VALUE>(v_bar + at * v_bar_stride + blockIdx.y * VALUE, v_sum[0], half, 1.0f);
    }
}
