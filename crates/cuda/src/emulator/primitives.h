// The part of `prelude.cuh` that is left to the machine.
namespace emulator {
MACHINE uint3 thread_index() { return machine.current->index; }
MACHINE uint3 block_index() { return machine.block_index; }
MACHINE dim3 block_dim() { return machine.block_dim; }
MACHINE dim3 grid_dim() { return machine.grid_dim; }
}  // namespace emulator
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_dim())
#define gridDim (emulator::grid_dim())

#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::machine.dynamic

MACHINE u32 lane_id() { return threadIdx.x % emulator::LANES; }
MACHINE u32 warp_id() { return threadIdx.x / emulator::LANES; }

MACHINE void barrier() { emulator::wait_at(emulator::BARRIER); }
MACHINE void warp_barrier() { emulator::wait_at(emulator::WARP_BARRIER); }

namespace emulator {
template <class V> MACHINE V shuffled(V x, u32 source) {
    static_assert(sizeof(V) <= 8, "a shuffle moves 8 bytes at most");
    Thread* thread = machine.current;
    thread->value = 0;
    memcpy(&thread->value, &x, sizeof x);
    thread->source = source;
    thread->bytes = sizeof x;
    wait_at(SHUFFLE);
    memcpy(&x, &thread->value, sizeof x);
    return x;
}
}  // namespace emulator

template <class V> MACHINE V shuffle_xor(V x, u32 mask) {
    return emulator::shuffled(x, (emulator::machine.current->number ^ mask) % emulator::LANES);
}
template <class V> MACHINE V shuffle(V x, u32 from) { return emulator::shuffled(x, from % emulator::LANES); }
template <class V> MACHINE V shuffle_up(V x, u32 by) {
    u32 lane = emulator::machine.current->number % emulator::LANES;
    return emulator::shuffled(x, lane >= by ? lane - by : lane);
}

MACHINE u32 shared_address(const void* p) {
    if (!emulator::is_shared(p)) emulator::fail(emulator::machine.current, "shared_address: %p is not in shared memory", p);
    return (u32)(uintptr_t)p;
}

MACHINE float as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
MACHINE u32 as_bits(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
namespace emulator {
/// Nearest even; a NaN becomes 0x7fff, as on the device.
MACHINE u32 bf16_bits(float x) {
    u32 bits = as_bits(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
}  // namespace emulator
struct bf16;
// A template, because the type is complete in the prelude only.
template <class B = bf16> MACHINE B to_bf16(float x) {
    B y;
    y.bits = (u16)emulator::bf16_bits(x);
    return y;
}
MACHINE u32 pack_bf16(float low, float high) { return emulator::bf16_bits(low) | emulator::bf16_bits(high) << 16; }

MACHINE float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

// Nothing is contracted on the host (-ffp-contract=off).
MACHINE float mul_rn(float a, float b) { return a * b; }
MACHINE float add_rn(float a, float b) { return a + b; }
MACHINE float div_rn(float a, float b) { return a / b; }
MACHINE float sqrt_rn(float a) { return sqrtf(a); }
MACHINE float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
MACHINE double mul_rn(double a, double b) { return a * b; }
MACHINE double add_rn(double a, double b) { return a + b; }
MACHINE double div_rn(double a, double b) { return a / b; }
MACHINE double sqrt_rn(double a) { return sqrt(a); }
MACHINE double fma_rn(double a, double b, double c) { return fma(a, b, c); }
MACHINE u32 mul_high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }

MACHINE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulator::Thread* thread = emulator::machine.current;
    thread->d = d;
    thread->a = a;
    thread->b = b;
    emulator::wait_at(emulator::MMA);
}
namespace emulator {
MACHINE void load_matrix(u32 (&r)[4], const void* row, Meets at) {
    need_shared(row, "ldmatrix");
    touch(row, 16, false, __builtin_return_address(0));
    machine.current->r = r;
    machine.current->row = row;
    wait_at(at);
}
}  // namespace emulator
MACHINE void ldmatrix_x4(u32 (&r)[4], const void* row) { emulator::load_matrix(r, row, emulator::LDMATRIX); }
MACHINE void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { emulator::load_matrix(r, row, emulator::LDMATRIX_TRANS); }

MACHINE void copy_async16(void* to, const void* from, bool valid) { emulator::start_copy(to, from, valid); }
MACHINE void copy_async_commit() { emulator::machine.current->groups++; }
template <int N> MACHINE void copy_async_wait() { emulator::arrive_copies(N); }
