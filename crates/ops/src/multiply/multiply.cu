// y = a∘b for each of n elements of T, computed in A. A thread has 16 bytes.

typedef ELEMENT T;
typedef Wide<T>::type A;

extern "C" __global__ void __launch_bounds__(256) forward(T* y, const T* a, const T* b, i64 n, int aligned) {
    map_elements<T, 2, 1>({a, b}, {y}, n, aligned, [](const A* in, A* out) { out[0] = mul_rn(in[0], in[1]); });
}

/// ẏ = ȧ∘b + a∘ḃ, beside y. A missing tangent is null.
extern "C" __global__ void __launch_bounds__(256)
jvp(T* y, T* y_dot, const T* a, const T* b, const T* a_dot, const T* b_dot, i64 n, int aligned) {
    map_elements<T, 4, 2>({a, b, a_dot, b_dot}, {y, y_dot}, n, aligned, [](const A* in, A* out) {
        out[0] = mul_rn(in[0], in[1]);
        out[1] = in[2] * in[1] + in[0] * in[3];
    });
}

/// ā = ȳ∘b, b̄ = ȳ∘a. Null is not wanted.
extern "C" __global__ void __launch_bounds__(256)
vjp(T* a_bar, T* b_bar, const T* y_bar, const T* a, const T* b, i64 n, int aligned) {
    map_elements<T, 3, 2>({y_bar, a, b}, {a_bar, b_bar}, n, aligned, [](const A* in, A* out) {
        out[0] = in[0] * in[2];
        out[1] = in[0] * in[1];
    });
}
