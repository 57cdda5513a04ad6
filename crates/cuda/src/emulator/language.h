// A host that runs portable kernels as a device would: the texts of this folder, `prelude.cuh` and a kernel source make one C++
// program. This one is the language: what a device's compiler has built in.
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
#define UNWATCHED __attribute__((no_sanitize("thread"), no_sanitize("undefined")))
#define MACHINE UNWATCHED inline

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
