// What every kernel is written with: element types, 16-byte accesses, reductions, tensor-core and copy primitives.
//
// A kernel source is this text followed by its own, compiled with ELEMENT defined as bf16, float or double. Kernels touch
// the machine through the names below alone, so that the same source runs on a host, where `emulator/device.h`
// stands in for the part between the two marks.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 WARP = 32;

/// bfloat16 as stored; arithmetic is in float.
struct alignas(2) bf16 {
    u16 bits;
};

#ifndef FEWSTEP_EMULATE
// --- the machine ------------------------------------------------------------------------------------------------------

/// Names the dynamic shared memory of a kernel.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

__device__ __forceinline__ u32 lane_id() { return threadIdx.x % WARP; }
__device__ __forceinline__ u32 warp_id() { return threadIdx.x / WARP; }

/// All threads of the block.
__device__ __forceinline__ void barrier() { __syncthreads(); }
/// All lanes of the warp; orders their accesses to shared memory.
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

template <class V> __device__ __forceinline__ V shuffle_xor(V x, u32 mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
template <class V> __device__ __forceinline__ V shuffle(V x, u32 from) { return __shfl_sync(0xffffffffu, x, from); }

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

/// Nearest even.
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
/// Two in one register: `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ __forceinline__ float as_float(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 as_bits(float x) { return __float_as_uint(x); }

/// 2^x to about two units in the last place; 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/// 1/x to one unit in the last place; 0 where that is subnormal.
__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Rounded once each, never contracted into a fused multiply-add.
__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float sqrt_rn(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double mul_rn(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double add_rn(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double div_rn(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ double sqrt_rn(double a) { return __dsqrt_rn(a); }
__device__ __forceinline__ double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ u32 mul_high(u32 a, u32 b) { return __umulhi(a, b); }

/// D += A·B for a 16x16 tile A (row-major), a 16x8 tile B (column-major) of bf16, D 16x8 in float; one warp.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// Four 8x8 tiles of 16-bit elements; lane i gives the shared address of row i % 8 of tile i / 8, 16-byte aligned.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
/// As `ldmatrix_x4`, each tile transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
/// Starts a copy of 16 bytes to shared memory, zeros where not `valid` (`from` is then not read). Both 16-byte aligned.
__device__ __forceinline__ void copy_async16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until all but the newest N groups of this thread have arrived; follow with a barrier.
template <int N> __device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

// --- end of the machine -----------------------------------------------------------------------------------------------
#endif

/// The type that an element is computed in: float for bf16 and float, double for double.
template <class E> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

__device__ __forceinline__ float widen(bf16 x) { return as_float((u32)x.bits << 16); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

template <class E> __device__ __forceinline__ E narrow(float x);
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return to_bf16(x); }
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ double narrow<double>(float x) { return x; }
template <class E> __device__ __forceinline__ E narrow(double x);
/// Rounded once: a float that is not exactly x becomes the one toward zero with its last bit set, which rounds as x would.
template <> __device__ __forceinline__ bf16 narrow<bf16>(double x) {
    float near = (float)x;
    if ((double)near != x) {
        bool away = x < 0 ? (double)near < x : (double)near > x;
        near = as_float((as_bits(near) - (away ? 1 : 0)) | 1);
    }
    return to_bf16(near);
}
template <> __device__ __forceinline__ float narrow<float>(double x) { return (float)x; }
template <> __device__ __forceinline__ double narrow<double>(double x) { return x; }

/// As many elements as 16 bytes hold.
template <class E> union alignas(16) Pack {
    static constexpr int N = 16 / sizeof(E);
    uint4 raw;
    E v[N];
    __device__ Pack() {}
};
/// 16 bytes from an aligned address.
template <class E> __device__ __forceinline__ Pack<E> load16(const E* p) {
    Pack<E> x;
    x.raw = *reinterpret_cast<const uint4*>(p);
    return x;
}
template <class E> __device__ __forceinline__ void store16(E* p, const Pack<E>& x) { *reinterpret_cast<uint4*>(p) = x.raw; }
/// Rounds as many wide values as a pack holds.
template <class E> __device__ __forceinline__ Pack<E> narrow_pack(const typename Wide<E>::type (&x)[Pack<E>::N]) {
    Pack<E> y;
#pragma unroll
    for (int e = 0; e < Pack<E>::N; e++) y.v[e] = narrow<E>(x[e]);
    return y;
}
template <> __device__ __forceinline__ Pack<bf16> narrow_pack<bf16>(const float (&x)[8]) {
    Pack<bf16> y;
    y.raw.x = pack_bf16(x[0], x[1]);
    y.raw.y = pack_bf16(x[2], x[3]);
    y.raw.z = pack_bf16(x[4], x[5]);
    y.raw.w = pack_bf16(x[6], x[7]);
    return y;
}

/// y = f(x) for each of n elements: `f(x, y)` takes one wide value of every input and gives one of every output. A null input
/// is zeros, a null output is not written. A thread has one pack; 16-byte accesses where all pointers are `aligned` to them.
template <class E, int IN, int OUT, class F>
__device__ __forceinline__ void map_elements(const E* const (&x)[IN], E* const (&y)[OUT], i64 n, int aligned, F f) {
    typedef typename Wide<E>::type A;
    constexpr int N = Pack<E>::N;
    const i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= n) return;
    const bool whole = aligned && at + N <= n;
    Pack<E> from[IN];
#pragma unroll
    for (int j = 0; j < IN; j++) {
        if (x[j] != nullptr && whole) {
            from[j] = load16(x[j] + at);
        } else {
#pragma unroll
            for (int e = 0; e < N; e++) from[j].v[e] = x[j] != nullptr && at + e < n ? x[j][at + e] : narrow<E>((A)0);
        }
    }
    A to[OUT][N];
#pragma unroll
    for (int e = 0; e < N; e++) {
        A in[IN], out[OUT];
#pragma unroll
        for (int j = 0; j < IN; j++) in[j] = widen(from[j].v[e]);
        f(in, out);
#pragma unroll
        for (int j = 0; j < OUT; j++) to[j][e] = out[j];
    }
#pragma unroll
    for (int j = 0; j < OUT; j++) {
        if (y[j] == nullptr) continue;
        Pack<E> rounded = narrow_pack<E>(to[j]);
        if (whole) {
            store16(y[j] + at, rounded);
        } else {
#pragma unroll
            for (int e = 0; e < N; e++) if (at + e < n) y[j][at + e] = rounded.v[e];
        }
    }
}

/// Σ over the lanes of a warp, the same bits in every lane.
template <class V> __device__ __forceinline__ V warp_sum(V x) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}
template <class V> __device__ __forceinline__ V warp_max(V x) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        V other = shuffle_xor(x, mask);
        x = x > other ? x : other;
    }
    return x;
}
/// Σ over the threads of a block, the same bits in every thread. `scratch` is shared memory of one value a warp, free again
/// after the next barrier; blockDim.x is a multiple of a warp.
template <class V> __device__ __forceinline__ V block_sum(V x, V* scratch) {
    x = warp_sum(x);
    barrier();
    if (lane_id() == 0) scratch[warp_id()] = x;
    barrier();
    V sum = 0;
    for (u32 w = 0; w < blockDim.x / WARP; w++) sum += scratch[w];
    return sum;
}
