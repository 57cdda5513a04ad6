// y = x for n elements of T as elements of TO, rounded once to nearest even. A thread has 8 elements, in 16-byte accesses where
// both pointers are `aligned` to them.

typedef ELEMENT T;

extern "C" __global__ void __launch_bounds__(256) convert(TO* y, const T* x, i64 n, int aligned) {
    constexpr int N = 8;
    const i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (aligned && at + N <= n) {
        TO to[N];
#pragma unroll
        for (int i = 0; i < N; i += Pack<T>::N) {
            const Pack<T> from = load16(x + at + i);
#pragma unroll
            for (int e = 0; e < Pack<T>::N; e++) to[i + e] = narrow<TO>(widen(from.v[e]));
        }
#pragma unroll
        for (int i = 0; i < N; i += Pack<TO>::N) {
            Pack<TO> pack;
#pragma unroll
            for (int e = 0; e < Pack<TO>::N; e++) pack.v[e] = to[i + e];
            store16(y + at + i, pack);
        }
    } else {
        for (i64 i = at; i < at + N && i < n; i++) y[i] = narrow<TO>(widen(x[i]));
    }
}
