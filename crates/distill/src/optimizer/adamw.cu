// AdamW, the average of the weights and their copy in the network's dtype, over every tensor of a network in one launch:
//   m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  θ ← θ − (s·m/(√v·c + ε) + d·θ),  e ← e + r·(θ − e).
//
// Layout: `table` holds eight numbers a tensor: the addresses of θ, g, m, v, e and of the copy, 0 for what there is not, its
// elements, and the chunks of all tensors before it. θ, g, m, v, e are T; the copy has elements of COPY bytes (2: bf16, 4: float,
// 8: double). Every operation is rounded by itself, so that the results are those of the CPU bit for bit. Sums over elements are
// in double, by chunk, then by tensor. Grid: a chunk of 16,384 elements a block of 256 threads; 16-byte accesses where every
// address of a tensor allows them. Deterministic: sums run in a fixed order.

typedef ELEMENT T;

template <int BYTES> struct Element;
template <> struct Element<2> { typedef bf16 type; };
template <> struct Element<4> { typedef float type; };
template <> struct Element<8> { typedef double type; };
typedef Element<COPY>::type C;

template <int BYTES> struct Whole;
template <> struct Whole<8> { typedef uint2 type; };
template <> struct Whole<16> { typedef uint4 type; };

constexpr i64 CHUNK = 16384;
constexpr i64 FIELDS = 8;
constexpr u32 WARPS = 8;

struct Chunk {
    const i64* tensor;
    i64 start, len;

    template <class V> __device__ __forceinline__ V* at(int field) const {
        V* base = reinterpret_cast<V*>(tensor[field]);
        return base == nullptr ? nullptr : base + start;
    }
};

/// The chunk of this block: the last tensor with as many chunks before it, or fewer.
__device__ __forceinline__ Chunk chunk_of(const i64* table, i64 tensors) {
    i64 low = 0, high = tensors;
    while (high - low > 1) {
        i64 middle = (low + high) / 2;
        if (table[middle * FIELDS + 7] <= (i64)blockIdx.x) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const i64* tensor = table + low * FIELDS;
    i64 start = ((i64)blockIdx.x - tensor[7]) * CHUNK, left = tensor[6] - start;
    return {tensor, start, left < CHUNK ? left : CHUNK};
}

__device__ __forceinline__ bool aligned(const void* p) { return (reinterpret_cast<u64>(p) & 15) == 0; }

/// Calls f with Pack<T>::N neighbours or with one: f(place, constant), over the elements of a chunk.
template <int N> struct Count { static constexpr int value = N; };
template <class F> __device__ __forceinline__ void each_place(i64 len, bool vector, F f) {
    i64 packs = vector ? len / Pack<T>::N : 0;
    for (i64 i = threadIdx.x; i < packs; i += blockDim.x) f(i * Pack<T>::N, Count<Pack<T>::N>());
    for (i64 i = packs * Pack<T>::N + threadIdx.x; i < len; i += blockDim.x) f(i, Count<1>());
}

template <class E, int N> __device__ __forceinline__ void load(E (&to)[N], const E* from) {
    if constexpr (N > 1 && N * sizeof(E) == 16) {
        Pack<E> pack = load16(from);
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = pack.v[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = from[i];
    }
}
/// Neighbours at once where they fill 16 or 8 bytes.
template <class E, int N> __device__ __forceinline__ void store(E* to, const E (&from)[N]) {
    constexpr int BYTES = N * sizeof(E);
    if constexpr (N > 1 && (BYTES == 16 || BYTES == 8)) {
        union Word {
            typename Whole<BYTES>::type raw;
            E v[N];
            __device__ Word() {}
        } word;
#pragma unroll
        for (int i = 0; i < N; i++) word.v[i] = from[i];
        *reinterpret_cast<typename Whole<BYTES>::type*>(to) = word.raw;
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = from[i];
    }
}

/// e + r·(θ − e); a rate of 1 copies, bit for bit.
__device__ __forceinline__ T blend(T e, T p, T rate) { return rate == T(1) ? p : add_rn(e, mul_rn(rate, add_rn(p, -e))); }

/// partial[chunk] = {Σ g², how many elements have no finite square}.
extern "C" __global__ void sum_squares(double* partial, const i64* table, i64 tensors) {
    __shared__ double scratch[WARPS];
    Chunk chunk = chunk_of(table, tensors);
    const T* g = chunk.at<const T>(1);
    double squares = 0, unusable = 0;
    each_place(chunk.len, aligned(g), [&](i64 at, auto n) {
        constexpr int N = decltype(n)::value;
        T x[N];
        load(x, g + at);
#pragma unroll
        for (int i = 0; i < N; i++) {
            squares += (double)x[i] * (double)x[i];
            T square = mul_rn(x[i], x[i]);
            if (!(square - square == T(0))) unusable += 1;
        }
    });
    squares = block_sum(squares, scratch);
    unusable = block_sum(unusable, scratch);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = squares;
        partial[2 * blockIdx.x + 1] = unusable;
    }
}

/// sums[tensor, column] = Σ over its chunks of partial[chunk, column]. Grid: tensors × columns.
extern "C" __global__ void sum_chunks(double* sums, const double* partial, const i64* table) {
    __shared__ double scratch[WARPS];
    const i64* tensor = table + blockIdx.x * FIELDS;
    i64 chunks = (tensor[6] + CHUNK - 1) / CHUNK;
    double sum = 0;
    for (i64 i = threadIdx.x; i < chunks; i += blockDim.x) sum += partial[(tensor[7] + i) * gridDim.y + blockIdx.y];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x * gridDim.y + blockIdx.y] = sum;
}

struct Coefficients {
    T clip, beta1, one_minus_beta1, beta2, one_minus_beta2, root_scale, eps, step_size, decay, rate;
};

/// The update of N neighbours; returns their share of ‖θ' − θ‖².
template <int N>
__device__ __forceinline__ double update_places(const Coefficients& c, T* p, const T* g, T* m, T* v, T* e, C* copy) {
    T theta[N], gradient[N], first[N], second[N], average[N];
    C rounded[N];
    load(theta, p);
    load(gradient, g);
    load(second, v);
    if (m != nullptr) load(first, m);
    if (e != nullptr) load(average, e);
    double squares = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        T clipped = mul_rn(c.clip, gradient[i]);
        // Without a first moment the step size holds the clip factor.
        first[i] = m != nullptr ? add_rn(mul_rn(c.beta1, first[i]), mul_rn(c.one_minus_beta1, clipped)) : gradient[i];
        second[i] = add_rn(mul_rn(c.beta2, second[i]), mul_rn(c.one_minus_beta2, mul_rn(clipped, clipped)));
        T old = theta[i], root = add_rn(mul_rn(sqrt_rn(second[i]), c.root_scale), c.eps);
        T step = add_rn(div_rn(mul_rn(c.step_size, first[i]), root), mul_rn(c.decay, old));
        theta[i] = add_rn(old, -step);
        double moved = (double)add_rn(theta[i], -old);
        squares += moved * moved;
        if (e != nullptr) average[i] = blend(average[i], theta[i], c.rate);
        rounded[i] = narrow<C>(theta[i]);
    }
    store(p, theta);
    store(v, second);
    if (m != nullptr) store(m, first);
    if (e != nullptr) store(e, average);
    if (copy != nullptr) store(copy, rounded);
    return squares;
}

/// One step of every tensor; partial[chunk] = ‖θ' − θ‖².
extern "C" __global__ void update(
    double* partial, const i64* table, i64 tensors, double clip, double beta1, double one_minus_beta1, double beta2,
    double one_minus_beta2, double root_scale, double eps, double step_size, double decay, double rate) {
    __shared__ double scratch[WARPS];
    Coefficients c = {(T)clip, (T)beta1, (T)one_minus_beta1, (T)beta2, (T)one_minus_beta2,
                      (T)root_scale, (T)eps, (T)step_size, (T)decay, (T)rate};
    Chunk chunk = chunk_of(table, tensors);
    T *p = chunk.at<T>(0), *m = chunk.at<T>(2), *v = chunk.at<T>(3), *e = chunk.at<T>(4);
    const T* g = chunk.at<const T>(1);
    C* copy = chunk.at<C>(5);
    bool vector = aligned(p) && aligned(g) && aligned(m) && aligned(v) && aligned(e) && aligned(copy);
    double squares = 0;
    each_place(chunk.len, vector, [&](i64 at, auto n) {
        constexpr int N = decltype(n)::value;
        squares += update_places<N>(
            c, p + at, g + at, m == nullptr ? m : m + at, v + at, e == nullptr ? e : e + at, copy == nullptr ? copy : copy + at);
    });
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = squares;
}

/// The average alone.
extern "C" __global__ void average(const i64* table, i64 tensors, double rate) {
    Chunk chunk = chunk_of(table, tensors);
    const T* p = chunk.at<const T>(0);
    T* e = chunk.at<T>(4);
    each_place(chunk.len, aligned(p) && aligned(e), [&](i64 at, auto n) {
        constexpr int N = decltype(n)::value;
        T theta[N], mean[N];
        load(theta, p + at);
        load(mean, e + at);
#pragma unroll
        for (int i = 0; i < N; i++) mean[i] = blend(mean[i], theta[i], (T)rate);
        store(e + at, mean);
    });
}
