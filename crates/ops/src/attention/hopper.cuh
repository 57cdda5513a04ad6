// Hopper (sm_90a): bulk tensor copies, barriers that count their bytes, and the tensor cores of a warpgroup.
//
// Read after the prelude. Matrices lie in shared memory in *panels*: rows of 64 bf16 (128 bytes) with the 128-byte swizzle
// of a bulk tensor copy, a panel on a multiple of 1024 bytes. A matrix wider than 64 columns is several panels.

/// A `CUtensorMap`, passed by value as a `const __grid_constant__` parameter.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

/// Bytes of one row of a panel.
constexpr u32 PANEL_ROW = 128;

// --- barriers ---------------------------------------------------------------------------------------------------------

/// A barrier in shared memory that completes a phase after `arrivals` and, where expected, the bytes of copies.
__device__ __forceinline__ void barrier_init(u64* b, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(shared_address(b)), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to copies; follow with `barrier()`.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(u64* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(b)) : "memory");
}
/// Arrives, and has the phase wait for so many bytes more.
__device__ __forceinline__ void barrier_expect(u64* b, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(shared_address(b)), "r"(bytes) : "memory");
}
/// Waits for the end of the phase of this parity; of a fresh barrier, parity 1 has already ended.
__device__ __forceinline__ void barrier_wait(u64* b, u32 parity) {
    asm volatile(
        "{ .reg .pred p;\n"
        "WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra DONE;\n"
        "bra WAIT;\n"
        "DONE: }" :: "r"(shared_address(b)), "r"(parity) : "memory");
}
/// Barrier `id` (1..15; 0 is `barrier()`) of `threads` threads.
__device__ __forceinline__ void named_barrier(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}
/// Counts towards `named_barrier(id, threads)` of others without waiting.
__device__ __forceinline__ void named_barrier_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// --- copies -----------------------------------------------------------------------------------------------------------

/// Starts a copy of a box to shared memory, zeros beyond the tensor; the barrier counts all its bytes. One thread.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, u64* b, int column, int head, int row, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
        :: "r"(shared_address(to)), "l"(&map), "r"(shared_address(b)), "r"(column), "r"(head), "r"(row), "r"(batch)
        : "memory");
}
/// Starts a copy of a box from shared memory, of the part that lies within the tensor. One thread; after `fence_async`.
__device__ __forceinline__ void store_box(const TensorMap& map, const void* from, int column, int head, int row, int batch) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                 :: "l"(&map), "r"(shared_address(from)), "r"(column), "r"(head), "r"(row), "r"(batch) : "memory");
}
__device__ __forceinline__ void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until all but the newest N groups of this thread have read their shared memory.
template <int N> __device__ __forceinline__ void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory");
}
/// Orders this thread's plain accesses to shared memory before later ones of copies and of `wgmma`.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Four 8x8 tiles of 16-bit elements from the layout of an accumulator; lane i gives the address of row i % 8 of tile i / 8.
__device__ __forceinline__ void stmatrix_x4(void* row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(shared_address(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
/// Byte offset in a panel of the 16 bytes `unit` (0..7) of a row, as the swizzle places them.
__device__ __forceinline__ u32 swizzle(u32 row, u32 unit) { return row * PANEL_ROW + ((unit ^ (row % 8)) << 4); }

// --- registers --------------------------------------------------------------------------------------------------------

/// Registers a thread of this warpgroup; a multiple of 8. All its warps.
template <int N> __device__ __forceinline__ void registers_release() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N));
}
template <int N> __device__ __forceinline__ void registers_claim() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N));
}

// --- tensor cores -----------------------------------------------------------------------------------------------------
//
// D += A·B with A 64x16, B 16xN, D 64xN in float, spread over the 128 threads of a warpgroup: of warp w, lane i holds in
// d[4j..4j+4] row 16w + i/4, columns 8j + 2(i%4) and the next, then the same of row + 8. The registers of A (`wgmma_rs`)
// hold row 16w + i/4, columns 2(i%4) and the next; the same of row + 8; columns + 8; both: accumulators 8j..8j+8 of 16
// columns, packed in pairs.
//
// Begin with `wgmma_fence`, end a group with `wgmma_commit`, wait with `wgmma_wait`, then `wgmma_touch` its accumulators:
// without that the compiler may read them before the wait.

/// How an operand lies in its panels: the 16 of the sum along the 64 columns, or along the rows.
enum { SUM_ALONG_COLUMNS = 0, SUM_ALONG_ROWS = 1 };

/// A or B whose M or N are rows: row groups of 8 follow each other. The next 16 of the sum are 32 bytes on, within a panel.
__device__ __forceinline__ u64 operand_rows(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(8 * PANEL_ROW >> 4) << 32 | (u64)1 << 62;
}
/// A or B whose M or N are columns, the next 64 of them `panel` bytes on. The next 16 of the sum are 16 rows on.
__device__ __forceinline__ u64 operand_columns(u32 address, u32 panel) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(panel >> 4) << 16 | (u64)(8 * PANEL_ROW >> 4) << 32 | (u64)1 << 62;
}
/// The operand so many bytes on.
__device__ __forceinline__ u64 advance(u64 operand, u32 bytes) { return operand + (bytes >> 4); }

/// Orders writes to registers before the products that use them. All warps of the warpgroup.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until all but the newest N groups are done.
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}
template <int N> __device__ __forceinline__ void wgmma_touch(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_16(i) WGMMA_4(i), WGMMA_4(i + 4), WGMMA_4(i + 8), WGMMA_4(i + 12)
#define WGMMA_32(i) WGMMA_16(i), WGMMA_16(i + 16)

// D = A·B, or D += A·B where `accumulate`; N is twice the length of `d`. `_ss`: A and B in shared memory; `_rs`: A in
// registers.
template <int A, int B> __device__ __forceinline__ void wgmma_ss(float (&d)[32], u64 a, u64 b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
        "}, %32, %33, p, 1, 1, %35, %36; }"
        : WGMMA_32(0)
        : "l"(a), "l"(b), "r"((int)accumulate), "n"(A), "n"(B));
}
template <int A, int B> __device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 a, u64 b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
        "}, %64, %65, p, 1, 1, %67, %68; }"
        : WGMMA_32(0), WGMMA_32(32)
        : "l"(a), "l"(b), "r"((int)accumulate), "n"(A), "n"(B));
}
template <int B> __device__ __forceinline__ void wgmma_rs(float (&d)[32], const u32 (&a)[4], u64 b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
        "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38; }"
        : WGMMA_32(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(B));
}
template <int B> __device__ __forceinline__ void wgmma_rs(float (&d)[64], const u32 (&a)[4], u64 b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
        "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70; }"
        : WGMMA_32(0), WGMMA_32(32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(B));
}

/// Places of a ring of N, in turn, and the parity of the barriers there.
template <u32 N> struct RingPlace {
    u32 slot = 0, parity = 0;
    __device__ __forceinline__ void next() {
        slot += 1;
        if (slot == N) {
            slot = 0;
            parity ^= 1;
        }
    }
};
