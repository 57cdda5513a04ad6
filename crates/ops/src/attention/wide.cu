// P = softmax(scale·S) by rows, and the log-sum-exp: S [rows, keys] in float, P of T; every sum in float, in a fixed order.
//
// A block has a row, which it reads three times: for the maximum, for the sum, to write. The row is in the second-level cache by
// then; the products around take most of the time.

typedef ELEMENT T;

constexpr float LOG2_E = 1.4426950408889634f;
constexpr u32 THREADS = 256, WARPS = THREADS / WARP;

/// The largest of the block's values, in every thread. `scratch` is free again after the next barrier.
__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    barrier();
    for (u32 w = 0; w < WARPS; w++) x = fmaxf(x, scratch[w]);
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
softmax_rows(T* p, float* log_sum_exp, const float* s, i64 keys, double scale) {
    __shared__ float largest[WARPS], sums[WARPS];
    const float* from = s + (i64)blockIdx.x * keys;
    T* to = p + (i64)blockIdx.x * keys;
    float top = from[0];
    for (i64 j = threadIdx.x; j < keys; j += THREADS) top = fmaxf(top, from[j]);
    top = block_max(top, largest);

    const float unit = (float)scale * LOG2_E, base = mul_rn(top, unit);
    float sum = 0;
    for (i64 j = threadIdx.x; j < keys; j += THREADS) sum = add_rn(sum, exp2_fast(fma_rn(from[j], unit, -base)));
    sum = block_sum(sum, sums);

    const float inverse = div_rn(1.0f, sum);
    for (i64 j = threadIdx.x; j < keys; j += THREADS) to[j] = narrow<T>(mul_rn(exp2_fast(fma_rn(from[j], unit, -base)), inverse));
    if (threadIdx.x == 0) log_sum_exp[blockIdx.x] = fma_rn(top, (float)scale, logf(sum));
}
