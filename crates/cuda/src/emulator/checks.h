// What the compiler's sanitizers call.
namespace emulator {
struct Place {
    const char* file;
    u32 line, column;
};
[[noreturn]] static void undefined(const void* place, const char* what) {
    const Place& at = *(const Place*)place;
    fail(machine.current, "%s:%u:%u: %s", at.file, at.line, at.column, what);
}
}  // namespace emulator

#define CHECK extern "C" __attribute__((visibility("hidden")))
#define CHECK_ACCESS(bytes)                                                                                             \
    CHECK void __tsan_read##bytes(void* p) { emulator::touch(p, bytes, false, __builtin_return_address(0)); }           \
    CHECK void __tsan_write##bytes(void* p) { emulator::touch(p, bytes, true, __builtin_return_address(0)); }           \
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
CHECK void __ubsan_handle_divrem_overflow(void* place, void*, void*) { emulator::undefined(place, "quotient overflows"); }
CHECK void __ubsan_handle_shift_out_of_bounds(void* place, void*, void*) { emulator::undefined(place, "shift too far"); }
#undef CHECK_ACCESS
#undef CHECK
