// What lanes do together.
namespace emulator {

/// The bf16 in the lower or the upper half.
static float from_bf16(u32 pair, u32 half) {
    u32 wide = half ? pair & 0xffff0000 : pair << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

/// Lane 4g + t holds A[g + 8(i % 2)][2t + 8(i / 2)] and the next in a[i], B[2t + 8i][g] and the next in b[i],
/// D[g + 8(i / 2)][2t + i % 2] in d[i].
static void mma(Thread* lanes) {
    typedef float Row __attribute__((vector_size(32)));
    float a[16][16];
    Row b[16];
    for (u32 lane = 0; lane < LANES; lane++) {
        u32 g = lane / 4, t = lane % 4;
        for (u32 half = 0; half < 2; half++) {
            for (u32 i = 0; i < 4; i++) a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = from_bf16(lanes[lane].a[i], half);
            for (u32 i = 0; i < 2; i++) b[2 * t + 8 * i + half][g] = from_bf16(lanes[lane].b[i], half);
        }
    }
    for (u32 m = 0; m < 16; m++) {
        Row d;
        for (u32 n = 0; n < 8; n++) d[n] = lanes[m % 8 * 4 + n / 2].d[m / 8 * 2 + n % 2];
        for (u32 k = 0; k < 16; k++) d += a[m][k] * b[k];
        for (u32 n = 0; n < 8; n++) lanes[m % 8 * 4 + n / 2].d[m / 8 * 2 + n % 2] = d[n];
    }
}

/// Tile i goes to r[i]: lane 4g + t holds M[g][2t], M[g][2t + 1], of the transpose M[2t][g], M[2t + 1][g].
static void ldmatrix(Thread* lanes, bool transposed) {
    for (u32 tile = 0; tile < 4; tile++) {
        u16 m[8][8];
        for (u32 row = 0; row < 8; row++) memcpy(m[row], lanes[tile * 8 + row].row, 16);
        for (u32 lane = 0; lane < LANES; lane++) {
            u32 g = lane / 4, t = lane % 4;
            u32 low = transposed ? m[2 * t][g] : m[g][2 * t], high = transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
            lanes[lane].r[tile] = low | high << 16;
        }
    }
}

static void shuffle(Thread* lanes, u32 n) {
    u64 values[LANES];
    for (u32 lane = 0; lane < n; lane++) values[lane] = lanes[lane].value;
    for (u32 lane = 0; lane < n; lane++) {
        Thread& thread = lanes[lane];
        if (thread.source >= n) fail(&thread, "shuffle from lane %u of a warp of %u threads", thread.source, n);
        u32 given = lanes[thread.source].bytes;
        if (thread.bytes != given) fail(&thread, "shuffle of %u bytes from a lane that gives %u", thread.bytes, given);
        thread.value = values[thread.source];
    }
}

/// Two threads that must meet and do not.
[[noreturn]] static void diverge(const Thread& thread, const Thread& other) {
    const char* at = MEETS[thread.at];
    if (other.returned) fail(&thread, "divergence: waits at %s, but thread %u has returned", at, other.number);
    fail(&thread, "divergence: waits at %s while thread %u waits at %s", at, other.number, MEETS[other.at]);
}

/// All lanes have met: does what they met for, and lets them go on.
static void meet(Warp& warp, Thread* lanes) {
    Meets at = lanes[0].at;
    for (u32 lane = 1; lane < warp.lanes; lane++)
        if (lanes[lane].at != at) diverge(lanes[lane], lanes[0]);
    bool whole = at == MMA || at == LDMATRIX || at == LDMATRIX_TRANS;
    if (whole && warp.lanes != LANES) fail(&lanes[0], "%s in a warp of %u threads", MEETS[at], warp.lanes);
    switch (at) {
        case WARP_BARRIER: warp.epoch++; break;
        case SHUFFLE: shuffle(lanes, warp.lanes); break;
        case MMA: mma(lanes); break;
        case LDMATRIX: ldmatrix(lanes, false); break;
        case LDMATRIX_TRANS: ldmatrix(lanes, true); break;
        default: break;
    }
    warp.waiting = 0;
    for (u32 lane = 0; lane < warp.lanes; lane++) lanes[lane].at = NOTHING;
}

static void wait_at(Meets at) {
    Thread* thread = machine.current;
    thread->at = at;
    if (at != BARRIER) {
        u32 w = thread->number / LANES;
        if (++machine.warps[w].waiting == machine.warps[w].lanes) meet(machine.warps[w], machine.threads + w * LANES);
    }
    resume(thread->context, machine.scheduler);
}

}  // namespace emulator
