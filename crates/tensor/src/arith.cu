// Elementwise arithmetic on whole tensors.

typedef ELEMENT T;
typedef Wide<T>::type A;

#ifndef TO
#define TO ELEMENT
#endif

/// The elements that a thread handles: one block's worth apart, so that neighbours are read by neighbours.
#define FOR_EACH(i, n)                                                                                                 \
    for (i64 i = (i64)blockIdx.x * blockDim.x * 4 + threadIdx.x, end_ = i + (i64)blockDim.x * 4; i < end_ && i < n; i += blockDim.x)

/// x ← value
extern "C" __global__ void fill(T* x, i64 n, double value) {
    FOR_EACH(i, n) x[i] = narrow<T>((A)value);
}

/// y ← x in another type, rounded to nearest even.
extern "C" __global__ void convert(const T* x, TO* y, i64 n) {
    FOR_EACH(i, n) y[i] = narrow<TO>(widen(x[i]));
}
