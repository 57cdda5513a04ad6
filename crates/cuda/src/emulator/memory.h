// What a kernel may touch, and whether two threads touch the same.
namespace emulator {

static bool within(const Region& region, const void* address) {
    return (u64)(uintptr_t)address - region.start < region.bytes;
}
static bool is_shared(const void* address) {
    return within(machine.static_region, address) || within(machine.dynamic_region, address);
}

/// The last buffer that starts at an address or before it.
static const Region* buffer_before(u64 address) {
    const Region* buffers = machine.host->buffers;
    u64 low = 0, high = machine.host->n_buffers;
    while (low < high) {
        u64 middle = (low + high) / 2;
        if (buffers[middle].start <= address) low = middle + 1;
        else high = middle;
    }
    return low > 0 ? buffers + low - 1 : nullptr;
}

static const Region* region_of(const void* address) {
    // Guards part buffers by more than this.
    const Region*& recent = machine.recent[(uintptr_t)address >> 16 & 15];
    if (recent && within(*recent, address)) return recent;
    if (within(machine.static_region, address)) return &machine.static_region;
    if (within(machine.dynamic_region, address)) return &machine.dynamic_region;
    const Region* buffer = buffer_before((u64)(uintptr_t)address);
    return buffer && within(*buffer, address) ? recent = buffer : nullptr;
}

static const char* words(const char* format, u64 a, u64 b = 0) {
    static char text[128];
    snprintf(text, sizeof text, format, a, b);
    return text;
}

/// Words for an address in or near a region.
static const char* place(u64 address) {
    // A kernel that errs by more does not show by how much.
    constexpr u64 NEAR = 1 << 20;
    const Region &fixed = machine.static_region, &dynamic = machine.dynamic_region;
    const Region* buffer = buffer_before(address);
    const Region* next = buffer ? buffer + 1 : machine.host->buffers;
    u64 offset = address - (buffer ? buffer->start : 0), in_dynamic = address - dynamic.start;
    if (within(fixed, (void*)address)) return words("byte %llu of static shared memory", address - fixed.start);
    if (in_dynamic < dynamic.bytes + GUARD)
        return words("byte %llu of dynamic shared memory, which has %llu", in_dynamic, dynamic.bytes);
    if (dynamic.start - address < GUARD) return words("%llu bytes before dynamic shared memory", dynamic.start - address);
    if (buffer && offset < buffer->bytes + NEAR) return words("byte %llu of a buffer of %llu", offset, buffer->bytes);
    bool has_next = next < machine.host->buffers + machine.host->n_buffers;
    if (has_next && next->start - address < NEAR)
        return words("%llu bytes before a buffer of %llu", next->start - address, next->bytes);
    return words("%#llx, which is no memory of a kernel", address);
}

/// Has a touch ended before this one began? Those before epoch `since` have.
static bool ordered(const Touch& before, const Touch& now, u32 since) {
    if (before.epoch < since) return true;
    if (before.epoch < machine.block_began) return false;
    if (before.epoch != now.epoch || before.thread == now.thread) return true;
    u32 warp = now.thread / LANES;
    bool same_warp = before.thread / LANES == warp || before.thread == (LANES_OF | warp);
    return same_warp && before.warp_epoch != now.warp_epoch;
}

[[noreturn]] static void race(const Touch& before, bool wrote, bool writes, u64 address, const void* code) {
    locate((const char*)code - 1);
    char other[48] = "other threads";
    if (before.thread < MAX_THREADS) snprintf(other, sizeof other, "thread %u", before.thread);
    else if (before.thread != SEVERAL) snprintf(other, sizeof other, "other lanes of the warp");
    const char* of = before.epoch < machine.block_began ? " of another block" : "";
    fail(machine.current, "race: %s %s, which %s%s %s with no barrier between", writes ? "writes" : "reads", place(address),
         other, of, wrote ? "wrote" : "read");
}

/// Who has read a byte, once `now` has too.
static void add_reader(Touch& read, const Touch& now, u32 since) {
    if (read.epoch >= since && read.epoch < machine.block_began) return;
    bool same_warp = read.thread / LANES == now.thread / LANES || read.thread == (LANES_OF | now.thread / LANES);
    if (read.epoch != now.epoch || (same_warp && read.warp_epoch != now.warp_epoch)) read = now;
    else if (!same_warp) read.thread = SEVERAL;
    else if (read.thread != now.thread) read.thread = (u16)(LANES_OF | now.thread / LANES);
}

/// The first touch says how fine a shadow is, a finer one makes it finer.
static void refine(Shadow& shadow, u32 grain) {
    for (u32 i = 0; shadow.grain > 0 && i < 16; i += grain) {
        u32 first = i / shadow.grain * shadow.grain;
        shadow.read[i] = shadow.read[first];
        shadow.write[i] = shadow.write[first];
    }
    shadow.grain = grain;
}

/// An access to `bytes` bytes, a power of two, at a multiple of it.
static void touch_shadow(Shadow& shadow, u64 address, u32 bytes, bool writes, const Touch& now, u32 since, const void* code) {
    if (shadow.grain == 0 || shadow.grain > bytes) refine(shadow, bytes);
    u32 first = address % 16;
    for (u32 i = first; i < first + bytes; i += shadow.grain) {
        Touch &read = shadow.read[i], &write = shadow.write[i];
        if (!ordered(write, now, since)) race(write, true, writes, address + i - first, code);
        if (writes) {
            if (!ordered(read, now, since)) race(read, false, true, address + i - first, code);
            write = now;
        } else {
            add_reader(read, now, since);
        }
    }
}

/// Every access of a kernel to memory that is not certainly its own.
static void touch(const void* pointer, size_t bytes, bool writes, const void* code) {
    if (!machine.active) return;
    const Thread* thread = machine.current;
    const char* stack = machine.stacks + thread->number * (GUARD + STACK) + GUARD;
    if ((size_t)((const char*)pointer - stack) < STACK) return;
    u64 address = (u64)(uintptr_t)pointer;
    const Region* region = region_of(pointer);
    if (!region || address + bytes > region->start + region->bytes) {
        // Constants, and buffers that nobody has told of.
        bool constant = !writes && address - (u64)(uintptr_t)__ehdr_start < (u64)(_end - __ehdr_start);
        if (!region && (constant || machine.host->n_buffers == 0)) return;
        locate((const char*)code - 1);
        fail(thread, "%s %s", writes ? "writes" : "reads", place(region ? region->start + region->bytes : address));
    }
    bool shared = region == &machine.static_region || region == &machine.dynamic_region;
    u32 since = shared ? machine.block_began : machine.launch_began;
    Touch now = {machine.epoch, machine.warps[thread->number / LANES].epoch, (u16)thread->number};
    bool whole = bytes <= 16 && (bytes & (bytes - 1)) == 0 && address % bytes == 0;
    u32 step = whole ? (u32)bytes : 1;
    for (u64 at = address; at < address + bytes; at += step)
        touch_shadow(region->shadow[at / 16 - region->start / 16], at, step, writes, now, since, code);
}

}  // namespace emulator
