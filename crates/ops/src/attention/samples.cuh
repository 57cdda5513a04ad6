// What all attention kernels share: where a block's sample and head lie, and its masks. Grid [·, N, B].

#define INFINITE as_float(0x7f800000u)

/// The rows of one sample: of a batch [B, L, ...], or of packed rows [total, ...] between `starts[b]` and `starts[b + 1]`.
struct Rows {
    i64 first;
    int count;
};
__device__ __forceinline__ Rows rows_of(i64 sample, i64 length, const int* starts) {
    if (starts) return {starts[sample], starts[sample + 1] - starts[sample]};
    return {sample * length, (int)length};
}
/// Where the rows of this block's sample and head begin in the log-sum-exp: [B, N, L], or [N, total] if packed.
__device__ __forceinline__ i64 statistics_row(i64 length, const int* starts) {
    if (starts) return blockIdx.y * length + starts[blockIdx.z];
    return (blockIdx.z * (i64)gridDim.y + blockIdx.y) * length;
}

/// The additive and the boolean mask of this block's sample and head, each [L, S] or null.
template <class A> struct Mask {
    const A* bias;
    const unsigned char* allowed;
    i64 bias_row, allowed_row;

    __device__ __forceinline__ Mask(const A* bias, i64 bias_sample, i64 bias_head, i64 bias_row,
                                    const unsigned char* allowed, i64 allowed_sample, i64 allowed_head, i64 allowed_row)
        : bias(bias ? bias + blockIdx.z * bias_sample + blockIdx.y * bias_head : bias),
          allowed(allowed ? allowed + blockIdx.z * allowed_sample + blockIdx.y * allowed_head : allowed),
          bias_row(bias_row), allowed_row(allowed_row) {}

    /// Whether a query may attend to a key, and what is added to their score.
    __device__ __forceinline__ bool allows(int row, int key, A& added) const {
        added = bias ? bias[row * bias_row + key] : A(0);
        return !allowed || allowed[row * allowed_row + key];
    }
};

