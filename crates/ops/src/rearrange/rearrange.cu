// y[…, i_k, …] = x[Σ_k i_k·stride_k]: a permutation of axes, in units of UNIT bytes, 2 to 16, copied whatever they hold.
//
// A thread writes VECTOR neighbouring units of y, 16 bytes where the extents allow it. Neighbouring threads go along the axes
// that are nearest to one another in x, so that a warp reads runs; what it writes shares sectors with its neighbours' writes.
// Axes, from the outermost for threads: six outer ones, the vectors along y's inner axes, two lanes; y's inner axes themselves,
// at most three, from the innermost, make up a vector. Grid: 1-D over vectors. Alignment: UNIT·VECTOR bytes of y, UNIT of x.
// H100, 2026-11, patches of [32, 16, 20, 60, 104] in bf16: 1.9 to 2.1 TB/s; with neighbouring threads along y, a unit each, 0.5
// to 1.1.

template <int BYTES> struct Bits;
template <> struct Bits<2> { typedef u16 type; };
template <> struct Bits<4> { typedef u32 type; };
template <> struct Bits<8> { typedef u64 type; };
template <> struct Bits<16> { typedef uint4 type; };
typedef Bits<UNIT>::type U;
typedef Bits<UNIT * VECTOR>::type V;

/// Extent, and strides in y and x.
struct Axis {
    i64 extent, y, x;
};
constexpr int AXES = 9, VECTORS = 6, INNER = 3;

/// Index is u32 where it can be: its divisions are several times faster.
template <class Index>
__device__ __forceinline__ void gather(V* y, const U* x, i64 at, const Axis (&axes)[AXES], const Axis (&inner)[INNER]) {
    Index rest = (Index)at;
    i64 to = 0, from = 0, vector = 0;
#pragma unroll
    for (int k = AXES - 1; k >= 0; k--) {
        Index extent = (Index)axes[k].extent;
        if (extent == 1) continue;
        Index outer = rest / extent;
        i64 i = (i64)(rest - outer * extent);
        to += i * axes[k].y;
        from += i * axes[k].x;
        if (k == VECTORS) vector = i;
        rest = outer;
    }
    // The place of the vector's first unit on the inner axes.
    i64 first = vector * VECTOR, i[INNER];
#pragma unroll
    for (int k = 0; k < INNER; k++) {
        i[k] = inner[k].extent == 1 ? 0 : first % inner[k].extent;
        first = inner[k].extent == 1 ? first : first / inner[k].extent;
        from += i[k] * inner[k].x;
    }
    union Units {
        V whole;
        U each[VECTOR];
        __device__ Units() {}
    } units;
#pragma unroll
    for (int v = 0; v < VECTOR; v++) {
        units.each[v] = x[from];
        from += inner[0].x;
        if (VECTOR > 1 && ++i[0] == inner[0].extent) {
            i[0] = 0;
            from += inner[1].x - inner[0].extent * inner[0].x;
            if (++i[1] == inner[1].extent) {
                i[1] = 0;
                from += inner[2].x - inner[1].extent * inner[1].x;
            }
        }
    }
    y[to / VECTOR] = units.whole;
}

#define OUTER(k) i64 d##k, i64 y##k, i64 x##k

extern "C" __global__ void permute(
    V* y, const U* x, i64 n, OUTER(0), OUTER(1), OUTER(2), OUTER(3), OUTER(4), OUTER(5), OUTER(6), OUTER(7), OUTER(8), i64 e0,
    i64 s0, i64 e1, i64 s1, i64 e2, i64 s2) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    const Axis axes[AXES] = {{d0, y0, x0}, {d1, y1, x1}, {d2, y2, x2}, {d3, y3, x3}, {d4, y4, x4},
                             {d5, y5, x5}, {d6, y6, x6}, {d7, y7, x7}, {d8, y8, x8}};
    const Axis inner[INNER] = {{e0, 1, s0}, {e1, 0, s1}, {e2, 0, s2}};
    if (n < (i64)1 << 31) {
        gather<u32>(y, x, at, axes, inner);
    } else {
        gather<u64>(y, x, at, axes, inner);
    }
}
