// The checker: vector clocks of threads, and for every word of memory who wrote and read it last.
//
// Kernels are compiled with -fsanitize=thread, whose runtime is not linked: the callbacks are here.
// Order comes from barriers, mbarriers, syncwarp and atomics, and never from shuffles.
#include "shadow.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdlib>

namespace simt {

// ---- clocks

void clear(Clk& c) {
    memset(c.v, 0, static_cast<size_t>(S->clocks) * 4);
    memset(c.p, 0, static_cast<size_t>(S->clocks) * 4);
    c.known = nullptr;
}

static Known* new_known(const Known& from) {
    auto& pool = S->grid->known_pool;
    pool.push_back(std::make_unique<Known>(from));
    return pool.back().get();
}

static void add_block(Known& to, uint32_t block, const std::vector<uint32_t>* clock) {
    auto& at = to.blocks[block];
    if (!at) {
        at = clock;
    } else if (at != clock) {
        auto merged = std::make_unique<std::vector<uint32_t>>(*at);
        for (size_t i = 0; i < merged->size(); i++)
            (*merged)[i] = (*merged)[i] > (*clock)[i] ? (*merged)[i] : (*clock)[i];
        at = merged.get();
        S->grid->snapshots.push_back(std::move(merged));
    }
}

static const Known* unite(const Known* a, const Known* b) {
    if (a == b || !b) return a;
    if (!a) return b;
    static const Known *last_a, *last_b, *last;
    static uint32_t last_launch;
    if (last_launch == S->launch && last_a == a && last_b == b) return last;
    Known* k = new_known(*a);
    for (const auto& [block, clock] : b->blocks) add_block(*k, block, clock);
    last_launch = S->launch;
    last_a = a;
    last_b = b;
    return last = k;
}

// Clocks stay below 2^21, so that signed comparison, which SSE2 has, is right.
static void max_into(uint32_t* __restrict a, const uint32_t* __restrict b) {
    for (int i = 0; i < S->clocks; i++) {
        const auto x = static_cast<int32_t>(a[i]), y = static_cast<int32_t>(b[i]);
        a[i] = static_cast<uint32_t>(x > y ? x : y);
    }
}

void join(Clk& into, const Clk& from) {
    max_into(into.v, from.v);
    if (S->proxy) max_into(into.p, from.p);
    if (into.known != from.known) into.known = unite(into.known, from.known);
}

void release(Clk& to) {
    const int t = static_cast<int>(cur->lin);
    join(to, ck(t));
    ck(t).v[t]++;
}

void acquire(int id, const Clk& from) {
    join(ck(id), from);
    S->same[id] = 0;
}

void acquire_all(int id, const Clk& from) {
    Clk& c = ck(id);
    const uint32_t own = c.v[id];
    memcpy(c.v, from.v, static_cast<size_t>(S->clocks) * 4);
    if (S->proxy) memcpy(c.p, from.p, static_cast<size_t>(S->clocks) * 4);
    c.v[id] = own;
    c.known = from.known;
}

int new_agent(int issuer) {
    S->proxy = true;
    const int k = S->threads + S->agent++ % AGENTS;
    const uint32_t clock = ck(k).v[k] + 1;
    memcpy(&ck(k), &ck(issuer), sizeof(Clk));
    ck(k).v[k] = ck(k).p[k] = clock;
    S->same[k] = 0;
    return k;
}

uint64_t new_same() {
    static uint64_t last;
    return ++last;
}

void begin_block_clocks() {
    S->clocks = S->threads + AGENTS;
    S->accumulated_used = 0;
    S->block_atomics.clear();
    S->proxy = false;
    const uint64_t same = new_same();
    for (int i = 0; i < S->clocks; i++) {
        clear(S->clk[i]);
        S->clk[i].v[i] = 1;
        S->same[i] = same;
    }
}

// An atomic that acquires sees what earlier ones released, of other blocks too; one that releases
// tells what its thread has seen. One that does not release hides nothing that others released.
static void acquire_release(uint32_t* at, Order order) {
    const int t = static_cast<int>(cur->lin);
    Clk& c = ck(t);
    S->same[t] = 0;
    const Known*& k = S->grid->atomics[at];
    const Known* seen = unite(c.known, k);
    if (order & ACQUIRE) {
        // Earlier atomics of this block order its threads as well.
        if (seen) {
            const auto own = seen->blocks.find(S->block_no);
            if (own != seen->blocks.end()) {
                for (int i = 0; i < S->threads; i++)
                    if ((*own->second)[static_cast<size_t>(i)] > c.v[i])
                        c.v[i] = (*own->second)[static_cast<size_t>(i)];
            }
        }
        c.known = seen;
    }
    if (!(order & RELEASE)) return;
    Known* next = new_known(seen ? *seen : Known{});
    auto& snapshots = S->grid->snapshots;
    snapshots.push_back(std::make_unique<std::vector<uint32_t>>(c.v, c.v + S->clocks));
    add_block(*next, S->block_no, snapshots.back().get());
    k = next;
    c.v[t]++;
}

bool ordered_between_blocks(const Clk& c, uint32_t e, uint32_t block) {
    if (!c.known) return false;
    const auto it = c.known->blocks.find(block);
    return it != c.known->blocks.end() && (*it->second)[e & 2047] >= e >> 11;
}

// ---- pages

static std::unordered_map<size_t, std::unique_ptr<Page>> pages;
static std::unordered_map<size_t, std::unique_ptr<InitPage>> init_pages;  // null: all of it
// Cells of blocks that ended are told by their stamps; most memory is never touched.
SharedShadow* new_shared_shadow() {
    void* p = mmap(nullptr, sizeof(SharedShadow), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return static_cast<SharedShadow*>(p);
}

View views[VIEWS];
static void forget_view(size_t page_no) {
    View& v = views[page_no % VIEWS];
    if (v.page_no == page_no) v.page = nullptr;
}

static Page& page_at(size_t i) {
    auto& p = pages[i];
    if (!p) p = std::make_unique<Page>();
    return *p;
}

View* find_view(size_t page_no) {
    const Allocation of = find_allocation(arena_start() + page_no * PAGE);
    if (!of.found) return nullptr;
    const auto init = init_pages.find(page_no);
    const bool some = init != init_pages.end();
    View& v = views[page_no % VIEWS];
    v = {page_no, &page_at(page_no), some ? init->second.get() : nullptr, some && !init->second,
         of};
    return &v;
}

void shadow_forget(uintptr_t a, size_t n) {
    for (size_t p = page_of(a); p <= page_of(a + n - 1); p++) {
        forget_view(p);
        pages.erase(p);
        init_pages.erase(p);
    }
}

void set_init(uintptr_t a, size_t n, bool on) {
    by_page(a, n, [&](size_t page, size_t in, size_t take) {
        forget_view(page);
        if (take == PAGE) {
            if (on)
                init_pages[page] = nullptr;
            else
                init_pages.erase(page);
            return;
        }
        const auto found = init_pages.find(page);
        if (found == init_pages.end() && !on) return;
        if (found != init_pages.end() && !found->second && on) return;
        auto& at = found == init_pages.end() ? init_pages[page] : found->second;
        if (!at) {
            const bool was_all = found != init_pages.end();
            at = std::make_unique<InitPage>();
            memset(at->bits, was_all ? 0xff : 0, sizeof at->bits);
        }
        for (size_t i = in; i < in + take; i++) {
            const uint64_t bit = 1ull << i % 64;
            at->bits[i / 64] = on ? at->bits[i / 64] | bit : at->bits[i / 64] & ~bit;
        }
    });
}

bool is_init(uintptr_t a, size_t n) {
    bool all = true;
    by_page(a, n, [&](size_t page, size_t in, size_t take) {
        const auto found = init_pages.find(page);
        if (found == init_pages.end()) {
            all = false;
        } else if (found->second) {
            for (size_t i = in; i < in + take; i++)
                all &= found->second->bits[i / 64] >> i % 64 & 1;
        }
    });
    return all;
}

void shadow_init(uintptr_t a, size_t n) { set_init(a, n, true); }

void shadow_copy_init(uintptr_t to, uintptr_t from, size_t n) {
    constexpr size_t STEP = 16;
    for (size_t i = 0; i < n; i += STEP) {
        const size_t take = n - i < STEP ? n - i : STEP;
        if (is_init(from + i, take)) {
            set_init(to + i, take, true);
            continue;
        }
        for (size_t k = i; k < i + take; k++) set_init(to + k, 1, is_init(from + k, 1));
    }
}

// ---- one access

static std::string who(uint32_t e, uint32_t block) {
    const uint32_t i = e & 2047;
    std::string text =
        static_cast<int>(i) < S->threads
            ? "thread " + std::to_string(i)
            : "async operation " + std::to_string(i - static_cast<uint32_t>(S->threads));
    if (block != S->block_no) text += " of block " + std::to_string(block - 1);
    return text;
}

void tell(Kind kind, const char* what, const Access& a, uint32_t other, uint32_t other_block,
          uint32_t other_pc) {
    if (already_told(kind, a.pc, other_pc)) return;
    std::string text = std::string(what) + ": " + a.space + " + " + std::to_string(a.off) + ", " +
                       std::to_string(a.bytes) + " bytes, at " + place(a.pc) + where_in_grid(a.id);
    if (other) text += "; before: " + who(other, other_block) + " at " + place(other_pc);
    add_report(kind, text);
}

void outside(uintptr_t at, int bytes, bool write, int id, uint32_t pc) {
    char text[200];
    const Allocation near = in_arena(at) ? allocation_before(at) : Allocation{};
    if (near.found)
        snprintf(text, sizeof text, "%zu bytes from the start of %zu", size_t(at - near.start),
                 near.bytes);
    else if (in_arena(at))
        snprintf(text, sizeof text, "no allocation there");
    else
        snprintf(text, sizeof text, "an address of the host or none at all");
    char head[100];
    snprintf(head, sizeof head, "out of bounds: %s of %d bytes at 0x%zx, ",
             write ? "write" : "read", bytes, size_t(at));
    add_report(OOB, head + std::string(text) + ", at " + place(pc) + where_in_grid(id));
    S->grid->out_of_bounds = true;
}

void outside_shared(size_t off, int id, uint32_t pc) {
    add_report(OOB, "out of bounds: shared memory + " + std::to_string(static_cast<long>(off)) +
                        " of " + std::to_string(S->block.smem_bytes) + " bytes, at " + place(pc) +
                        where_in_grid(id));
    S->grid->out_of_bounds = true;
    fail("", 0, "illegal address");
}

void tell_overlap(const char* what, const Access& a, uint32_t other_pc) {
    if (already_told(RACE, a.pc, other_pc)) return;
    std::string text = std::string(what) + ": " + a.space + " + " + std::to_string(a.off) + ", " +
                       std::to_string(a.bytes) + " bytes, at " + place(a.pc) + where_in_grid(a.id);
    if (other_pc) text += "; the other kernel at " + place(other_pc);
    add_report(RACE, text);
}

void block_has_not_waited() {
    Grid& g = *S->grid;
    if (g.said_no_wait) return;
    g.said_no_wait = true;
    add_report(RACE, "a block ends without the wait for the kernel before" + where_in_grid(0));
}

void access_global(uintptr_t at, int bytes, bool write, int id, uint32_t pc) {
    st.accesses++;
    const size_t n = static_cast<size_t>(bytes), in = (at - arena_start()) % PAGE;
    View* v = view_of(page_of(at));
    if (!v || at + n > v->of.start + v->of.bytes) {
        outside(at, bytes, write, id, pc);
        fail("", 0, "illegal address");
    }
    const Access a{space_of(*v), at - v->of.start, bytes, write, id, pc};
    const bool early = is_early(id);
    bool fine = true, uninit = false;
    if (in + n <= PAGE) {
        access_page(*v, in, n, a, early, fine, uninit);
    } else {
        by_page(at, n, [&](size_t page, size_t in, size_t take) {
            access_page(*view_of(page), in, take, a, early, fine, uninit);
        });
    }
    if (uninit) tell(UNINIT, "uninitialised read", a);
}

// ---- accesses of the arch layer

void check_shared(uint32_t addr, int bytes, bool write, int id, uint32_t pc) {
    access_shared({"shared memory", addr - SMEM_BASE, bytes, write, id, pc});
}

bool reaches_pageable_memory() {
    static const bool asked = [] {
        const char* text = getenv("INFLIGHT_SIMT_PAGEABLE");
        return text && *text == '1';
    }();
    return asked;
}

static bool belongs_to_host_side(uintptr_t a) {
    if (reaches_pageable_memory()) return true;
    static uintptr_t low = 0, high = 0;
    if (!low) {
        extern char image_start[] asm("__ehdr_start") __attribute__((visibility("hidden")));
        extern char image_end[] asm("_end") __attribute__((visibility("hidden")));
        low = reinterpret_cast<uintptr_t>(image_start);
        high = reinterpret_cast<uintptr_t>(image_end);
    }
    const auto within = [a](const void* p, size_t n) {
        return a - reinterpret_cast<uintptr_t>(p) < n;
    };
    const Grid& g = *S->grid;
    const auto& params = g.params_of_kernel;
    // The indices of threads and blocks, and parameters; of launches without the driver's interface
    // those lie on the caller's stack.
    return a - low < high - low || on_fiber_stack(a) || within(S, sizeof *S) ||
           within(g.args, sizeof g.args) ||
           within(params.data(), params.size() * sizeof(ParamChunk)) ||
           (g.params_on_stack && within(S->main_sp, 256 << 10));
}

void check_global(const void* p, int bytes, bool write, int id, uint32_t pc) {
    const auto at = reinterpret_cast<uintptr_t>(p);
    if (in_arena(at)) return access_global(at, bytes, write, id, pc);
    if (belongs_to_host_side(at)) return;
    outside(at, bytes, write, id, pc);
    fail("", 0, "illegal address");
}

// Whatever else wrote it in this launch may be in a cache or not, synchronised or not; so may what
// an earlier launch wrote that may overlap this one, waited for or not.
void check_const(const void* p, int bytes, int id, uint32_t pc) {
    const auto at = reinterpret_cast<uintptr_t>(p);
    if (!in_arena(at)) return;
    by_page(at, static_cast<size_t>(bytes), [&](size_t page, size_t in, size_t take) {
        View* v = view_of(page);
        if (!v || in % 4 || take % 4) return;
        Page& of = *v->page;
        const Access a{space_of(*v), at - v->of.start, bytes, false, id, pc};
        for (size_t i = in / 4; S->grid->dependent && i < (in + take) / 4; i++) {
            const Overlap& x = of.overlap[i];
            if (x.written_in < S->grid->chain || x.written_in == S->launch) continue;
            tell_overlap("read as constant of what a kernel before writes", a, x.write_pc);
            break;
        }
        each_cell(of.words, of.bytes.get(), in, take, S->launch, false, [&](Cell& x) {
            if (x.write) {
                tell(RACE, "read as constant of what the launch writes", a, x.write, x.write_block,
                     x.write_pc);
                return false;
            }
            x.flags |= CONST;
            return true;
        });
    });
}

void read_const(const void* p, int bytes, const char* file, int line) {
    check_const(p, bytes, static_cast<int>(cur->lin), location(file, line));
}

void mark_pending(uint32_t addr, int bytes, bool on, int id, uint32_t pc, const Clk* seen_in) {
    const uint32_t e = epoch(static_cast<uint32_t>(id), (seen_in ? *seen_in : ck(id)).v[id]);
    each_cell(S->shadow->words, S->shadow->bytes, addr - SMEM_BASE, static_cast<size_t>(bytes),
              S->block_serial, false, [&](Cell& x) {
                  if (on) {
                      x.flags |= PENDING;
                      x.write = e;
                      x.write_block = S->block_no;
                      x.write_pc = pc;
                  } else {
                      x.flags = (x.flags & ~PENDING) | INIT;
                      // Others see it through what follows the wait, not what follows the request.
                      if (id < S->threads) x.write = e;
                  }
                  return true;
              });
}

void mark_mbarrier(uint32_t addr, bool live) {
    each_cell(S->shadow->words, S->shadow->bytes, addr - SMEM_BASE, 8, S->block_serial, false,
              [live](Cell& x) {
                  x.flags = live ? x.flags | MBARRIER | INIT : x.flags & ~MBARRIER;
                  return true;
              });
}

void mbarrier_used(uint32_t addr, bool fenced, int id, uint32_t pc) {
    const Clk& c = ck(id);
    const bool by_fence = id >= S->threads && !fenced;
    each_cell(S->shadow->words, S->shadow->bytes, addr - SMEM_BASE, 8, S->block_serial, false,
              [&](Cell& x) {
                  const bool made = ordered(c, c.v, x.write, x.write_block);
                  if (made && (!by_fence || ordered(c, c.p, x.write, x.write_block))) return true;
                  tell(RACE,
                       made ? "missing fence.mbarrier_init" : "race, mbarrier before its init",
                       {"shared memory", addr - SMEM_BASE, 8, false, id, pc}, x.write,
                       x.write_block, x.write_pc);
                  return false;
              });
}

// Of threads of a block alone: others' learn nothing.
static void order_in_block(const void* at, Order order) {
    const auto [known, is_new] = S->block_atomics.try_emplace(at);
    if (is_new) clear(known->second);
    if (order & RELEASE) release(known->second);
    if (order & ACQUIRE) acquire(static_cast<int>(cur->lin), known->second);
}

// Atomics of different threads do not race with each other where both are in the scope of either;
// with plain accesses they do. False: reported.
static bool check_atomic(Cell& x, const Access& a, bool of_device) {
    const bool was_atomic = x.flags & ATOMIC;
    if (!was_atomic && !check(x, a)) return false;
    const bool other_block = was_atomic && x.write_block != S->block_no;
    if (other_block && (!of_device || x.flags & OF_BLOCK) &&
        !ordered(ck(a.id), ck(a.id).v, x.write, x.write_block)) {
        tell(RACE, "race between blocks, an atomic of the block's scope", a, x.write, x.write_block,
             x.write_pc);
        return false;
    }
    if (other_block) x.flags &= ~OF_BLOCK;
    if (!of_device) x.flags |= OF_BLOCK;
    x.write = epoch(static_cast<uint32_t>(a.id), ck(a.id).v[a.id]);
    x.write_block = S->block_no;
    x.write_pc = a.pc;
    x.read[0] = x.read[1] = 0;
    x.flags |= ATOMIC;
    return true;
}

void atomic_order(uint32_t* at, Order order, bool of_device, uint32_t pc) {
    const int id = static_cast<int>(cur->lin);
    if (of_device)
        acquire_release(at, order);
    else
        order_in_block(at, order);
    const auto a = reinterpret_cast<uintptr_t>(at);
    if (!in_arena(a)) return check_global(at, 4, true, id, pc);
    View* v = view_of(page_of(a));
    if (!v || a % 4 || a + 4 > v->of.start + v->of.bytes) return access_global(a, 4, true, id, pc);
    st.accesses++;
    const size_t in = (a - arena_start()) % PAGE;
    Cell& x = v->page->words[in / 4];
    freshen(x, S->launch);
    const Access who_does{space_of(*v), a - v->of.start, 4, true, id, pc};
    if (!check_overlap(*v->page, in, 4, who_does, is_early(id))) return;
    if (!check_atomic(x, who_does, of_device) || is_init(*v, in, 4)) return;
    tell(UNINIT, "uninitialised read", who_does);
    set_init(*v, in, 4);
}

void atomic_order_shared(size_t off, Order order, uint32_t pc) {
    order_in_block(S->smem + off, order);
    st.accesses++;
    const Access a{"shared memory", off, 4, true, static_cast<int>(cur->lin), pc};
    bool uninit = false;
    each_cell(S->shadow->words, S->shadow->bytes, off, 4, S->block_serial, true, [&](Cell& x) {
        uninit |= !(x.flags & INIT);
        return check_atomic(x, a, true);
    });
    if (uninit) tell(UNINIT, "uninitialised read", a);
}

// ---- accesses of instrumented code

static uint32_t offset_of(void* return_address) {
    extern char image_start[] asm("__ehdr_start") __attribute__((visibility("hidden")));
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(return_address) -
                                 reinterpret_cast<uintptr_t>(image_start));
}

static inline void touch(const void* p, size_t n, bool write, void* return_address) {
    if (!cur) return;
    const auto at = reinterpret_cast<uintptr_t>(p);
    const size_t off = at - reinterpret_cast<uintptr_t>(S->block.smem);
    const int bytes = static_cast<int>(n), id = static_cast<int>(cur->lin);
    if (off < 228 * 1024) {
        const uint32_t pc = offset_of(return_address);
        if (off + n > S->block.smem_bytes) outside_shared(off, id, pc);
        access_shared({"shared memory", off, bytes, write, id, pc});
        count_bank_access(static_cast<uint32_t>(off), bytes, write, pc);
    } else if (in_arena(at)) {
        access_global(at, bytes, write, id, offset_of(return_address));
    } else if (!belongs_to_host_side(at)) {
        outside(at, bytes, write, id, offset_of(return_address));
        fail("", 0, "illegal address");
    }
}

}  // namespace simt

#if SIMT_CHECK
#define SIMT_RA __builtin_return_address(0)
#define SIMT_CALLBACK(name, n, write) \
    void __tsan_##name(void* p) { simt::touch(p, n, write, SIMT_RA); }
#define SIMT_CALLBACKS(n)                           \
    SIMT_CALLBACK(read##n, n, false)                \
    SIMT_CALLBACK(write##n, n, true)                \
    SIMT_CALLBACK(unaligned_read##n, n, false)      \
    SIMT_CALLBACK(unaligned_write##n, n, true)      \
    SIMT_CALLBACK(read_write##n, n, true)           \
    SIMT_CALLBACK(unaligned_read_write##n, n, true) \
    SIMT_CALLBACK(volatile_read##n, n, false)       \
    SIMT_CALLBACK(volatile_write##n, n, true)
extern "C" {
SIMT_CALLBACKS(1)
SIMT_CALLBACKS(2)
SIMT_CALLBACKS(4)
SIMT_CALLBACKS(8)
SIMT_CALLBACKS(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_read_range(void* p, size_t n) { simt::touch(p, n, false, SIMT_RA); }
void __tsan_write_range(void* p, size_t n) { simt::touch(p, n, true, SIMT_RA); }
}
#endif
