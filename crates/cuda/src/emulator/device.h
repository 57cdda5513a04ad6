// A host that runs portable kernels as a device would: this text, `prelude.cuh` and a kernel source make one C++
// object; the others of this folder, compiled once, are the machine behind it.
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
// The compiler's sanitizers call `checks.h` (-fsanitize=thread,alignment,bounds,...), whose own runtime is not linked.
typedef decltype(sizeof(0)) size_t;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

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

/// Code that no sanitizer watches, because it is no kernel's.
#define UNWATCHED inline __attribute__((no_sanitize("thread"), no_sanitize("undefined")))

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

// Mathematics, in double, in float by the name with an f, and in float by the name alone.
#define MATH1(name)                             \
    extern "C" double name(double) noexcept;    \
    extern "C" float name##f(float) noexcept;   \
    inline float name(float x) { return name##f(x); }
#define MATH2(name)                                  \
    extern "C" double name(double, double) noexcept; \
    extern "C" float name##f(float, float) noexcept; \
    inline float name(float x, float y) { return name##f(x, y); }
MATH1(exp) MATH1(exp2) MATH1(expm1) MATH1(log) MATH1(log2) MATH1(log1p) MATH1(sqrt) MATH1(sin) MATH1(cos) MATH1(tan)
MATH1(tanh) MATH1(erf) MATH1(erfc) MATH1(fabs) MATH1(floor) MATH1(ceil) MATH1(trunc) MATH1(rint) MATH1(round)
MATH2(pow) MATH2(fmod) MATH2(fmin) MATH2(fmax) MATH2(copysign) MATH2(atan2)
#undef MATH1
#undef MATH2
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline bool isnan(double x) { return x != x; }
inline bool isfinite(double x) { return x - x == 0; }
inline bool isinf(double x) { return !isnan(x) && !isfinite(x); }
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

// --- the machine ------------------------------------------------------------------------------------------------------

namespace emulator {
struct Host;

uint3 thread_index();
uint3 block_index();
dim3 block_dim();
dim3 grid_dim();
unsigned char* dynamic_shared();
void need_shared(const void* address, u32 alignment, const char* what);

void meet_block();
void meet_warp();
/// The value of lane `source`; `bytes` of its size.
u64 shuffle(u64 value, u32 bytes, u32 source);
u32 lane();
void mma(float* d, const u32* a, const u32* b);
void ldmatrix(u32* r, const void* row, bool transposed);
void start_copy(void* to, const void* from, bool valid);
void commit_copies();
void wait_for_copies(int newest);

/// Runs all blocks; `call` unpacks the arguments. Returns 0, or 1 with what went wrong in `error`.
int launch(Host& host, const char* kernel, void (*call)(void**), const unsigned* grid, const unsigned* block, size_t shared,
           void** arguments, char* error, size_t error_room);

template <size_t... I> struct Indices {};
template <size_t N, size_t... I> struct IndicesUpTo : IndicesUpTo<N - 1, N - 1, I...> {};
template <size_t... I> struct IndicesUpTo<0, I...> {
    typedef Indices<I...> type;
};
template <class... P, size_t... I> UNWATCHED void apply(void (*kernel)(P...), void** arguments, Indices<I...>) {
    kernel(*(P*)arguments[I]...);
}
template <class... P> UNWATCHED void apply(void (*kernel)(P...), void** arguments) {
    apply(kernel, arguments, typename IndicesUpTo<sizeof...(P)>::type());
}
template <class... P> constexpr u64 parameters(void (*)(P...)) { return sizeof...(P); }
}  // namespace emulator

/// Makes `extern "C" int fewstep_emulate_NAME(host, grid, block, shared, arguments, error, error_room)`, arguments as of
/// cuLaunchKernel, and their number in `fewstep_parameters_NAME`.
#define EMULATE(kernel)                                                                                                     \
    extern "C" __attribute__((visibility("default"))) const u64 fewstep_parameters_##kernel = emulator::parameters(kernel); \
    extern "C" __attribute__((visibility("default"))) int fewstep_emulate_##kernel(                                         \
        emulator::Host& host, const unsigned* grid, const unsigned* block, size_t shared, void** arguments, char* error,    \
        size_t error_room) {                                                                                                \
        auto call = [](void** a) { emulator::apply(kernel, a); };                                                           \
        return emulator::launch(host, #kernel, call, grid, block, shared, arguments, error, error_room);                    \
    }

// --- the part of `prelude.cuh` that is left to the machine --------------------------------------------------------------

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_dim())
#define gridDim (emulator::grid_dim())

#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()

inline u32 lane_id() { return threadIdx.x % 32; }
inline u32 warp_id() { return threadIdx.x / 32; }

inline void barrier() { emulator::meet_block(); }
inline void warp_barrier() { emulator::meet_warp(); }

namespace emulator {
template <class V> UNWATCHED V shuffled(V x, u32 source) {
    static_assert(sizeof(V) <= 8, "a shuffle moves 8 bytes at most");
    u64 value = 0;
    __builtin_memcpy(&value, &x, sizeof x);
    value = shuffle(value, sizeof x, source);
    __builtin_memcpy(&x, &value, sizeof x);
    return x;
}
}  // namespace emulator
template <class V> inline V shuffle_xor(V x, u32 mask) { return emulator::shuffled(x, (emulator::lane() ^ mask) % 32); }
template <class V> inline V shuffle(V x, u32 from) { return emulator::shuffled(x, from % 32); }

inline u32 shared_address(const void* p) {
    emulator::need_shared(p, 1, "shared_address");
    return (u32)(u64)p;
}

UNWATCHED float as_float(u32 bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
UNWATCHED u32 as_bits(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
namespace emulator {
/// Nearest even; a NaN becomes 0x7fff, as on the device.
UNWATCHED u32 bf16_bits(float x) {
    u32 bits = as_bits(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
}  // namespace emulator
struct bf16;
// A template, because the type is complete in the prelude only.
template <class B = bf16> UNWATCHED B to_bf16(float x) {
    B y;
    y.bits = (u16)emulator::bf16_bits(x);
    return y;
}
inline u32 pack_bf16(float low, float high) { return emulator::bf16_bits(low) | emulator::bf16_bits(high) << 16; }

inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
inline float reciprocal_fast(float x) {
    float y = 1 / x;
    return fabsf(y) < 0x1p-126f ? copysignf(0.0f, y) : y;
}

// Nothing is contracted on the host (-ffp-contract=off).
inline float mul_rn(float a, float b) { return a * b; }
inline float add_rn(float a, float b) { return a + b; }
inline float div_rn(float a, float b) { return a / b; }
inline float sqrt_rn(float a) { return sqrtf(a); }
inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double mul_rn(double a, double b) { return a * b; }
inline double add_rn(double a, double b) { return a + b; }
inline double div_rn(double a, double b) { return a / b; }
inline double sqrt_rn(double a) { return sqrt(a); }
inline double fma_rn(double a, double b, double c) { return fma(a, b, c); }
UNWATCHED u32 mul_high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }

inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulator::mma(d, a, b); }
inline void ldmatrix_x4(u32 (&r)[4], const void* row) { emulator::ldmatrix(r, row, false); }
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { emulator::ldmatrix(r, row, true); }

inline void copy_async16(void* to, const void* from, bool valid) { emulator::start_copy(to, from, valid); }
inline void copy_async_commit() { emulator::commit_copies(); }
template <int N> inline void copy_async_wait() { emulator::wait_for_copies(N); }
