// Rows in registers: what the kernels over [rows, d] share.
//
// A team of TEAM threads holds one row: PACKS chunks of WIDTH neighbouring elements a thread. A block is THREADS threads, so
// THREADS/TEAM teams, and walks a share of the rows of one group, which have their modulation in common. A thread has the same
// columns of every row, so that modulations and sums over rows stay in its registers.
//
// TEAM is a power of two up to a warp, or THREADS, a multiple of a warp. ALIGNED: chunks are 16 bytes and every row starts at a
// multiple of 16 bytes. A row that does not fit the registers spills, and is still right.

typedef ELEMENT T;
typedef Wide<T>::type A;

constexpr int TEAMS = THREADS / TEAM;
constexpr int WARPS = (THREADS + WARP - 1) / WARP;

#if ALIGNED
typedef Pack<T> Chunk;
#else
struct Chunk {
    T v[WIDTH];
};
#endif

__device__ __forceinline__ int team() { return threadIdx.x / TEAM; }
__device__ __forceinline__ int member() { return threadIdx.x % TEAM; }

/// The first column of each chunk of a thread; −1 for a chunk beyond the row.
struct Columns {
    int at[PACKS];
};

/// Chunks dealt to the members of a team in turn.
__device__ __forceinline__ Columns columns(int d) {
    Columns c;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int at = (p * TEAM + member()) * WIDTH;
        c.at[p] = at < d ? at : -1;
    }
    return c;
}

/// The rows of a block, all of one group. Every team runs the loop `for (r = first; r < end; r += step)` with row r + team(),
/// which may lie beyond the end: barriers and shuffles need all threads.
struct Share {
    i64 group, first, end, step;
};
/// A slab: neighbouring rows.
__device__ __forceinline__ Share slab_of(i64 per_group, i64 slab) {
    const u32 slabs = (u32)((per_group + slab - 1) / slab);
    Share s;
    s.group = blockIdx.x / slabs;
    s.first = s.group * per_group + (i64)(blockIdx.x % slabs) * slab;
    i64 end = (s.group + 1) * per_group;
    s.end = s.first + slab < end ? s.first + slab : end;
    s.step = TEAMS;
    return s;
}
/// As many rows, dealt to the blocks of a group in turn, so that together they sweep it: where all blocks run at once memory
/// is read in order.
__device__ __forceinline__ Share stripe_of(i64 per_group, i64 slab) {
    const u32 slabs = (u32)((per_group + slab - 1) / slab);
    Share s;
    s.group = blockIdx.x / slabs;
    s.first = s.group * per_group + (i64)(blockIdx.x % slabs) * TEAMS;
    s.end = (s.group + 1) * per_group;
    s.step = (i64)slabs * TEAMS;
    return s;
}

__device__ __forceinline__ void load_row(Chunk (&x)[PACKS], const T* row, const Columns& c, bool valid) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        if (valid && c.at[p] >= 0) {
#if ALIGNED
            x[p] = load16(row + c.at[p]);
#else
#pragma unroll
            for (int i = 0; i < WIDTH; i++) x[p].v[i] = row[c.at[p] + i];
#endif
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) x[p].v[i] = narrow<T>((A)0);
        }
    }
}

__device__ __forceinline__ void store_row(T* row, const A (&x)[PACKS][WIDTH], const Columns& c) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        if (c.at[p] < 0) continue;
#if ALIGNED
        store16(row + c.at[p], narrow_pack<T>(x[p]));
#else
#pragma unroll
        for (int i = 0; i < WIDTH; i++) row[c.at[p] + i] = narrow<T>(x[p][i]);
#endif
    }
}

/// The rows of a share of N tensors, in order. They are copied ahead to shared memory: so they need no registers, and no barrier,
/// since a thread copies what it reads itself. Chunks that are not 16 aligned bytes, and rows too wide, are read when taken.
template <int N> struct Walk {
    /// Rows under way, and the most bytes of shared memory for them.
    static constexpr int AHEAD = 2, MOST = 40 * 1024;
    static constexpr int SLOT = N * PACKS * THREADS;
    static constexpr bool COPIES = ALIGNED && AHEAD * SLOT * 16 <= MOST;
    /// Chunks of shared memory, 16 bytes each.
    static constexpr int ROOM = COPIES ? AHEAD * SLOT : 1;

    uint4* room;
    const T* x[N];
    Columns columns;
    i64 d, end, step;
    /// The row that is taken next.
    i64 row;
    u32 turn;

    /// A null tensor is zeros.
    __device__ __forceinline__ Walk(uint4* room, const T* const (&x)[N], const Columns& c, const Share& s, i64 d)
        : room(room), columns(c), d(d), end(s.end), step(s.step), row(s.first + team()), turn(0) {
#pragma unroll
        for (int n = 0; n < N; n++) this->x[n] = x[n];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) copy(row + a * step, a);
    }
    __device__ __forceinline__ uint4* slot(u32 a, int n, int p) { return room + a * SLOT + (n * PACKS + p) * THREADS + threadIdx.x; }
    __device__ __forceinline__ void copy(i64 r, u32 a) {
        if constexpr (COPIES) {
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int p = 0; p < PACKS; p++) {
                    copy_async16(slot(a, n, p), x[n] + r * d + columns.at[p], x[n] != nullptr && r < end && columns.at[p] >= 0);
                }
            }
            copy_async_commit();
        }
    }
    /// The next row of each tensor.
    __device__ __forceinline__ void take(Chunk (&now)[N][PACKS]) {
        if constexpr (COPIES) {
            copy_async_wait<AHEAD - 1>();
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int p = 0; p < PACKS; p++) now[n][p].raw = *slot(turn, n, p);
            }
        } else {
#pragma unroll
            for (int n = 0; n < N; n++) load_row(now[n], x[n] + row * d, columns, x[n] != nullptr && row < end);
        }
    }
    /// Starts on another row in place of the one that was taken, once its values are in use.
    __device__ __forceinline__ void advance() {
        copy(row + AHEAD * step, turn);
        row += step;
        turn = (turn + 1) % AHEAD;
    }
};

/// N wide values from an address that is aligned where chunks are.
template <int N> __device__ __forceinline__ void load_wide(A (&v)[N], const A* p) {
    constexpr int EACH = Pack<A>::N;
    if (ALIGNED && N % EACH == 0) {
#pragma unroll
        for (int i = 0; i < N / EACH; i++) {
            Pack<A> x = load16(p + i * EACH);
#pragma unroll
            for (int e = 0; e < EACH; e++) v[i * EACH + e] = x.v[e];
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = p[i];
    }
}

/// A vector of wide values at a thread's columns; zero beyond the row and where there is no vector.
__device__ __forceinline__ void load_vector(A (&v)[PACKS][WIDTH], const A* vector, const Columns& c) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        if (vector != nullptr && c.at[p] >= 0) {
            load_wide(v[p], vector + c.at[p]);
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) v[p][i] = 0;
        }
    }
}

/// Calls f(p, i) for each element of a thread.
template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) f(p, i);
    }
}

/// Where the warps of a team leave their sums: two of these in turn, so that one barrier a sum is enough.
constexpr int SCRATCH = 2 * 2 * WARPS;

/// Σ over a team of N ≤ 2 values at once, the same bits in every member and whatever the other value is. All threads of the
/// block; `turn` counts the calls.
template <int N> __device__ __forceinline__ void team_sum(A (&v)[N], A* scratch, u32& turn) {
#pragma unroll
    for (u32 mask = (TEAM < WARP ? TEAM : WARP) / 2; mask > 0; mask /= 2) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = add_rn(v[i], shuffle_xor(v[i], mask));
    }
    if (TEAM <= WARP) return;
    A* mine = scratch + (turn++ % 2) * 2 * WARPS;
    if (lane_id() == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) mine[i * WARPS + warp_id()] = v[i];
    }
    barrier();
#pragma unroll
    for (int i = 0; i < N; i++) {
        A sum = mine[i * WARPS];
#pragma unroll
        for (int w = 1; w < WARPS; w++) sum = add_rn(sum, mine[i * WARPS + w]);
        v[i] = sum;
    }
}

/// Where the teams of a block leave their sums over rows.
constexpr int TEAM_SUMS = TEAMS > 1 ? THREADS * PACKS * WIDTH : 1;

/// Writes a block's sums over its rows, the teams' added in order. `shared` holds TEAM_SUMS values.
__device__ __forceinline__ void store_sums(A* out, const A (&sum)[PACKS][WIDTH], const Columns& c, A* shared) {
    A total[PACKS][WIDTH];
    each([&](int p, int i) { total[p][i] = sum[p][i]; });
    if (TEAMS > 1) {
        barrier();
        each([&](int p, int i) { shared[(p * WIDTH + i) * THREADS + threadIdx.x] = sum[p][i]; });
        barrier();
        if (team() > 0) return;
        for (int t = 1; t < TEAMS; t++) {
            each([&](int p, int i) { total[p][i] += shared[(p * WIDTH + i) * THREADS + t * TEAM + threadIdx.x]; });
        }
    }
    each([&](int p, int i) { if (c.at[p] >= 0) out[c.at[p] + i] = total[p][i]; });
}
