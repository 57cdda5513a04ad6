// o_i = Σ_j softmax_j(q_i·k_j + bias(j − i))·v_j over the keys of i's sequence, its tangent and its transpose, by products with
// the scores of every sequence and head in memory.
//
// Layout: q, k [T, N·K], v [T, N·V] of T, the sequences one after another; scores [rows, keys] of A for each sequence and head;
// bias [R, N] of T. Products accumulate in A; what is a T is rounded once. `spans` holds four numbers a sequence: its first row,
// its rows, its keys and the place of its scores. Grid: tiles of the largest sequence × sequence and head; 256 threads.
// Deterministic: every sum runs in a fixed order. Alignment: none asked.

typedef ELEMENT T;
typedef Wide<T>::type A;

constexpr int TILE = 32;
constexpr int ROWS = 4;  // of a tile, a thread

struct Task {
    i64 first, rows, keys, scores, head;
};

/// blockIdx.z counts heads within sequences.
__device__ __forceinline__ Task task_of(const i64* spans, i64 heads, i64 z) {
    const i64* span = spans + z / heads * 4;
    Task t = {span[0], span[1], span[2], 0, z % heads};
    t.scores = span[3] + t.head * t.rows * t.keys;
    return t;
}

/// sum[r] += Σ_k a(i, k)·b(k, j) over a tile of 32 × 32, i = 4·(threadIdx.x / 32) + r, j = threadIdx.x % 32. The threads of a warp
/// load b along k where `ALONG_K`, else along j.
template <bool ALONG_K, class Left, class Right>
__device__ __forceinline__ void multiply(A (&sum)[ROWS], i64 depth, A (&a)[TILE][TILE + 1], A (&b)[TILE][TILE + 1], Left left, Right right) {
    u32 column = threadIdx.x % TILE, group = threadIdx.x / TILE;
    for (i64 k = 0; k < depth; k += TILE) {
        barrier();
        for (int r = 0; r < ROWS; r++) {
            u32 i = group * ROWS + r;
            a[i][column] = left(i, k + column);
            if (ALONG_K) {
                b[column][i] = right(k + column, i);
            } else {
                b[i][column] = right(k + i, column);
            }
        }
        barrier();
        for (int c = 0; c < TILE; c++) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) sum[r] += a[group * ROWS + r][c] * b[c][column];
        }
    }
}

/// s = bias(j − i) + x1·y1ᵀ + x2·y2ᵀ; what is null is left out.
extern "C" __global__ void scores(
    A* s, const i64* spans, i64 heads, const T* bias, i64 r, const T* x1, const T* y1, const T* x2, const T* y2, i64 width) {
    __shared__ A a[TILE][TILE + 1], b[TILE][TILE + 1];
    Task t = task_of(spans, heads, blockIdx.z);
    i64 row = (i64)blockIdx.y * TILE, column = (i64)blockIdx.x * TILE;
    if (row >= t.rows || column >= t.keys) return;
    A sum[ROWS] = {};
    for (int pair = 0; pair < 2; pair++) {
        const T *x = pair == 0 ? x1 : x2, *y = pair == 0 ? y1 : y2;
        if (x == nullptr) continue;
        auto left = [=](i64 i, i64 k) {
            bool valid = row + i < t.rows && k < width;
            return valid ? widen(x[((t.first + row + i) * heads + t.head) * width + k]) : A(0);
        };
        auto right = [=](i64 k, i64 j) {
            bool valid = column + j < t.keys && k < width;
            return valid ? widen(y[((t.first + column + j) * heads + t.head) * width + k]) : A(0);
        };
        multiply<true>(sum, width, a, b, left, right);
    }
    i64 j = column + threadIdx.x % TILE;
    for (int n = 0; n < ROWS; n++) {
        i64 i = row + threadIdx.x / TILE * ROWS + n;
        if (i >= t.rows || j >= t.keys) continue;
        A at = bias != nullptr ? widen(bias[(r / 2 + j - i) * heads + t.head]) : A(0);
        s[t.scores + i * t.keys + j] = at + sum[n];
    }
}

/// out = p1·x1 + p2·x2, or with p1ᵀ in place of p1; rows of the sequence past the keys are then zero.
extern "C" __global__ void weigh(
    T* out, const i64* spans, i64 heads, const A* p1, const T* x1, const A* p2, const T* x2, i64 width, int transposed) {
    __shared__ A a[TILE][TILE + 1], b[TILE][TILE + 1];
    Task t = task_of(spans, heads, blockIdx.z);
    i64 row = (i64)blockIdx.y * TILE, column = (i64)blockIdx.x * TILE;
    if (row >= t.rows || column >= width) return;
    i64 depth = transposed ? t.rows : t.keys, height = transposed ? t.keys : t.rows;
    A sum[ROWS] = {};
    for (int pair = 0; pair < 2; pair++) {
        const A* p = pair == 0 ? p1 : p2;
        const T* x = pair == 0 ? x1 : x2;
        if (p == nullptr) continue;
        auto left = [=](i64 i, i64 k) {
            bool valid = row + i < height && k < depth;
            i64 at = transposed ? k * t.keys + row + i : (row + i) * t.keys + k;
            return valid ? p[t.scores + at] : A(0);
        };
        auto right = [=](i64 k, i64 c) {
            bool valid = column + c < width && k < depth;
            return valid ? widen(x[((t.first + k) * heads + t.head) * width + column + c]) : A(0);
        };
        multiply<false>(sum, depth, a, b, left, right);
    }
    i64 c = column + threadIdx.x % TILE;
    for (int n = 0; n < ROWS; n++) {
        i64 i = row + threadIdx.x / TILE * ROWS + n;
        if (i < t.rows && c < width) out[((t.first + i) * heads + t.head) * width + c] = narrow<T>(sum[n]);
    }
}

/// p = softmax(s) of every row, in place; a warp a row.
extern "C" __global__ void softmax(A* s, const i64* spans, i64 heads) {
    Task t = task_of(spans, heads, blockIdx.z);
    i64 i = (i64)blockIdx.y * (blockDim.x / WARP) + warp_id();
    if (i >= t.rows) return;
    A* row = s + t.scores + i * t.keys;
    A max = t.keys > 0 ? row[0] : A(0);
    for (i64 j = lane_id(); j < t.keys; j += WARP) max = row[j] > max ? row[j] : max;
    max = warp_max(max);
    // All lanes have read the first score before one writes it.
    warp_barrier();
    A sum = 0;
    for (i64 j = lane_id(); j < t.keys; j += WARP) sum += row[j] = exp(row[j] - max);
    A inverse = A(1) / warp_sum(sum);
    for (i64 j = lane_id(); j < t.keys; j += WARP) row[j] *= inverse;
}

/// d ← p∘(d − ⟨p, d⟩) of every row: the tangent of softmax and its cotangent; a warp a row.
extern "C" __global__ void softmax_derivative(A* d, const A* p, const i64* spans, i64 heads) {
    Task t = task_of(spans, heads, blockIdx.z);
    i64 i = (i64)blockIdx.y * (blockDim.x / WARP) + warp_id();
    if (i >= t.rows) return;
    d += t.scores + i * t.keys;
    p += t.scores + i * t.keys;
    A mean = 0;
    for (i64 j = lane_id(); j < t.keys; j += WARP) mean += p[j] * d[j];
    mean = warp_sum(mean);
    for (i64 j = lane_id(); j < t.keys; j += WARP) d[j] = p[j] * (d[j] - mean);
}

/// bias_bar[r, n] = Σ over sequences of S̄ along the diagonal j − i = r − R/2; a warp a sum. Grid: R × N.
extern "C" __global__ void sum_diagonals(T* bias_bar, const A* s_bar, const i64* spans, i64 sequences, i64 heads, i64 r) {
    i64 shift = (i64)blockIdx.x - r / 2;
    A sum = 0;
    for (i64 sequence = 0; sequence < sequences; sequence++) {
        Task t = task_of(spans, heads, sequence * heads + blockIdx.y);
        for (i64 i = lane_id(); i < t.rows; i += WARP) {
            i64 j = i + shift;
            if (j >= 0 && j < t.keys) sum += s_bar[t.scores + i * t.keys + j];
        }
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) bias_bar[(i64)blockIdx.x * heads + blockIdx.y] = narrow<T>(sum);
}
