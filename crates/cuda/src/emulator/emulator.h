// A host that runs portable kernels as a device would: this text, `prelude.cuh` and a kernel source make one C++ program.
//
// Blocks run one after another, the threads of a block as fibres. A thread runs until it meets a collective (barrier,
// shuffle, mma, ldmatrix) and goes on when all others of its warp or block have met the same one; between two collectives the
// order of warps and lanes is shuffled, the same way on every run. Caught and named by kernel, block and thread:
//
// - an access outside of buffers and shared memory, an index outside of a fixed array, a misaligned access;
// - shared memory read before it is written (every byte is 0xff, a NaN, when a block starts);
// - two threads that touch the same byte, one of them writing, with no barrier between, and two blocks that do;
// - a copy_async16 that nobody waited for (the bytes are NaN until then);
// - a collective that some threads miss: divergence, early return.
//
// The compiler's sanitizers call the checks below (-fsanitize=thread,alignment,bounds,...), whose own runtime is not linked.
#pragma once
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// --- the language -----------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// One section, so that its bounds are known.
#define __shared__ static __attribute__((section("fewstep_shared")))

/// The emulator's own code, which no sanitizer watches.
#define MACHINE __attribute__((no_sanitize("thread"), no_sanitize("undefined")))

#define VECTOR2(name, type, align) struct alignas(align) name { type x, y; }; \
    static inline name make_##name(type x, type y) { return {x, y}; }
#define VECTOR3(name, type) struct name { type x, y, z; }; \
    static inline name make_##name(type x, type y, type z) { return {x, y, z}; }
#define VECTOR4(name, type, align) struct alignas(align) name { type x, y, z, w; }; \
    static inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTOR2(int2, int, 8)
VECTOR2(uint2, unsigned, 8)
VECTOR2(float2, float, 8)
VECTOR2(double2, double, 16)
VECTOR2(longlong2, long long, 16)
VECTOR2(ulonglong2, unsigned long long, 16)
VECTOR3(int3, int)
VECTOR3(uint3, unsigned)
VECTOR3(float3, float)
VECTOR4(int4, int, 16)
VECTOR4(uint4, unsigned, 16)
VECTOR4(float4, float, 16)
VECTOR4(uchar4, unsigned char, 4)
VECTOR4(ushort4, unsigned short, 8)
#undef VECTOR2
#undef VECTOR3
#undef VECTOR4
struct dim3 {
    unsigned x, y, z;
};

// --- fibres -----------------------------------------------------------------------------------------------------------

namespace emulator {

constexpr u32 LANES = 32, MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 227 * 1024;
/// Bytes of a fibre's stack and of the guard below it (a whole number of pages of any size in use).
constexpr size_t STACK = 128 * 1024, GUARD = 64 * 1024;

#if defined(__x86_64__) || defined(__aarch64__)
typedef void* Context;
/// Saves the callee-saved registers and the stack pointer to `from`, goes on at `to`.
extern "C" __attribute__((visibility("hidden"))) void fewstep_switch(Context* from, Context to);
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl fewstep_switch
.hidden fewstep_switch
.type fewstep_switch, @function
fewstep_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size fewstep_switch, .-fewstep_switch
)");
/// Six registers, the address to return to and that function's own return address.
constexpr int FRAME = 8, RETURN = 6;
#else
asm(R"(
.text
.p2align 4
.globl fewstep_switch
.hidden fewstep_switch
.type fewstep_switch, %function
fewstep_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size fewstep_switch, .-fewstep_switch
)");
/// Twelve integer registers (the last is the address to return to) and eight of floating point.
constexpr int FRAME = 20, RETURN = 11;
#endif
MACHINE inline void prepare(Context& context, char* stack, void (*entry)()) {
    void** frame = (void**)(stack + STACK) - FRAME;
    memset(frame, 0, FRAME * sizeof *frame);
    frame[RETURN] = (void*)entry;
    context = frame;
}
MACHINE inline void resume(Context& from, Context& to) { fewstep_switch(&from, to); }
#else
}
#include <ucontext.h>
namespace emulator {
typedef ucontext_t Context;
MACHINE inline void prepare(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, entry, 0);
}
MACHINE inline void resume(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

// --- a launch ---------------------------------------------------------------------------------------------------------

enum class Meets { NOTHING, BARRIER, WARP_BARRIER, SHUFFLE, VOTE, MMA, LDMATRIX, LDMATRIX_TRANS };
static const char* const MEETS[] = {"nothing", "barrier", "warp_barrier", "shuffle", "vote", "mma_bf16", "ldmatrix", "ldmatrix_trans"};

/// A copy_async16 on its way.
struct Copy {
    void* to;
    u32 group;
    unsigned char bytes[16];
};

struct Thread {
    uint3 index;
    u32 number;
    bool returned;
    /// The collective that it waits at.
    Meets at;
    /// What it brings: a shuffle's value and source lane, a vote's flag, pointers to fragments or to a row.
    u64 value;
    u32 source, bytes;
    float* d;
    const u32 *a, *b;
    u32* r;
    const void* row;
    Context context;
    Copy* copies;
    u32 first_copy, n_copies, copy_room, groups;
};

struct Warp {
    u32 lanes, waiting;
    u16 epoch;
};

/// Who last touched a byte, and when: between which barriers of the block, counted over all blocks and launches, and of the warp.
struct Touch {
    u32 epoch;
    u16 warp_epoch;
    /// A thread's number, `LANES_OF` and a warp's, or `SEVERAL`.
    u16 thread;
};
constexpr u16 LANES_OF = 0x8000, SEVERAL = 0xffff;
struct Shadow {
    Touch read, write;
};

/// Memory that kernels may touch, and the shadows of its bytes.
struct Region {
    u64 start, bytes;
    Shadow* shadow;
};

/// What all libraries of a process have in common.
struct Host {
    /// The fibres' stacks; the first launch makes them.
    char* stacks;
    u64 epoch;
    /// All buffers by address.
    const Region* buffers;
    u64 n_buffers;
    /// Where in the library the last error arose, as an offset from its start; 0 if unknown.
    u64 code;
};
struct Machine {
    Host* host;
    const char* kernel;
    void (*call)(void**);
    void** arguments;
    uint3 block_index;
    dim3 block_dim, grid_dim;
    u32 n_threads, n_warps, random;
    // The epoch now, and those in which this block and this launch began.
    u32 epoch, block_began, launch_began;
    Thread threads[MAX_THREADS];
    Warp warps[MAX_THREADS / LANES];
    Thread* current;
    Context scheduler;
    char* stacks;
    unsigned char* dynamic;
    Region static_region, dynamic_region;
    /// The buffer touched last.
    const Region* last;
    pthread_t launcher;
    volatile sig_atomic_t active;
    sigjmp_buf escape;
    char* error;
    size_t error_room;
};
static Machine machine;

// Bounds of the section that holds all static shared memory.
extern "C" unsigned char __start_fewstep_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_fewstep_shared[] __attribute__((weak, visibility("hidden")));

// Bounds of the library.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));

MACHINE inline void locate(const void* code) { machine.host->code = (u64)((const char*)code - __ehdr_start); }

/// Ends the launch with an error that starts with where it arose: 256 bytes at least, for a kernel's name and two places.
[[noreturn]] MACHINE inline void fail(const Thread* thread, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] MACHINE inline void fail(const Thread* thread, const char* format, ...) {
    machine.active = 0;
    char* at = machine.error;
    char* end = at + machine.error_room;
    uint3 b = machine.block_index, t = thread ? thread->index : uint3{};
    at += snprintf(at, end - at, "%s: block (%u, %u, %u)", machine.kernel, b.x, b.y, b.z);
    if (thread) at += snprintf(at, end - at, ", thread (%u, %u, %u)", t.x, t.y, t.z);
    at += snprintf(at, end - at, ": ");
    va_list rest;
    va_start(rest, format);
    vsnprintf(at, end - at, format, rest);
    va_end(rest);
    siglongjmp(machine.escape, 1);
}

MACHINE inline u32 random_bits() {
    u32 x = machine.random;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return machine.random = x;
}

// --- memory -----------------------------------------------------------------------------------------------------------

MACHINE inline bool within(const Region& region, const void* address) { return (u64)(uintptr_t)address - region.start < region.bytes; }
MACHINE inline bool is_shared(const void* address) { return within(machine.static_region, address) || within(machine.dynamic_region, address); }

/// The last buffer that starts at an address or before it.
MACHINE inline const Region* buffer_before(u64 address) {
    const Region* buffers = machine.host->buffers;
    u64 low = 0, high = machine.host->n_buffers;
    while (low < high) {
        u64 middle = (low + high) / 2;
        if (buffers[middle].start <= address) low = middle + 1;
        else high = middle;
    }
    return low > 0 ? buffers + low - 1 : nullptr;
}

MACHINE inline const Region* region_of(const void* address) {
    if (machine.last && within(*machine.last, address)) return machine.last;
    if (within(machine.static_region, address)) return &machine.static_region;
    if (within(machine.dynamic_region, address)) return &machine.dynamic_region;
    const Region* buffer = buffer_before((u64)(uintptr_t)address);
    return buffer && within(*buffer, address) ? machine.last = buffer : nullptr;
}

/// Words for an address in or near a region.
MACHINE inline const char* place(u64 address) {
    static char words[160];
    // A kernel that errs by more does not show by how much.
    constexpr u64 NEAR = 1 << 20;
    const Region& dynamic = machine.dynamic_region;
    const Region* buffer = buffer_before(address);
    const Region* next = buffer ? buffer + 1 : machine.host->buffers;
    bool has_next = next < machine.host->buffers + machine.host->n_buffers;
    if (within(machine.static_region, (void*)address)) snprintf(words, sizeof words, "byte %llu of static shared memory", address - machine.static_region.start);
    else if (address - dynamic.start < dynamic.bytes + GUARD) snprintf(words, sizeof words, "byte %llu of dynamic shared memory, which has %llu", address - dynamic.start, dynamic.bytes);
    else if (dynamic.start - address < GUARD) snprintf(words, sizeof words, "%llu bytes before dynamic shared memory", dynamic.start - address);
    else if (buffer && address - buffer->start < buffer->bytes + NEAR) snprintf(words, sizeof words, "byte %llu of a buffer of %llu", address - buffer->start, buffer->bytes);
    else if (has_next && next->start - address < NEAR) snprintf(words, sizeof words, "%llu bytes before a buffer of %llu", next->start - address, next->bytes);
    else snprintf(words, sizeof words, "%#llx, which is no memory of a kernel", address);
    return words;
}

/// Has a touch ended before this one began? Those before epoch `since` have.
MACHINE inline bool ordered(const Touch& before, const Touch& now, u32 since) {
    if (before.epoch < since) return true;
    if (before.epoch < machine.block_began) return false;
    if (before.epoch != now.epoch || before.thread == now.thread) return true;
    u32 warp = now.thread / LANES;
    bool same_warp = before.thread / LANES == warp || before.thread == (LANES_OF | warp);
    return same_warp && before.warp_epoch != now.warp_epoch;
}

[[noreturn]] MACHINE __attribute__((noinline)) inline void race(const Touch& before, bool wrote, bool writes, u64 address, const void* code) {
    locate((const char*)code - 1);
    char other[48] = "other threads";
    if (before.thread < MAX_THREADS) snprintf(other, sizeof other, "thread %u", before.thread);
    else if (before.thread != SEVERAL) snprintf(other, sizeof other, "other lanes of the warp");
    fail(machine.current, "race: %s %s, which %s%s %s with no barrier between", writes ? "writes" : "reads", place(address), other,
         before.epoch < machine.block_began ? " of another block" : "", wrote ? "wrote" : "read");
}

/// Who has read a byte, once `now` has too.
MACHINE inline void add_reader(Touch& read, const Touch& now, u32 since) {
    if (read.epoch >= since && read.epoch < machine.block_began) return;
    bool same_warp = read.thread / LANES == now.thread / LANES || read.thread == (LANES_OF | now.thread / LANES);
    if (read.epoch != now.epoch || (same_warp && read.warp_epoch != now.warp_epoch)) read = now;
    else if (!same_warp) read.thread = SEVERAL;
    else if (read.thread != now.thread) read.thread = (u16)(LANES_OF | now.thread / LANES);
}

/// Every access of a kernel to memory that is not certainly its own.
MACHINE inline void touch(const void* pointer, size_t bytes, bool writes, const void* code) {
    if (!machine.active) return;
    const Thread* thread = machine.current;
    const char* stack = machine.stacks + thread->number * (GUARD + STACK) + GUARD;
    if ((size_t)((const char*)pointer - stack) < STACK) return;
    u64 address = (u64)(uintptr_t)pointer;
    const Region* region = region_of(pointer);
    if (!region || address + bytes > region->start + region->bytes) {
        // Constants, and buffers that nobody has told of.
        bool constant = address - (u64)(uintptr_t)__ehdr_start < (u64)(_end - __ehdr_start);
        if (!region && (constant || machine.host->n_buffers == 0)) return;
        locate((const char*)code - 1);
        fail(thread, "%s %s", writes ? "writes" : "reads", place(region ? region->start + region->bytes : address));
    }
    Shadow* shadow = region->shadow + (address - region->start);
    bool shared = region == &machine.static_region || region == &machine.dynamic_region;
    u32 since = shared ? machine.block_began : machine.launch_began;
    Touch now = {machine.epoch, machine.warps[thread->number / LANES].epoch, (u16)thread->number};
    for (size_t i = 0; i < bytes; i++) {
        Shadow& byte = shadow[i];
        if (!ordered(byte.write, now, since)) race(byte.write, true, writes, address + i, code);
        if (writes) {
            if (!ordered(byte.read, now, since)) race(byte.read, false, true, address + i, code);
            byte.write = now;
        } else {
            add_reader(byte.read, now, since);
        }
    }
}

MACHINE inline void need_shared(const void* address, const char* what) {
    if (!is_shared(address)) fail(machine.current, "%s: %p is not in shared memory", what, address);
    if ((uintptr_t)address % 16) fail(machine.current, "%s: address %p in shared memory is not 16-byte aligned", what, address);
}

// --- collectives ------------------------------------------------------------------------------------------------------

MACHINE inline float from_bf16(u32 bits) {
    u32 wide = bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

/// Lane 4g + t holds A[g + 8(i % 2)][2t + 8(i / 2)] and the next in a[i], B[2t + 8i][g] and the next in b[i],
/// D[g + 8(i / 2)][2t + i % 2] in d[i].
MACHINE inline void mma(Thread* lanes) {
    typedef float Row __attribute__((vector_size(32)));
    float a[16][16];
    Row b[16];
    for (u32 lane = 0; lane < LANES; lane++) {
        u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; i++)
            for (u32 half = 0; half < 2; half++) a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = from_bf16(lanes[lane].a[i] >> 16 * half & 0xffff);
        for (u32 i = 0; i < 2; i++)
            for (u32 half = 0; half < 2; half++) b[2 * t + 8 * i + half][g] = from_bf16(lanes[lane].b[i] >> 16 * half & 0xffff);
    }
    for (u32 m = 0; m < 16; m++) {
        Row d;
        for (u32 n = 0; n < 8; n++) d[n] = lanes[m % 8 * 4 + n / 2].d[m / 8 * 2 + n % 2];
        for (u32 k = 0; k < 16; k++) d += a[m][k] * b[k];
        for (u32 n = 0; n < 8; n++) lanes[m % 8 * 4 + n / 2].d[m / 8 * 2 + n % 2] = d[n];
    }
}

/// Tile i goes to r[i]: lane 4g + t holds M[g][2t], M[g][2t + 1], of the transpose M[2t][g], M[2t + 1][g].
MACHINE inline void ldmatrix(Thread* lanes, bool transposed) {
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

MACHINE inline void shuffle(Thread* lanes, u32 n) {
    u64 values[LANES];
    for (u32 lane = 0; lane < n; lane++) values[lane] = lanes[lane].value;
    for (u32 lane = 0; lane < n; lane++) {
        Thread& thread = lanes[lane];
        if (thread.source >= n) fail(&thread, "shuffle from lane %u of a warp of %u threads", thread.source, n);
        if (thread.bytes != lanes[thread.source].bytes) fail(&thread, "shuffle of %u bytes from a lane that gives %u", thread.bytes, lanes[thread.source].bytes);
        thread.value = values[thread.source];
    }
}

MACHINE inline void vote(Thread* lanes, u32 n) {
    u64 ballot = 0;
    for (u32 lane = 0; lane < n; lane++) ballot |= lanes[lane].value << lane;
    for (u32 lane = 0; lane < n; lane++) lanes[lane].value = ballot;
}

/// All lanes have met: does what they met for, and lets them go on.
MACHINE inline void meet(Warp& warp, Thread* lanes) {
    Meets at = lanes[0].at;
    for (u32 lane = 1; lane < warp.lanes; lane++)
        if (lanes[lane].at != at) fail(&lanes[lane], "divergence: waits at %s while thread %u waits at %s", MEETS[(int)lanes[lane].at], lanes[0].number, MEETS[(int)at]);
    bool whole = at == Meets::MMA || at == Meets::LDMATRIX || at == Meets::LDMATRIX_TRANS;
    if (whole && warp.lanes != LANES) fail(&lanes[0], "%s in a warp of %u threads", MEETS[(int)at], warp.lanes);
    switch (at) {
        case Meets::WARP_BARRIER: warp.epoch++; break;
        case Meets::SHUFFLE: shuffle(lanes, warp.lanes); break;
        case Meets::VOTE: vote(lanes, warp.lanes); break;
        case Meets::MMA: mma(lanes); break;
        case Meets::LDMATRIX: ldmatrix(lanes, false); break;
        case Meets::LDMATRIX_TRANS: ldmatrix(lanes, true); break;
        default: break;
    }
    warp.waiting = 0;
    for (u32 lane = 0; lane < warp.lanes; lane++) lanes[lane].at = Meets::NOTHING;
}

MACHINE __attribute__((noinline)) inline void wait_at(Meets at) {
    Thread* thread = machine.current;
    thread->at = at;
    if (at != Meets::BARRIER) {
        u32 w = thread->number / LANES;
        if (++machine.warps[w].waiting == machine.warps[w].lanes) meet(machine.warps[w], machine.threads + w * LANES);
    }
    resume(thread->context, machine.scheduler);
}

MACHINE inline void arrive_copies(u32 newest) {
    Thread* thread = machine.current;
    while (thread->n_copies > 0 && thread->copies[thread->first_copy].group + newest < thread->groups) {
        Copy& copy = thread->copies[thread->first_copy++];
        thread->n_copies--;
        touch(copy.to, 16, true, __builtin_return_address(0));
        memcpy(copy.to, copy.bytes, 16);
    }
    if (thread->n_copies == 0) thread->first_copy = 0;
}

MACHINE inline void start_copy(void* to, const void* from, bool valid) {
    Thread* thread = machine.current;
    need_shared(to, "copy_async16");
    if (valid && (uintptr_t)from % 16) fail(thread, "copy_async16: source %p is not 16-byte aligned", from);
    u32 next = thread->first_copy + thread->n_copies;
    if (next == thread->copy_room) {
        thread->copy_room = 2 * thread->copy_room + 16;
        thread->copies = (Copy*)realloc(thread->copies, thread->copy_room * sizeof(Copy));
        if (!thread->copies) fail(thread, "copy_async16: the host is out of memory");
    }
    Copy& copy = thread->copies[next];
    copy.to = to;
    copy.group = thread->groups;
    if (valid) touch(from, 16, false, __builtin_return_address(0));
    if (valid) memcpy(copy.bytes, from, 16);
    else memset(copy.bytes, 0, 16);
    thread->n_copies++;
    touch(to, 16, true, __builtin_return_address(0));
    memset(to, 0xff, 16);
}

// --- running ----------------------------------------------------------------------------------------------------------

MACHINE inline void run_thread() {
    machine.call(machine.arguments);
    machine.current->returned = true;
    resume(machine.current->context, machine.scheduler);
    abort();
}

/// Runs a warp until each lane waits at a barrier or has returned.
MACHINE inline void run_warp(u32 w) {
    Warp& warp = machine.warps[w];
    Thread* lanes = machine.threads + w * LANES;
    for (bool ran = true; ran;) {
        ran = false;
        u32 stride = random_bits() | 1, offset = random_bits();
        for (u32 i = 0; i < LANES; i++) {
            u32 lane = (i * stride + offset) % LANES;
            if (lane >= warp.lanes || lanes[lane].returned || lanes[lane].at != Meets::NOTHING) continue;
            ran = true;
            machine.current = &lanes[lane];
            resume(machine.scheduler, lanes[lane].context);
        }
    }
    for (u32 lane = 0; lane < warp.lanes; lane++) {
        Thread& thread = lanes[lane];
        if (thread.returned || thread.at == Meets::BARRIER) continue;
        for (u32 i = 0; i < warp.lanes; i++) {
            const char* at = MEETS[(int)thread.at];
            if (lanes[i].returned) fail(&thread, "divergence: waits at %s, but thread %u of its warp has returned", at, lanes[i].number);
            if (lanes[i].at != thread.at) fail(&thread, "divergence: waits at %s while thread %u waits at %s", at, lanes[i].number, MEETS[(int)lanes[i].at]);
        }
    }
}

/// Lets all threads pass the barrier; false if the block is done.
MACHINE inline bool pass_barrier() {
    const Thread *waiting = nullptr, *returned = nullptr;
    for (u32 i = 0; i < machine.n_threads; i++) {
        Thread& thread = machine.threads[i];
        (thread.returned ? returned : waiting) = &thread;
        thread.at = Meets::NOTHING;
    }
    if (waiting && returned) fail(waiting, "divergence: waits at barrier, but thread %u has returned", returned->number);
    machine.epoch++;
    return waiting != nullptr;
}

MACHINE inline void run_block() {
    machine.block_began = machine.epoch;
    memset((void*)machine.static_region.start, 0xff, machine.static_region.bytes);
    memset(machine.dynamic, 0xff, machine.dynamic_region.bytes);
    dim3 d = machine.block_dim;
    for (u32 i = 0; i < machine.n_threads; i++) {
        Thread& thread = machine.threads[i];
        thread.index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
        thread.number = i;
        thread.returned = false;
        thread.at = Meets::NOTHING;
        thread.first_copy = thread.n_copies = thread.groups = 0;
        prepare(thread.context, machine.stacks + i * (GUARD + STACK) + GUARD, run_thread);
    }
    machine.n_warps = (machine.n_threads + LANES - 1) / LANES;
    for (u32 w = 0; w < machine.n_warps; w++) {
        u32 left = machine.n_threads - w * LANES;
        machine.warps[w].lanes = left < LANES ? left : LANES;
        machine.warps[w].waiting = 0;
    }
    do {
        u32 first = random_bits() % machine.n_warps, step = random_bits() % 2 ? 1 : machine.n_warps - 1;
        for (u32 i = 0; i < machine.n_warps; i++) run_warp((first + i * step) % machine.n_warps);
    } while (pass_barrier());
}

// --- faults -----------------------------------------------------------------------------------------------------------

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int N_SIGNALS = 4;
static struct sigaction outer[N_SIGNALS];
alignas(16) static unsigned char signal_stack[64 * 1024];

MACHINE inline void on_fault(int signal, siginfo_t* info, void* context) {
    int which = 0;
    while (SIGNALS[which] != signal) which++;
    if (!machine.active || !pthread_equal(machine.launcher, pthread_self())) {
        // Not a kernel's: whoever handled it before.
        if (outer[which].sa_flags & SA_SIGINFO) return outer[which].sa_sigaction(signal, info, context);
        if (outer[which].sa_handler != SIG_DFL && outer[which].sa_handler != SIG_IGN) return outer[which].sa_handler(signal);
        sigaction(signal, &outer[which], nullptr);
        return;
    }
    const char* does = "accesses";
#if defined(__x86_64__) && defined(__linux__)
    greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    locate((void*)registers[REG_RIP]);
    does = registers[REG_ERR] & 2 ? "writes" : "reads";
#endif
    if (signal == SIGFPE) fail(machine.current, "divides an integer by zero");
    if (signal == SIGILL) fail(machine.current, "traps");
    uintptr_t address = (uintptr_t)info->si_addr;
    uintptr_t in_stacks = address - (uintptr_t)machine.stacks;
    if (in_stacks < MAX_THREADS * (GUARD + STACK)) fail(machine.current, "overflows its stack of %zu bytes", STACK);
    fail(machine.current, "%s %s", does, place(address));
}

MACHINE inline void* map(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? nullptr : at;
}

MACHINE inline char* make_stacks() {
    char* stacks = (char*)map(MAX_THREADS * (GUARD + STACK));
    for (u32 i = 0; stacks && i < MAX_THREADS; i++) mprotect(stacks + i * (GUARD + STACK), GUARD, PROT_NONE);
    return stacks;
}

/// Runs all blocks. Returns 0, or 1 with what went wrong in `error`.
MACHINE inline int launch(Host& host, const char* kernel, void (*call)(void**), const unsigned grid[3], const unsigned block[3], size_t shared, void** arguments,
                          char* error, size_t error_room) {
    machine.kernel = kernel;
    machine.call = call;
    machine.arguments = arguments;
    machine.grid_dim = {grid[0], grid[1], grid[2]};
    machine.block_dim = {block[0], block[1], block[2]};
    machine.error = error;
    machine.error_room = error_room;
    machine.block_index = {0, 0, 0};
    machine.random = 0x9e3779b9;
    machine.host = &host;
    host.code = 0;
    u64 threads = (u64)block[0] * block[1] * block[2];
    if (threads == 0 || threads > MAX_THREADS || shared > MAX_SHARED) {
        snprintf(error, error_room, "%s: %llu threads with %zu bytes of shared memory in a block; at most %u and %zu", kernel, threads, shared, MAX_THREADS, MAX_SHARED);
        return 1;
    }
    machine.n_threads = (u32)threads;
    // 1024-byte aligned, as a kernel is promised, and as near to the guard as that lets it be.
    size_t room = (shared + GUARD - 1) / GUARD * GUARD;
    size_t mapped = GUARD + room + GUARD;
    char* guarded = (char*)map(mapped);
    size_t fixed = (size_t)(__stop_fewstep_shared - __start_fewstep_shared);
    Shadow* shadow = (Shadow*)calloc(shared + fixed + 1, sizeof(Shadow));
    if (!host.stacks) host.stacks = make_stacks();
    if (!guarded || !shadow || !host.stacks) {
        snprintf(error, error_room, "%s: the host is out of memory", kernel);
        return 1;
    }
    mprotect(guarded, GUARD, PROT_NONE);
    mprotect(guarded + GUARD + room, GUARD, PROT_NONE);
    size_t aligned = (shared + 1023) / 1024 * 1024;
    machine.dynamic = (unsigned char*)guarded + GUARD + room - aligned;
    machine.stacks = host.stacks;
    machine.static_region = {(u64)(uintptr_t)__start_fewstep_shared, fixed, shadow};
    machine.dynamic_region = {(u64)(uintptr_t)machine.dynamic, shared, shadow + fixed};
    machine.last = nullptr;
    // No shadow has epoch 0 but a fresh one.
    machine.epoch = machine.launch_began = (u32)host.epoch + 1;

    stack_t stack = {}, outer_stack;
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &outer_stack);
    machine.launcher = pthread_self();
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &action, &outer[i]);
    int failed = sigsetjmp(machine.escape, 1);
    if (!failed) {
        machine.active = 1;
        for (unsigned z = 0; z < grid[2]; z++)
            for (unsigned y = 0; y < grid[1]; y++)
                for (unsigned x = 0; x < grid[0]; x++) {
                    machine.block_index = {x, y, z};
                    run_block();
                }
    }
    machine.active = 0;
    host.epoch = machine.epoch;
    for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &outer[i], nullptr);
    sigaltstack(&outer_stack, nullptr);
    munmap(guarded, mapped);
    free(shadow);
    return failed;
}

template <class... P, size_t... I> MACHINE inline void apply(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*(P*)arguments[I]...);
}
template <class... P> MACHINE inline void apply(void (*kernel)(P...), void** arguments) { apply(kernel, arguments, std::index_sequence_for<P...>()); }
template <class... P> constexpr u64 parameters(void (*)(P...)) { return sizeof...(P); }

}  // namespace emulator

/// Makes `extern "C" int fewstep_emulate_NAME(host, grid, block, shared, arguments, error, error_room)`, arguments as of cuLaunchKernel,
/// and their number in `fewstep_parameters_NAME`.
#define EMULATE(kernel)                                                                                                              \
    extern "C" __attribute__((visibility("default"))) const u64 fewstep_parameters_##kernel = emulator::parameters(kernel);          \
    extern "C" MACHINE __attribute__((visibility("default"))) int fewstep_emulate_##kernel(                                          \
        emulator::Host& host, const unsigned grid[3], const unsigned block[3], size_t shared, void** arguments, char* error,         \
        size_t error_room) {                                                                                                         \
        auto call = [](void** a) { emulator::apply(kernel, a); };                                                                    \
        return emulator::launch(host, #kernel, call, grid, block, shared, arguments, error, error_room);                             \
    }

// --- what the sanitizers call -----------------------------------------------------------------------------------------

namespace emulator {
struct Place {
    const char* file;
    u32 line, column;
};
[[noreturn]] MACHINE inline void undefined(const void* place, const char* what) {
    const Place& at = *(const Place*)place;
    fail(machine.active ? machine.current : nullptr, "%s:%u:%u: %s", at.file, at.line, at.column, what);
}
}  // namespace emulator

#define CHECK extern "C" MACHINE __attribute__((used, visibility("hidden")))
#define CHECK_ACCESS(bytes)                                                                                            \
    CHECK void __tsan_read##bytes(void* p) { emulator::touch(p, bytes, false, __builtin_return_address(0)); }          \
    CHECK void __tsan_write##bytes(void* p) { emulator::touch(p, bytes, true, __builtin_return_address(0)); }          \
    CHECK void __tsan_unaligned_read##bytes(void* p) { emulator::touch(p, bytes, false, __builtin_return_address(0)); } \
    CHECK void __tsan_unaligned_write##bytes(void* p) { emulator::touch(p, bytes, true, __builtin_return_address(0)); }
CHECK_ACCESS(1)
CHECK_ACCESS(2)
CHECK_ACCESS(4)
CHECK_ACCESS(8)
CHECK_ACCESS(16)
CHECK void __tsan_read_range(void* p, size_t bytes) { emulator::touch(p, bytes, false, __builtin_return_address(0)); }
CHECK void __tsan_write_range(void* p, size_t bytes) { emulator::touch(p, bytes, true, __builtin_return_address(0)); }
CHECK void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    emulator::touch(from, bytes, false, __builtin_return_address(0));
    emulator::touch(to, bytes, true, __builtin_return_address(0));
    return memcpy(to, from, bytes);
}
CHECK void* __tsan_memset(void* to, int byte, size_t bytes) {
    emulator::touch(to, bytes, true, __builtin_return_address(0));
    return memset(to, byte, bytes);
}
CHECK void __tsan_init() {}
CHECK void __tsan_func_entry(void*) {}
CHECK void __tsan_func_exit() {}

CHECK void __ubsan_handle_type_mismatch_v1(void* place, void*) { emulator::undefined(place, "misaligned address"); }
CHECK void __ubsan_handle_out_of_bounds(void* place, void*) { emulator::undefined(place, "index outside of the array"); }
CHECK void __ubsan_handle_add_overflow(void* place, void*, void*) { emulator::undefined(place, "signed sum overflows"); }
CHECK void __ubsan_handle_sub_overflow(void* place, void*, void*) { emulator::undefined(place, "signed difference overflows"); }
CHECK void __ubsan_handle_mul_overflow(void* place, void*, void*) { emulator::undefined(place, "signed product overflows"); }
CHECK void __ubsan_handle_negate_overflow(void* place, void*) { emulator::undefined(place, "signed negation overflows"); }
CHECK void __ubsan_handle_divrem_overflow(void* place, void*, void*) { emulator::undefined(place, "division by zero, or overflow"); }
CHECK void __ubsan_handle_shift_out_of_bounds(void* place, void*, void*) { emulator::undefined(place, "shift by the width or more"); }
#undef CHECK_ACCESS
#undef CHECK

// --- the machine that `prelude.cuh` leaves to this text ---------------------------------------------------------------

namespace emulator {
MACHINE inline uint3 thread_index() { return machine.current->index; }
MACHINE inline uint3 block_index() { return machine.block_index; }
MACHINE inline dim3 block_dim() { return machine.block_dim; }
MACHINE inline dim3 grid_dim() { return machine.grid_dim; }
}  // namespace emulator
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_dim())
#define gridDim (emulator::grid_dim())

#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::machine.dynamic

MACHINE inline u32 lane_id() { return threadIdx.x % emulator::LANES; }
MACHINE inline u32 warp_id() { return threadIdx.x / emulator::LANES; }

MACHINE inline void barrier() { emulator::wait_at(emulator::Meets::BARRIER); }
MACHINE inline void warp_barrier() { emulator::wait_at(emulator::Meets::WARP_BARRIER); }

namespace emulator {
template <class V> MACHINE inline V shuffled(V x, u32 source) {
    static_assert(sizeof(V) <= 8, "a shuffle moves 8 bytes at most");
    Thread* thread = machine.current;
    thread->value = 0;
    memcpy(&thread->value, &x, sizeof x);
    thread->source = source;
    thread->bytes = sizeof x;
    wait_at(Meets::SHUFFLE);
    memcpy(&x, &thread->value, sizeof x);
    return x;
}
}  // namespace emulator

template <class V> MACHINE inline V shuffle_xor(V x, u32 mask) { return emulator::shuffled(x, (emulator::machine.current->number ^ mask) % emulator::LANES); }
template <class V> MACHINE inline V shuffle(V x, u32 from) { return emulator::shuffled(x, from % emulator::LANES); }
template <class V> MACHINE inline V shuffle_up(V x, u32 by) {
    u32 lane = emulator::machine.current->number % emulator::LANES;
    return emulator::shuffled(x, lane >= by ? lane - by : lane);
}

MACHINE inline u32 shared_address(const void* p) {
    if (!emulator::is_shared(p)) emulator::fail(emulator::machine.current, "shared_address: %p is not in shared memory", p);
    return (u32)(uintptr_t)p;
}

MACHINE inline float as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
MACHINE inline u32 as_bits(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
namespace emulator {
/// Nearest even; a NaN becomes 0x7fff, as on the device.
MACHINE inline u32 bf16_bits(float x) {
    u32 bits = as_bits(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
}  // namespace emulator
struct bf16;
// A template, because the type is complete in the prelude only.
template <class B = bf16> MACHINE inline B to_bf16(float x) {
    B y;
    y.bits = (u16)emulator::bf16_bits(x);
    return y;
}
MACHINE inline u32 pack_bf16(float low, float high) { return emulator::bf16_bits(low) | emulator::bf16_bits(high) << 16; }

MACHINE inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

// Nothing is contracted on the host (-ffp-contract=off).
MACHINE inline float mul_rn(float a, float b) { return a * b; }
MACHINE inline float add_rn(float a, float b) { return a + b; }
MACHINE inline float div_rn(float a, float b) { return a / b; }
MACHINE inline float sqrt_rn(float a) { return sqrtf(a); }
MACHINE inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
MACHINE inline double mul_rn(double a, double b) { return a * b; }
MACHINE inline double add_rn(double a, double b) { return a + b; }
MACHINE inline double div_rn(double a, double b) { return a / b; }
MACHINE inline double sqrt_rn(double a) { return sqrt(a); }
MACHINE inline double fma_rn(double a, double b, double c) { return fma(a, b, c); }
MACHINE inline u32 mul_high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }

MACHINE inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulator::Thread* thread = emulator::machine.current;
    thread->d = d;
    thread->a = a;
    thread->b = b;
    emulator::wait_at(emulator::Meets::MMA);
}
namespace emulator {
MACHINE inline void load_matrix(u32 (&r)[4], const void* row, Meets at) {
    need_shared(row, "ldmatrix");
    touch(row, 16, false, __builtin_return_address(0));
    machine.current->r = r;
    machine.current->row = row;
    wait_at(at);
}
}  // namespace emulator
MACHINE inline void ldmatrix_x4(u32 (&r)[4], const void* row) { emulator::load_matrix(r, row, emulator::Meets::LDMATRIX); }
MACHINE inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { emulator::load_matrix(r, row, emulator::Meets::LDMATRIX_TRANS); }

MACHINE inline void copy_async16(void* to, const void* from, bool valid) { emulator::start_copy(to, from, valid); }
MACHINE inline void copy_async_commit() { emulator::machine.current->groups++; }
template <int N> MACHINE inline void copy_async_wait() { emulator::arrive_copies(N); }

// --- what the device's compiler has built in --------------------------------------------------------------------------

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
inline float cospif(float x) { return (float)cos(M_PI * (double)x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class V> inline V __ldg(const V* p) { return *p; }

#define MIN_MAX(type)                                              \
    inline type min(type a, type b) { return b < a ? b : a; } \
    inline type max(type a, type b) { return a < b ? b : a; }
MIN_MAX(int)
MIN_MAX(unsigned)
MIN_MAX(long)
MIN_MAX(unsigned long)
MIN_MAX(long long)
MIN_MAX(unsigned long long)
#undef MIN_MAX
// A number before a NaN.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
