// Barriers of a block, and collectives of warps and warpgroups.
#include "machine.h"

namespace simt {

// Every thread that arrived releases what it has seen; who waits acquires it all.
static void open_barrier(Bar& b, bool with_current) {
    if (CHECK) {
        for (int i = 0; i < b.waiting; i++) acquire_all(static_cast<int>(b.wait[i]->lin), b.acc);
        if (with_current) acquire_all(static_cast<int>(cur->lin), b.acc);
    }
    for (int i = 0; i < b.waiting; i++) wake(b.wait[i]);
    b.waiting = b.got = 0;
}

static Bar& arrive_at(int id, int n, const char* file, int line) {
    if (id < 0 || id > 15) fail(file, line, "barrier %d does not exist", id);
    if (n <= 0 || n % 32) fail(file, line, "barrier count %d is not a multiple of 32", n);
    Bar& b = S->bars[id];
    if (b.got && b.need != n)
        fail(file, line, "barrier %d is used with counts %d and %d", id, b.need, n);
    st.barriers++;
    b.need = n;
    if (CHECK) {
        if (!b.got) clear(b.acc);
        release(b.acc);
    }
    b.got++;
    return b;
}

void bar_sync(int id, int n, const char* file, int line) {
    if (n < 0) n = S->threads;
    if (CHECK && cur->lane == 31) flush_banks(cur->warp);
    Bar& b = arrive_at(id, n, file, line);
    // Neighbours suffice: every thread compares itself with the one before it.
    if (b.waiting && b.wait[b.waiting - 1]->warp == cur->warp &&
        b.wait[b.waiting - 1]->line != line)
        fail(file, line, "barrier %d: threads of one warp arrive from different lines (%d)", id,
             b.wait[b.waiting - 1]->line);
    if (b.got == n) {
        open_barrier(b, true);
    } else {
        b.wait[b.waiting++] = S->now;
        block_on("bar.sync", file, line);
    }
}

void bar_arrive(int id, int n, const char* file, int line) {
    Bar& b = arrive_at(id, n, file, line);
    if (b.got == n) open_barrier(b, false);
}

void warp_collective(uint32_t mask, WarpFn fn, void* args, const char* file, int line) {
    WarpState& w = S->warps[cur->warp];
    const uint32_t me = 1u << cur->lane;
    if (!(mask & me)) fail(file, line, "lane %u is not in its own mask %08x", cur->lane, mask);
    Pending* p = nullptr;
    for (int i = 0; i < w.used && !p; i++)
        if (w.slot[i].got && w.slot[i].mask == mask && !(w.slot[i].got & me)) p = &w.slot[i];
    if (!p) {
        for (int i = 0; i < w.used && !p; i++)
            if (!w.slot[i].got) p = &w.slot[i];
        if (!p) {
            if (w.used == 4) fail(file, line, "more than four groups of lanes of one warp meet");
            p = &w.slot[w.used++];
        }
        p->mask = mask;
        p->fn = fn;
        p->line = line;
        p->file = file;
    } else if (p->fn != fn || p->line != line) {
        fail(file, line, "divergent warp collective: other lanes are at line %d", p->line);
    }
    p->got |= me;
    p->args[cur->lane] = args;
    if (p->got != mask) return block_on("a warp collective", file, line);
    st.collectives++;
    fn(p->args, mask);
    p->got = 0;
    Fiber* lanes = &S->fibers[cur->warp * 32];
    for (uint32_t m = mask & ~me; m; m &= m - 1) wake(&lanes[__builtin_ctz(m)]);
}

void group_collective(WarpFn fn, void* args, const char* file, int line) {
    GroupPending& p = S->groups[cur->lin / 128];
    if (!p.got) {
        p.fn = fn;
        p.line = line;
    } else if (p.fn != fn || p.line != line) {
        fail(file, line, "divergent warpgroup collective: others are at line %d", p.line);
    }
    p.args[cur->lin % 128] = args;
    if (++p.got != 128) return block_on("a warpgroup collective", file, line);
    st.collectives++;
    fn(p.args, 0);
    p.got = 0;
    const unsigned first = cur->lin / 128 * 128;
    for (unsigned i = first; i < first + 128; i++)
        if (i != cur->lin) wake(&S->fibers[i]);
}

// The only collective that orders memory: shuffles and tensor-core operations do not (as in PTX).
void syncwarp(uint32_t mask, const char* file, int line) {
    const WarpFn merge = [](void* const*, uint32_t m) {
        if (!CHECK) return;
        static Clk all;
        const int first = static_cast<int>(cur->warp) * 32;
        clear(all);
        for (uint32_t k = m; k; k &= k - 1) join(all, ck(first + __builtin_ctz(k)));
        for (uint32_t k = m; k; k &= k - 1) {
            const int t = first + __builtin_ctz(k);
            ck(t).v[t]++;
            acquire_all(t, all);
        }
        flush_banks(cur->warp);
    };
    warp_collective(mask, merge, nullptr, file, line);
}

uint32_t shfl(uint32_t mask, uint32_t v, int src, const char* file, int line) {
    struct Args {
        uint32_t v;
        int src;
        uint32_t out;
    } a{v, src & 31, 0};
    const WarpFn exchange = [](void* const* lanes, uint32_t m) {
        for (uint32_t k = m; k; k &= k - 1) {
            auto& x = *static_cast<Args*>(lanes[__builtin_ctz(k)]);
            // A lane outside the mask has an undefined value: one that stands out.
            x.out = m >> x.src & 1 ? static_cast<Args*>(lanes[x.src])->v : 0xffdeadbe;
        }
    };
    warp_collective(mask, exchange, &a, file, line);
    return a.out;
}

uint32_t ballot(uint32_t mask, bool p, const char* file, int line) {
    struct Args {
        bool p;
        uint32_t out;
    } a{p, 0};
    const WarpFn vote = [](void* const* lanes, uint32_t m) {
        uint32_t r = 0;
        for (uint32_t k = m; k; k &= k - 1) {
            const int lane = __builtin_ctz(k);
            r |= static_cast<uint32_t>(static_cast<Args*>(lanes[lane])->p) << lane;
        }
        for (uint32_t k = m; k; k &= k - 1) static_cast<Args*>(lanes[__builtin_ctz(k)])->out = r;
    };
    warp_collective(mask, vote, &a, file, line);
    return a.out;
}

bool elect_one() { return cur->lane == 0; }

uint32_t atomic_add(uint32_t* at, uint32_t x, Order order, const char* file, int line) {
    if (CHECK) atomic_order(at, order, true, location(file, line));
    const uint32_t old = *at;
    *at += x;
    return old;
}

}  // namespace simt
