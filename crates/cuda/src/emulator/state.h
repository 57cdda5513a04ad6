// What a launch consists of, and how it ends in an error.
namespace emulator {

enum Meets { NOTHING, BARRIER, WARP_BARRIER, SHUFFLE, MMA, LDMATRIX, LDMATRIX_TRANS };
static const char* const MEETS[] = {"nothing", "barrier", "warp_barrier", "shuffle", "mma_bf16", "ldmatrix", "ldmatrix_trans"};

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
    /// What it brings: a shuffle's value and source lane, pointers to fragments or to a row.
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

/// Who last touched a byte, and when: between which barriers of the block and of the warp.
struct Touch {
    /// Counted over all blocks and launches.
    u32 epoch;
    u16 warp_epoch;
    /// A thread's number, `LANES_OF` and a warp's, or `SEVERAL`.
    u16 thread;
};
constexpr u16 LANES_OF = 0x8000, SEVERAL = 0xffff;

/// Of 16 aligned bytes, for each `grain` bytes in a row at the place of the first; 0 while nobody has touched them.
struct Shadow {
    u32 grain;
    Touch read[16], write[16];
};

static_assert(sizeof(Shadow) == 260, "as in memory.rs");

/// Memory that kernels may touch, and the shadows of all that it has a part in.
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
    /// Buffers touched lately, by address.
    const Region* recent[16];
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

static void locate(const void* code) { machine.host->code = (u64)((const char*)code - __ehdr_start); }

/// Ends the launch with an error that starts with where it arose.
[[noreturn]] static void fail(const Thread* thread, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] static void fail(const Thread* thread, const char* format, ...) {
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

static u32 random_bits() {
    u32 x = machine.random;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return machine.random = x;
}

}  // namespace emulator
