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
Machine* S;
Stats st;
uint32_t launches, first_launch;

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

constexpr size_t STACK = 256 << 10, SMEM = 228 << 10;

bool on_fiber_stack(uintptr_t a) {
    return a - reinterpret_cast<uintptr_t>(S->stacks) < STACK * MAX_THREADS;
}

static uint32_t next_random(Grid& g) {
    g.rng ^= g.rng << 13;
    g.rng ^= g.rng >> 7;
    g.rng ^= g.rng << 17;
    return static_cast<uint32_t>(g.rng >> 16);
}
uint32_t next_random() { return next_random(*S->grid); }

void wake(Fiber* f) {
    f->state = READY;
    S->ready[S->tail++ % (2 * MAX_THREADS)] = f;
}

// Of resume, which does not come back here.
[[noreturn]] static void back_to_caller() {
    void* never_resumed;
    simt_switch(&never_resumed, S->main_sp);
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
        const int threads = S && S->now ? S->threads : 0;
        if (threads) report += where_in_grid(static_cast<int>(S->now->lin));
        for (int i = 0; i < threads; i += 32) {
            const Fiber& f = S->fibers[i];
            if (f.state != WAIT) continue;
            report += "\n  warp " + std::to_string(f.warp) + " waits in " + f.what + " at " +
                      place(location(f.file, f.line));
        }
        add_report(FAULT, report);
        if (threads) S->grid->faulted = true;
    }
    if (PTX && S && S->ptx) throw Abandoned{};
    // No object of this frame is alive any more: the fibers' stacks are left as they are.
    if (S && S->now) back_to_caller();
    fprintf(stderr, "simt: fault outside of a launch\n");
    abort();
}

// Runs on the stack of the fiber that stops; direct, as a detour through a scheduler's own stack
// would double the switches.
static void run_next(Fiber* from) {
    for (;;) {
        const bool none = S->head == S->tail;
        if (!S->tma.empty() && (none || (cfg.seed && next_random() % 64 == 0))) {
            run_one_tma();
            continue;
        }
        if (none && land_for_someone()) continue;
        if (none && !S->in_wait.empty()) {
            // No further without the kernel before: the block is taken up again when it is done.
            simt_switch(&from->sp, S->main_sp);
            return;
        }
        if (none) fail("", 0, "deadlock: %d threads are left, none can run", S->alive);
        if (cfg.seed) {
            const unsigned k = S->head + next_random() % (S->tail - S->head);
            std::swap(S->ready[S->head % (2 * MAX_THREADS)], S->ready[k % (2 * MAX_THREADS)]);
        }
        Fiber* next = S->ready[S->head++ % (2 * MAX_THREADS)];
        S->now = next;
        cur = next;
        if (next != from) simt_switch(&from->sp, next->sp);
        return;
    }
}

void block_on(const char* what, const char* file, int line) {
    Fiber* f = S->now;
    f->state = WAIT;
    f->what = what;
    f->file = file;
    f->line = line;
    st.switches++;
    run_next(f);
}

static void fiber_main() {
    S->grid->trampoline(S->grid->fn, S->grid->params);
    Fiber* f = S->now;
    land_all(f);
    f->state = DONE;
    if (--S->alive == 0) back_to_caller();  // the block is done
    run_next(f);
    abort();
}

static void prepare(Fiber& f, int i) {
    const dim3 d = S->block.bdim;
    const unsigned u = static_cast<unsigned>(i);
    f.tid = {u % d.x, u / d.x % d.y, u / (d.x * d.y)};
    f.lin = u;
    f.lane = u & 31;
    f.warp = u >> 5;
    f.group = 0;
    f.after_prior = !S->grid->dependent;
    f.copies.clear();
    f.arrivals.clear();
    f.state = DONE;
    if (S->grid->code) return;
    // Staggered: equal stack tops would all lie in the same cache sets.
    auto* sp = reinterpret_cast<void**>(S->stacks + STACK * (i + 1) - 64 - (i % 64) * 1088);
    *--sp = nullptr;
    *--sp = reinterpret_cast<void*>(fiber_main);
    for (int k = 0; k < 6; k++) *--sp = nullptr;
    f.sp = sp;
    wake(&f);
}

// ---- blocks: kept for others when they end, as making one takes system calls

static std::vector<Machine*> spare;

static void* reserve(size_t n) {
    void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static Machine* take_machine() {
    if (!spare.empty()) {
        Machine* m = spare.back();
        spare.pop_back();
        return m;
    }
    Machine* m = new (reserve(sizeof(Machine))) Machine;
    m->stacks = static_cast<uint8_t*>(reserve(STACK * MAX_THREADS));
    // Tiles are aligned by their offset in it.
    m->smem = static_cast<uint8_t*>(reserve(SMEM));
    if (CHECK) m->shadow = new_shared_shadow();
    return m;
}

static void give_back(Machine* m) {
    if (PTX && m->ptx) end_ptx_block(m);
    spare.push_back(m);
}

Grid::~Grid() {
    for (Machine* m : waiting) give_back(m);
}

static void begin_block(Grid& g, uint32_t i) {
    static uint32_t serial;
    S = take_machine();
    S->grid = &g;
    S->launch = g.launch;
    S->threads = static_cast<int>(g.threads.x * g.threads.y * g.threads.z);
    S->block_no = i + 1;
    S->block_serial = ++serial;
    S->block = {{i % g.blocks.x, i / g.blocks.x % g.blocks.y, i / (g.blocks.x * g.blocks.y)},
                g.threads,
                g.blocks,
                S->smem,
                g.smem};
    S->alive = S->threads;
    S->head = S->tail = 0;
    S->agent = 0;
    S->waited = S->let_next = false;
    S->in_wait.clear();
    for (auto& b : S->bars) b.got = b.need = b.waiting = 0;
    for (auto& w : S->warps) {
        w.used = 0;
        for (auto& p : w.slot) p.mask = p.got = 0;
    }
    for (auto& group : S->groups) group.got = 0;
    begin_block_copies();
    S->early = cfg.seed ? next_random() % 3 * 2 : 0;
    if (CHECK) begin_block_clocks();
    // NaN: what was never written does not pass for a number.
    memset(S->smem, 0xff, g.smem);
    for (int i = 0; i < S->threads; i++) prepare(S->fibers[i], i);
    if (PTX && g.code) begin_ptx_block();
}

// The block goes on until it ends, waits for the kernel before, or faults.
static void resume() {
    blk = &S->block;
    if (PTX && S->grid->code) {
        if (!run_ptx_block()) S->alive = 0;
    } else {
        Fiber* first = S->ready[S->head++ % (2 * MAX_THREADS)];
        S->now = first;
        cur = first;
        simt_switch(&S->main_sp, first->sp);
    }
    S->now = nullptr;
    cur = nullptr;
    blk = nullptr;
    if (CHECK)
        for (int w = 0; w * 32 < S->threads; w++) flush_banks(static_cast<unsigned>(w));
    Grid& g = *S->grid;
    if (S->alive && !g.faulted) {
        g.waiting.push_back(S);
        g.all_let_next &= S->let_next;
        return;
    }
    if (CHECK && !g.faulted && g.dependent && !S->waited) block_has_not_waited();
    give_back(S);
}

// ---- launches

void wait_for_prior_kernel() {
    Grid& g = *S->grid;
    if (!g.waits) return;
    if (!g.prior_done) {
        // What was asked for before may be read before.
        if (!CHECK) land_all(S->now);
        S->in_wait.push_back(S->now);
        block_on("griddepcontrol.wait", nullptr, 0);
    }
    S->now->after_prior = true;
    S->waited = true;
}

void let_next_kernel_start() {
    if (S->grid->waits) S->let_next = true;
}

void begin(Grid& g, uint32_t chain) {
    st.launches++;
    st.dependents += g.dependent;
    g.launch = ++launches;
    g.chain = chain ? chain : g.launch;
    g.rng = 0x9e3779b97f4a7c15ull * (cfg.seed * 4099 + g.launch - first_launch) | 1;
    const size_t n = size_t(g.blocks.x) * g.blocks.y * g.blocks.z;
    g.order.resize(n);
    for (size_t i = 0; i < n; i++) g.order[i] = static_cast<uint32_t>(i);
    if (cfg.seed)
        for (size_t i = n; i > 1; i--) std::swap(g.order[i - 1], g.order[next_random(g) % i]);
}

void run_early(Grid& g) {
    while (!g.faulted && g.begun < g.order.size() && g.waiting.size() < g.resident) {
        begin_block(g, g.order[g.begun++]);
        resume();
    }
}

bool finish(Grid& g) {
    g.prior_done = true;
    std::vector<Machine*> waiting;
    waiting.swap(g.waiting);
    g.all_let_next = true;
    for (Machine* m : waiting) {
        S = m;
        for (Fiber* f : S->in_wait) wake(f);
        S->in_wait.clear();
        if (g.faulted)
            give_back(m);
        else
            resume();
    }
    while (!g.faulted && g.begun < g.order.size()) {
        begin_block(g, g.order[g.begun++]);
        resume();
    }
    return !g.faulted;
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
    Grid grid;
    grid.fn = fn;
    grid.trampoline = t;
    grid.params = params;
    grid.blocks = g;
    grid.threads = b;
    grid.smem = smem;
    grid.dependent = cfg.dependent;
    grid.params_on_stack = true;
    begin(grid, 0);
    if (!finish(grid)) exit(70);
}

}  // namespace simt
