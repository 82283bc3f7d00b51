// The checker: vector clocks of threads, and for every word of memory who wrote and read it last.
//
// Kernels are compiled with -fsanitize=thread, whose runtime is not linked: the callbacks are here.
// Order comes from barriers, mbarriers, syncwarp and atomics, and never from shuffles.
#include <dlfcn.h>
#include <sys/mman.h>

#include <memory>

#include "machine.h"

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
    max_into(into.p, from.p);
    if (into.known != from.known) into.known = unite(into.known, from.known);
}

void release(Clk& to) {
    const int t = static_cast<int>(cur->lin);
    join(to, ck(t));
    ck(t).v[t]++;
}

void acquire(int id, const Clk& from) { join(ck(id), from); }

void acquire_all(int id, const Clk& from) {
    Clk& c = ck(id);
    const uint32_t own = c.v[id];
    memcpy(c.v, from.v, static_cast<size_t>(S->clocks) * 4);
    memcpy(c.p, from.p, static_cast<size_t>(S->clocks) * 4);
    c.v[id] = own;
    c.known = from.known;
}

int new_agent(int issuer) {
    const int k = S->threads + S->agent++ % AGENTS;
    const uint32_t clock = ck(k).v[k] + 1;
    memcpy(&ck(k), &ck(issuer), sizeof(Clk));
    ck(k).v[k] = ck(k).p[k] = clock;
    return k;
}

void begin_block_clocks() {
    S->clocks = S->threads + AGENTS;
    S->accumulated_used = 0;
    S->block_atomics.clear();
    for (int i = 0; i < S->clocks; i++) {
        clear(S->clk[i]);
        S->clk[i].v[i] = 1;
    }
}

// An atomic that acquires sees what earlier ones released, of other blocks too; one that releases
// tells what its thread has seen. One that does not release hides nothing that others released.
static void acquire_release(uint32_t* at, Order order) {
    const int t = static_cast<int>(cur->lin);
    Clk& c = ck(t);
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

static bool ordered(const Clk& c, const uint32_t* view, uint32_t e, uint32_t block) {
    if (!e) return true;
    if (block == S->block_no) return view[e & 2047] >= e >> 11;
    if (!c.known) return false;
    const auto it = c.known->blocks.find(block);
    return it != c.known->blocks.end() && (*it->second)[e & 2047] >= e >> 11;
}

// ---- shadow cells: one a word, or four where a word was accessed by parts

enum Flags : uint32_t { INIT = 1, PENDING = 2, MBARRIER = 4, SPLIT = 8, ATOMIC = 16, CONST = 32 };
struct Cell {
    uint32_t stamp;  // block (shared) or launch (global) it tells of; else it is fresh
    uint32_t flags;
    uint32_t write, write_block, write_pc;
    uint32_t read[2], read_block[2], read_pc;
};

// What launches that may overlap have done to a word; kept from one to the next.
struct Overlap {
    uint32_t written_in, write_pc;    // by the last launch that did
    uint32_t read_early_in, read_pc;  // by the last one, before it had waited for those before it
};

constexpr size_t PAGE = 4096;
struct Page {
    Cell words[PAGE / 4];
    Overlap overlap[PAGE / 4];
    std::unique_ptr<Cell[]> bytes;
};
struct InitPage {
    uint64_t bits[PAGE / 64];
};
static std::unordered_map<size_t, std::unique_ptr<Page>> pages;
static std::unordered_map<size_t, std::unique_ptr<InitPage>> init_pages;  // null: all of it
struct SharedShadow {
    Cell words[228 * 256], bytes[228 * 1024];
};
// Cells of blocks that ended are told by their stamps; most memory is never touched.
SharedShadow* new_shared_shadow() {
    void* p = mmap(nullptr, sizeof(SharedShadow), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return static_cast<SharedShadow*>(p);
}

static size_t page_of(uintptr_t a) { return (a - arena_start()) / PAGE; }

static size_t last_page_no = ~size_t(0);  // that page_at has found

void shadow_forget(uintptr_t a, size_t n) {
    last_page_no = ~size_t(0);
    for (size_t p = page_of(a); p <= page_of(a + n - 1); p++) {
        pages.erase(p);
        init_pages.erase(p);
    }
}

template <class F>
static void by_page(uintptr_t a, size_t n, F f) {
    while (n) {
        const size_t in = (a - arena_start()) % PAGE, take = n < PAGE - in ? n : PAGE - in;
        f(page_of(a), in, take);
        a += take;
        n -= take;
    }
}

static void set_init(uintptr_t a, size_t n, bool on) {
    by_page(a, n, [&](size_t page, size_t in, size_t take) {
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

static bool is_init(uintptr_t a, size_t n) {
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

struct Access {
    const char* space;
    size_t off;
    int bytes;
    bool write;
    int id;
    uint32_t pc;
};

static std::string who(uint32_t e, uint32_t block) {
    const uint32_t i = e & 2047;
    std::string text =
        static_cast<int>(i) < S->threads
            ? "thread " + std::to_string(i)
            : "async operation " + std::to_string(i - static_cast<uint32_t>(S->threads));
    if (block != S->block_no) text += " of block " + std::to_string(block - 1);
    return text;
}

static void tell(Kind kind, const char* what, const Access& a, uint32_t other = 0,
                 uint32_t other_block = 0, uint32_t other_pc = 0) {
    if (already_told(kind, a.pc, other_pc)) return;
    std::string text = std::string(what) + ": " + a.space + " + " + std::to_string(a.off) + ", " +
                       std::to_string(a.bytes) + " bytes, at " + place(a.pc) + where_in_grid(a.id);
    if (other) text += "; before: " + who(other, other_block) + " at " + place(other_pc);
    add_report(kind, text);
}

// False: reported, the rest of the access is let be.
static bool check(Cell& x, const Access& a) {
    const Clk& c = ck(a.id);
    const bool agent = a.id >= S->threads;
    const uint32_t e = epoch(static_cast<uint32_t>(a.id), c.v[a.id]);
    if (x.flags & MBARRIER) {
        tell(RACE, "plain access to an mbarrier", a);
        return false;
    }
    if (x.flags & PENDING && !(agent && x.write == e)) {
        tell(RACE, "access while an async copy is under way", a, x.write, x.write_block,
             x.write_pc);
        return false;
    }
    // An ordinary write is visible to the async proxy only through fence.proxy.async.
    const bool by_fence = agent && static_cast<int>(x.write & 2047) < S->threads;
    if (!ordered(c, by_fence ? c.p : c.v, x.write, x.write_block)) {
        const bool other_block = x.write_block != S->block_no;
        tell(RACE,
             by_fence && ordered(c, c.v, x.write, x.write_block) ? "missing fence.proxy.async"
             : other_block ? (a.write ? "race between blocks, write after write"
                                      : "race between blocks, read after write")
             : a.write     ? "race, write after write"
                           : "race, read after write",
             a, x.write, x.write_block, x.write_pc);
        if (a.write) x.write = e, x.write_block = S->block_no, x.write_pc = a.pc;
        return false;
    }
    if (a.write) {
        if (x.flags & CONST) {
            tell(RACE, "write of what the launch reads as constant", a, x.read[0], x.read_block[0],
                 x.read_pc);
            x.flags &= ~CONST;
            return false;
        }
        for (int i = 0; i < 2; i++) {
            if (ordered(c, c.v, x.read[i], x.read_block[i])) continue;
            tell(RACE,
                 x.read_block[i] == S->block_no ? "race, write after read"
                                                : "race between blocks, write after read",
                 a, x.read[i], x.read_block[i], x.read_pc);
            x.read[0] = x.read[1] = 0;
            x.write = e;
            x.write_block = S->block_no;
            x.write_pc = a.pc;
            return false;
        }
        x.write = e;
        x.write_block = S->block_no;
        x.write_pc = a.pc;
        x.read[0] = x.read[1] = 0;
        x.flags = (x.flags & ~ATOMIC) | INIT;
    } else if (x.read[0] != e || x.read_block[0] != S->block_no) {
        const int i = ordered(c, c.v, x.read[0], x.read_block[0]) ? 0 : 1;
        x.read[i] = e;
        x.read_block[i] = S->block_no;
        x.read_pc = a.pc;
    }
    return true;
}

static void freshen(Cell& x, uint32_t stamp) {
    if (x.stamp == stamp) return;
    x = Cell{};
    x.stamp = stamp;
}

// Calls f for the cells of [off, off + n): of words where whole words are meant and none was ever
// accessed by parts, else of bytes.
template <class F>
static bool each_cell(Cell* words, Cell* bytes, size_t off, size_t n, uint32_t stamp, bool write,
                      F f) {
    for (size_t at = off, end = off + n; at < end;) {
        Cell& x = words[at / 4];
        freshen(x, stamp);
        const size_t take = 4 - at % 4 < end - at ? 4 - at % 4 : end - at;
        if (take == 4 && !(x.flags & SPLIT)) {
            if (!f(x)) return false;
        } else {
            Cell* b = bytes + at / 4 * 4;
            if (!(x.flags & SPLIT)) {
                for (int i = 0; i < 4; i++) b[i] = x;
                x.flags |= SPLIT;
            }
            for (size_t i = at % 4; i < at % 4 + take; i++)
                if (!f(b[i])) return false;
            if (take == 4 && write) x = b[0];  // now the same for all four
        }
        at += take;
    }
    return true;
}

static void access_shared(const Access& a) {
    st.accesses++;
    bool uninit = false;
    each_cell(S->shadow->words, S->shadow->bytes, a.off, static_cast<size_t>(a.bytes),
              S->block_serial, a.write, [&](Cell& x) {
                  if (!check(x, a)) return false;
                  if (!a.write && !(x.flags & INIT)) {
                      uninit = true;
                      x.flags |= INIT;  // said once
                  }
                  return true;
              });
    if (uninit) tell(UNINIT, "uninitialised read", a);
}

static void outside(uintptr_t at, int bytes, bool write, int id, uint32_t pc) {
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

static Page& page_at(size_t i) {
    static Page* last_page;
    if (last_page_no != i) {
        auto& p = pages[i];
        if (!p) p = std::make_unique<Page>();
        last_page_no = i;
        last_page = p.get();
    }
    return *last_page;
}

// ---- launches that overlap: a dependent begins before the launch before it is done
//
// Until it has waited, a thread may read what no launch writes that it does not know to be done:
// those from the last one on that was no dependent. A word that one of them has written already is
// seen at the read, one that is written later at the write. It may write nothing.

// Whether the launch before may still be at work, for all the thread knows. Of what is no thread,
// its block.
static bool is_early(int id) {
    if (!S->grid->dependent) return false;
    return id < S->threads ? !S->fibers[id].after_prior : !S->waited;
}

static void tell_overlap(const char* what, const Access& a, uint32_t other_pc) {
    if (already_told(RACE, a.pc, other_pc)) return;
    std::string text = std::string(what) + ": " + a.space + " + " + std::to_string(a.off) + ", " +
                       std::to_string(a.bytes) + " bytes, at " + place(a.pc) + where_in_grid(a.id);
    if (other_pc) text += "; the other kernel at " + place(other_pc);
    add_report(RACE, text);
}

// False: reported.
static bool check_overlap(Page& p, size_t in, size_t take, const Access& a, bool early) {
    for (size_t i = in / 4; i <= (in + take - 1) / 4; i++) {
        Overlap& x = p.overlap[i];
        if (a.write && early) {
            tell_overlap("write before the wait for the kernel before", a, 0);
            return false;
        }
        if (a.write) {
            const uint32_t reader = x.read_early_in;
            x.read_early_in = 0;
            x.written_in = S->launch;
            x.write_pc = a.pc;
            if (reader <= S->launch) continue;
            tell_overlap("write of what a dependent kernel has read before its wait", a, x.read_pc);
            return false;
        }
        if (!early) continue;
        if (x.written_in >= S->grid->chain) {
            tell_overlap("read before the wait for the kernel before, of what was written", a,
                         x.write_pc);
            return false;
        }
        x.read_early_in = S->launch;
        x.read_pc = a.pc;
    }
    return true;
}

void block_has_not_waited() {
    Grid& g = *S->grid;
    if (g.said_no_wait) return;
    g.said_no_wait = true;
    add_report(RACE, "a block ends without the wait for the kernel before" + where_in_grid(0));
}

static void access_global(uintptr_t at, int bytes, bool write, int id, uint32_t pc) {
    st.accesses++;
    const Allocation m = find_allocation(at);
    const size_t n = static_cast<size_t>(bytes);
    if (!m.found || at + n > m.start + m.bytes) {
        outside(at, bytes, write, id, pc);
        fail("", 0, "illegal address");
    }
    const Access a{m.kind == HOST_MEM ? "pinned host memory" : "device memory",
                   at - m.start,
                   bytes,
                   write,
                   id,
                   pc};
    bool fine = true;
    const bool early = is_early(id);
    by_page(at, n, [&](size_t page, size_t in, size_t take) {
        if (!fine) return;
        const bool parts = in % 4 || take % 4;
        Page& p = page_at(page);
        fine = check_overlap(p, in, take, a, early);
        if (!fine) return;
        // Cells by bytes are four times as many: only where they are needed.
        if (!p.bytes && parts) p.bytes = std::make_unique<Cell[]>(PAGE);
        fine = each_cell(p.words, p.bytes.get(), in, take, S->launch, write,
                         [&](Cell& x) { return check(x, a); });
    });
    if (!write && !is_init(at, n)) {
        tell(UNINIT, "uninitialised read", a);
        set_init(at, n, true);
    }
    if (write) set_init(at, n, true);
}

// ---- accesses of the arch layer

void check_shared(uint32_t addr, int bytes, bool write, int id, uint32_t pc) {
    access_shared({"shared memory", addr - SMEM_BASE, bytes, write, id, pc});
}

static bool belongs_to_host_side(uintptr_t a) {
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
    const Allocation m = find_allocation(at);
    const Access a{"device memory", at - m.start, bytes, false, id, pc};
    by_page(at, static_cast<size_t>(bytes), [&](size_t page, size_t in, size_t take) {
        Page& p = page_at(page);
        if (in % 4 || take % 4) return;
        for (size_t i = in / 4; S->grid->dependent && i < (in + take) / 4; i++) {
            const Overlap& x = p.overlap[i];
            if (x.written_in < S->grid->chain || x.written_in == S->launch) continue;
            tell_overlap("read as constant of what a kernel before writes", a, x.write_pc);
            break;
        }
        each_cell(p.words, p.bytes.get(), in, take, S->launch, false, [&](Cell& x) {
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

void mark_pending(uint32_t addr, int bytes, bool on, int id, uint32_t pc) {
    const uint32_t e = epoch(static_cast<uint32_t>(id), ck(id).v[id]);
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

// Atomics of different threads do not race with each other; with plain accesses they do.
void atomic_order(uint32_t* at, Order order, bool of_device, uint32_t pc) {
    const int id = static_cast<int>(cur->lin);
    if (of_device) {
        acquire_release(at, order);
    } else {
        const auto [known, is_new] = S->block_atomics.try_emplace(at);
        if (is_new) clear(known->second);
        if (order & RELEASE) release(known->second);
        if (order & ACQUIRE) acquire(id, known->second);
    }
    const auto a = reinterpret_cast<uintptr_t>(at);
    if (!in_arena(a)) return check_global(at, 4, true, id, pc);
    const Allocation m = find_allocation(a);
    if (!m.found || a % 4) return access_global(a, 4, true, id, pc);
    st.accesses++;
    Page& p = page_at(page_of(a));
    Cell& x = p.words[(a - arena_start()) % PAGE / 4];
    freshen(x, S->launch);
    const Access who_does{"device memory", a - m.start, 4, true, id, pc};
    if (!check_overlap(p, (a - arena_start()) % PAGE, 4, who_does, is_early(id))) return;
    const bool was_atomic = x.flags & ATOMIC;
    if (!was_atomic && !check(x, who_does)) return;
    if (!is_init(a, 4)) {
        tell(UNINIT, "uninitialised read", who_does);
        set_init(a, 4, true);
    }
    x.write = epoch(static_cast<uint32_t>(id), ck(id).v[id]);
    x.write_block = S->block_no;
    x.write_pc = pc;
    x.read[0] = x.read[1] = 0;
    x.flags |= ATOMIC;
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
        if (off + n > S->block.smem_bytes) {
            add_report(OOB, "out of bounds: shared memory + " + std::to_string(off) + " of " +
                                std::to_string(S->block.smem_bytes) + " bytes, at " + place(pc) +
                                where_in_grid(id));
            S->grid->out_of_bounds = true;
            fail("", 0, "illegal address");
        }
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
