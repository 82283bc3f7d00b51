// Threads of a block as fibers of one OS thread, and the launch of a grid, block after block.
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "machine.h"

namespace simt {

Thread* cur;
Block* blk;
Config cfg;
Machine S;
Stats st;

Stats stats() { return st; }
void reset_stats() { st = {}; }

// Saves callee-saved registers on the stack. The jump instead of a return keeps the processor's
// return predictor out of it: it would be wrong every time.
extern "C" __attribute__((visibility("hidden"))) void simt_switch(void** save, void* to);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    pop %rcx
    jmp *%rcx
.size simt_switch, . - simt_switch
)");

constexpr size_t STACK = 256 << 10;
static uint8_t* stacks;

bool on_fiber_stack(uintptr_t a) {
    return a - reinterpret_cast<uintptr_t>(stacks) < STACK * MAX_THREADS;
}

uint32_t next_random() {
    S.rng ^= S.rng << 13;
    S.rng ^= S.rng >> 7;
    S.rng ^= S.rng << 17;
    return static_cast<uint32_t>(S.rng >> 16);
}

void wake(Fiber* f) {
    f->state = READY;
    S.ready[S.tail++ % (2 * MAX_THREADS)] = f;
}

[[noreturn]] static void abandon_launch() {
    void* never_resumed;
    simt_switch(&never_resumed, S.main_sp);
    abort();
}

void fail(const char* file, int line, const char* fmt, ...) {
    {
        char text[512];
        va_list args;
        va_start(args, fmt);
        vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        std::string report = text;
        if (file && line) report += " at " + place(location(file, line));
        if (S.now) report += where_in_grid(static_cast<int>(S.now->lin));
        for (int i = 0; i < S.threads; i += 32) {
            const Fiber& f = S.fibers[i];
            if (f.state != WAIT || !S.now) continue;
            report += "\n  warp " + std::to_string(f.warp) + " waits in " + f.what + " at " +
                      place(location(f.file, f.line));
        }
        add_report(FAULT, report);
        S.faulted = true;
    }
    // No object of this frame is alive any more: the fibers' stacks are left as they are.
    if (S.now) abandon_launch();
    fprintf(stderr, "simt: fault outside of a launch\n");
    abort();
}

// Runs on the stack of the fiber that stops; direct, as a detour through a scheduler's own stack
// would double the switches.
static void run_next(Fiber* from) {
    for (;;) {
        const bool none = S.head == S.tail;
        if (!S.tma.empty() && (none || (cfg.seed && next_random() % 64 == 0))) {
            run_one_tma();
            continue;
        }
        if (none && land_for_someone()) continue;
        if (none) fail("", 0, "deadlock: %d threads are left, none can run", S.alive);
        if (cfg.seed) {
            const unsigned k = S.head + next_random() % (S.tail - S.head);
            std::swap(S.ready[S.head % (2 * MAX_THREADS)], S.ready[k % (2 * MAX_THREADS)]);
        }
        Fiber* next = S.ready[S.head++ % (2 * MAX_THREADS)];
        S.now = next;
        cur = next;
        if (next != from) simt_switch(&from->sp, next->sp);
        return;
    }
}

void block_on(const char* what, const char* file, int line) {
    Fiber* f = S.now;
    f->state = WAIT;
    f->what = what;
    f->file = file;
    f->line = line;
    st.switches++;
    run_next(f);
}

static void fiber_main() {
    S.trampoline(S.fn, S.params);
    Fiber* f = S.now;
    land_all(f);
    f->state = DONE;
    if (--S.alive == 0) abandon_launch();  // the block is done: back to its caller
    run_next(f);
    abort();
}

static void prepare(Fiber& f, int i) {
    const dim3 d = S.block.bdim;
    const unsigned u = static_cast<unsigned>(i);
    f.tid = {u % d.x, u / d.x % d.y, u / (d.x * d.y)};
    f.lin = u;
    f.lane = u & 31;
    f.warp = u >> 5;
    f.group = 0;
    f.after_prior = !S.dependent;
    f.copies.clear();
    f.arrivals.clear();
    // Staggered: equal stack tops would all lie in the same cache sets.
    auto* sp = reinterpret_cast<void**>(stacks + STACK * (i + 1) - 64 - (i % 64) * 1088);
    *--sp = nullptr;
    *--sp = reinterpret_cast<void*>(fiber_main);
    for (int k = 0; k < 6; k++) *--sp = nullptr;
    f.sp = sp;
    wake(&f);
}

static void run_block() {
    S.alive = S.threads;
    S.head = S.tail = 0;
    S.block_serial++;
    for (auto& b : S.bars) b.got = b.need = b.waiting = 0;
    for (auto& w : S.warps) {
        w.used = 0;
        for (auto& p : w.slot) p.mask = p.got = 0;
    }
    for (auto& g : S.groups) g.got = 0;
    begin_block_copies();
    S.early = cfg.seed ? next_random() % 3 * 2 : 0;
    if (CHECK) begin_block_clocks();
    // NaN: what was never written does not pass for a number.
    memset(S.block.smem, 0xff, S.block.smem_bytes);
    for (int i = 0; i < S.threads; i++) prepare(S.fibers[i], i);
    Fiber* first = S.ready[S.head++];
    S.now = first;
    cur = first;
    simt_switch(&S.main_sp, first->sp);
    S.now = nullptr;
    cur = nullptr;
    if (CHECK)
        for (int w = 0; w * 32 < S.threads; w++) flush_banks(static_cast<unsigned>(w));
}

void wait_for_prior_kernel() { S.now->after_prior = true; }

bool run_launch(void* fn, Trampoline t, dim3 g, dim3 b, uint32_t smem, void** params,
                bool dependent) {
    if (!stacks) {
        stacks = static_cast<uint8_t*>(mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks == MAP_FAILED) abort();
    }
    alignas(1024) static uint8_t shared[228 * 1024];
    st.launches++;
    st.dependents += dependent;
    S.fn = fn;
    S.trampoline = t;
    S.params = params;
    S.launch++;
    S.rng = 0x9e3779b97f4a7c15ull * (cfg.seed * 4099 + S.launch - S.first_launch) | 1;
    S.threads = static_cast<int>(b.x * b.y * b.z);
    S.faulted = S.out_of_bounds = false;
    S.dependent = dependent || cfg.dependent;
    S.block.smem = shared;
    S.block.smem_bytes = smem;
    S.block.bdim = b;
    S.block.gdim = g;
    blk = &S.block;
    if (CHECK) begin_launch_clocks();
    const size_t n = size_t(g.x) * g.y * g.z;
    std::vector<uint32_t> order(n);
    for (size_t i = 0; i < n; i++) order[i] = static_cast<uint32_t>(i);
    if (cfg.seed)
        for (size_t i = n; i > 1; i--) std::swap(order[i - 1], order[next_random() % i]);
    for (uint32_t i : order) {
        S.block_no = i + 1;
        S.block.bid = {i % g.x, i / g.x % g.y, i / (g.x * g.y)};
        run_block();
        if (S.faulted) break;
    }
    blk = nullptr;
    return !S.faulted;
}

// ---- kernels by name

static Kernel* first_kernel;
Kernel::Kernel(const char* n, void (*e)(void* const*), size_t b, unsigned t)
    : name(n), entry(e), param_bytes(b), threads(t), next(first_kernel) {
    first_kernel = this;
}
Kernel* kernels() { return first_kernel; }

void launch_kernel(const char* name, dim3 g, dim3 b, uint32_t smem, void** args) {
    for (Kernel* k = first_kernel; k; k = k->next) {
        if (strcmp(k->name, name)) continue;
        launch_raw(
            reinterpret_cast<void*>(k->entry),
            [](void* fn, void** q) { reinterpret_cast<void (*)(void* const*)>(fn)(q); }, g, b, smem,
            args);
        return;
    }
    fprintf(stderr, "simt: no kernel %s\n", name);
    exit(70);
}

void launch_raw(void* fn, Trampoline t, dim3 g, dim3 b, uint32_t smem, void** params) {
    if (b.x * b.y * b.z > MAX_THREADS || smem > 227 * 1024) {
        fprintf(stderr, "simt: block of %u threads, %u bytes\n", b.x * b.y * b.z, smem);
        exit(70);
    }
    S.params_on_stack = true;
    const bool fine = run_launch(fn, t, g, b, smem, params);
    S.params_on_stack = false;
    if (!fine) exit(70);
}

}  // namespace simt
