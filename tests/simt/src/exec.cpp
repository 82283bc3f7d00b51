// Blocks of PTX: the executor's side of a launch, and the checker for what it executes.
#include "exec.h"

#include <algorithm>
#include <cstdio>

#include "shadow.h"
#include "stream.h"

#if SIMT_PTX

namespace simt {

void begin_ptx_block() {
    Grid& g = *S->grid;
    const Block& b = S->block;
    const ptx_launch launch{static_cast<const uint8_t*>(g.params[0]),
                            ptx_kernel_param_bytes(g.code),
                            {b.gdim.x, b.gdim.y, b.gdim.z},
                            {b.bdim.x, b.bdim.y, b.bdim.z},
                            b.smem_bytes,
                            g.dependent,
                            0,
                            cfg.seed ? cfg.seed * 4099 + g.launch - first_launch : 0};
    const uint32_t at[3] = {b.bid.x, b.bid.y, b.bid.z};
    S->ptx = ptx_block_begin(g.code, &launch, at, S->smem);
}

void end_ptx_block(Machine* m) {
    ptx_block_end(m->ptx);
    m->ptx = nullptr;
}

bool run_ptx_block() {
    Grid& g = *S->grid;
    const uint64_t said = st.faults + st.oob;
    const uint32_t how = ptx_block_run(S->ptx);
    if (how == PTX_WAITS && !g.prior_done) return true;
    if (how != PTX_ENDED) {
        g.faulted = true;
        const char* what = how == PTX_WAITS ? "a block waits for a kernel that is done"
                                            : "a block cannot go on, and does not say why";
        if (st.faults + st.oob == said) add_report(FAULT, what + where_in_grid(0));
    }
    end_ptx_block(S);
    return false;
}

}  // namespace simt

using namespace simt;

// The executor is called under the driver's lock, at the end too.
static void at_exit() {
    const std::unique_lock lock(driver_lock, std::try_to_lock);
    if (lock.owns_lock())
        ptx_at_exit();
    else
        fprintf(stderr, "simt: a thread is in the driver when the process ends: nothing written\n");
}

const ptx_kernel* find_code(const Kernel& kernel) {
    [[maybe_unused]] static const int registered = atexit(at_exit);
    char why[600] = "";
    const auto target = static_cast<uint32_t>(code_for_device().ptx >= 90 ? 90 : 80);
    const ptx_kernel* const code = ptx_find(kernel.name, target, why, sizeof why);
    if (code && ptx_kernel_param_bytes(code) == kernel.param_bytes &&
        ptx_kernel_threads(code) == kernel.threads)
        return code;
    if (code)
        snprintf(why, sizeof why,
                 "%s: PTX has %u bytes of parameters and %u threads, C++ %zu and %u", kernel.name,
                 ptx_kernel_param_bytes(code), ptx_kernel_threads(code), kernel.param_bytes,
                 kernel.threads);
    fprintf(stderr, "simt: %s\n", why);
    add_report(FAULT, why);
    return nullptr;
}

// What is reported names the thread that is current.
static void be(uint32_t id) {
    Fiber* f = &S->fibers[static_cast<int>(id) < S->threads ? id : 0];
    S->now = f;
    cur = f;
}

template <class F>
static uint32_t guarded(F f) {
    uint32_t goes_on = 1;
    try {
        f();
    } catch (const Abandoned&) {
        goes_on = 0;
    }
    S->now = nullptr;
    cur = nullptr;
    return goes_on;
}

template <class F>
static void each_lane(uint32_t warp, uint32_t mask, F f) {
    for (uint32_t m = mask; m; m &= m - 1) {
        const auto lane = static_cast<uint32_t>(__builtin_ctz(m));
        f(warp * 32 + lane, lane);
    }
}

static void one(uint32_t id, uint64_t at, int bytes, uint32_t kind, uint32_t pc) {
    const int who = static_cast<int>(id);
    const bool write = kind & EXEC_WRITE;
    if (kind & EXEC_SHARED) {
        if (at < SMEM_BASE || at - SMEM_BASE + static_cast<uint64_t>(bytes) > S->block.smem_bytes) {
            S->grid->out_of_bounds = true;
            add_report(OOB, "out of bounds: shared memory + " +
                                std::to_string(static_cast<int64_t>(at) - SMEM_BASE) + " of " +
                                std::to_string(S->block.smem_bytes) + " bytes, at " + place(pc) +
                                where_in_grid(who));
            fail("", 0, "illegal address");
        }
        check_shared(static_cast<uint32_t>(at), bytes, write, who, pc);
        return;
    }
    const auto* const p = reinterpret_cast<const void*>(at);
    // Of the host's memory a kernel reads its parameters, and nothing else.
    if (!in_arena(at)) {
        const uint64_t in = at - reinterpret_cast<uint64_t>(S->grid->params[0]);
        const uint64_t all = ptx_kernel_param_bytes(S->grid->code);
        if (!write && in < all && static_cast<uint64_t>(bytes) <= all - in) return;
        if (reaches_pageable_memory()) return;
        outside(at, bytes, write, who, pc);
        fail("", 0, "illegal address");
    }
    check_global(p, bytes, write, who, pc);
    if (kind & EXEC_CONST) check_const(p, bytes, who, pc);
}

// Neighbours are mostly of one page, which is looked up once.
static void global_lanes(uint32_t warp, uint32_t mask, const uint64_t* at, int bytes, uint32_t kind,
                         uint32_t pc) {
    const uintptr_t start = arena_start();
    const auto n = static_cast<size_t>(bytes);
    View* v = nullptr;
    each_lane(warp, mask, [&](uint32_t id, uint32_t lane) {
        const uint64_t a = at[lane];
        const size_t page = (a - start) / PAGE, in = (a - start) % PAGE;
        if (!v || !v->page || v->page_no != page) v = in_arena(a) ? view_of(page) : nullptr;
        if (!v || in + n > PAGE || a + n > v->of.start + v->of.bytes) {
            be(id);
            return one(id, a, bytes, kind, pc);
        }
        st.accesses++;
        const Access access{space_of(*v),
                            a - v->of.start,
                            bytes,
                            (kind & EXEC_WRITE) != 0,
                            static_cast<int>(id),
                            pc};
        bool fine = true, uninit = false;
        access_page(*v, in, n, access, is_early(access.id), fine, uninit);
        if (uninit) tell(UNINIT, "uninitialised read", access);
        if (kind & EXEC_CONST) check_const(reinterpret_cast<const void*>(a), bytes, access.id, pc);
    });
}

static void shared_lanes(uint32_t warp, uint32_t mask, const uint64_t* at, int bytes, bool write,
                         uint32_t pc) {
    each_lane(warp, mask, [&](uint32_t id, uint32_t lane) {
        const uint64_t off = at[lane] - SMEM_BASE;
        if (at[lane] < SMEM_BASE || off + static_cast<size_t>(bytes) > S->block.smem_bytes) {
            be(id);
            return one(id, at[lane], bytes, EXEC_SHARED, pc);
        }
        access_shared({"shared memory", off, bytes, write, static_cast<int>(id), pc});
    });
}

uint32_t exec_access(uint32_t warp, uint32_t mask, const uint64_t* at, uint32_t bytes,
                     uint32_t kind, uint32_t pc) {
    return guarded([&] {
        const int n = static_cast<int>(bytes);
        if (!(kind & EXEC_SHARED)) return global_lanes(warp, mask, at, n, kind, pc);
        shared_lanes(warp, mask, at, n, kind & EXEC_WRITE, pc);
        count_bank_lanes(pc, mask, at, n);
    });
}

uint32_t exec_check(uint32_t id, uint64_t at, uint32_t bytes, uint32_t kind, uint32_t pc) {
    return guarded([&] {
        be(id);
        one(id, at, static_cast<int>(bytes), kind, pc);
    });
}

uint32_t exec_atomic(uint32_t thread, uint64_t at, uint32_t kind, uint32_t order,
                     uint32_t of_device, uint32_t pc) {
    return guarded([&] {
        be(thread);
        const auto how = static_cast<Order>(order);
        if (!(kind & EXEC_SHARED) && !in_arena(at)) return one(thread, at, 4, EXEC_WRITE, pc);
        if (!(kind & EXEC_SHARED))
            return atomic_order(reinterpret_cast<uint32_t*>(at), how, of_device, pc);
        const uint64_t off = at - SMEM_BASE;
        if (at < SMEM_BASE || off + 4 > S->block.smem_bytes)
            return one(thread, at, 4, EXEC_SHARED | EXEC_WRITE, pc);
        atomic_order_shared(off, how, pc);
    });
}

static Accumulated& clock_of(uint32_t number);

uint32_t exec_copy_issued(uint32_t warp, uint32_t mask, const uint64_t* to, uint32_t bytes,
                          uint32_t pc) {
    return guarded([&] {
        each_lane(warp, mask, [&](uint32_t id, uint32_t lane) {
            be(id);
            one(id, to[lane], static_cast<int>(bytes), EXEC_SHARED | EXEC_WRITE, pc);
            mark_pending(static_cast<uint32_t>(to[lane]), static_cast<int>(bytes), true,
                         static_cast<int>(id), pc);
        });
    });
}

uint32_t exec_copy_landed(uint32_t warp, uint32_t mask, const uint64_t* to, const uint64_t* from,
                          uint32_t bytes, const uint32_t* read, uint32_t seen_in, uint32_t pc) {
    return guarded([&] {
        const Clk* const seen = seen_in == ~0u ? nullptr : &clock_of(seen_in).clock;
        each_lane(warp, mask, [&](uint32_t id, uint32_t lane) {
            be(id);
            if (read[lane]) one(id, from[lane], static_cast<int>(read[lane]), 0, pc);
            mark_pending(static_cast<uint32_t>(to[lane]), static_cast<int>(bytes), false,
                         static_cast<int>(id), pc, seen);
        });
    });
}

void exec_pending(uint32_t id, uint32_t at, uint32_t bytes, uint32_t on, uint32_t pc) {
    mark_pending(at, static_cast<int>(bytes), on, static_cast<int>(id), pc);
}
void exec_mbarrier(uint32_t at, uint32_t live) { mark_mbarrier(at, live); }
void exec_mbarrier_used(uint32_t id, uint32_t at, uint32_t fenced, uint32_t pc) {
    mbarrier_used(at, fenced, static_cast<int>(id), pc);
}

// ---- clocks
//
// Lanes of a warp, and warps that have met at a barrier, have mostly seen the same but of
// themselves: what is known of all of them is then joined once.

static void empty(Accumulated& a) {
    clear(a.clock);
    a.joined = a.same = 0;
}

static Accumulated& clock_of(uint32_t number) {
    auto& all = S->accumulated;
    while (all.size() <= number) all.emplace_back();
    for (; S->accumulated_used <= number; S->accumulated_used++) empty(all[S->accumulated_used]);
    return all[number];
}

static void learn(Accumulated& to, int id) {
    const Clk& c = ck(id);
    if (to.joined && to.joined == S->same[id]) {
        to.clock.v[id] = std::max(to.clock.v[id], c.v[id]);
        to.clock.p[id] = std::max(to.clock.p[id], c.p[id]);
    } else {
        join(to.clock, c);
        to.joined = S->same[id];
    }
    to.same = 0;
}

static void release_to(Accumulated& to, int id) {
    learn(to, id);
    if (id < S->threads) ck(id).v[id]++;
}

// It has seen what `like` has, which has just learnt what it had not: all but of themselves.
static void see_as(int id, int like, const Clk& from) {
    Clk& c = ck(id);
    const Clk& other = ck(like);
    const auto v = std::max(c.v[like], from.v[like]), own = c.v[id];
    const auto p = std::max(c.p[like], from.p[like]), own_p = std::max(c.p[id], from.p[id]);
    acquire_all(id, other);
    c.v[like] = v;
    c.v[id] = own;
    if (!S->proxy) return;
    c.p[like] = p;
    c.p[id] = own_p;
}

void exec_release(uint32_t clock, uint32_t warp, uint32_t mask) {
    Accumulated& to = clock_of(clock);
    each_lane(warp, mask, [&](uint32_t id, uint32_t) { release_to(to, static_cast<int>(id)); });
}
void exec_acquire(uint32_t clock, uint32_t warp, uint32_t mask) {
    Accumulated& from = clock_of(clock);
    uint64_t before = 0, now = 0;
    int first = 0;
    each_lane(warp, mask, [&](uint32_t lane_id, uint32_t) {
        const int id = static_cast<int>(lane_id);
        uint64_t& same = S->same[id];
        if (same && same == from.joined) {
            if (!from.same) from.same = new_same();
            const uint32_t own_p = ck(id).p[id];
            acquire_all(id, from.clock);
            ck(id).p[id] = std::max(ck(id).p[id], own_p);
            same = from.same;
        } else if (same && same == before) {
            see_as(id, first, from.clock);
            same = now;
        } else {
            before = same;
            first = id;
            acquire(id, from.clock);
            same = now = new_same();
        }
    });
}
void exec_release_id(uint32_t clock, uint32_t id) {
    release_to(clock_of(clock), static_cast<int>(id));
}
void exec_move(uint32_t from, uint32_t to) {
    Accumulated& into = clock_of(to);
    Accumulated& source = clock_of(from);
    join(into.clock, source.clock);
    if (source.joined) into.joined = source.joined;
    into.same = 0;
    empty(source);
}
void exec_clear(uint32_t clock) { empty(clock_of(clock)); }

void exec_sync_warp(uint32_t warp, uint32_t mask) {
    static Accumulated all;
    empty(all);
    each_lane(warp, mask, [](uint32_t id, uint32_t) { learn(all, static_cast<int>(id)); });
    const uint64_t same = new_same();
    each_lane(warp, mask, [&](uint32_t id, uint32_t) {
        const int t = static_cast<int>(id);
        ck(t).v[t]++;
        acquire_all(t, all.clock);
        S->same[t] = same;
    });
}

uint32_t exec_new_agent(uint32_t thread) {
    return static_cast<uint32_t>(new_agent(static_cast<int>(thread)));
}
void exec_fence_proxy(uint32_t warp, uint32_t mask) {
    S->proxy = true;
    uint64_t before = 0, now = 0;
    each_lane(warp, mask, [&](uint32_t id, uint32_t) {
        Clk& c = ck(static_cast<int>(id));
        for (int i = 0; i < S->clocks; i++) c.p[i] = std::max(c.p[i], c.v[i]);
        uint64_t& same = S->same[id];
        if (!same || same != before) before = same, now = new_same();
        same = now;
    });
}

// ---- the kernel before

uint32_t exec_prior_done() { return S->grid->prior_done; }
void exec_has_waited(uint32_t warp, uint32_t mask) {
    each_lane(warp, mask, [](uint32_t id, uint32_t) { S->fibers[id].after_prior = true; });
    S->waited = true;
}
void exec_let_next() { S->let_next = true; }

// ---- reports

void exec_report(uint32_t kind, uint32_t thread, uint32_t pc, const char* text) {
    const auto what = static_cast<Kind>(kind);
    S->grid->out_of_bounds |= what == OOB;
    if (already_told(what, pc, 0)) return;
    add_report(what, text + (", at " + place(pc)) + where_in_grid(static_cast<int>(thread)));
}

uint32_t exec_tensor_map(uint64_t at, exec_map* out) {
    const auto* const m = reinterpret_cast<const TensorMap*>(at);
    const auto* const params = static_cast<const uint8_t*>(S->grid->params[0]);
    const uint64_t offset = at - reinterpret_cast<uint64_t>(params);
    const uint64_t size = ptx_kernel_param_bytes(S->grid->code);
    if (at % 64 || offset >= size || sizeof *m > size - offset) return 0;
    if (m->magic != TENSOR_MAP_MAGIC) return 0;
    *out = {m->base, m->rank, m->elt, m->swz, 0, {}, {}, {}};
    std::copy(m->dim, m->dim + 5, out->dim);
    std::copy(m->box, m->box + 5, out->box);
    std::copy(m->stride, m->stride + 5, out->stride);
    return 1;
}

#else

// The other libraries have kernels of C++ alone.
namespace simt {
void begin_ptx_block() {}
bool run_ptx_block() { return false; }
void end_ptx_block(Machine*) {}
}  // namespace simt
const ptx_kernel* find_code(const simt::Kernel&) { return nullptr; }

#endif
