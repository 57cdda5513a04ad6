// y = √d·γ·x/max(‖x‖, 1e-12) over the last axis.
//
// x, y, their tangents and cotangents [rows, d] of T; γ [d], its cotangent and all sums in A. One pass. Geometry and alignment:
// rows.cuh.

/// Below this norm the divisor is this.
constexpr double FLOOR = 1e-12;

/// √d/max(‖x‖, floor), and 1/‖x‖² or zero where the divisor is constant.
struct Factors {
    A scale, inverse;
};
__device__ __forceinline__ Factors factors(A square, A d) {
    A norm = sqrt_rn(square), root = sqrt_rn(d);
    Factors f;
    f.scale = div_rn(root, norm > (A)FLOOR ? norm : (A)FLOOR);
    f.inverse = norm > (A)FLOOR ? div_rn((A)1, square) : (A)0;
    return f;
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
forward(T* y, const T* x, const A* gamma, i64 per_group, i64 slab, i64 d) {
    __shared__ A scratch[SCRATCH];
    __shared__ uint4 room[Walk<1>::ROOM];
    u32 turn = 0;
    const Columns c = columns((int)d);
    const Share s = stripe_of(per_group, slab);
    Walk<1> walk(room, {x}, c, s, d);
    A g[PACKS][WIDTH];
    load_vector(g, gamma, c);
    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[1][PACKS];
        walk.take(now);
        A sum[1] = {0};
        each([&](int p, int i) { sum[0] = fma_rn(widen(now[0][p].v[i]), widen(now[0][p].v[i]), sum[0]); });
        team_sum(sum, scratch, turn);
        walk.advance();
        if (row >= s.end) continue;
        const Factors f = factors(sum[0], (A)d);
        A out[PACKS][WIDTH];
        each([&](int p, int i) { out[p][i] = mul_rn(mul_rn(widen(now[0][p].v[i]), f.scale), g[p][i]); });
        store_row(y + row * d, out, c);
    }
}

/// ẏ = scale·(γ·(ẋ − x·⟨x, ẋ⟩/‖x‖²) + γ̇·x), beside y. A missing tangent is null.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_DUAL)
jvp(T* y, T* y_dot, const T* x, const A* gamma, const T* x_dot, const A* gamma_dot, i64 per_group, i64 slab, i64 d) {
    __shared__ A scratch[SCRATCH];
    __shared__ uint4 room[Walk<2>::ROOM];
    u32 turn = 0;
    const Columns c = columns((int)d);
    const Share s = stripe_of(per_group, slab);
    Walk<2> walk(room, {x, x_dot}, c, s, d);
    A g[PACKS][WIDTH], g_dot[PACKS][WIDTH];
    load_vector(g, gamma, c);
    load_vector(g_dot, gamma_dot, c);
    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[2][PACKS];
        walk.take(now);
        A sums[2] = {0, 0};
        each([&](int p, int i) {
            A v = widen(now[0][p].v[i]);
            sums[0] = fma_rn(v, v, sums[0]);
            sums[1] = fma_rn(v, widen(now[1][p].v[i]), sums[1]);
        });
        team_sum(sums, scratch, turn);
        walk.advance();
        if (row >= s.end) continue;
        const Factors f = factors(sums[0], (A)d);
        const A along = sums[1] * f.inverse;
        A out[PACKS][WIDTH], out_dot[PACKS][WIDTH];
        each([&](int p, int i) {
            A v = widen(now[0][p].v[i]), scaled = mul_rn(v, f.scale);
            out[p][i] = mul_rn(scaled, g[p][i]);
            out_dot[p][i] = f.scale * g[p][i] * (widen(now[1][p].v[i]) - v * along) + scaled * g_dot[p][i];
        });
        store_row(y + row * d, out, c);
        store_row(y_dot + row * d, out_dot, c);
    }
}

/// x̄ = scale·(g − x·⟨x, g⟩/‖x‖²) with g = γ·ȳ; of each block γ̄ = Σ scale·x·ȳ. Null is not wanted.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_DUAL)
vjp(T* x_bar, A* gamma_bars, const T* y_bar, const T* x, const A* gamma, i64 per_group, i64 slab, i64 d) {
    __shared__ A scratch[SCRATCH];
    __shared__ A shared[TEAM_SUMS];
    __shared__ uint4 room[Walk<2>::ROOM];
    u32 turn = 0;
    const Columns c = columns((int)d);
    const Share s = stripe_of(per_group, slab);
    Walk<2> walk(room, {x, y_bar}, c, s, d);
    A g[PACKS][WIDTH], gamma_bar[PACKS][WIDTH];
    load_vector(g, gamma, c);
    each([&](int p, int i) { gamma_bar[p][i] = 0; });
    for (i64 r = s.first; r < s.end; r += s.step) {
        const i64 row = r + team();
        Chunk now[2][PACKS];
        walk.take(now);
        A sums[2] = {0, 0};
        each([&](int p, int i) {
            A v = widen(now[0][p].v[i]);
            sums[0] = fma_rn(v, v, sums[0]);
            sums[1] += v * widen(now[1][p].v[i]) * g[p][i];
        });
        team_sum(sums, scratch, turn);
        walk.advance();
        if (row >= s.end) continue;
        const Factors f = factors(sums[0], (A)d);
        const A along = sums[1] * f.inverse;
        A out[PACKS][WIDTH];
        each([&](int p, int i) {
            A v = widen(now[0][p].v[i]), b = widen(now[1][p].v[i]);
            out[p][i] = f.scale * (g[p][i] * b - v * along);
            gamma_bar[p][i] += f.scale * v * b;
        });
        if (x_bar != nullptr) store_row(x_bar + row * d, out, c);
    }
    if (gamma_bars != nullptr) store_sums(gamma_bars + blockIdx.x * d, gamma_bar, c, shared);
}
