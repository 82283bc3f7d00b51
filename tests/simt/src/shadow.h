// The checker's cells: who wrote and read a word last, and what an access finds there.
#pragma once

#include <memory>

#include "machine.h"

namespace simt {

// ---- order

bool ordered_between_blocks(const Clk& c, uint32_t e, uint32_t block);
inline bool ordered(const Clk& c, const uint32_t* view, uint32_t e, uint32_t block) {
    if (!e) return true;
    if (block == S->block_no) return view[e & 2047] >= e >> 11;
    return ordered_between_blocks(c, e, block);
}

// ---- shadow cells: one a word, or four where a word was accessed by parts

enum Flags : uint32_t {
    INIT = 1,
    PENDING = 2,
    MBARRIER = 4,
    SPLIT = 8,
    ATOMIC = 16,
    CONST = 32,
    OF_BLOCK = 64
};
// OF_BLOCK: an atomic that other blocks' do not see as one.
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
struct SharedShadow {
    Cell words[228 * 256], bytes[228 * 1024];
};

// What is known of a page of an allocation: no two share one. Kept for those looked at last.
struct View {
    size_t page_no;
    Page* page;
    InitPage* init;  // null: nothing of it
    bool all_init;
    Allocation of;
};
constexpr size_t VIEWS = 1024;
extern View views[VIEWS];
// Null where there is no allocation.
View* find_view(size_t page_no);
inline View* view_of(size_t page_no) {
    View& v = views[page_no % VIEWS];
    return v.page && v.page_no == page_no ? &v : find_view(page_no);
}

inline size_t page_of(uintptr_t a) { return (a - arena_start()) / PAGE; }
template <class F>
void by_page(uintptr_t a, size_t n, F f) {
    while (n) {
        const size_t in = (a - arena_start()) % PAGE, take = n < PAGE - in ? n : PAGE - in;
        f(page_of(a), in, take);
        a += take;
        n -= take;
    }
}
inline const char* space_of(const View& v) {
    return v.of.kind == HOST_MEM ? "pinned host memory" : "device memory";
}

// ---- which bytes were ever written

void set_init(uintptr_t a, size_t n, bool on);
bool is_init(uintptr_t a, size_t n);
inline uintptr_t start_of(const View& v) { return arena_start() + v.page_no * PAGE; }
inline bool is_init(const View& v, size_t in, size_t n) {
    if (v.all_init || !v.init) return v.all_init;
    if (in % 64 + n > 64 || n == 64) return is_init(start_of(v) + in, n);
    const uint64_t bits = ((1ull << n) - 1) << in % 64;
    return (v.init->bits[in / 64] & bits) == bits;
}
inline void set_init(const View& v, size_t in, size_t n) {
    if (v.all_init) return;
    if (!v.init || in % 64 + n > 64 || n == 64) return set_init(start_of(v) + in, n, true);
    v.init->bits[in / 64] |= ((1ull << n) - 1) << in % 64;
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

__attribute__((cold)) void tell(Kind kind, const char* what, const Access& a, uint32_t other = 0,
                                uint32_t other_block = 0, uint32_t other_pc = 0);
__attribute__((cold)) void tell_overlap(const char* what, const Access& a, uint32_t other_pc);
// Reports an address where nothing is.
// Whether the device is one that reaches all of the host's memory, as a Grace Hopper does: what no
// allocation has is then not looked at.
bool reaches_pageable_memory();
__attribute__((cold)) void outside(uintptr_t at, int bytes, bool write, int id, uint32_t pc);
[[noreturn]] __attribute__((cold)) void outside_shared(size_t off, int id, uint32_t pc);

// False: reported, the rest of the access is let be.
inline bool check(Cell& x, const Access& a) {
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
        x.flags = (x.flags & ~(ATOMIC | OF_BLOCK)) | INIT;
    } else if (x.read[0] != e || x.read_block[0] != S->block_no) {
        const int i = ordered(c, c.v, x.read[0], x.read_block[0]) ? 0 : 1;
        x.read[i] = e;
        x.read_block[i] = S->block_no;
        x.read_pc = a.pc;
    }
    return true;
}

inline void freshen(Cell& x, uint32_t stamp) {
    if (x.stamp == stamp) return;
    x = Cell{};
    x.stamp = stamp;
}

// Calls f for the cells of [off, off + n): of words where whole words are meant and none was ever
// accessed by parts, else of bytes.
template <class F>
bool each_cell(Cell* words, Cell* bytes, size_t off, size_t n, uint32_t stamp, bool write, F f) {
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

inline void access_shared(const Access& a) {
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

void access_global(uintptr_t at, int bytes, bool write, int id, uint32_t pc);
// ---- launches that overlap: a dependent begins before the launch before it is done
//
// Until it has waited, a thread may read what no launch writes that it does not know to be done:
// those from the last one on that was no dependent. A word that one of them has written already is
// seen at the read, one that is written later at the write. It may write nothing.

// Whether the launch before may still be at work, for all the thread knows. Of what is no thread,
// its block.
inline bool is_early(int id) {
    if (!S->grid->dependent) return false;
    return id < S->threads ? !S->fibers[id].after_prior : !S->waited;
}

// False: reported.
inline bool check_overlap(Page& p, size_t in, size_t take, const Access& a, bool early) {
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

// Of [in, in + take) of a page.
inline void access_page(View& v, size_t in, size_t take, const Access& a, bool early, bool& fine,
                        bool& uninit) {
    Page& p = *v.page;
    if (fine) fine = check_overlap(p, in, take, a, early);
    if (fine) {
        // Cells by bytes are four times as many: only where they are needed.
        if (!p.bytes && (in % 4 || take % 4)) p.bytes = std::make_unique<Cell[]>(PAGE);
        fine = each_cell(p.words, p.bytes.get(), in, take, S->launch, a.write,
                         [&](Cell& x) { return check(x, a); });
    }
    if (a.write || !is_init(v, in, take)) {
        uninit |= !a.write;
        set_init(v, in, take);
    }
}

}  // namespace simt
