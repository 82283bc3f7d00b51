// The emulated multiprocessor: what its parts (fibers, barriers, copies, checker) share.
#pragma once

#define SIMT_NO_CUDA_NAMES
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt.h"

#ifndef SIMT_CHECK
#define SIMT_CHECK 0
#endif
// Kernels are executed from PTX: see exec.h.
#ifndef SIMT_PTX
#define SIMT_PTX 0
#endif

namespace simt {

constexpr bool CHECK = SIMT_CHECK, PTX = SIMT_PTX;
constexpr int MAX_THREADS = 1024;
// Pseudo-threads for what the async proxy does (TMA, wgmma); recycled, so a very old operation
// may hide a race.
constexpr int AGENTS = 32;
constexpr int MAX_CLOCKS = MAX_THREADS + AGENTS;

// ---- threads as fibers

enum State : uint8_t { READY, WAIT, DONE };

struct Copy {
    uint32_t dst;
    const uint8_t* src;
    int bytes, src_bytes, group;
    const char* file;
    int line;
};
// cp.async.mbarrier.arrive: due once all copies before it have landed.
struct CopyArrival {
    uint32_t mbar;
    int group;
    const char* file;
    int line;
};
struct Fiber : Thread {
    void* sp;
    State state;
    const char* what;  // it waits in
    const char* file;
    int line;
    int group;         // of cp.async that is open
    bool after_prior;  // it has waited for the kernel before, or need not
    std::vector<Copy> copies;
    std::vector<CopyArrival> arrivals;
};

// ---- vector clocks (checking build)

// What is known of other blocks' threads: acquired through atomics.
struct Known {
    std::map<uint32_t, const std::vector<uint32_t>*> blocks;
};
// v: seen by ordinary accesses; p: seen by the async proxy (fence.proxy.async sets p to v).
struct Clk {
    uint32_t v[MAX_CLOCKS], p[MAX_CLOCKS];
    const Known* known;
};
constexpr uint32_t epoch(uint32_t id, uint32_t clock) { return clock << 11 | id; }

// ---- barriers and collectives

struct Bar {
    int got, need, waiting;
    Fiber* wait[MAX_THREADS];
    Clk acc;
};
// Clocks that are joined over time, of PTX. Threads of the same number `Machine::same` have seen
// the same but of themselves: that of those joined last, and the one for what this has seen now.
struct Accumulated {
    Clk clock;
    uint64_t joined, same;
};
struct Pending {
    uint32_t mask, got;
    WarpFn fn;
    int line;
    const char* file;
    void* args[32];
};
// Lanes of a warp may meet in disjoint groups; four at a time are plenty for kernels written for
// whole warps.
struct WarpState {
    int used;
    Pending slot[4];
};
struct GroupPending {
    int got, line;
    WarpFn fn;
    void* args[128];
};
struct MBar {
    Clk acc, done;
    std::vector<std::pair<Fiber*, uint32_t>> wait;
};

// ---- async proxy

struct WgOp {
    float* d[128];
    uint32_t a[128][4];
    bool a_in_regs;
    int n;
    uint64_t a_desc, b_desc;
    bool transpose_b, scale_d;
    int agent;
    const char* file;
    int line;
};
struct Warpgroup {
    std::deque<std::vector<WgOp>> groups;
    std::vector<WgOp> open;
};
struct Tma {
    uint32_t dst, bar;
    TensorMap map;
    int coord[5];
    int agent;
    const char* file;
    int line;
};

// ---- the machine

// A launch under way: what its blocks share. Dependents begin before the launch before them is
// done, so there may be several.
struct Machine;
}  // namespace simt
struct ptx_kernel;
struct ptx_block;
namespace simt {
struct alignas(128) ParamChunk {
    uint8_t bytes[128];
};
struct Grid {
    void* fn = nullptr;
    Trampoline trampoline = nullptr;
    void** params = nullptr;
    dim3 blocks, threads;
    void* args[1] = {};  // of a launch that has a copy of its parameters
    std::vector<ParamChunk> params_of_kernel;
    uint32_t smem = 0;
    const ptx_kernel* code = nullptr;  // what is executed in the place of fn
    bool dependent = false;            // it may begin before the launch before it is done
    bool waits = true;                 // wait_for_prior_kernel is an instruction in its code
    unsigned resident = 0;             // blocks that may begin before then
    // By begin:
    uint32_t launch = 0;  // its number
    uint32_t chain = 0;   // the first one that may not be done, by what is before it in its stream
    uint64_t rng = 1;
    std::vector<uint32_t> order;  // of its blocks
    // As it goes on:
    size_t begun = 0;               // blocks
    bool prior_done = true;         // the launch before it
    std::vector<Machine*> waiting;  // blocks in their wait
    bool all_let_next = true;       // each of those has let the next kernel start before
    bool faulted = false, out_of_bounds = false;
    bool params_on_stack = false;
    bool said_no_wait = false;
    // What the checker knows of its atomics. Unions are owned until the launch ends, as cells and
    // clocks point to them.
    std::vector<std::unique_ptr<Known>> known_pool;
    std::vector<std::unique_ptr<std::vector<uint32_t>>> snapshots;
    std::unordered_map<uint32_t*, const Known*> atomics;

    Grid() = default;
    Grid(const Grid&) = delete;
    Grid& operator=(const Grid&) = delete;
    ~Grid();
    // All blocks have ended.
    bool done() const { return begun == order.size() && waiting.empty(); }
    // Every block has ended or let the next kernel start.
    bool next_may_begin() const { return begun == order.size() && all_let_next; }
};

// A block under way. Zeroed memory, and large: most of it is never touched.
struct SharedShadow;
struct Machine {
    Fiber fibers[MAX_THREADS];
    Fiber* ready[2 * MAX_THREADS];  // ring: a fiber is in it at most once
    unsigned head = 0, tail = 0;
    void* main_sp = nullptr;
    Fiber* now = nullptr;
    int threads = 0, clocks = 0, alive = 0;
    Bar bars[16];
    WarpState warps[MAX_THREADS / 32];
    GroupPending groups[MAX_THREADS / 128];
    Warpgroup wg[MAX_THREADS / 128];
    std::unordered_map<uint32_t, MBar> mbars;
    std::deque<Tma> tma;
    int agent = 0;
    bool proxy = false;  // the async proxy has been used: until then it has seen nothing
    Clk clk[MAX_CLOCKS];
    Grid* grid = nullptr;
    uint32_t launch = 0, block_no = 0, block_serial = 0;
    Block block{};
    unsigned early = 0;                     // of four copies that land at once
    bool waited = false, let_next = false;  // some thread has
    std::vector<Fiber*> in_wait;            // for the kernel before
    uint8_t* stacks = nullptr;
    uint8_t* smem = nullptr;
    SharedShadow* shadow = nullptr;  // checking build
    // Of PTX: the block, clocks by the executor's numbers, and those of atomics of the block alone.
    ptx_block* ptx = nullptr;
    std::deque<Accumulated> accumulated;
    size_t accumulated_used = 0;
    uint64_t same[MAX_CLOCKS] = {};  // 0: as none
    std::map<const void*, Clk> block_atomics;
};
// The block that runs. Not thread-local: one runs at a time.
extern Machine* S;
extern Stats st;
// Launches so far, and at the last seed.
extern uint32_t launches, first_launch;

// fiber.cpp
void wake(Fiber* f);
void block_on(const char* what, const char* file, int line);
uint32_t next_random();
bool on_fiber_stack(uintptr_t a);
// A launch in three parts. Its number, and the order of its blocks, drawn by the seed; `chain` is
// that of the launch before it where it follows one, else 0.
void begin(Grid& g, uint32_t chain);
// While the launch before it may still run (prior_done says): blocks up to their wait, as many as
// fit.
void run_early(Grid& g);
// The rest, once the launch before it is done. False: it ended in a fault (see reports).
bool finish(Grid& g);

// shadow.cpp: clocks
inline Clk& ck(int id) { return S->clk[id]; }
void clear(Clk& c);
void join(Clk& into, const Clk& from);
void release(Clk& to);                      // by the running thread
void acquire_all(int id, const Clk& from);  // `from` has seen all that `id` had released
void acquire(int id, const Clk& from);
int new_agent(int issuer);
uint64_t new_same();  // a number that nothing has yet: see Accumulated
void begin_block_clocks();
SharedShadow* new_shared_shadow();
void block_has_not_waited();
// shadow.cpp: accesses of the arch layer, and of PTX; a place is a location, or an instruction of
// PTX
uint32_t location(const char* file, int line);
void check_shared(uint32_t addr, int bytes, bool write, int id, uint32_t pc);
void check_global(const void* p, int bytes, bool write, int id, uint32_t pc);
void check_const(const void* p, int bytes, int id, uint32_t pc);
// What has landed others see by what its thread does next, or by a clock that it has released to.
void mark_pending(uint32_t addr, int bytes, bool on, int id, uint32_t pc,
                  const Clk* seen_in = nullptr);
// An mbarrier lies there, or no more.
void mark_mbarrier(uint32_t addr, bool live = true);
// By who sees it to have been made; the engine by a fence of proxies, unless `fenced`.
void mbarrier_used(uint32_t addr, bool fenced, int id, uint32_t pc);
// Of the device, or of the block alone: then other blocks' threads learn nothing.
void atomic_order(uint32_t* at, Order order, bool of_device, uint32_t pc);
void atomic_order_shared(size_t off, Order order, uint32_t pc);
inline void check_shared(uint32_t addr, int bytes, bool write, int id, const char* file, int line) {
    check_shared(addr, bytes, write, id, location(file, line));
}
inline void check_global(const void* p, int bytes, bool write, int id, const char* file, int line) {
    check_global(p, bytes, write, id, location(file, line));
}
inline void mark_pending(uint32_t addr, int bytes, bool on, int id, const char* file, int line) {
    mark_pending(addr, bytes, on, id, location(file, line));
}

// report.cpp
enum Kind { RACE = 1, UNINIT = 2, OOB = 3, FAULT = 4 };
// Of a pair of places one text is enough; every access is counted.
bool already_told(Kind kind, uint32_t pc, uint32_t other_pc);
void add_report(Kind kind, const std::string& text);
std::string place(uint32_t pc);
std::string where_in_grid(int id);
void count_bank_access(uint32_t off, int bytes, bool write, uint32_t pc);
void count_bank_phase(uint32_t pc, unsigned extra);
// Of a whole warp's instruction: offsets of the lanes in the mask.
void count_bank_lanes(uint32_t pc, uint32_t mask, const uint64_t* at, int bytes);
void flush_banks(unsigned warp);

// exec.cpp: blocks of PTX. What `fail` throws ends in the call that the executor made.
struct Abandoned {};
void begin_ptx_block();
// True: it waits for the kernel before.
bool run_ptx_block();
void end_ptx_block(Machine* m);

// copies.cpp
void land_all(Fiber* f);
bool land_for_someone();
void run_one_tma();
void begin_block_copies();
uint32_t swizzle(uint32_t addr, uint32_t mode);

// memory.cpp: one range of addresses for device memory and pinned host memory
enum MemKind { DEVICE_MEM = 2, HOST_MEM = 1 };
struct Allocation {
    uintptr_t start;
    size_t bytes;
    MemKind kind;
    bool found;
};
bool in_arena(uintptr_t a);
uintptr_t arena_start();
void* arena_alloc(size_t n, MemKind kind);
bool arena_free(void* p, MemKind kind);
Allocation find_allocation(uintptr_t a);
// The one that ends at most a guard before, for reports.
Allocation allocation_before(uintptr_t a);
size_t device_bytes_used();
size_t host_bytes_used();
constexpr size_t DEVICE_BYTES = 16ull << 30;
void arena_reset();
// shadow.cpp: called when memory comes and goes, and when the host or a copy writes it
void shadow_forget(uintptr_t a, size_t n);
void shadow_init(uintptr_t a, size_t n);
// Copies what is known of initialisation along with the bytes.
void shadow_copy_init(uintptr_t to, uintptr_t from, size_t n);

}  // namespace simt
