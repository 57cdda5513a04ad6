// y = softmax(scale·q·kᵀ + bias)·v with its tangent and cotangents, for any width and element, without tensor cores.
//
// q [B, L, N, K], k [B, S, N, K], v [B, S, N, V], tokens `*_stride` elements apart (a tangent as its primal) → y [B, L, N, V],
// log-sum-exp and δ [B, N, L] in the accumulator, as are all sums. With `starts_q`, `starts_k` [B + 1] the samples lie one
// after another, [total, N, ·] and [N, total].
//
// A block of four warps computes 16 rows of COLUMNS columns, grid [⌈rows / 16⌉ · ⌈columns / COLUMNS⌉, N, B]; a warp has four rows,
// and a lane one of the 32 rows of the other side that are at hand. Operands pass through shared memory in pieces of 32 columns.
// No atomics: the same bits every run. No alignment is asked for.

typedef ELEMENT T;
typedef Wide<T>::type A;

constexpr int ROWS = 16, OWN = 4, LANES = 32, COLUMNS = 128;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

/// Rows of one head, `stride` elements apart; null where there are none to read.
struct Operand {
    const T* first;
    i64 stride;

    __device__ Operand(const T* x, i64 stride, i64 row, i64 width)
        : first(x ? x + row * stride + blockIdx.y * width : x), stride(stride) {}
};

/// Copies rows `row`.. of 32 columns to shared memory, zeros where there are none.
template <int COUNT, int PITCH>
__device__ __forceinline__ void load(A (*to)[PITCH], const Operand& x, i64 row, i64 rows, i64 column, i64 columns) {
    for (int i = (int)warp_id(); i < COUNT; i += 4) {
        const bool in = row + i < rows && column + lane_id() < columns;
        to[i][lane_id()] = in ? widen(x.first[(row + i) * x.stride + column + lane_id()]) : A(0);
    }
}

/// sums[r] += x[own row r]·y[lane's row] over `width` columns.
__device__ __forceinline__ void dot(A (&sums)[OWN], const Operand& x, i64 x_row, i64 x_rows, const Operand& y, i64 y_row,
                                    i64 y_rows, i64 width, A (*x_piece)[32], A (*y_piece)[33]) {
    for (i64 d = 0; d < width; d += 32) {
        barrier();
        load<ROWS>(x_piece, x, x_row, x_rows, d, width);
        load<LANES>(y_piece, y, y_row, y_rows, d, width);
        barrier();
        for (int j = 0; j < 32; j++) {
            const A right = y_piece[lane_id()][j];
            for (int r = 0; r < OWN; r++) sums[r] += x_piece[warp_id() * OWN + r][j] * right;
        }
    }
}

/// sums[r][c] += Σ weights[own row r][j]·y[row j] for the columns `column` + 32·c + lane.
__device__ __forceinline__ void spread(A (&sums)[OWN][COLUMNS / 32], const A (*weights)[32], const Operand& y, i64 y_row,
                                       i64 y_rows, i64 column, i64 columns, A (*y_piece)[33]) {
#pragma unroll
    for (int c = 0; c < COLUMNS / 32; c++) {
        if (column + c * 32 >= columns) break;
        barrier();
        load<LANES>(y_piece, y, y_row, y_rows, column + c * 32, columns);
        barrier();
        for (int j = 0; j < LANES; j++) {
            const A right = y_piece[j][lane_id()];
            for (int r = 0; r < OWN; r++) sums[r][c] += weights[warp_id() * OWN + r][j] * right;
        }
    }
}

/// q̇, k̇, v̇ may be null; ẏ is if they all are. What concerns y does not depend on them.
extern "C" __global__ void __launch_bounds__(128) attention_forward(
    const T* q, const T* k, const T* v, const T* q_dot, const T* k_dot, const T* v_dot, T* y, T* y_dot, A* log_sum_exp,
    const A* bias, i64 bias_sample, i64 bias_head, i64 bias_row, const unsigned char* allowed, i64 allowed_sample,
    i64 allowed_head, i64 allowed_row, const int* starts_q, const int* starts_k, i64 l, i64 s, i64 head, i64 value,
    i64 q_stride, i64 k_stride, i64 v_stride, i64 y_stride, double scale) {
    __shared__ A x_piece[ROWS][32], y_piece[LANES][33], weights[ROWS][32], weights_dot[ROWS][32];
    const Rows queries = rows_of(blockIdx.z, l, starts_q), keys = rows_of(blockIdx.z, s, starts_k);
    const i64 parts = value > COLUMNS ? (value + COLUMNS - 1) / COLUMNS : 1;
    const i64 first = blockIdx.x / parts * ROWS, column = blockIdx.x % parts * COLUMNS;
    if (first >= queries.count) return;
    const Operand Q(q, q_stride, queries.first, head), Q_dot(q_dot, q_stride, queries.first, head);
    const Operand K(k, k_stride, keys.first, head), K_dot(k_dot, k_stride, keys.first, head);
    const Operand V(v, v_stride, keys.first, value), V_dot(v_dot, v_stride, keys.first, value);
    const Mask<A> mask(bias, bias_sample, bias_head, bias_row, allowed, allowed_sample, allowed_head, allowed_row);

    A top[OWN], sum[OWN], sum_dot[OWN], o[OWN][COLUMNS / 32], o_dot[OWN][COLUMNS / 32];
    for (int r = 0; r < OWN; r++) {
        top[r] = -INFINITE;
        sum[r] = sum_dot[r] = 0;
        for (int c = 0; c < COLUMNS / 32; c++) o[r][c] = o_dot[r][c] = 0;
    }
    for (i64 first_key = 0; first_key < keys.count; first_key += LANES) {
        const i64 key = first_key + lane_id();
        A p[OWN] = {}, h[OWN] = {};
        dot(p, Q, first, queries.count, K, first_key, keys.count, head, x_piece, y_piece);
        if (q_dot) dot(h, Q_dot, first, queries.count, K, first_key, keys.count, head, x_piece, y_piece);
        if (k_dot) dot(h, Q, first, queries.count, K_dot, first_key, keys.count, head, x_piece, y_piece);
        for (int r = 0; r < OWN; r++) {
            const i64 row = first + warp_id() * OWN + r;
            A added = 0;
            const bool in = row < queries.count && key < keys.count && mask.allows((int)row, (int)key, added);
            const A score = in ? fma_rn(p[r], A(scale), added) : -INFINITE;
            const A before = top[r];
            const A largest = warp_max(score);
            top[r] = largest > before ? largest : before;
            // A row that no key was allowed to yet keeps zeros.
            const A base = top[r] == -INFINITE ? A(0) : top[r];
            const A shrink = exponential(before - base);
            p[r] = exponential(score - base);
            h[r] = p[r] * (h[r] * A(scale));
            sum[r] = fma_rn(sum[r], shrink, p[r]);
            sum_dot[r] = sum_dot[r] * shrink + h[r];
            for (int c = 0; c < COLUMNS / 32; c++) {
                o[r][c] = mul_rn(o[r][c], shrink);
                o_dot[r][c] *= shrink;
            }
            weights[warp_id() * OWN + r][lane_id()] = p[r];
            weights_dot[warp_id() * OWN + r][lane_id()] = h[r];
        }
        spread(o, weights, V, first_key, keys.count, column, value, y_piece);
        if (v_dot) spread(o_dot, weights, V_dot, first_key, keys.count, column, value, y_piece);
        if (q_dot || k_dot) spread(o_dot, weights_dot, V, first_key, keys.count, column, value, y_piece);
    }
    for (int r = 0; r < OWN; r++) {
        const i64 row = first + warp_id() * OWN + r;
        const A total = warp_sum(sum[r]), inverse = total == 0 ? A(0) : div_rn(A(1), total);
        const A mean_dot = warp_sum(sum_dot[r]) * inverse;
        if (row >= queries.count) continue;
        for (int c = 0; c < COLUMNS / 32; c++) {
            const i64 at = column + c * 32 + lane_id();
            if (at >= value) continue;
            const i64 to = (queries.first + row) * y_stride + blockIdx.y * value + at;
            const A mean = mul_rn(o[r][c], inverse);
            y[to] = narrow<T>(mean);
            if (y_dot) y_dot[to] = narrow<T>(o_dot[r][c] * inverse - mean_dot * mean);
        }
        if (column == 0 && lane_id() == 0)
            log_sum_exp[statistics_row(l, starts_q) + row] = total == 0 ? -INFINITE : top[r] + logarithm(total);
    }
}

/// p = exp(s − log-sum-exp) from q·k; 0 where a query may not attend to a key, or there is no such row.
__device__ __forceinline__ A probability(A product, i64 row, i64 key, const Rows& queries, const Rows& keys,
                                         const Mask<A>& mask, const A* log_sum_exp, A scale) {
    A added = 0;
    const bool in = row < queries.count && key < keys.count && mask.allows((int)row, (int)key, added);
    const A total = in ? log_sum_exp[row] : A(-INFINITE);
    return total == -INFINITE ? A(0) : exponential(fma_rn(product, scale, added) - total);
}

/// δ = Σ p·(ȳ·vᵀ) over the keys, a part of one column. (ȳ·y would know y as rounded, an error that all keys share.)
extern "C" __global__ void __launch_bounds__(128) attention_delta(
    const T* q, const T* k, const T* v, const T* y_bar, const A* log_sum_exp, A* deltas, const A* bias, i64 bias_sample,
    i64 bias_head, i64 bias_row, const unsigned char* allowed, i64 allowed_sample, i64 allowed_head, i64 allowed_row,
    const int* starts_q, const int* starts_k, i64 l, i64 s, i64 head, i64 value, i64 q_stride, i64 k_stride,
    i64 v_stride, i64 y_bar_stride, double scale) {
    __shared__ A x_piece[ROWS][32], y_piece[LANES][33];
    const Rows queries = rows_of(blockIdx.z, l, starts_q), keys = rows_of(blockIdx.z, s, starts_k);
    const i64 first = blockIdx.x * (i64)ROWS;
    if (first >= queries.count) return;
    const Operand Q(q, q_stride, queries.first, head), K(k, k_stride, keys.first, head);
    const Operand V(v, v_stride, keys.first, value), Y_bar(y_bar, y_bar_stride, queries.first, value);
    const Mask<A> mask(bias, bias_sample, bias_head, bias_row, allowed, allowed_sample, allowed_head, allowed_row);
    const i64 statistics = statistics_row(l, starts_q);

    A sum[OWN] = {};
    for (i64 first_key = 0; first_key < keys.count; first_key += LANES) {
        A p[OWN] = {}, p_bar[OWN] = {};
        dot(p, Q, first, queries.count, K, first_key, keys.count, head, x_piece, y_piece);
        dot(p_bar, Y_bar, first, queries.count, V, first_key, keys.count, value, x_piece, y_piece);
        for (int r = 0; r < OWN; r++) {
            const i64 row = first + warp_id() * OWN + r, key = first_key + lane_id();
            sum[r] += p_bar[r] * probability(p[r], row, key, queries, keys, mask, log_sum_exp + statistics, A(scale));
        }
    }
    for (int r = 0; r < OWN; r++) {
        const i64 row = first + warp_id() * OWN + r;
        const A total = warp_sum(sum[r]);
        if (row < queries.count && lane_id() == 0) deltas[statistics + row] = total;
    }
}

/// One cotangent, p = exp(s − log-sum-exp), s̄ = p·(ȳ·vᵀ − δ):
///   q̄ = scale·s̄·k   `which` 0, rows are queries;
///   k̄ = scale·s̄ᵀ·q  `which` 1, rows are keys;
///   v̄ = pᵀ·ȳ        `which` 2, rows are keys, `deltas` is not read.
extern "C" __global__ void __launch_bounds__(128) attention_backward(
    const T* q, const T* k, const T* v, const T* y_bar, const A* log_sum_exp, const A* deltas, T* x_bar, const A* bias,
    i64 bias_sample, i64 bias_head, i64 bias_row, const unsigned char* allowed, i64 allowed_sample, i64 allowed_head,
    i64 allowed_row, const int* starts_q, const int* starts_k, i64 l, i64 s, i64 head, i64 value, i64 q_stride,
    i64 k_stride, i64 v_stride, i64 y_bar_stride, i64 x_bar_stride, double scale, int which) {
    __shared__ A x_piece[ROWS][32], y_piece[LANES][33], weights[ROWS][32];
    const Rows queries = rows_of(blockIdx.z, l, starts_q), keys = rows_of(blockIdx.z, s, starts_k);
    const Rows rows = which == 0 ? queries : keys, others = which == 0 ? keys : queries;
    const i64 width = which == 2 ? value : head;
    const i64 parts = width > COLUMNS ? (width + COLUMNS - 1) / COLUMNS : 1;
    const i64 first = blockIdx.x / parts * ROWS, column = blockIdx.x % parts * COLUMNS;
    if (first >= rows.count) return;
    const Operand Q(q, q_stride, queries.first, head), K(k, k_stride, keys.first, head);
    const Operand V(v, v_stride, keys.first, value), Y_bar(y_bar, y_bar_stride, queries.first, value);
    const Operand X = which == 0 ? Q : K, Y = which == 0 ? K : Q;
    const Operand U = which == 0 ? Y_bar : V, W = which == 0 ? V : Y_bar;
    const Mask<A> mask(bias, bias_sample, bias_head, bias_row, allowed, allowed_sample, allowed_head, allowed_row);
    const i64 statistics = statistics_row(l, starts_q);

    A o[OWN][COLUMNS / 32];
    for (int r = 0; r < OWN; r++)
        for (int c = 0; c < COLUMNS / 32; c++) o[r][c] = 0;
    for (i64 first_other = 0; first_other < others.count; first_other += LANES) {
        A p[OWN] = {}, p_bar[OWN] = {};
        dot(p, X, first, rows.count, Y, first_other, others.count, head, x_piece, y_piece);
        if (which != 2) dot(p_bar, U, first, rows.count, W, first_other, others.count, value, x_piece, y_piece);
        for (int r = 0; r < OWN; r++) {
            const i64 own = first + warp_id() * OWN + r, other = first_other + lane_id();
            const i64 row = which == 0 ? own : other, key = which == 0 ? other : own;
            A weight = probability(p[r], row, key, queries, keys, mask, log_sum_exp + statistics, A(scale));
            if (which != 2 && row < queries.count) weight *= p_bar[r] - deltas[statistics + row];
            weights[warp_id() * OWN + r][lane_id()] = weight;
        }
        spread(o, weights, which == 2 ? Y_bar : Y, first_other, others.count, column, width, y_piece);
    }
    for (int r = 0; r < OWN; r++) {
        const i64 row = first + warp_id() * OWN + r;
        if (row >= rows.count) continue;
        for (int c = 0; c < COLUMNS / 32; c++) {
            const i64 at = column + c * 32 + lane_id();
            if (at < width)
                x_bar[(rows.first + row) * x_bar_stride + blockIdx.y * width + at] =
                    narrow<T>(which == 2 ? o[r][c] : o[r][c] * A(scale));
        }
    }
}
