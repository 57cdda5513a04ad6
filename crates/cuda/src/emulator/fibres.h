// Threads of a block as fibres: stacks of their own, and the switch from one to another.
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

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
static void prepare(Context& context, char* stack, void (*entry)()) {
    void** frame = (void**)(stack + STACK) - FRAME;
    memset(frame, 0, FRAME * sizeof *frame);
    frame[RETURN] = (void*)entry;
    context = frame;
}
static void resume(Context& from, Context& to) { fewstep_switch(&from, to); }
#else
typedef ucontext_t Context;
static void prepare(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, entry, 0);
}
static void resume(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

}  // namespace emulator
