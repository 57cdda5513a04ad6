// What the portable attention kernels share: tiles in shared memory and tensor-core fragments.
//
// HEAD and VALUE are the widths K of q and k and V of v and y, multiples of 8 up to 256. In shared memory a row is padded
// with zeros to a multiple of 16, and its pitch by 16 bytes more: then the eight rows that ldmatrix reads together lie in
// different banks, and every offset within a tile is a constant.

constexpr int K_WIDTH = (HEAD + 15) / 16 * 16, V_WIDTH = (VALUE + 15) / 16 * 16;
constexpr int K_PITCH = K_WIDTH + 8, V_PITCH = V_WIDTH + 8;
constexpr int THREADS = WARPS * 32, STEPS = UNROLL;

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

/// Where those rows begin in the statistics that the backward kernels read, and how many they are with the padding: a sample
/// is padded to a multiple of 64 there.
__device__ __forceinline__ i64 padded_row(i64 length, const int* starts) {
    const i64 one = (length + 63) / 64 * 64;
    if (!starts) return (blockIdx.y * (i64)gridDim.z + blockIdx.z) * one;
    return blockIdx.y * (length / 64 + gridDim.z) * 64 + (starts[blockIdx.z] / 64 + blockIdx.z) * (i64)64;
}

/// Starts the copy of COUNT rows of one head to shared memory; zeros from row `rows` on, and beyond WIDTH columns.
template <int COUNT, int WIDTH>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* from, i64 stride, int rows) {
    constexpr int CHUNKS = (WIDTH + 15) / 16 * 2, PITCH = CHUNKS * 8 + 8, STEP = THREADS / CHUNKS;
    const int row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * 8;
    if (STEP * CHUNKS < THREADS && row >= STEP) return;
    from += row * (int)stride + column;
    to += row * PITCH + column;
#pragma unroll
    for (int i = 0; i < COUNT; i += STEP) {
        if (COUNT % STEP == 0 || row + i < COUNT) copy_async16(to + i * PITCH, from, row + i < rows && column < WIDTH);
        from += STEP * stride;
    }
}

/// Where a lane's row of a 16x16 tile begins: the tile as an A operand, or transposed as two B operands side by side.
template <int PITCH> __device__ __forceinline__ int lane_by_row() {
    return (int)(lane_id() % 16 * PITCH + lane_id() / 16 * 8);
}
/// The same for a 16x16 tile, rows n by columns k, as two B operands (k, n) side by side.
template <int PITCH> __device__ __forceinline__ int lane_by_column() {
    return (int)((lane_id() / 16 * 8 + lane_id() % 8) * PITCH + lane_id() / 8 % 2 * 8);
}

/// Two neighbouring tiles of D += A·B, with B as ldmatrix_x4 left it.
__device__ __forceinline__ void mma_pair(float (&left)[4], float (&right)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    const u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_bf16(left, a, first);
    mma_bf16(right, a, second);
}
/// The A operand of columns 16j.. of a product's result.
__device__ __forceinline__ void as_operand(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

/// C += A·Bᵀ over WIDTH columns, for 16·M rows of A and 8·N rows of B in shared memory.
template <int WIDTH, int M, int N>
__device__ __forceinline__ void multiply_transposed(float (&c)[M][N][4], const bf16* a_lane, const bf16* b_lane) {
    constexpr int PITCH = WIDTH + 8;
#pragma unroll STEPS
    for (int d = 0; d < WIDTH; d += 16) {
        u32 a[M][4], b[4];
#pragma unroll
        for (int t = 0; t < M; t++) ldmatrix_x4(a[t], a_lane + t * 16 * PITCH + d);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            ldmatrix_x4(b, b_lane + n * 8 * PITCH + d);
#pragma unroll
            for (int t = 0; t < M; t++) mma_pair(c[t][n], c[t][n + 1], a[t], b);
        }
    }
}
/// C += A·B, for 16·M rows of A from registers, rounded to bf16, and 8·K rows of B in shared memory, 8·N columns of it.
template <int M, int K, int N>
__device__ __forceinline__ void multiply(float (&c)[M][N][4], const float (&a)[M][K][4], const bf16* b_lane) {
    constexpr int PITCH = N * 8 + 8;
#pragma unroll
    for (int j = 0; j < K; j += 2) {
        u32 operand[M][4], b[4];
#pragma unroll
        for (int t = 0; t < M; t++) as_operand(operand[t], a[t][j], a[t][j + 1]);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            ldmatrix_x4_trans(b, b_lane + j * 8 * PITCH + n * 8);
#pragma unroll
            for (int t = 0; t < M; t++) mma_pair(c[t][n], c[t][n + 1], operand[t], b);
        }
    }
}

/// Over the four lanes that share a row of a result.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
    x = add_rn(x, shuffle_xor(x, 1));
    return add_rn(x, shuffle_xor(x, 2));
}

/// Stores columns of a result's row: two neighbours at `column` and on in steps of 8.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void store_row(bf16* row, const float (&x)[COUNT][4], int half, float factor) {
    int column = lane_id() % 4 * 2;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
        if (n * 8 >= WIDTH) break;
        u32 pair = pack_bf16(x[n][2 * half] * factor, x[n][2 * half + 1] * factor);
        *reinterpret_cast<u32*>(row + n * 8 + column) = pair;
    }
}
