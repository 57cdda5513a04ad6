// y = a(x) for each of n elements of T, computed in A; KIND is the place of a among the kinds. A thread has 16 bytes.
//
// In bf16 the logistic function uses the approximate exponential and reciprocal: an error of 2⁻¹⁷ of its value at most, against
// 2⁻⁹ of a rounding. Values below 2⁻¹²⁶ become zero.

typedef ELEMENT T;
typedef Wide<T>::type A;

constexpr int GELU_TANH = 0, GELU_EXACT = 1, SILU = 2, RELU = 3;
/// 2·√(2/π): ½(1 + tanh u) is the logistic function of 2u.
constexpr double GELU_SLOPE = 1.5957691216057307;
constexpr double GELU_CUBIC = 0.044715;

__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float exponential(float x) {
    return sizeof(T) == 2 ? exp2_fast(mul_rn(x, 1.44269504f)) : expf(x);
}
__device__ __forceinline__ double reciprocal(double x) { return div_rn(1.0, x); }
__device__ __forceinline__ float reciprocal(float x) { return sizeof(T) == 2 ? reciprocal_fast(x) : div_rn(1.0f, x); }
__device__ __forceinline__ double error_function(double x) { return erf(x); }
__device__ __forceinline__ float error_function(float x) { return erff(x); }

__device__ __forceinline__ A logistic(A x) { return reciprocal(add_rn((A)1, exponential(-x))); }

/// Φ(x) = ½(1 + erf(x/√2))
__device__ __forceinline__ A normal_cdf(A x) {
    return mul_rn((A)0.5, add_rn((A)1, error_function(mul_rn(x, (A)0.70710678118654752))));
}

/// The factor of x in a(x), and da/dx.
struct Gate {
    A value, slope;
};
__device__ __forceinline__ Gate gate(A x) {
    Gate g;
    if (KIND == GELU_TANH) {
        A square = mul_rn(x, x);
        g.value = logistic(mul_rn(x, fma_rn((A)(GELU_SLOPE * GELU_CUBIC), square, (A)GELU_SLOPE)));
        A inner = (A)(3 * GELU_SLOPE * GELU_CUBIC) * square + (A)GELU_SLOPE;
        g.slope = x * inner * g.value * ((A)1 - g.value) + g.value;
    } else if (KIND == GELU_EXACT) {
        g.value = normal_cdf(x);
        // 1/√(2π)
        g.slope = x * ((A)0.3989422804014327 * exponential((A)-0.5 * x * x)) + g.value;
    } else if (KIND == SILU) {
        g.value = logistic(x);
        g.slope = x * g.value * ((A)1 - g.value) + g.value;
    } else {
        g.value = g.slope = x > 0 ? (A)1 : (A)0;
    }
    return g;
}

/// A NaN stays one.
__device__ __forceinline__ A value(A x, const Gate& g) { return KIND == RELU ? (x < 0 ? (A)0 : x) : mul_rn(x, g.value); }

extern "C" __global__ void __launch_bounds__(256) forward(T* y, const T* x, i64 n, int aligned) {
    map_elements<T, 1, 1>({x}, {y}, n, aligned, [](const A* in, A* out) { out[0] = value(in[0], gate(in[0])); });
}

/// ẏ = ẋ·a′(x), beside y.
extern "C" __global__ void __launch_bounds__(256) jvp(T* y, T* y_dot, const T* x, const T* x_dot, i64 n, int aligned) {
    map_elements<T, 2, 2>({x, x_dot}, {y, y_dot}, n, aligned, [](const A* in, A* out) {
        Gate g = gate(in[0]);
        out[0] = value(in[0], g);
        out[1] = in[1] * g.slope;
    });
}

/// x̄ = ȳ·a′(x)
extern "C" __global__ void __launch_bounds__(256) vjp(T* x_bar, const T* y_bar, const T* x, i64 n, int aligned) {
    map_elements<T, 2, 1>({x, y_bar}, {x_bar}, n, aligned, [](const A* in, A* out) { out[0] = in[1] * gate(in[0]).slope; });
}
