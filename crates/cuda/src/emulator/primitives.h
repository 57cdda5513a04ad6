// What `device.h` asks of the machine.
namespace emulator {

uint3 thread_index() { return machine.current->index; }
uint3 block_index() { return machine.block_index; }
dim3 block_dim() { return machine.block_dim; }
dim3 grid_dim() { return machine.grid_dim; }
unsigned char* dynamic_shared() { return machine.dynamic; }
u32 lane() { return machine.current->number % LANES; }

void need_shared(const void* address, u32 alignment, const char* what) {
    if (!is_shared(address)) fail(machine.current, "%s: %p is not in shared memory", what, address);
    if ((uintptr_t)address % alignment) fail(machine.current, "%s: %p is not %u-byte aligned", what, address, alignment);
}

void meet_block() { wait_at(BARRIER); }
void meet_warp() { wait_at(WARP_BARRIER); }

u64 shuffle(u64 value, u32 bytes, u32 source) {
    Thread* thread = machine.current;
    thread->value = value;
    thread->source = source;
    thread->bytes = bytes;
    wait_at(SHUFFLE);
    return thread->value;
}

void mma(float* d, const u32* a, const u32* b) {
    Thread* thread = machine.current;
    thread->d = d;
    thread->a = a;
    thread->b = b;
    wait_at(MMA);
}

void ldmatrix(u32* r, const void* row, bool transposed) {
    need_shared(row, 16, "ldmatrix");
    touch(row, 16, false, __builtin_return_address(0));
    machine.current->r = r;
    machine.current->row = row;
    wait_at(transposed ? LDMATRIX_TRANS : LDMATRIX);
}

void start_copy(void* to, const void* from, bool valid) {
    Thread* thread = machine.current;
    need_shared(to, 16, "copy_async16");
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

void commit_copies() { machine.current->groups++; }

void wait_for_copies(int newest) {
    Thread* thread = machine.current;
    while (thread->n_copies > 0 && thread->copies[thread->first_copy].group + (u32)newest < thread->groups) {
        Copy& copy = thread->copies[thread->first_copy++];
        thread->n_copies--;
        touch(copy.to, 16, true, __builtin_return_address(0));
        memcpy(copy.to, copy.bytes, 16);
    }
    if (thread->n_copies == 0) thread->first_copy = 0;
}

}  // namespace emulator
