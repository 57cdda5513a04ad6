// Nearest-neighbour enlargement: y[b, h, w, c] = x[b, h/2, w/2, c], and its transpose.
//
// Layout: x [B, H, W, C], y [B, 2H, 2W, C], with B·H = `rows`. Elements are T; the transpose adds in A and rounds once.
// Grid: 1-D over the elements of x, `vector` of them a thread: 16 bytes where C and the addresses allow it, else one.

typedef ELEMENT T;
typedef Wide<T>::type A;

/// The place in y of the first of the four copies of element `at` of x.
__device__ __forceinline__ i64 enlarged(i64 at, i64 w, i64 c) {
    i64 position = at / c, row = position / w;
    return 2 * (2 * row * w + position - row * w) * c + (at - position * c);
}

extern "C" __global__ void enlarge(T* y, const T* x, i64 rows, i64 w, i64 c, int vector) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * (vector ? Pack<T>::N : 1);
    if (at >= rows * w * c) return;
    i64 to = enlarged(at, w, c), below = to + 2 * w * c;
    if (vector) {
        Pack<T> value = load16(x + at);
        store16(y + to, value);
        store16(y + to + c, value);
        store16(y + below, value);
        store16(y + below + c, value);
    } else {
        T value = x[at];
        y[to] = y[to + c] = y[below] = y[below + c] = value;
    }
}

/// x_bar = the sum over the four places of each position.
extern "C" __global__ void sum_places(T* x_bar, const T* y_bar, i64 rows, i64 w, i64 c, int vector) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * (vector ? Pack<T>::N : 1);
    if (at >= rows * w * c) return;
    i64 from = enlarged(at, w, c), below = from + 2 * w * c;
    if (vector) {
        Pack<T> a = load16(y_bar + from), b = load16(y_bar + from + c), d = load16(y_bar + below), e = load16(y_bar + below + c);
        Pack<T> sum;
#pragma unroll
        for (int i = 0; i < Pack<T>::N; i++) {
            sum.v[i] = narrow<T>((widen(a.v[i]) + widen(b.v[i])) + (widen(d.v[i]) + widen(e.v[i])));
        }
        store16(x_bar + at, sum);
    } else {
        A upper = widen(y_bar[from]) + widen(y_bar[from + c]), lower = widen(y_bar[below]) + widen(y_bar[below + c]);
        x_bar[at] = narrow<T>(upper + lower);
    }
}
