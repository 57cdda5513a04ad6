// y = x̂·(base + factor) + offset, x̂ = (x − mean)/√(var + eps) over the last axis.
//
// x, y, their tangents and cotangents [rows, d] of T; factor and offset [groups, d], the kept (mean, 1/std) [rows, 2] and all
// sums in A. The variance is that of the differences from the mean, so that a large mean does not cancel. One pass: a row is
// read once and stays in registers while the next are under way. Geometry and alignment: rows.cuh.

struct Stats {
    A mean, inv_std;
};

/// Σ(x − mean)², and Σẋ·(x − mean) where the second row is the tangent.
template <int N>
__device__ __forceinline__ void centred_sums(A (&v)[N], const Chunk (&x)[N][PACKS], A mean, const Columns& c) {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = 0;
    each([&](int p, int i) {
        if (c.at[p] < 0) return;
        A from_mean = add_rn(widen(x[0][p].v[i]), -mean);
        v[0] = fma_rn(from_mean, from_mean, v[0]);
        if (N > 1) v[1] = fma_rn(from_mean, widen(x[N - 1][p].v[i]), v[1]);
    });
}

__device__ __forceinline__ A inverse_std(A squares, A inv_d, A eps) {
    return div_rn((A)1, sqrt_rn(fma_rn(squares, inv_d, eps)));
}

__device__ __forceinline__ A normal(Stats s, A x) { return mul_rn(add_rn(x, -s.mean), s.inv_std); }

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
forward(T* y, A* kept, const T* x, const A* factor, const A* offset, double base, double eps, i64 per_group, i64 slab, i64 d) {
    __shared__ A scratch[SCRATCH];
    __shared__ uint4 room[Walk<1>::ROOM];
    u32 turn = 0;
    const Columns c = columns((int)d);
    const Share s = stripe_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    Walk<1> walk(room, {x}, c, s, d);
    A gain[PACKS][WIDTH], shift[PACKS][WIDTH];
    load_vector(gain, factor + s.group * d, c);
    load_vector(shift, offset + s.group * d, c);
    each([&](int p, int i) { gain[p][i] = add_rn((A)base, gain[p][i]); });

    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[1][PACKS];
        walk.take(now);
        A sum[1] = {0};
        each([&](int p, int i) { sum[0] = add_rn(sum[0], widen(now[0][p].v[i])); });
        team_sum(sum, scratch, turn);
        walk.advance();
        Stats stats;
        stats.mean = mul_rn(sum[0], inv_d);
        centred_sums(sum, now, stats.mean, c);
        team_sum(sum, scratch, turn);
        stats.inv_std = inverse_std(sum[0], inv_d, (A)eps);

        if (row >= s.end) continue;
        A out[PACKS][WIDTH];
        each([&](int p, int i) { out[p][i] = fma_rn(normal(stats, widen(now[0][p].v[i])), gain[p][i], shift[p][i]); });
        store_row(y + row * d, out, c);
        if (member() == 0) {
            kept[2 * row] = stats.mean;
            kept[2 * row + 1] = stats.inv_std;
        }
    }
}

/// ẏ = (ẋ − ⟨ẋ⟩ − x̂⟨x̂ẋ⟩)/std·(base + factor) + x̂·factoṙ + offseṫ, beside y. A missing tangent is null.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_DUAL)
jvp(T* y, T* y_dot, const T* x, const A* factor, const A* offset, const T* x_dot, const A* factor_dot, const A* offset_dot,
    double base, double eps, i64 per_group, i64 slab, i64 d) {
    __shared__ A scratch[SCRATCH];
    __shared__ uint4 room[Walk<2>::ROOM];
    u32 turn = 0;
    const Columns c = columns((int)d);
    const Share s = stripe_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    Walk<2> walk(room, {x, x_dot}, c, s, d);
    A gain[PACKS][WIDTH], shift[PACKS][WIDTH], gain_dot[PACKS][WIDTH], shift_dot[PACKS][WIDTH];
    load_vector(gain, factor + s.group * d, c);
    load_vector(shift, offset + s.group * d, c);
    load_vector(gain_dot, factor_dot != nullptr ? factor_dot + s.group * d : nullptr, c);
    load_vector(shift_dot, offset_dot != nullptr ? offset_dot + s.group * d : nullptr, c);
    each([&](int p, int i) { gain[p][i] = add_rn((A)base, gain[p][i]); });

    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[2][PACKS];
        walk.take(now);
        A sums[2] = {0, 0};
        each([&](int p, int i) {
            sums[0] = add_rn(sums[0], widen(now[0][p].v[i]));
            sums[1] = add_rn(sums[1], widen(now[1][p].v[i]));
        });
        team_sum(sums, scratch, turn);
        walk.advance();
        Stats stats;
        stats.mean = mul_rn(sums[0], inv_d);
        const A mean_dot = mul_rn(sums[1], inv_d);
        centred_sums(sums, now, stats.mean, c);
        team_sum(sums, scratch, turn);
        stats.inv_std = inverse_std(sums[0], inv_d, (A)eps);
        const A along = sums[1] * stats.inv_std * inv_d;

        if (row >= s.end) continue;
        A out[PACKS][WIDTH], out_dot[PACKS][WIDTH];
        each([&](int p, int i) {
            A n = normal(stats, widen(now[0][p].v[i]));
            A n_dot = (widen(now[1][p].v[i]) - mean_dot - n * along) * stats.inv_std;
            out[p][i] = fma_rn(n, gain[p][i], shift[p][i]);
            out_dot[p][i] = n_dot * gain[p][i] + (n * gain_dot[p][i] + shift_dot[p][i]);
        });
        store_row(y + row * d, out, c);
        store_row(y_dot + row * d, out_dot, c);
    }
}

/// x̄ = (g − ⟨g⟩ − x̂⟨g·x̂⟩)/std with g = ȳ·(base + factor); of each slab factor̄ = Σȳ·x̂ and offset̄ = Σȳ. Null is not wanted.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_DUAL)
vjp(T* x_bar, A* factor_bars, A* offset_bars, const T* y_bar, const T* x, const A* kept, const A* factor, double base,
    i64 per_group, i64 slab, i64 d) {
    __shared__ A scratch[SCRATCH];
    __shared__ A shared[TEAM_SUMS];
    __shared__ uint4 room[Walk<2>::ROOM];
    u32 turn = 0;
    const Columns c = columns((int)d);
    const Share s = slab_of(per_group, slab);
    const A inv_d = div_rn((A)1, (A)d);
    Walk<2> walk(room, {x, y_bar}, c, s, d);
    A gain[PACKS][WIDTH], factor_bar[PACKS][WIDTH], offset_bar[PACKS][WIDTH];
    load_vector(gain, factor + s.group * d, c);
    each([&](int p, int i) {
        gain[p][i] = (A)base + gain[p][i];
        factor_bar[p][i] = offset_bar[p][i] = 0;
    });

    auto stats_of = [&](i64 row) {
        Stats stats = {0, 0};
        if (row < s.end) stats = {kept[2 * row], kept[2 * row + 1]};
        return stats;
    };
    Stats next = stats_of(s.first + team());
    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[2][PACKS];
        walk.take(now);
        const Stats stats = next;
        next = stats_of(row + s.step);
        A sums[2] = {0, 0};
        each([&](int p, int i) {
            A bar = widen(now[1][p].v[i]), n = normal(stats, widen(now[0][p].v[i])), g = bar * gain[p][i];
            sums[0] += g;
            sums[1] += g * n;
            factor_bar[p][i] += bar * n;
            offset_bar[p][i] += bar;
        });
        if (x_bar != nullptr) team_sum(sums, scratch, turn);
        walk.advance();
        if (x_bar == nullptr || row >= s.end) continue;
        const A mean = sums[0] * inv_d, along = sums[1] * inv_d;
        A out[PACKS][WIDTH];
        each([&](int p, int i) {
            A n = normal(stats, widen(now[0][p].v[i]));
            out[p][i] = (widen(now[1][p].v[i]) * gain[p][i] - mean - n * along) * stats.inv_std;
        });
        store_row(x_bar + row * d, out, c);
    }
    if (factor_bars != nullptr) store_sums(factor_bars + blockIdx.x * d, factor_bar, c, shared);
    if (offset_bars != nullptr) store_sums(offset_bars + blockIdx.x * d, offset_bar, c, shared);
}
