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

/// Where a thread's pairs are in a row of the tables.
__device__ __forceinline__ void angle_columns(int (&at)[SETS], const Columns& c, int k) {
#pragma unroll
    for (int q = 0; q < SETS; q++) at[q] = STYLE == 1 ? c.at[q] % k / 2 : c.at[2 * q] % k;
}

__device__ __forceinline__ void load_pairs(A (&v)[PAIRS], const A* p) {
    constexpr int EACH = Pack<A>::N;
    if (ALIGNED && PAIRS % EACH == 0) {
        load_wide(v, p);
    } else {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) v[i] = p[i];
    }
}

/// `row` counts from the start of a sample. Zeros beyond a row: its sums take what is turned by them.
__device__ __forceinline__ void load_angles(Angles& a, const A* cos, const A* sin, i64 row, int k, const int (&at)[SETS], const Columns& c) {
    const i64 token = (i64)((u32)row / PARTS) * (k / 2);
#pragma unroll
    for (int q = 0; q < SETS; q++) {
        if (c.at[STYLE == 2 ? 2 * q : q] < 0) {
#pragma unroll
            for (int i = 0; i < PAIRS; i++) a.cos[q][i] = a.sin[q][i] = 0;
            continue;
        }
        load_pairs(a.cos[q], cos + token + at[q]);
        load_pairs(a.sin[q], sin + token + at[q]);
    }
}

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

extern "C" __global__ void __launch_bounds__(THREADS)
forward(T* y, A* kept, const T* x, const A* weight, const A* cos, const A* sin, double eps, i64 per_group, i64 slab, i64 d, i64 k) {
    __shared__ A scratch[SCRATCH];
    u32 turn = 0;
    const Columns c = rope_columns((int)d, (int)k);
    const Slab s = slab_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    int at[SETS];
    if (STYLE) angle_columns(at, c, (int)k);
    A w[PACKS][WIDTH];
    load_vector(w, weight, c);

    Chunk now[PACKS], next[PACKS];
    load_row(next, x + (s.first + team()) * d, c, s.first + team() < s.end);
    for (i64 r = s.first; r < s.end; r += TEAMS) {
        const i64 row = r + team();
#pragma unroll
        for (int p = 0; p < PACKS; p++) now[p] = next[p];
        load_row(next, x + (row + TEAMS) * d, c, row + TEAMS < s.end);
        Angles angles;
        if (STYLE && row < s.end) load_angles(angles, cos, sin, row - s.group * per_group, (int)k, at, c);

        A sum[1] = {0};
        each([&](int p, int i) { sum[0] = fma_rn(widen(now[p].v[i]), widen(now[p].v[i]), sum[0]); });
        team_sum(sum, scratch, turn);
        if (row >= s.end) continue;
        const A inv = inverse_rms(sum[0], inv_d, (A)eps);
        A out[PACKS][WIDTH];
        each([&](int p, int i) { out[p][i] = mul_rn(mul_rn(widen(now[p].v[i]), inv), w[p][i]); });
        if (STYLE) rotate(out, angles, 1);
        store_row(y + row * d, out, c);
        if (member() == 0) kept[row] = inv;
    }
}

/// ẏ = RoPE((ẋ·inv + x·inv̇)·weight + x·inv·weighṫ), inv̇ = −inv³·⟨x·ẋ⟩, beside y. A missing tangent is null.
extern "C" __global__ void __launch_bounds__(THREADS)
jvp(T* y, T* y_dot, const T* x, const A* weight, const T* x_dot, const A* weight_dot, const A* cos, const A* sin, double eps,
    i64 per_group, i64 slab, i64 d, i64 k) {
    __shared__ A scratch[SCRATCH];
    u32 turn = 0;
    const Columns c = rope_columns((int)d, (int)k);
    const Slab s = slab_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    const bool moves = x_dot != nullptr;
    int at[SETS];
    if (STYLE) angle_columns(at, c, (int)k);
    A w[PACKS][WIDTH], w_dot[PACKS][WIDTH];
    load_vector(w, weight, c);
    load_vector(w_dot, weight_dot, c);

    Chunk now[PACKS], next[PACKS], now_dot[PACKS], next_dot[PACKS];
    load_row(next, x + (s.first + team()) * d, c, s.first + team() < s.end);
    load_row(next_dot, x_dot + (s.first + team()) * d, c, moves && s.first + team() < s.end);
    for (i64 r = s.first; r < s.end; r += TEAMS) {
        const i64 row = r + team();
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            now[p] = next[p];
            now_dot[p] = next_dot[p];
        }
        load_row(next, x + (row + TEAMS) * d, c, row + TEAMS < s.end);
        load_row(next_dot, x_dot + (row + TEAMS) * d, c, moves && row + TEAMS < s.end);
        Angles angles;
        if (STYLE && row < s.end) load_angles(angles, cos, sin, row - s.group * per_group, (int)k, at, c);

        A sums[2] = {0, 0};
        each([&](int p, int i) {
            A v = widen(now[p].v[i]);
            sums[0] = fma_rn(v, v, sums[0]);
            sums[1] = fma_rn(v, widen(now_dot[p].v[i]), sums[1]);
        });
        team_sum(sums, scratch, turn);
        if (row >= s.end) continue;
        const A inv = inverse_rms(sums[0], inv_d, (A)eps);
        const A inv_dot = -(inv * inv * inv) * (sums[1] * inv_d);
        A out[PACKS][WIDTH], out_dot[PACKS][WIDTH];
        each([&](int p, int i) {
            A v = widen(now[p].v[i]), n = mul_rn(v, inv);
            out[p][i] = mul_rn(n, w[p][i]);
            out_dot[p][i] = (widen(now_dot[p].v[i]) * inv + v * inv_dot) * w[p][i] + n * w_dot[p][i];
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
extern "C" __global__ void __launch_bounds__(THREADS)
vjp(T* x_bar, A* weight_bars, const T* y_bar, const T* x, const A* kept, const A* weight, const A* cos, const A* sin,
    i64 per_group, i64 slab, i64 d, i64 k) {
    __shared__ A scratch[SCRATCH];
    __shared__ A shared[TEAM_SUMS];
    u32 turn = 0;
    const Columns c = rope_columns((int)d, (int)k);
    const Slab s = slab_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    int at[SETS];
    if (STYLE) angle_columns(at, c, (int)k);
    A w[PACKS][WIDTH], weight_bar[PACKS][WIDTH];
    load_vector(w, weight, c);
    each([&](int p, int i) { weight_bar[p][i] = 0; });

    Chunk now[PACKS], next[PACKS], now_bar[PACKS], next_bar[PACKS];
    A inv, next_inv;
    auto fetch = [&](i64 row) {
        load_row(next, x + row * d, c, row < s.end);
        load_row(next_bar, y_bar + row * d, c, row < s.end);
        next_inv = row < s.end ? kept[row] : (A)0;
    };
    fetch(s.first + team());
    for (i64 r = s.first; r < s.end; r += TEAMS) {
        const i64 row = r + team();
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            now[p] = next[p];
            now_bar[p] = next_bar[p];
        }
        inv = next_inv;
        A n[PACKS][WIDTH];
        each([&](int p, int i) { n[p][i] = widen(now_bar[p].v[i]); });
        if (STYLE && row < s.end) {
            Angles angles;
            load_angles(angles, cos, sin, row - s.group * per_group, (int)k, at, c);
            fetch(row + TEAMS);
            rotate(n, angles, -1);
        } else {
            fetch(row + TEAMS);
        }

        A sum[1] = {0};
        each([&](int p, int i) {
            A v = widen(now[p].v[i]);
            sum[0] += v * n[p][i] * w[p][i];
            weight_bar[p][i] += n[p][i] * v * inv;
        });
        if (x_bar == nullptr) continue;
        team_sum(sum, scratch, turn);
        if (row >= s.end) continue;
        const A along = inv * inv * inv * (sum[0] * inv_d);
        A out[PACKS][WIDTH];
        each([&](int p, int i) { out[p][i] = n[p][i] * w[p][i] * inv - widen(now[p].v[i]) * along; });
        store_row(x_bar + row * d, out, c);
    }
    if (weight_bars != nullptr) store_sums(weight_bars + blockIdx.x * d, weight_bar, c, shared);
}
