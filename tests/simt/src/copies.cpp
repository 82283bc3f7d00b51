// Asynchronous copies: cp.async by threads, TMA by an engine of its own, and mbarriers.
//
// Copies land as late as allowed: a read without the wait finds what was there before. With a
// seed the fast library lands some blocks' copies at once, so that they overwrite what is still
// read; the checking one sees both at any time.
#include "machine.h"

namespace simt {

// ---- address spaces

uint32_t to_shared(const void* p, const char* file, int line) {
    const size_t off = static_cast<size_t>(static_cast<const uint8_t*>(p) - S->block.smem);
    if (off > S->block.smem_bytes) fail(file, line, "the pointer is not to shared memory");
    return SMEM_BASE + static_cast<uint32_t>(off);
}

uint8_t* from_shared(uint32_t a, uint32_t n, const char* file, int line) {
    if (a < SMEM_BASE || uint64_t(a) - SMEM_BASE + n > S->block.smem_bytes) {
        S->grid->out_of_bounds = true;
        fail(file, line, "shared address 0x%x + %u lies outside the block's %u bytes", a, n,
             S->block.smem_bytes);
    }
    return S->block.smem + (a - SMEM_BASE);
}

// ---- cp.async

static void land(const Copy& c, int thread);

void cp_async(uint32_t dst, const void* src, int bytes, int src_bytes, const char* file, int line) {
    const uintptr_t low = dst | (src_bytes ? reinterpret_cast<uintptr_t>(src) : 0);
    if (low & static_cast<uintptr_t>(bytes - 1)) fail(file, line, "cp.async is misaligned");
    from_shared(dst, static_cast<uint32_t>(bytes), file, line);
    if (CHECK) {
        const int t = static_cast<int>(cur->lin);
        check_shared(dst, bytes, true, t, file, line);
        mark_pending(dst, bytes, true, t, file, line);
        // It may be read at once, before the kernel before is done.
        if (src_bytes && !S->now->after_prior) check_global(src, src_bytes, false, t, file, line);
    }
    const Copy copy{dst, static_cast<const uint8_t*>(src), bytes, src_bytes, S->now->group, file,
                    line};
    if (!CHECK && S->early && next_random() % 4 < S->early)
        land(copy, static_cast<int>(cur->lin));
    else
        S->now->copies.push_back(copy);
}

static void land(const Copy& c, int thread) {
    uint8_t* to = S->block.smem + (c.dst - SMEM_BASE);
    if (c.src_bytes) {
        if (CHECK) check_global(c.src, c.src_bytes, false, thread, c.file, c.line);
        memcpy(to, c.src, static_cast<size_t>(c.src_bytes));
    }
    memset(to + c.src_bytes, 0, static_cast<size_t>(c.bytes - c.src_bytes));
    if (CHECK) mark_pending(c.dst, c.bytes, false, thread, c.file, c.line);
}

void cp_async_commit() { S->now->group++; }

static void arrive(uint32_t a, int tx, int thread, const char* file, int line);

static void land_before(Fiber* f, int group) {
    auto& v = f->copies;
    size_t kept = 0;
    for (size_t i = 0; i < v.size(); i++) {
        if (v[i].group < group)
            land(v[i], static_cast<int>(f->lin));
        else
            v[kept++] = v[i];
    }
    v.resize(kept);
    auto& arrivals = f->arrivals;
    size_t due = 0;
    while (due < arrivals.size() && arrivals[due].group < group) {
        const CopyArrival at = arrivals[due++];
        arrive(at.mbar, 0, static_cast<int>(f->lin), at.file, at.line);
    }
    arrivals.erase(arrivals.begin(), arrivals.begin() + static_cast<long>(due));
}

void cp_async_wait(int left) { land_before(S->now, S->now->group - left); }

void land_all(Fiber* f) { land_before(f, f->group + 1); }

// Copies with an arrival land by themselves, at the latest when nothing else can happen.
bool land_for_someone() {
    for (int i = 0; i < S->threads; i++) {
        Fiber* f = &S->fibers[i];
        if (f->state == DONE || f->arrivals.empty()) continue;
        land_before(f, f->arrivals.front().group + 1);
        return true;
    }
    return false;
}

// Tied to copies of the open group too: it is closed here, which PTX's groups do not do, but only
// wait_group counts them, and no thread both waits by groups and by barriers.
void cp_async_mbar_arrive_noinc(uint32_t mbar, const char* file, int line) {
    S->now->arrivals.push_back({mbar, S->now->group, file, line});
    S->now->group++;
}

// ---- mbarriers: 8 bytes of shared memory, and what hardware keeps of their waiters

struct Word {
    uint16_t need, pending;
    int32_t tx : 30;
    uint32_t phase : 1, live : 1;
};

static Word* word_at(uint32_t a, const char* file, int line) {
    if (a & 7) fail(file, line, "mbarrier at 0x%x is misaligned", a);
    return reinterpret_cast<Word*>(from_shared(a, 8, file, line));
}

static MBar& state_of(uint32_t a, const Word* w, const char* file, int line) {
    const auto found = S->mbars.find(a);
    if (found == S->mbars.end() || !w->live)
        fail(file, line, "mbarrier 0x%x is used before init", a);
    return found->second;
}

void mbar_init(uint32_t a, int n, const char* file, int line) {
    Word* w = word_at(a, file, line);
    if (CHECK) check_shared(a, 8, true, static_cast<int>(cur->lin), file, line);
    *w = {static_cast<uint16_t>(n), static_cast<uint16_t>(n), 0, 0, 1};
    MBar& b = S->mbars[a];
    b.wait.clear();
    if (!CHECK) return;
    clear(b.acc);
    clear(b.done);
    mark_mbarrier(a);
}

static void complete_if_due(Word* w, MBar& b) {
    if (w->pending || w->tx) return;
    w->phase ^= 1;
    w->pending = w->need;
    if (CHECK) {
        join(b.done, b.acc);
        clear(b.acc);
    }
    size_t kept = 0;
    for (auto& [fiber, parity] : b.wait) {
        if (w->phase != parity)
            wake(fiber);
        else
            b.wait[kept++] = {fiber, parity};
    }
    b.wait.resize(kept);
}

static void arrive(uint32_t a, int tx, int thread, const char* file, int line) {
    Word* w = word_at(a, file, line);
    MBar& b = state_of(a, w, file, line);
    if (CHECK) {
        join(b.acc, ck(thread));
        ck(thread).v[thread]++;
    }
    if (!w->pending) fail(file, line, "mbarrier 0x%x: more arrivals than its count", a);
    w->tx += tx;
    w->pending--;
    st.barriers++;
    complete_if_due(w, b);
}

void mbar_arrive(uint32_t a, const char* file, int line) {
    arrive(a, 0, static_cast<int>(cur->lin), file, line);
}
void mbar_expect_tx(uint32_t a, uint32_t n, const char* file, int line) {
    arrive(a, static_cast<int>(n), static_cast<int>(cur->lin), file, line);
}

void mbar_wait(uint32_t a, uint32_t parity, const char* file, int line) {
    Word* w = word_at(a, file, line);
    MBar& b = state_of(a, w, file, line);
    if (w->phase == (parity & 1)) {
        b.wait.push_back({S->now, parity & 1});
        block_on("mbarrier.try_wait", file, line);
    }
    if (CHECK) acquire(static_cast<int>(cur->lin), b.done);
}

void fence_proxy_async() {
    if (!CHECK) return;
    S->proxy = true;
    Clk& c = ck(static_cast<int>(cur->lin));
    for (int i = 0; i < S->clocks; i++) c.p[i] = c.p[i] > c.v[i] ? c.p[i] : c.v[i];
}

// ---- TMA

uint32_t swizzle(uint32_t a, uint32_t mode) {
    constexpr uint32_t bits[4] = {0, 0x10, 0x30, 0x70};
    return a ^ (a >> 3 & bits[mode & 3]);
}

static uint32_t bytes_of(const TensorMap& m) {
    uint32_t n = m.elt;
    for (uint32_t i = 0; i < m.rank; i++) n *= m.box[i];
    return n;
}

void tma_load(uint32_t dst, const TensorMap* m, const int* c, int rank, uint32_t bar,
              const char* file, int line) {
    if (m->magic != TENSOR_MAP_MAGIC || static_cast<int>(m->rank) != rank)
        fail(file, line, "not a tensor map of rank %d", rank);
    if (dst & (m->swz == 3 ? 1023 : 127)) fail(file, line, "TMA writes to misaligned 0x%x", dst);
    const uint32_t n = bytes_of(*m);
    from_shared(dst, n, file, line);
    Tma t{dst, bar, *m, {}, CHECK ? new_agent(static_cast<int>(cur->lin)) : 0, file, line};
    for (int i = 0; i < rank; i++) t.coord[i] = c[i];
    if (CHECK) {
        check_shared(dst, static_cast<int>(n), true, t.agent, file, line);
        mark_pending(dst, static_cast<int>(n), true, t.agent, file, line);
    }
    S->tma.push_back(t);
}

// 16 bytes of a box's row, zeros where the tensor ends.
static void fetch_chunk(const Tma& t, uint64_t row, bool row_inside, int64_t first, uint8_t* out) {
    const TensorMap& m = t.map;
    const int per = static_cast<int>(16 / m.elt);
    if (!row_inside) return;
    for (int k = 0; k < per; k++) {
        if (first + k < 0 || first + k >= m.dim[0]) continue;
        const auto* from = reinterpret_cast<const uint8_t*>(row) + (first + k) * m.elt;
        if (CHECK) check_global(from, static_cast<int>(m.elt), false, t.agent, t.file, t.line);
        memcpy(out + k * m.elt, from, m.elt);
    }
}

void run_one_tma() {
    const size_t pick = cfg.seed ? next_random() % S->tma.size() : 0;
    const Tma t = S->tma[pick];
    S->tma.erase(S->tma.begin() + static_cast<long>(pick));
    const TensorMap& m = t.map;
    const uint32_t n = bytes_of(m), row_bytes = m.elt * m.box[0];
    uint32_t index[5] = {};
    for (uint32_t at = 0; at < n; at += row_bytes) {
        bool inside = true;
        uint64_t row = m.base;
        for (uint32_t i = 1; i < m.rank; i++) {
            const int64_t pos = int64_t(t.coord[i]) + index[i];
            inside &= pos >= 0 && pos < m.dim[i];
            row += static_cast<uint64_t>(pos) * m.stride[i];
        }
        for (uint32_t x = 0; x < row_bytes; x += 16) {
            uint8_t chunk[16] = {};
            fetch_chunk(t, row, inside, int64_t(t.coord[0]) + x / m.elt, chunk);
            memcpy(S->block.smem + swizzle(t.dst + at + x - SMEM_BASE, m.swz), chunk, 16);
        }
        for (uint32_t i = 1; i < m.rank; i++) {
            if (++index[i] < m.box[i]) break;
            index[i] = 0;
        }
    }
    if (CHECK) mark_pending(t.dst, static_cast<int>(n), false, t.agent, t.file, t.line);
    Word* w = word_at(t.bar, t.file, t.line);
    MBar& b = state_of(t.bar, w, t.file, t.line);
    if (CHECK) join(b.acc, ck(t.agent));
    w->tx -= static_cast<int>(n);
    complete_if_due(w, b);
}

void begin_block_copies() {
    S->mbars.clear();
    S->tma.clear();
    for (auto& w : S->wg) {
        w.groups.clear();
        w.open.clear();
    }
}

}  // namespace simt
