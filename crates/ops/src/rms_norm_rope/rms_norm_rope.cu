// y = RoPE(x·inv·weight), inv = 1/√(⟨x²⟩ + eps) over each part of a row: the whole width, or one head.
//
// A row here is one part, x [B·tokens·PARTS, d] of T with PARTS parts a token; weight [d], the kept inv [rows], the tables cos
// and sin [tokens, k/2] and all sums in A. Groups are samples, so that a row's place in its group gives its token. STYLE: 0 no
// rotation, 1 pairs (2j, 2j + 1) (WIDTH even), 2 pairs (j, j + k/2) (PACKS even). One pass. Geometry and alignment: rows.cuh.

/// In style 2 the chunks 2q and 2q + 1 of a thread are partners, half a head apart.
__device__ __forceinline__ Columns rope_columns(int d, int k) {
    if (STYLE != 2) return columns(d);
    Columns c;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int pair = (p / 2 * TEAM + member()) * WIDTH, half = k / 2;
        c.at[p] = 2 * pair < d ? pair / half * k + pair % half + p % 2 * half : -1;
    }
    return c;
}

/// Angles of a thread's pairs: those of an interleaved chunk, or of two partners.
constexpr int PAIRS = STYLE == 1 ? WIDTH / 2 : WIDTH;
constexpr int SETS = STYLE == 2 ? (PACKS + 1) / 2 : PACKS;
struct Angles {
    A cos[SETS][PAIRS], sin[SETS][PAIRS];
};

__device__ __forceinline__ void load_pairs(A (&v)[PAIRS], const A* p) {
    constexpr int EACH = Pack<A>::N;
    if (ALIGNED && PAIRS % EACH == 0) {
        load_wide(v, p);
    } else {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) v[i] = p[i];
    }
}

/// The angles of a thread's pairs in each row of a sample, whose rows are `first..end`.
struct Table {
    const A *cos, *sin;
    i64 first, end;
    int half, at[SETS];

    __device__ __forceinline__ Table(const A* cos, const A* sin, i64 first, i64 end, int k, const Columns& c)
        : cos(cos), sin(sin), first(first), end(end), half(k / 2) {
#pragma unroll
        for (int q = 0; q < SETS; q++) {
            int column = c.at[STYLE == 2 ? 2 * q : q];
            at[q] = STYLE == 0 || column < 0 ? -1 : STYLE == 1 ? column % k / 2 : column % k;
        }
    }
    /// Zeros beyond a row and beyond the rows: sums take what is turned by them.
    __device__ __forceinline__ void load(Angles& a, i64 row) const {
        const i64 token = (i64)((u32)(row - first) / PARTS) * half;
#pragma unroll
        for (int q = 0; q < SETS; q++) {
            if (row < end && at[q] >= 0) {
                load_pairs(a.cos[q], cos + token + at[q]);
                load_pairs(a.sin[q], sin + token + at[q]);
            } else {
#pragma unroll
                for (int i = 0; i < PAIRS; i++) a.cos[q][i] = a.sin[q][i] = 0;
            }
        }
    }
};

/// (a, b) ← (a·cos − b·sin, a·sin + b·cos), or back with the sign −1.
__device__ __forceinline__ void rotate(A (&v)[PACKS][WIDTH], const Angles& angles, A sign) {
    auto turn = [&](A& a, A& b, A cos, A sin) {
        A s = sign * sin, x = a;
        a = fma_rn(x, cos, -mul_rn(b, s));
        b = fma_rn(x, s, mul_rn(b, cos));
    };
#pragma unroll
    for (int q = 0; q < SETS; q++) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            A cos = angles.cos[q][i], sin = angles.sin[q][i];
            if (STYLE == 1) turn(v[q][2 * i], v[q][2 * i + 1], cos, sin);
            if (STYLE == 2) turn(v[2 * q][i], v[2 * q + 1][i], cos, sin);
        }
    }
}

__device__ __forceinline__ A inverse_rms(A squares, A inv_d, A eps) {
    return div_rn((A)1, sqrt_rn(fma_rn(squares, inv_d, eps)));
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
forward(T* y, A* kept, const T* x, const A* weight, const A* cos, const A* sin, double eps, i64 per_group, i64 slab, i64 d, i64 k) {
    __shared__ A scratch[SCRATCH];
    __shared__ uint4 room[Walk<1>::ROOM];
    u32 turn = 0;
    const Columns c = rope_columns((int)d, (int)k);
    const Share s = stripe_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    Walk<1> walk(room, {x}, c, s, d);
    const Table table(cos, sin, s.group * per_group, s.end, (int)k, c);
    A w[PACKS][WIDTH];
    load_vector(w, weight, c);

    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[1][PACKS];
        walk.take(now);
        Angles angles;
        table.load(angles, row);
        A sum[1] = {0};
        each([&](int p, int i) { sum[0] = fma_rn(widen(now[0][p].v[i]), widen(now[0][p].v[i]), sum[0]); });
        team_sum(sum, scratch, turn);
        walk.advance();
        if (row >= s.end) continue;
        const A inv = inverse_rms(sum[0], inv_d, (A)eps);
        A out[PACKS][WIDTH];
        each([&](int p, int i) { out[p][i] = mul_rn(mul_rn(widen(now[0][p].v[i]), inv), w[p][i]); });
        if (STYLE) rotate(out, angles, 1);
        store_row(y + row * d, out, c);
        if (member() == 0) kept[row] = inv;
    }
}

/// ẏ = RoPE((ẋ·inv + x·inv̇)·weight + x·inv·weighṫ), inv̇ = −inv³·⟨x·ẋ⟩, beside y. A missing tangent is null.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_DUAL)
jvp(T* y, T* y_dot, const T* x, const A* weight, const T* x_dot, const A* weight_dot, const A* cos, const A* sin, double eps,
    i64 per_group, i64 slab, i64 d, i64 k) {
    __shared__ A scratch[SCRATCH];
    __shared__ uint4 room[Walk<2>::ROOM];
    u32 turn = 0;
    const Columns c = rope_columns((int)d, (int)k);
    const Share s = stripe_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    Walk<2> walk(room, {x, x_dot}, c, s, d);
    const Table table(cos, sin, s.group * per_group, s.end, (int)k, c);
    A w[PACKS][WIDTH], w_dot[PACKS][WIDTH];
    load_vector(w, weight, c);
    load_vector(w_dot, weight_dot, c);

    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[2][PACKS];
        walk.take(now);
        Angles angles;
        table.load(angles, row);
        A sums[2] = {0, 0};
        each([&](int p, int i) {
            A v = widen(now[0][p].v[i]);
            sums[0] = fma_rn(v, v, sums[0]);
            sums[1] = fma_rn(v, widen(now[1][p].v[i]), sums[1]);
        });
        team_sum(sums, scratch, turn);
        walk.advance();
        if (row >= s.end) continue;
        const A inv = inverse_rms(sums[0], inv_d, (A)eps);
        const A inv_dot = -(inv * inv * inv) * (sums[1] * inv_d);
        A out[PACKS][WIDTH], out_dot[PACKS][WIDTH];
        each([&](int p, int i) {
            A v = widen(now[0][p].v[i]), n = mul_rn(v, inv);
            out[p][i] = mul_rn(n, w[p][i]);
            out_dot[p][i] = (widen(now[1][p].v[i]) * inv + v * inv_dot) * w[p][i] + n * w_dot[p][i];
        });
        if (STYLE) {
            rotate(out, angles, 1);
            rotate(out_dot, angles, 1);
        }
        store_row(y + row * d, out, c);
        store_row(y_dot + row * d, out_dot, c);
    }
}

/// With n̄ = RoPEᵀ(ȳ): x̄ = n̄·weight·inv − x·inv³·⟨x·n̄·weight⟩; of each slab weight̄ = Σ n̄·x·inv. Null is not wanted.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_DUAL)
vjp(T* x_bar, A* weight_bars, const T* y_bar, const T* x, const A* kept, const A* weight, const A* cos, const A* sin,
    i64 per_group, i64 slab, i64 d, i64 k) {
    __shared__ A scratch[SCRATCH];
    __shared__ A shared[TEAM_SUMS];
    __shared__ uint4 room[Walk<2>::ROOM];
    u32 turn = 0;
    const Columns c = rope_columns((int)d, (int)k);
    const Share s = slab_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    Walk<2> walk(room, {x, y_bar}, c, s, d);
    const Table table(cos, sin, s.group * per_group, s.end, (int)k, c);
    A w[PACKS][WIDTH], weight_bar[PACKS][WIDTH];
    load_vector(w, weight, c);
    each([&](int p, int i) { weight_bar[p][i] = 0; });

    // The row's sum takes what is turned: so the angles, too, are there before the row is.
    Angles next;
    A next_inv;
    auto fetch = [&](i64 row) {
        table.load(next, row);
        next_inv = row < s.end ? kept[row] : (A)0;
    };
    fetch(s.first + team());
    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[2][PACKS];
        walk.take(now);
        const Angles angles = next;
        const A inv = next_inv;
        fetch(row + s.step);
        A n[PACKS][WIDTH];
        each([&](int p, int i) { n[p][i] = widen(now[1][p].v[i]); });
        if (STYLE) rotate(n, angles, -1);
        A sum[1] = {0};
        each([&](int p, int i) {
            A v = widen(now[0][p].v[i]);
            sum[0] += v * n[p][i] * w[p][i];
            weight_bar[p][i] += n[p][i] * v * inv;
        });
        if (x_bar != nullptr) team_sum(sum, scratch, turn);
        walk.advance();
        if (x_bar == nullptr || row >= s.end) continue;
        const A along = inv * inv * inv * (sum[0] * inv_d);
        A out[PACKS][WIDTH];
        each([&](int p, int i) { out[p][i] = n[p][i] * w[p][i] * inv - widen(now[0][p].v[i]) * along; });
        store_row(x_bar + row * d, out, c);
    }
    if (weight_bars != nullptr) store_sums(weight_bars + blockIdx.x * d, weight_bar, c, shared);
}
