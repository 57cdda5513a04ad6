// y = x + gate∘h, bound by memory.
//
// x, h, y, their tangents and cotangents [rows, d] of T; gate [groups, d] and its cotangent in A. Geometry and alignment:
// rows.cuh; AHEAD rows are in flight at a time.

constexpr int AHEAD = 2;

extern "C" __global__ void __launch_bounds__(THREADS)
forward(T* y, const T* x, const T* h, const A* gate, i64 per_group, i64 slab, i64 d) {
    const Columns c = columns((int)d);
    const Share s = slab_of(per_group, slab);
    A g[PACKS][WIDTH];
    load_vector(g, gate + s.group * d, c);
    for (i64 r = s.first; r < s.end; r += AHEAD * TEAMS) {
        Chunk xs[AHEAD][PACKS], hs[AHEAD][PACKS];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            i64 row = r + a * TEAMS + team();
            load_row(xs[a], x + row * d, c, row < s.end);
            load_row(hs[a], h + row * d, c, row < s.end);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            i64 row = r + a * TEAMS + team();
            A out[PACKS][WIDTH];
            each([&](int p, int i) { out[p][i] = fma_rn(widen(hs[a][p].v[i]), g[p][i], widen(xs[a][p].v[i])); });
            if (row < s.end) store_row(y + row * d, out, c);
        }
    }
}

/// ẏ = ẋ + gate∘ḣ + gatė∘h, beside y. A missing tangent is null.
extern "C" __global__ void __launch_bounds__(THREADS)
jvp(T* y, T* y_dot, const T* x, const T* h, const A* gate, const T* x_dot, const T* h_dot, const A* gate_dot, i64 per_group,
    i64 slab, i64 d) {
    const Columns c = columns((int)d);
    const Share s = slab_of(per_group, slab);
    A g[PACKS][WIDTH], g_dot[PACKS][WIDTH];
    load_vector(g, gate + s.group * d, c);
    load_vector(g_dot, gate_dot != nullptr ? gate_dot + s.group * d : nullptr, c);
    for (i64 r = s.first; r < s.end; r += TEAMS) {
        const i64 row = r + team();
        const bool valid = row < s.end;
        Chunk xs[PACKS], hs[PACKS], x_dots[PACKS], h_dots[PACKS];
        load_row(xs, x + row * d, c, valid);
        load_row(hs, h + row * d, c, valid);
        load_row(x_dots, x_dot + row * d, c, valid && x_dot != nullptr);
        load_row(h_dots, h_dot + row * d, c, valid && h_dot != nullptr);
        if (!valid) continue;
        A out[PACKS][WIDTH], out_dot[PACKS][WIDTH];
        each([&](int p, int i) {
            A h = widen(hs[p].v[i]);
            out[p][i] = fma_rn(h, g[p][i], widen(xs[p].v[i]));
            out_dot[p][i] = widen(x_dots[p].v[i]) + widen(h_dots[p].v[i]) * g[p][i] + h * g_dot[p][i];
        });
        store_row(y + row * d, out, c);
        store_row(y_dot + row * d, out_dot, c);
    }
}

/// h̄ = gate∘ȳ; of each slab gatē = Σȳ∘h. Null is not wanted.
extern "C" __global__ void __launch_bounds__(THREADS)
vjp(T* h_bar, A* gate_bars, const T* y_bar, const T* h, const A* gate, i64 per_group, i64 slab, i64 d) {
    __shared__ A shared[TEAM_SUMS];
    const Columns c = columns((int)d);
    const Share s = slab_of(per_group, slab);
    A g[PACKS][WIDTH], gate_bar[PACKS][WIDTH];
    load_vector(g, gate + s.group * d, c);
    each([&](int p, int i) { gate_bar[p][i] = 0; });
    for (i64 r = s.first; r < s.end; r += AHEAD * TEAMS) {
        Chunk bars[AHEAD][PACKS], hs[AHEAD][PACKS];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            i64 row = r + a * TEAMS + team();
            load_row(bars[a], y_bar + row * d, c, row < s.end);
            load_row(hs[a], h + row * d, c, gate_bars != nullptr && row < s.end);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            i64 row = r + a * TEAMS + team();
            A out[PACKS][WIDTH];
            each([&](int p, int i) {
                A bar = widen(bars[a][p].v[i]);
                out[p][i] = bar * g[p][i];
                gate_bar[p][i] += bar * widen(hs[a][p].v[i]);
            });
            if (h_bar != nullptr && row < s.end) store_row(h_bar + row * d, out, c);
        }
    }
    if (gate_bars != nullptr) store_sums(gate_bars + blockIdx.x * d, gate_bar, c, shared);
}
