// Vectors and groups of rows: y[r, c] = x[r, c] + b[g, c], and its transpose out[g, c] = Σ over the rows r of group g of x[r, c].
//
// x, y [groups·per_group, d] of T, b of T or A, sums in A. A block sums one slab of rows (`column_sum`) into one row of
// `partials` [groups·slabs, d], which partials.cu adds.
// Geometry and alignment: rows.cuh.

/// Rows that `column_sum` has in flight.
constexpr int AHEAD = 4;

extern "C" __global__ void __launch_bounds__(THREADS)
column_sum(A* partials, const T* x, i64 per_group, i64 slab, i64 d) {
    __shared__ A shared[TEAM_SUMS];
    const Columns c = columns((int)d);
    const Share s = slab_of(per_group, slab);
    A sum[PACKS][WIDTH];
    each([&](int p, int i) { sum[p][i] = 0; });
    for (i64 r = s.first; r < s.end; r += AHEAD * TEAMS) {
        Chunk rows[AHEAD][PACKS];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            i64 row = r + a * TEAMS + team();
            load_row(rows[a], x + row * d, c, row < s.end);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) each([&](int p, int i) { sum[p][i] += widen(rows[a][p].v[i]); });
    }
    store_sums(partials + blockIdx.x * d, sum, c, shared);
}

/// Rows that `add_rows` has in flight beside its vector: fewer where a thread has much of a row.
constexpr int BESIDE = PACKS > 2 ? 2 : AHEAD;

template <class B> __device__ __forceinline__ void add_to_rows(T* y, const T* x, const B* b, i64 per_group, i64 slab, i64 d) {
    const Columns c = columns((int)d);
    const Share s = slab_of(per_group, slab);
    b += s.group * d;
    A vector[PACKS][WIDTH];
    each([&](int p, int i) { vector[p][i] = c.at[p] >= 0 ? (A)widen(b[c.at[p] + i]) : (A)0; });
    for (i64 r = s.first; r < s.end; r += BESIDE * TEAMS) {
        Chunk rows[BESIDE][PACKS];
#pragma unroll
        for (int a = 0; a < BESIDE; a++) {
            i64 row = r + a * TEAMS + team();
            load_row(rows[a], x + row * d, c, x != nullptr && row < s.end);
        }
#pragma unroll
        for (int a = 0; a < BESIDE; a++) {
            i64 row = r + a * TEAMS + team();
            A out[PACKS][WIDTH];
            each([&](int p, int i) { out[p][i] = widen(rows[a][p].v[i]) + vector[p][i]; });
            if (row < s.end) store_row(y + row * d, out, c);
        }
    }
}

/// A null x is zeros; y may be x.
extern "C" __global__ void __launch_bounds__(THREADS) add_rows(T* y, const T* x, const T* b, i64 per_group, i64 slab, i64 d) {
    add_to_rows(y, x, b, per_group, slab, d);
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_rows_wide(T* y, const T* x, const A* b, i64 per_group, i64 slab, i64 d) {
    add_to_rows(y, x, b, per_group, slab, d);
}
