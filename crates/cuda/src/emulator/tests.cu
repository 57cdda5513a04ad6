// What the emulator must do right, and what it must catch: one kernel each, words in, words out.

// --- right ------------------------------------------------------------------------------------------------------------

// D = C + A·B: A [16, 16] and B [8, 16] (by columns) of bf16, C and D [16, 8].
extern "C" __global__ void product(const u16* a, const u16* b, const float* c, float* d) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 fa[4], fb[2];
    for (u32 i = 0; i < 4; i++) {
        u32 at = (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
        fa[i] = a[at] | (u32)a[at + 1] << 16;
    }
    for (u32 i = 0; i < 2; i++) {
        u32 at = g * 16 + 2 * t + 8 * i;
        fb[i] = b[at] | (u32)b[at + 1] << 16;
    }
    float fd[4];
    for (u32 i = 0; i < 4; i++) fd[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    mma_bf16(fd, fa, fb);
    for (u32 i = 0; i < 4; i++) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = fd[i];
}

// The same by way of shared memory: A's fragments by ldmatrix from its rows, B's from B^T [16, 8] by ldmatrix_trans.
extern "C" __global__ void product_from_shared(const u16* a, const u16* b, const float* c, float* d) {
    __shared__ __align__(16) u16 rows[16][16];
    __shared__ __align__(16) u16 columns[32][8];
    for (u32 i = lane_id(); i < 256; i += WARP) rows[i / 16][i % 16] = a[i];
    for (u32 i = lane_id(); i < 256; i += WARP) columns[i / 8][i % 8] = i < 128 ? b[i % 8 * 16 + i / 8] : 0;
    barrier();
    u32 fa[4], fb[4];
    ldmatrix_x4(fa, &rows[lane_id() % 16][lane_id() / 16 * 8]);
    ldmatrix_x4_trans(fb, columns[lane_id()]);
    u32 first[2] = {fb[0], fb[1]};
    u32 g = lane_id() / 4, t = lane_id() % 4;
    float fd[4];
    for (u32 i = 0; i < 4; i++) fd[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    mma_bf16(fd, fa, first);
    for (u32 i = 0; i < 4; i++) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = fd[i];
}

extern "C" __global__ void shuffles(const u32* x, u32* y) {
    u32 i = threadIdx.x, n = blockDim.x;
    u32 v = x[i];
    y[i] = shuffle_xor(v, 5);
    y[n + i] = shuffle(v, i / 4);
    double wide = shuffle((double)v + 0.5, 31 - lane_id());
    y[2 * n + i] = wide == (double)(u32)wide + 0.5 ? (u32)wide : 0;
}

extern "C" __global__ void sums(const float* x, float* y) {
    __shared__ float scratch[8];
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    float sum = block_sum(v, scratch);
    float max = warp_max(v);
    y[(blockIdx.x * blockDim.x + threadIdx.x) * 2] = sum;
    y[(blockIdx.x * blockDim.x + threadIdx.x) * 2 + 1] = max;
}

extern "C" __global__ void rounded(const float* x, u32* y) {
    u32 i = threadIdx.x;
    y[2 * i] = to_bf16(x[i]).bits;
    y[2 * i + 1] = pack_bf16(x[i], x[i ^ 1]);
}

extern "C" __global__ void arithmetic(const u32* x, u32* y) {
    y[0] = mul_high(x[0], x[1]);
    y[1] = as_bits(exp2_fast(as_float(x[2])));
    y[2] = as_bits(exp2_fast(as_float(0xff800000u)));
    y[3] = as_bits(add_rn(mul_rn(as_float(x[3]), as_float(x[3])), as_float(x[4])));
    y[4] = as_bits(fma_rn(as_float(x[3]), as_float(x[3]), as_float(x[4])));
    y[5] = as_bits(exp2_fast(-130.0f));
    y[6] = as_bits(reciprocal_fast(as_float(x[2])));
    y[7] = as_bits(reciprocal_fast(0x1p127f));
}

// Two groups of copies, the first of which is waited for first; the last copy is of zeros.
extern "C" __global__ void copies(const uint4* x, uint4* y) {
    DYNAMIC_SHARED(bytes);
    uint4* held = (uint4*)bytes;
    u32 i = threadIdx.x, n = blockDim.x;
    copy_async16(held + i, x + i, true);
    copy_async_commit();
    copy_async16(held + n + i, x + n + i, i + 1 < n);
    copy_async_commit();
    copy_async_wait<1>();
    barrier();
    y[i] = held[n - 1 - i];
    y[n + i] = held[n + i];
    copy_async_wait<0>();
    barrier();
    y[2 * n + i] = held[2 * n - 1 - i];
}

extern "C" __global__ void fresh(u32* y) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(bytes);
    u32 at = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    y[at] = as_bits(fixed[threadIdx.x]);
    y[at + 1] = ((u32*)bytes)[threadIdx.x];
    barrier();
    fixed[threadIdx.x] = 0;
    ((u32*)bytes)[threadIdx.x] = 0;
}

extern "C" __global__ void swap_in_a_warp(u32* y) {
    __shared__ u32 x[32];
    x[threadIdx.x] = threadIdx.x;
    warp_barrier();
    y[threadIdx.x] = x[31 - threadIdx.x];
}

// Neighbouring bytes are different threads', words and packs all of theirs.
extern "C" __global__ void accesses_of_all_widths(u32* y) {
    __shared__ __align__(16) unsigned char x[128];
    x[threadIdx.x] = (unsigned char)threadIdx.x;
    barrier();
    if (threadIdx.x < 32) y[threadIdx.x] = ((u32*)x)[threadIdx.x];
    barrier();
    if (threadIdx.x < 8) ((uint4*)x)[threadIdx.x] = uint4{threadIdx.x, 1, 2, 3};
    barrier();
    y[32 + threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void many_collectives(u32* y) {
    u32 x = threadIdx.x;
    for (int i = 0; i < 10000; i++) {
        x = shuffle_xor(x, 1);
        if (i % 4 == 3) barrier();
    }
    y[threadIdx.x] = x;
}

extern "C" __global__ void index(u32* y) { y[threadIdx.x] = threadIdx.x; }

// --- wrong ------------------------------------------------------------------------------------------------------------

extern "C" __global__ void reads_past_the_end(const u32* x, u32* y) {
    u32 v = x[threadIdx.x];
    y[threadIdx.x] = v;
}
extern "C" __global__ void writes_past_the_end(u32* y) { y[threadIdx.x + 1] = 0; }
extern "C" __global__ void writes_before_the_start(u32* y) { y[-1] = 0; }
extern "C" __global__ void writes_far_away(u32* y) { y[(i64)1 << 40] = 0; }
extern "C" __global__ void copies_past_the_end(const uint4* x, uint4* y) {
    __shared__ uint4 held[32];
    copy_async16(held + threadIdx.x, x + threadIdx.x, true);
}
extern "C" __global__ void leaves_dynamic_shared(u32* y) {
    DYNAMIC_SHARED(bytes);
    bytes[threadIdx.x * 4] = 0;
    y[threadIdx.x] = 0;
}
extern "C" __global__ void leaves_an_array(const u32* x, u32* y) {
    __shared__ u32 fixed[32];
    fixed[threadIdx.x] = 1;
    barrier();
    y[threadIdx.x] = fixed[threadIdx.x + x[0]];
}
extern "C" __global__ void misaligned(u32* y) { *(uint4*)(y + 1) = uint4{0, 0, 0, 0}; }
extern "C" __global__ void overflows(const int* x, int* y) { y[0] = x[0] * 65536; }
extern "C" __global__ void recurses(const u32* x, u32* y) {
    struct Deep {
        static __device__ u32 sum(const u32* x, u32 n) {
            volatile u32 room[64];
            room[n % 64] = x[0];
            return n == 0 ? 0 : sum(x, n - 1) + room[n % 64];
        }
    };
    y[0] = Deep::sum(x, 1000000);
}

extern "C" __global__ void races_in_a_block(u32* y) {
    __shared__ u32 x[64];
    x[threadIdx.x] = threadIdx.x;
    warp_barrier();
    y[threadIdx.x] = x[63 - threadIdx.x];
}
extern "C" __global__ void races_in_a_warp(u32* y) {
    __shared__ u32 x[32];
    x[threadIdx.x] = threadIdx.x;
    shuffle(0, 0);
    y[threadIdx.x] = x[31 - threadIdx.x];
}
extern "C" __global__ void overwrites_what_is_read(u32* y) {
    __shared__ u32 x;
    for (u32 i = 0; i < 2; i++) {
        if (threadIdx.x == 40) x = i;
        barrier();
        y[threadIdx.x] = x;
    }
}
extern "C" __global__ void races_in_a_buffer(u32* y) {
    y[threadIdx.x] = threadIdx.x;
    y[63 - threadIdx.x] += 1;
}
extern "C" __global__ void races_between_blocks(u32* y) { y[0] = blockIdx.x; }
extern "C" __global__ void overwrites_what_a_block_reads(u32* y) {
    if (blockIdx.x == 0) y[0] = y[1];
    else y[1] = 0;
}
extern "C" __global__ void passes_through_a_buffer(u32* y) {
    u32* own = y + blockIdx.x * blockDim.x;
    own[threadIdx.x] = threadIdx.x;
    barrier();
    u32 x = own[63 - threadIdx.x];
    barrier();
    own[threadIdx.x] = x;
}
// Thread 0 writes a word, or reads it if which[2], thread 1 writes byte which[0] of 8, the byte first if which[1].
extern "C" __global__ void writes_a_byte_of_a_word(const u32* which, u32* y) {
    __shared__ u64 x[4];
    x[threadIdx.x] = 0;
    barrier();
    for (u32 turn = 0; turn < 2; turn++) {
        if (turn == which[1] && threadIdx.x == 0) {
            if (which[2]) y[0] = ((u32*)x)[0];
            else ((u32*)x)[0] = 1;
        }
        if (turn != which[1] && threadIdx.x == 1) ((unsigned char*)x)[which[0]] = 1;
        shuffle(0, 0);
    }
}
// Bytes 13 to 16, of which thread 16 writes the last.
extern "C" __global__ void reads_across_words(u32* y) {
    __shared__ __align__(16) unsigned char x[32];
    x[threadIdx.x] = (unsigned char)threadIdx.x;
    barrier();
    if (threadIdx.x == 16) x[16] = 0;
    if (threadIdx.x == 0) __builtin_memcpy(y, x + 13, 4);
}
// All read, then thread who[0] writes; the warp meets in between if who[1].
extern "C" __global__ void one_writes_what_all_read(const u32* who, u32* y) {
    __shared__ u32 x;
    if (threadIdx.x == 0) x = 0;
    barrier();
    y[threadIdx.x] = x;
    if (who[1]) warp_barrier();
    if (threadIdx.x == who[0]) x = 1;
}
extern "C" __global__ void copies_over_what_is_read(const uint4* x, uint4* y) {
    __shared__ uint4 held[64];
    held[threadIdx.x] = x[threadIdx.x];
    barrier();
    y[threadIdx.x] = held[63 - threadIdx.x];
    copy_async16(held + threadIdx.x, x + threadIdx.x, true);
    copy_async_commit();
    barrier();
    copy_async_wait<0>();
}
extern "C" __global__ void forgets_to_wait(const uint4* x, uint4* y) {
    __shared__ uint4 held[32];
    held[threadIdx.x] = x[threadIdx.x];
    copy_async16(held + threadIdx.x, x + threadIdx.x, true);
    copy_async_commit();
    barrier();
    y[threadIdx.x] = held[threadIdx.x];
}
extern "C" __global__ void waits_but_meets_nobody(const uint4* x, uint4* y) {
    __shared__ uint4 held[32];
    copy_async16(held + threadIdx.x, x + threadIdx.x, true);
    copy_async_commit();
    copy_async_wait<0>();
    y[threadIdx.x] = held[31 - threadIdx.x];
}
extern "C" __global__ void copies_to_what_is_not_shared(const uint4* x, uint4* y) { copy_async16(y, x, true); }

extern "C" __global__ void some_miss_the_barrier(u32* y) {
    if (threadIdx.x < 40) barrier();
    else warp_barrier();
    y[threadIdx.x] = 0;
}
extern "C" __global__ void some_return_early(u32* y) {
    if (threadIdx.x >= 32) return;
    barrier();
    y[threadIdx.x] = 0;
}
extern "C" __global__ void lanes_return_early(u32* y) {
    if (threadIdx.x == 7) return;
    y[threadIdx.x] = shuffle(1u, 0);
}
extern "C" __global__ void lanes_diverge(u32* y) {
    u32 fragment[4] = {};
    float d[4] = {};
    u32 b[2] = {};
    if (threadIdx.x % 2) mma_bf16(d, fragment, b);
    else warp_barrier();
    y[threadIdx.x] = 0;
}
extern "C" __global__ void shuffles_from_nobody(u32* y) { y[threadIdx.x] = shuffle_xor(threadIdx.x, 16); }
