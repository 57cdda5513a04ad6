// y[i, :] = table[ids[i], :], and the transpose: each row of the table sums the rows of ȳ that were taken from it, in order.
//
// Layout: table [V, D] of elements of STORED bytes (2: bf16, 4: float, 8: double), y [I, D] of T; the transpose is in A. Rounded
// once on store. Grid: gather, blocks of columns × rows of y; scatter, blocks of columns × rows of the table.
// Deterministic: a sum runs over its rows in order. Alignment: 16 bytes of every row where `vector`.

typedef ELEMENT T;
typedef Wide<T>::type A;

template <int BYTES> struct Element;
template <> struct Element<2> { typedef bf16 type; };
template <> struct Element<4> { typedef float type; };
template <> struct Element<8> { typedef double type; };
typedef Element<STORED>::type S;

/// `vector`: T and S are one type, and 16 bytes of it are copied at a time.
extern "C" __global__ void gather(T* y, const S* table, const u32* ids, i64 d, int vector) {
    i64 row = blockIdx.x, column = ((i64)blockIdx.y * blockDim.x + threadIdx.x) * (vector ? Pack<S>::N : 1);
    if (column >= d) return;
    const S* from = table + (i64)ids[row] * d + column;
    if (vector) {
        *reinterpret_cast<uint4*>(y + row * d + column) = load16(from).raw;
    } else {
        y[row * d + column] = narrow<T>(widen(*from));
    }
}

/// `rows` holds the rows of y by the row of the table, those of v at first[v]..first[v + 1].
extern "C" __global__ void scatter(A* table_bar, const T* y_bar, const u32* first, const u32* rows, i64 d) {
    i64 v = blockIdx.x, column = (i64)blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= d) return;
    A sum = 0;
    for (u32 k = first[v]; k < first[v + 1]; k++) sum += widen(y_bar[(i64)rows[k] * d + column]);
    table_bar[v * d + column] = sum;
}
