// Arithmetic on whole tensors of T. Elementwise kernels give a thread 16 bytes; sums are in double over fixed pieces, added in
// order: the same bits on every run.

typedef ELEMENT T;
typedef Wide<T>::type A;

extern "C" __global__ void __launch_bounds__(256) add(T* y, const T* a, const T* b, i64 n, int aligned) {
    map_elements<T, 2, 1>({a, b}, {y}, n, aligned, [](const A* in, A* out) { out[0] = in[0] + in[1]; });
}

extern "C" __global__ void __launch_bounds__(256) sub(T* y, const T* a, const T* b, i64 n, int aligned) {
    map_elements<T, 2, 1>({a, b}, {y}, n, aligned, [](const A* in, A* out) { out[0] = in[0] - in[1]; });
}

extern "C" __global__ void __launch_bounds__(256) fill(T* y, i64 n, int aligned, double value) {
    const T rounded = narrow<T>(value);
    map_elements<T, 1, 1>({nullptr}, {y}, n, aligned, [=](const A*, A* out) { out[0] = widen(rounded); });
}

/// y = Σᵢ cᵢ(sample)·xᵢ for x [samples, row] and f64 coefficients [samples], summed in f64 from the first term on and rounded
/// once; terms from the first null on are absent.
extern "C" __global__ void __launch_bounds__(256)
combine(T* y, const double* c0, const T* x0, const double* c1, const T* x1, const double* c2, const T* x2, const double* c3,
        const T* x3, const double* c4, const T* x4, const double* c5, const T* x5, const double* c6, const T* x6,
        const double* c7, const T* x7, i64 row, i64 pieces, int aligned) {
    constexpr int N = Pack<T>::N, TERMS = 8;
    const double* const cs[TERMS] = {c0, c1, c2, c3, c4, c5, c6, c7};
    const T* const xs[TERMS] = {x0, x1, x2, x3, x4, x5, x6, x7};
    const u32 sample = blockIdx.x / (u32)pieces, piece = blockIdx.x % (u32)pieces;
    const i64 at = ((i64)piece * blockDim.x + threadIdx.x) * N, from = sample * row + at;
    if (at >= row) return;
    const bool whole = aligned && at + N <= row;
    double sum[N];
#pragma unroll
    for (int e = 0; e < N; e++) sum[e] = 0;
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        if (xs[t] == nullptr) break;
        const double c = cs[t][sample];
        Pack<T> x;
        if (whole) {
            x = load16(xs[t] + from);
        } else {
#pragma unroll
            for (int e = 0; e < N; e++) x.v[e] = at + e < row ? xs[t][from + e] : narrow<T>((A)0);
        }
#pragma unroll
        for (int e = 0; e < N; e++) sum[e] = add_rn(sum[e], mul_rn(c, (double)widen(x.v[e])));
    }
    if (whole) {
        Pack<T> rounded;
#pragma unroll
        for (int e = 0; e < N; e++) rounded.v[e] = narrow<T>(sum[e]);
        store16(y + from, rounded);
    } else {
#pragma unroll
        for (int e = 0; e < N; e++) if (at + e < row) y[from + e] = narrow<T>(sum[e]);
    }
}

// Sums over samples [samples, row].

/// What is summed: by·x², |x|, whether x is not finite; else by·x·other.
constexpr u32 SQUARES = 0, MAGNITUDES = 1, NON_FINITE = 2;

/// One sum a piece of a sample: `partials` [samples, pieces]; a block sums one piece, of a multiple of 8 elements.
extern "C" __global__ void __launch_bounds__(256)
sum(double* partials, const T* x, const T* other, double by, u32 what, i64 row, i64 piece, int aligned) {
    __shared__ double scratch[8];
    constexpr int N = Pack<T>::N;
    const u32 pieces = (u32)((row + piece - 1) / piece);
    const u32 sample = blockIdx.x / pieces;
    const i64 first = (i64)(blockIdx.x % pieces) * piece, end = first + piece < row ? first + piece : row;
    x += sample * row;
    if (other != nullptr) other += sample * row;
    auto term = [&](T element, T beside) -> double {
        const double v = (double)widen(element);
        if (what == SQUARES) return mul_rn(mul_rn(by, v), v);
        if (what == MAGNITUDES) return v < 0 ? -v : v;
        if (what == NON_FINITE) return v - v == 0 ? 0 : 1;
        return mul_rn(mul_rn(by, v), (double)widen(beside));
    };
    double total = 0;
    for (i64 at = first + threadIdx.x * N; at < end; at += (i64)blockDim.x * N) {
        if (aligned && at + N <= end) {
            const Pack<T> a = load16(x + at), b = other != nullptr ? load16(other + at) : a;
#pragma unroll
            for (int e = 0; e < N; e++) total = add_rn(total, term(a.v[e], b.v[e]));
        } else {
            for (int e = 0; e < N && at + e < end; e++) {
                total = add_rn(total, term(x[at + e], other != nullptr ? other[at + e] : x[at + e]));
            }
        }
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

/// The pieces of each sample, one block each.
extern "C" __global__ void __launch_bounds__(256) add_pieces(double* out, const double* partials, i64 pieces) {
    __shared__ double scratch[8];
    double total = 0;
    for (i64 i = threadIdx.x; i < pieces; i += blockDim.x) total = add_rn(total, partials[blockIdx.x * pieces + i]);
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}

// Standard normal noise: Philox4x32-10 and Box–Muller from operations that are rounded once each, in the order of `random.rs`:
// the same bits as on a CPU.

struct Normals {
    float first, second;
};

/// ln u for u ∈ (0, 1]
__device__ __forceinline__ float ln_unit(float u) {
    const u32 bits = as_bits(u);
    const int e = (int)(bits - 0x3f3504f3u) >> 23;
    const float m = as_float(bits - ((u32)e << 23));
    const float z = div_rn(add_rn(m, -1.0f), add_rn(m, 1.0f));
    const float w = mul_rn(z, z);
    float p = fma_rn(w, 1.0f / 9.0f, 1.0f / 7.0f);
    p = fma_rn(w, p, 0.2f);
    p = fma_rn(w, p, 1.0f / 3.0f);
    const float atanh = fma_rn(mul_rn(w, z), p, z);
    return fma_rn((float)e, 0.693147180559945309f, mul_rn(2.0f, atanh));
}

__device__ __forceinline__ Normals box_muller(u32 a, u32 b) {
    const float u = mul_rn((float)((a >> 8) + 1), 5.9604644775390625e-8f);
    const float radius = sqrt_rn(mul_rn(-2.0f, ln_unit(u)));
    const float turn = mul_rn((float)(b >> 8), 5.9604644775390625e-8f);
    const u32 quadrant = (u32)add_rn(mul_rn(4.0f, turn), 0.5f);
    const float x = mul_rn(6.28318530717958647f, fma_rn(-0.25f, (float)quadrant, turn));
    const float w = mul_rn(x, x);
    float s = fma_rn(w, 1.0f / 362880.0f, -1.0f / 5040.0f);
    s = fma_rn(w, s, 1.0f / 120.0f);
    s = fma_rn(w, s, -1.0f / 6.0f);
    const float sin = fma_rn(mul_rn(x, w), s, x);
    float c = fma_rn(w, 1.0f / 40320.0f, -1.0f / 720.0f);
    c = fma_rn(w, c, 1.0f / 24.0f);
    c = fma_rn(w, c, -0.5f);
    const float cos = fma_rn(w, c, 1.0f);
    // (cos, sin) turned by quarters.
    const bool odd = quadrant % 2 == 1, flip_cos = quadrant % 4 == 1 || quadrant % 4 == 2, flip_sin = quadrant % 4 >= 2;
    const float real = odd ? sin : cos, imaginary = odd ? cos : sin;
    Normals n;
    n.first = mul_rn(radius, flip_cos ? -real : real);
    n.second = mul_rn(radius, flip_sin ? -imaginary : imaginary);
    return n;
}

/// Row i of y [samples, row] is sample first + i of the stream (key, iteration, purpose); a thread draws four elements.
extern "C" __global__ void __launch_bounds__(256)
normal(T* y, i64 row, i64 pieces, u32 first, u32 key_low, u32 key_high, u32 iteration, u32 purpose) {
    const u32 sample = blockIdx.x / (u32)pieces;
    const i64 block = (i64)(blockIdx.x % (u32)pieces) * blockDim.x + threadIdx.x;
    if (block * 4 >= row) return;
    u32 c[4] = {(u32)block, first + sample, iteration, purpose};
    u32 k0 = key_low, k1 = key_high;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        if (round > 0) k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        const u32 high0 = mul_high(c[0], 0xD2511F53u), low0 = c[0] * 0xD2511F53u;
        const u32 high1 = mul_high(c[2], 0xCD9E8D57u), low1 = c[2] * 0xCD9E8D57u;
        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
    }
    const Normals a = box_muller(c[0], c[1]), b = box_muller(c[2], c[3]);
    const float draws[4] = {a.first, a.second, b.first, b.second};
    y += sample * row + block * 4;
#pragma unroll
    for (int e = 0; e < 4; e++) if (block * 4 + e < row) y[e] = narrow<T>(draws[e]);
}
