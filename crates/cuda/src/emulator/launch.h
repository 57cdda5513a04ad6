// Blocks, warps and lanes in turn, and faults.
namespace emulator {

static void run_thread() {
    machine.call(machine.arguments);
    machine.current->returned = true;
    resume(machine.current->context, machine.scheduler);
    abort();
}

/// Runs a warp until each lane waits at a barrier or has returned.
static void run_warp(u32 w) {
    Warp& warp = machine.warps[w];
    Thread* lanes = machine.threads + w * LANES;
    for (bool ran = true; ran;) {
        ran = false;
        u32 stride = random_bits() | 1, offset = random_bits();
        for (u32 i = 0; i < LANES; i++) {
            u32 lane = (i * stride + offset) % LANES;
            if (lane >= warp.lanes || lanes[lane].returned || lanes[lane].at != NOTHING) continue;
            ran = true;
            machine.current = &lanes[lane];
            resume(machine.scheduler, lanes[lane].context);
        }
    }
    for (u32 lane = 0; lane < warp.lanes; lane++) {
        Thread& thread = lanes[lane];
        if (thread.returned || thread.at == BARRIER) continue;
        for (u32 i = 0; i < warp.lanes; i++)
            if (lanes[i].returned || lanes[i].at != thread.at) diverge(thread, lanes[i]);
    }
}

/// Lets all threads pass the barrier; false if the block is done.
static bool pass_barrier() {
    const Thread *waiting = nullptr, *returned = nullptr;
    for (u32 i = 0; i < machine.n_threads; i++) (machine.threads[i].returned ? returned : waiting) = &machine.threads[i];
    if (waiting && returned) diverge(*waiting, *returned);
    for (u32 i = 0; i < machine.n_threads; i++) machine.threads[i].at = NOTHING;
    machine.epoch++;
    return waiting != nullptr;
}

static void run_block() {
    machine.block_began = machine.epoch;
    memset((void*)machine.static_region.start, 0xff, machine.static_region.bytes);
    memset(machine.dynamic, 0xff, machine.dynamic_region.bytes);
    dim3 d = machine.block_dim;
    for (u32 i = 0; i < machine.n_threads; i++) {
        Thread& thread = machine.threads[i];
        thread.index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
        thread.number = i;
        thread.returned = false;
        thread.at = NOTHING;
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

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int N_SIGNALS = 4;
static struct sigaction outer[N_SIGNALS];
static stack_t outer_stack;
alignas(16) static unsigned char signal_stack[64 * 1024];

static void on_fault(int signal, siginfo_t* info, void* context) {
    int which = 0;
    while (SIGNALS[which] != signal) which++;
    if (!machine.active || !pthread_equal(machine.launcher, pthread_self())) {
        // Whoever handled it before.
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

/// From here on a fault of this thread is a kernel's.
static void watch_faults() {
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &outer_stack);
    machine.launcher = pthread_self();
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &action, &outer[i]);
}

static void leave_faults() {
    for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &outer[i], nullptr);
    sigaltstack(&outer_stack, nullptr);
}

static void* map(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? nullptr : at;
}

static char* make_stacks() {
    char* stacks = (char*)map(MAX_THREADS * (GUARD + STACK));
    for (u32 i = 0; stacks && i < MAX_THREADS; i++) mprotect(stacks + i * (GUARD + STACK), GUARD, PROT_NONE);
    return stacks;
}

int launch(Host& host, const char* kernel, void (*call)(void**), const unsigned* grid, const unsigned* block, size_t shared,
           void** arguments, char* error, size_t error_room) {
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
        snprintf(error, error_room, "%s: %llu threads with %zu bytes of shared memory in a block; at most %u and %zu", kernel,
                 threads, shared, MAX_THREADS, MAX_SHARED);
        return 1;
    }
    machine.n_threads = (u32)threads;
    // 1024-byte aligned, as a kernel is promised, and as near to the guard as that lets it be.
    size_t room = (shared + GUARD - 1) / GUARD * GUARD;
    size_t mapped = GUARD + room + GUARD;
    char* guarded = (char*)map(mapped);
    size_t fixed = (size_t)(__stop_fewstep_shared - __start_fewstep_shared);
    size_t fixed_shadows = fixed / 16 + 2;
    Shadow* shadow = (Shadow*)calloc(fixed_shadows + shared / 16 + 1, sizeof(Shadow));
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
    machine.dynamic_region = {(u64)(uintptr_t)machine.dynamic, shared, shadow + fixed_shadows};
    memset(machine.recent, 0, sizeof machine.recent);
    // No shadow has epoch 0 but a fresh one.
    machine.epoch = machine.launch_began = (u32)host.epoch + 1;

    watch_faults();
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
    leave_faults();
    munmap(guarded, mapped);
    free(shadow);
    return failed;
}

}  // namespace emulator
