// Rows copied between tensors of different pitch: slices, concatenations and the transposes of both.
//
// Layout: rows of `width` units at x_start + r·x_pitch and y_start + r·y_pitch, in units of UNIT bytes, 2 to 16, which are
// copied as they are. Grid: 1-D over the units written, four a thread, a block apart. Alignment: UNIT bytes.

template <int BYTES> struct Bits;
template <> struct Bits<2> { typedef u16 type; };
template <> struct Bits<4> { typedef u32 type; };
template <> struct Bits<8> { typedef u64 type; };
template <> struct Bits<16> { typedef uint4 type; };
typedef Bits<UNIT>::type U;

constexpr int UNROLL = 4;

/// Calls f(row, column) for this thread's places among rows of `width`.
template <class F> __device__ __forceinline__ void each_place(i64 n, i64 width, F f) {
#pragma unroll
    for (int r = 0; r < UNROLL; r++) {
        i64 at = ((i64)blockIdx.x * UNROLL + r) * blockDim.x + threadIdx.x;
        if (at >= n) return;
        i64 row = n < (i64)1 << 31 ? (i64)((u32)at / (u32)width) : at / width;
        f(row, at - row * width);
    }
}

/// y[r, c] = x[r, c], or 0 where there is no x.
extern "C" __global__ void copy_rows(U* y, i64 y_pitch, i64 y_start, const U* x, i64 x_pitch, i64 x_start, i64 rows, i64 width) {
    each_place(rows * width, width, [=](i64 r, i64 c) {
        y[y_start + r * y_pitch + c] = x != nullptr ? x[x_start + r * x_pitch + c] : U();
    });
}

/// x[r, start + c] = y[r, c] for c < width, and 0 elsewhere in the rows of x, which are `pitch` units wide.
extern "C" __global__ void put_rows(U* x, i64 pitch, i64 start, const U* y, i64 rows, i64 width) {
    each_place(rows * pitch, pitch, [=](i64 r, i64 c) {
        x[r * pitch + c] = c >= start && c < start + width ? y[r * width + c - start] : U();
    });
}
