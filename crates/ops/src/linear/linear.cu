// What a linear layer needs beside the library's products.

typedef ELEMENT T;
typedef Wide<T>::type A;

/// y ← y + b, b [columns] added to every row.
extern "C" __global__ void add_rows(T* y, const T* b, i64 n, i64 columns) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(widen(y[i]) + widen(b[i % columns]));
}

/// sum[p, c] ← Σ x[r, c] over the rows r of piece p = blockIdx.y, in their order.
extern "C" __global__ void sum_rows(const T* x, A* sum, i64 rows, i64 columns, i64 piece) {
    i64 c = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= columns) return;
    i64 first = blockIdx.y * piece, end = first + piece < rows ? first + piece : rows;
    A s = 0;
#pragma unroll 8
    for (i64 r = first; r < end; r++) s += widen(x[r * columns + c]);
    sum[blockIdx.y * columns + c] = s;
}
