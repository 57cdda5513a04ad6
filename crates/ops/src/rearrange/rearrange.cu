// y[i_0, …, i_7] = x[Σ_k i_k·stride_k]: a permutation of axes.
//
// Layout: y row-major [n / (d_1 ⋯ d_7), d_1, …, d_7], x by the strides; both in units of UNIT bytes, 2 to 16, which are copied
// as they are whatever they hold. Grid: 1-D, four units a thread, a block apart, so that the writes of a warp are one run.
// Alignment: UNIT bytes.

template <int BYTES> struct Bits;
template <> struct Bits<2> { typedef u16 type; };
template <> struct Bits<4> { typedef u32 type; };
template <> struct Bits<8> { typedef u64 type; };
template <> struct Bits<16> { typedef uint4 type; };
typedef Bits<UNIT>::type U;

constexpr int UNROLL = 4;
constexpr int AXES = 8;

/// Index is u32 where it can be: its divisions are several times faster.
template <class Index>
__device__ __forceinline__ void gather(U* y, const U* x, i64 n, const i64 (&extents)[AXES], const i64 (&strides)[AXES]) {
    for (int r = 0; r < UNROLL; r++) {
        i64 at = ((i64)blockIdx.x * UNROLL + r) * blockDim.x + threadIdx.x;
        if (at >= n) return;
        Index rest = (Index)at;
        i64 from = 0;
#pragma unroll
        for (int k = AXES - 1; k > 0; k--) {
            Index extent = (Index)extents[k];
            if (extent == 1) continue;
            Index outer = rest / extent;
            from += (i64)(rest - outer * extent) * strides[k];
            rest = outer;
        }
        y[at] = x[from + (i64)rest * strides[0]];
    }
}

extern "C" __global__ void permute(
    U* y, const U* x, i64 n, i64 d1, i64 d2, i64 d3, i64 d4, i64 d5, i64 d6, i64 d7, i64 s0, i64 s1, i64 s2, i64 s3, i64 s4,
    i64 s5, i64 s6, i64 s7) {
    const i64 extents[AXES] = {1, d1, d2, d3, d4, d5, d6, d7}, strides[AXES] = {s0, s1, s2, s3, s4, s5, s6, s7};
    if (n < (i64)1 << 31) {
        gather<u32>(y, x, n, extents, strides);
    } else {
        gather<u64>(y, x, n, extents, strides);
    }
}
