// simt.cpp - runtime of the host-side GPU. Never compiled with a sanitizer that rewrites memory accesses
// (except ASan builds); provides the __tsan_* callbacks itself -> exact, barrier-aware race/OOB/uninit checks.
#include "simt.h"
#include <cstdio>
#include <cstdlib>
#include <cstdarg>
#include <vector>
#include <deque>
#include <map>
#include <unordered_map>
#include <algorithm>
#include <dlfcn.h>
#include <unistd.h>
#include <string_view>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
namespace simt {
__thread Thread* cur; __thread Block* blk; Config cfg; static Stats st;
Stats stats() { return st; } void reset_stats() { st = {}; }
#ifndef SIMT_CHECK
#define SIMT_CHECK 0
#endif
constexpr bool CHECK = SIMT_CHECK;

// ------------------------------------------------------------------ fibers (x86-64; ucontext elsewhere)
extern "C" void simt_switch(void** save, void* to);
asm(R"(.text
.globl simt_switch
simt_switch:
 push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
 mov %rsp,(%rdi); mov %rsi,%rsp
 pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
 pop %rcx; jmp *%rcx
)");
constexpr size_t STACK = 256 << 10;
enum State : uint8_t { READY, WAIT, DONE };
struct Copy { uint32_t dst; const uint8_t* src; int bytes, src_bytes; int group; const char* file; int line; };
struct Fiber : Thread {
  void* sp; uint8_t* stack; State st; const char* what; const char* file; int line; uint32_t ret; bool pret;
  std::vector<Copy> copies; int group; void* fake = nullptr;
};
struct Pend { uint32_t mask, got; WarpFn fn; void* args[32]; const char* file; int line; };
struct GPend { int got; WarpFn fn; void* args[128]; const char* file; int line; };
struct Clk { std::vector<uint32_t> v, p; void clear() { std::fill(v.begin(), v.end(), 0); std::fill(p.begin(), p.end(), 0); } };
struct Bar { int got = 0, need = 0; std::vector<Fiber*> wait; Clk acc; };
struct MBar { Clk acc, done; std::vector<std::pair<Fiber*, uint32_t>> wait; };
struct Cell { uint32_t w, r0, r1, fl, wpc, rpc; };     // one per 2 bytes of shared memory
enum { INIT = 1, PEND = 2, MBARF = 4 };
struct GCell { uint32_t launch, w, r, wb, rb, wpc; };  // one per 2 bytes of global memory
struct WgOp { float* d[128]; uint32_t a[128][4]; bool areg; int n; uint64_t ad, bd; bool t, s; int agent; const char* file; int line; };
struct Wg { std::deque<std::vector<WgOp>> groups; std::vector<WgOp> open; };
struct Tma { uint32_t dst, bar; TensorMap m; int c[5]; int agent; const char* file; int line; };
constexpr int NA = 32;
static struct {
  std::vector<Fiber> f; std::vector<Fiber*> ready; void* sched; Fiber* now; int T, W, alive; Bar bar[16];
  std::vector<std::vector<Pend>> warp; std::vector<std::vector<GPend>> wgc; std::vector<Wg> wg;
  std::vector<Clk> clk; std::unordered_map<uint32_t, MBar> mb; std::deque<Tma> tma; int agent = 0; Clk* gl;
  std::vector<Cell> cell; uint8_t* arena = nullptr; GCell* gshadow = nullptr; size_t top = 0; uint32_t launch = 0, blockno = 0;
  std::map<uintptr_t, size_t> allocs; uint64_t rng; void (*entry)(); void* fn; Tramp tr; void** params; Block b;
  void* sfake = nullptr; const void* sbot; size_t ssz; std::vector<uint8_t*> stacks;
} S;
constexpr size_t ARENA = 1ull << 30;
static uint32_t rnd() { S.rng ^= S.rng << 13; S.rng ^= S.rng >> 7; S.rng ^= S.rng << 17; return S.rng >> 16; }

static std::string_view base(const char* f) { std::string_view s(f ? f : "?"); auto k = s.rfind('/'); return k == s.npos ? s : s.substr(k + 1); }
#define SV(s) int(s.size()), s.data()
void fail(const char* file, int line, const char* fmt, ...) {
  char b[512]; va_list a; va_start(a, fmt); vsnprintf(b, 512, fmt, a); va_end(a); auto s = base(file);
  fprintf(stderr, "simt: ERROR %s [%.*s:%d] block %u,%u,%u thread %u\n", b, SV(s), line, S.b.bid.x, S.b.bid.y, S.b.bid.z, cur ? cur->lin : 0);
  for (auto& f : S.f) if (f.st == WAIT && (f.lane == 0)) { auto t = base(f.file); fprintf(stderr, "  warp %u lane %u waits in %s at %.*s:%d\n", f.warp, f.lane, f.what, SV(t), f.line); }
  exit(70);
}
static void wake(Fiber* f) { f->st = READY; S.ready.push_back(f); }
static void to_sched() {
  Fiber* f = S.now; st.switches++;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(f->st == DONE ? nullptr : &f->fake, S.sbot, S.ssz);
#endif
  simt_switch(&f->sp, S.sched);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f->fake, &S.sbot, &S.ssz);
#endif
}
static void block_on(const char* what, const char* file, int line) { Fiber* f = S.now; f->st = WAIT; f->what = what; f->file = file; f->line = line; to_sched(); }

// ------------------------------------------------------------------ clocks
static constexpr uint32_t ep(uint32_t id, uint32_t c) { return (c << 11) | id; }
static void mx(std::vector<uint32_t>& a, const std::vector<uint32_t>& b) { for (size_t i = 0; i < a.size(); i++) a[i] = a[i] > b[i] ? a[i] : b[i]; }
static Clk& ck(int id) { return S.clk[id]; }
static void joinc(Clk& a, const Clk& b) { mx(a.v, b.v); mx(a.p, b.p); }
static Clk mk() { Clk c; c.v.assign(S.W, 0); c.p.assign(S.W, 0); return c; }
static void release(Clk& to) { int t = cur->lin; joinc(to, ck(t)); ck(t).v[t]++; }
static bool before(uint32_t e, const std::vector<uint32_t>& v) { return !e || v[e & 2047] >= (e >> 11); }
static int new_agent(int issuer) { int k = S.T + (S.agent++ % NA); uint32_t c = ck(k).v[k] + 1; ck(k) = ck(issuer); ck(k).v[k] = c; ck(k).p[k] = c; return k; }

static const char* who(uint32_t e, char* b) { uint32_t i = e & 2047; if ((int)i < S.T) sprintf(b, "thread %u", i); else sprintf(b, "async engine op %u", i - S.T); return b; }
static void where_arch(uint32_t pc, char* o);
static void where(uint32_t pc, char* o) {
  if (pc >> 31) return where_arch(pc, o);
  static uintptr_t img = [] { Dl_info d; dladdr((void*)&where, &d); return (uintptr_t)d.dli_fbase; }();
  static char exe[256]; static bool once = (exe[readlink("/proc/self/exe", exe, 255)] = 0, true); (void)once; (void)img;
  char c[400]; snprintf(c, 400, "addr2line -i -e %s 0x%x 2>/dev/null | sed 's,.*/,,' | tr '\\n' ' '", exe, pc - 1); FILE* p = popen(c, "r"); o[0] = 0; if (p) { if (!fgets(o, 180, p)) o[0] = 0; pclose(p); } }
static std::vector<const char*> files; static uint32_t loc(const char* f, int l) { size_t i = 0; while (i < files.size() && files[i] != f) i++; if (i == files.size()) files.push_back(f); return 0x80000000u | i << 20 | l; }
static uint32_t pcoff(void* ra) { static uintptr_t img = [] { Dl_info d; dladdr((void*)&pcoff, &d); return (uintptr_t)d.dli_fbase; }(); return uint32_t((uintptr_t)ra - img); }
static void where_arch(uint32_t pc, char* o) { auto b = base(files[pc >> 20 & 0x7ff]); snprintf(o, 180, "%.*s:%u", SV(b), pc & 0xfffff); }
static void report(uint64_t& ctr, const char* kind, const char* space, size_t off, int sz, uint32_t other, uint32_t opc, int me, uint32_t mypc) {
  if (ctr++ >= (uint64_t)cfg.max_reports || !cfg.verbose) return;
  char b[40], c[40], w1[200] = "", w2[200] = ""; if (mypc) where(mypc, w1); if (opc) where(opc, w2);
  fprintf(stderr, "simt: %s: %s+%zu (%d B) block %u,%u,%u: %s at %s", kind, space, off, sz, S.b.bid.x, S.b.bid.y, S.b.bid.z, who(me, b), mypc ? w1 : "arch op ");
  if (other) fprintf(stderr, "<-> %s at %s", who(other, c), opc ? w2 : "arch op"); fputc('\n', stderr);
}
// one access to shared memory by id (thread or async agent)
static void acc_s(uint32_t off, int sz, bool wr, int id, uint32_t pc) {
  Clk& c = ck(id); bool ag = id >= S.T; uint32_t e = ep(id, c.v[id]); st.accesses++;
  for (uint32_t i = off >> 1, n = (off + sz + 1) >> 1; i < n; i++) {
    Cell& x = S.cell[i];
    if (x.fl & MBARF) { report(st.races, "plain access to mbarrier object", "shared", off, sz, 0, 0, id, pc); return; }
    if (x.fl & PEND && !(ag && x.w == e)) { report(st.races, "access while async copy in flight", "shared", off, sz, x.w, x.wpc, id, pc); return; }
    // a generic-proxy write is visible to the async proxy only through fence.proxy.async (clock p)
    if (!before(x.w, ag && int(x.w & 2047) < S.T ? c.p : c.v)) { report(st.races, ag && before(x.w, c.v) ? "missing fence.proxy.async" : (wr ? "race write-write" : "race write-read"), "shared", off, sz, x.w, x.wpc, id, pc); if (wr) x.w = e; return; }
    if (wr) {
      if (!before(x.r0, c.v) || !before(x.r1, c.v)) { report(st.races, "race read-write", "shared", off, sz, before(x.r0, c.v) ? x.r1 : x.r0, x.rpc, id, pc); x.r0 = x.r1 = 0; x.w = e; return; }
      x.w = e; x.wpc = pc; x.r0 = x.r1 = 0; x.fl |= INIT;
    } else {
      if (!(x.fl & INIT)) { report(st.uninit, "uninitialised read", "shared", off, sz, 0, 0, id, pc); x.fl |= INIT; }
      if (x.r0 != e) { if (before(x.r0, c.v)) x.r0 = e; else x.r1 = e; x.rpc = pc; }
    }
  }
}
static void acc_g(uintptr_t a, int sz, bool wr, int id, uint32_t pc) {
  static thread_local uintptr_t lo = 1, hi = 0; st.accesses++;
  if (!(a >= lo && a + sz <= hi)) {
    auto it = S.allocs.upper_bound(a); if (it != S.allocs.begin()) --it;
    if (it == S.allocs.end() || a < it->first || a + sz > it->first + it->second) { report(st.oob, wr ? "out-of-bounds write" : "out-of-bounds read", "global arena", a - (uintptr_t)S.arena, sz, 0, 0, id, pc); return; }
    lo = it->first; hi = lo + it->second;
  }
  Clk& c = ck(id); uint32_t e = ep(id, c.v[id]);
  for (size_t i = (a - (uintptr_t)S.arena) >> 1, n = (a - (uintptr_t)S.arena + sz + 1) >> 1; i < n; i++) {
    GCell& x = S.gshadow[i];
    if (x.launch != S.launch) x = {S.launch, 0, 0, 0, 0, 0};
    bool bad = x.w && (x.wb != S.blockno || !before(x.w, c.v));
    if (wr && x.r && (x.rb != S.blockno || !before(x.r, c.v))) bad = true;
    if (bad) { report(st.races, x.wb != S.blockno ? "race between blocks" : "race in block", "global", a - (uintptr_t)S.arena, sz, x.w ? x.w : x.r, x.wpc, id, pc); return; }
    if (wr) { x.w = e; x.wb = S.blockno; x.wpc = pc; } else if (!x.r || before(x.r, c.v) || x.rb != S.blockno) { x.r = e; x.rb = S.blockno; }
  }
}
static inline void touch(const void* p, int sz, bool wr, void* ra) {
  uintptr_t a = (uintptr_t)p;
  if (!cur) return;
  if (a - (uintptr_t)S.b.smem < S.b.smem_bytes + 256u) {
    if (a + sz > (uintptr_t)S.b.smem + S.b.smem_bytes) { report(st.oob, "out-of-bounds", "shared", a - (uintptr_t)S.b.smem, sz, 0, 0, cur->lin, pcoff(ra)); return; }
    acc_s(a - (uintptr_t)S.b.smem, sz, wr, cur->lin, pcoff(ra));
  } else if (a - (uintptr_t)S.arena < ARENA) acc_g(a, sz, wr, cur->lin, pcoff(ra));
}
// checked access by the arch layer (ldmatrix, cp.async, ...)
static void chk_s(uint32_t addr, int sz, bool wr, int id, const char* f, int l) { if (CHECK) acc_s(addr - SMEM_BASE, sz, wr, id, loc(f, l)); }
static void chk_g(const void* p, int sz, bool wr, int id, const char* f, int l) { if (CHECK && (uintptr_t)p - (uintptr_t)S.arena < ARENA) acc_g((uintptr_t)p, sz, wr, id, loc(f, l)); }

// ------------------------------------------------------------------ barriers and collectives
void bar_sync(int id, int n, const char* file, int line) {
  Bar& b = S.bar[id]; if (n < 0) n = S.T; if (n % 32) fail(file, line, "barrier count %d is not a multiple of 32", n);
  if (b.got && b.need != n) fail(file, line, "barrier %d used with counts %d and %d", id, b.need, n);
  for (auto* w : b.wait) if (w->warp == cur->warp && (w->line != line)) fail(file, line, "barrier %d: threads of one warp arrive from different places (line %d)", id, w->line);
  st.barriers++; b.need = n; if (CHECK) { if (b.acc.v.empty()) b.acc = mk(); release(b.acc); }
  if (++b.got == n) { if (CHECK) { for (auto* w : b.wait) joinc(ck(w->lin), b.acc); joinc(ck(cur->lin), b.acc); b.acc.clear(); }
    for (auto* w : b.wait) wake(w); b.wait.clear(); b.got = 0; }
  else { b.wait.push_back(S.now); block_on("bar.sync", file, line); }
}
void bar_arrive(int id, int n, const char* file, int line) {
  Bar& b = S.bar[id]; b.need = n; st.barriers++; if (CHECK) { if (b.acc.v.empty()) b.acc = mk(); release(b.acc); } (void)file; (void)line;
  if (++b.got == n) { if (CHECK) { for (auto* w : b.wait) joinc(ck(w->lin), b.acc); b.acc.clear(); } for (auto* w : b.wait) wake(w); b.wait.clear(); b.got = 0; }
}
void warp_collective(uint32_t mask, WarpFn fn, void* args, const char* file, int line) {
  auto& v = S.warp[cur->warp]; if (!(mask >> cur->lane & 1)) fail(file, line, "lane not in its own mask %08x", mask);
  size_t i = 0; for (; i < v.size(); i++) if (v[i].mask == mask && !(v[i].got >> cur->lane & 1)) break;
  if (i == v.size()) v.push_back({mask, 0, fn, {}, file, line});
  Pend& p = v[i]; if (p.fn != fn || p.line != line) fail(file, line, "divergent warp collective: other lanes are at line %d", p.line);
  p.got |= 1u << cur->lane; p.args[cur->lane] = args;
  if (p.got == mask) { Pend q = p; v.erase(v.begin() + i); st.collectives++; fn(q.args, mask);
    unsigned w0 = cur->warp * 32; for (uint32_t m = mask & ~(1u << cur->lane); m; m &= m - 1) wake(&S.f[w0 + __builtin_ctz(m)]); }
  else block_on("warp collective", file, line);
}
void group_collective(int, WarpFn fn, void* args, const char* file, int line) {
  auto& v = S.wgc[cur->lin / 128]; if (v.empty()) v.push_back({0, fn, {}, file, line});
  GPend& p = v[0]; if (p.fn != fn || p.line != line) fail(file, line, "divergent warpgroup collective (other at line %d)", p.line);
  p.args[cur->lin % 128] = args;
  if (++p.got == 128) { GPend q = p; v.clear(); st.collectives++; fn(q.args, 0); unsigned g0 = cur->lin / 128 * 128; for (unsigned i = 0; i < 128; i++) if (g0 + i != cur->lin) wake(&S.f[g0 + i]); }
  else block_on("warpgroup collective", file, line);
}
void syncwarp(uint32_t mask, const char* file, int line) {
  warp_collective(mask, [](void* const*, uint32_t m) { if (!CHECK) return; static Clk a; a = mk(); unsigned w0 = cur->warp * 32;
    for (uint32_t k = m; k; k &= k - 1) joinc(a, ck(w0 + __builtin_ctz(k)));
    for (uint32_t k = m; k; k &= k - 1) { int t = w0 + __builtin_ctz(k); ck(t) = a; ck(t).v[t]++; } }, nullptr, file, line);
}
uint32_t shfl(uint32_t mask, uint32_t v, int src, const char* file, int line) {
  struct A { uint32_t v; int src; uint32_t out; } a{v, src & 31, 0};
  warp_collective(mask, [](void* const* g, uint32_t m) { for (uint32_t k = m; k; k &= k - 1) { A& x = *(A*)g[__builtin_ctz(k)]; x.out = (m >> x.src & 1) ? ((A*)g[x.src])->v : 0xdeadbeef; } }, &a, file, line);
  return a.out;
}
uint32_t ballot(uint32_t mask, bool p, const char* file, int line) {
  struct A { bool p; uint32_t out; } a{p, 0};
  warp_collective(mask, [](void* const* g, uint32_t m) { uint32_t r = 0; for (uint32_t k = m; k; k &= k - 1) r |= uint32_t(((A*)g[__builtin_ctz(k)])->p) << __builtin_ctz(k); for (uint32_t k = m; k; k &= k - 1) ((A*)g[__builtin_ctz(k)])->out = r; }, &a, file, line);
  return a.out;
}
// ------------------------------------------------------------------ address spaces, sm_80
uint32_t to_shared(const void* p, const char* file, int line) {
  size_t o = (const uint8_t*)p - S.b.smem; if (o > S.b.smem_bytes) fail(file, line, "generic pointer is not shared memory"); return SMEM_BASE + o; }
uint8_t* from_shared(uint32_t a, uint32_t n, const char* file, int line) {
  if (a < SMEM_BASE || a - SMEM_BASE + n > S.b.smem_bytes) fail(file, line, "shared address 0x%x+%u outside the %u bytes of the block", a, n, S.b.smem_bytes); return S.b.smem + (a - SMEM_BASE); }
static void pend(uint32_t addr, int n, bool on, uint32_t e, uint32_t pc = 0) { if (!CHECK) return; for (uint32_t i = (addr - SMEM_BASE) >> 1, k = (addr - SMEM_BASE + n + 1) >> 1; i < k; i++) { Cell& x = S.cell[i]; if (on) { x.fl |= PEND; x.w = e; x.wpc = pc; } else x.fl = (x.fl & ~PEND) | INIT; } }
void cp_async(uint32_t dst, const void* src, int bytes, int sb, const char* file, int line) {
  if ((dst | (sb ? (uintptr_t)src : 0)) & (bytes - 1)) fail(file, line, "cp.async misaligned");
  from_shared(dst, bytes, file, line); int t = cur->lin; chk_s(dst, bytes, true, t, file, line); pend(dst, bytes, true, CHECK ? ep(t, ck(t).v[t]) : 0, CHECK ? loc(file, line) : 0);
  S.now->copies.push_back({dst, (const uint8_t*)src, bytes, sb, S.now->group, file, line});
}
static void land(const Copy& c) { uint8_t* d = S.b.smem + (c.dst - SMEM_BASE); if (c.src_bytes) { chk_g(c.src, c.src_bytes, false, cur->lin, c.file, c.line); memcpy(d, c.src, c.src_bytes); } memset(d + c.src_bytes, 0, c.bytes - c.src_bytes); pend(c.dst, c.bytes, false, 0); }
void cp_async_commit() { S.now->group++; }
void cp_async_wait(int n) { auto& v = S.now->copies; size_t k = 0; for (auto& c : v) if (c.group < S.now->group - n) { land(c); } else v[k++] = c; v.resize(k); }   // as late as allowed
void ldmatrix(uint32_t* r, int n, bool trans, uint32_t addr, const char* file, int line) {
  struct A { uint32_t* r; int n; bool t; uint32_t a; const char* f; int l; } a{r, n, trans, addr, file, line};
  if (addr & 15) fail(file, line, "ldmatrix row address 0x%x not 16-byte aligned", addr);
  warp_collective(~0u, [](void* const* g, uint32_t) {
    A& z = *(A*)g[0]; unsigned w0 = cur->warp * 32;
    for (int m = 0; m < z.n; m++) {
      uint16_t t[8][8]; uint8_t hit[8] = {};
      for (int i = 0; i < 8; i++) { A& x = *(A*)g[m * 8 + i]; memcpy(t[i], from_shared(x.a, 16, x.f, x.l), 16); chk_s(x.a, 16, false, w0 + m * 8 + i, x.f, x.l); hit[(x.a >> 4) & 7]++; }
      st.bank_phases++; st.bank_conflicts += *std::max_element(hit, hit + 8) - 1;
      for (int l = 0; l < 32; l++) { int i = l >> 2, j = (l & 3) * 2; ((A*)g[l])->r[m] = z.t ? t[j][i] | t[j + 1][i] << 16 : t[i][j] | t[i][j + 1] << 16; }
    } }, &a, file, line);
}
static inline float bf(uint16_t u) { uint32_t x = uint32_t(u) << 16; float f; memcpy(&f, &x, 4); return f; }
void mma_16816(float* d, const uint32_t* a, const uint32_t* b, bool, const char* file, int line) {
  struct A { float* d; const uint32_t *a, *b; } x{d, a, b};
  warp_collective(~0u, [](void* const* g, uint32_t) {
    float Am[16][16], Bm[16][8], D[16][8];
    for (int l = 0; l < 32; l++) { A& y = *(A*)g[l]; int r = l >> 2, c = (l & 3) * 2;
      for (int i = 0; i < 4; i++) { int rr = r + (i & 1) * 8, cc = c + (i >> 1) * 8; Am[rr][cc] = bf(y.a[i]); Am[rr][cc + 1] = bf(y.a[i] >> 16); D[r + (i >> 1) * 8][c + (i & 1)] = y.d[i]; }
      for (int i = 0; i < 2; i++) { Bm[c + i * 8][r] = bf(y.b[i]); Bm[c + i * 8 + 1][r] = bf(y.b[i] >> 16); } }
    for (int i = 0; i < 16; i++) for (int k = 0; k < 16; k++) for (int j = 0; j < 8; j++) D[i][j] += Am[i][k] * Bm[k][j];
    for (int l = 0; l < 32; l++) { A& y = *(A*)g[l]; for (int i = 0; i < 4; i++) y.d[i] = D[(l >> 2) + (i >> 1) * 8][(l & 3) * 2 + (i & 1)]; }
  }, &x, file, line);
}
// ------------------------------------------------------------------ sm_90: mbarrier, TMA, wgmma
struct MB8 { uint16_t need, pend; int32_t tx : 30; uint32_t phase : 1, live : 1; };
static MB8* mbw(uint32_t a, const char* file, int line) { if (a & 7) fail(file, line, "mbarrier misaligned"); return (MB8*)from_shared(a, 8, file, line); }
static MBar& mbx(uint32_t a, MB8* m, const char* file, int line) { if (!m->live || !S.mb.count(a)) fail(file, line, "mbarrier at 0x%x used before init", a); return S.mb[a]; }
void mbar_init(uint32_t a, int n, const char* file, int line) {
  auto* m = mbw(a, file, line); chk_s(a, 8, true, cur->lin, file, line); *m = {(uint16_t)n, (uint16_t)n, 0, 0, 1}; auto& x = S.mb[a]; x = {}; if (CHECK) { x.acc = mk(); x.done = mk(); for (int i = 0; i < 4; i++) S.cell[(a - SMEM_BASE) / 2 + i].fl |= MBARF; } }
static void mcheck(uint32_t a, MB8* m, MBar& x) {
  if (m->pend || m->tx) return; m->phase ^= 1; m->pend = m->need; if (CHECK) { joinc(x.done, x.acc); x.acc.clear(); }
  auto w = std::move(x.wait); x.wait.clear(); for (auto& [f, par] : w) if (m->phase != par) wake(f); else x.wait.push_back({f, par}); (void)a; }
static void marrive(uint32_t a, int tx, const char* file, int line) {
  auto* m = mbw(a, file, line); auto& x = mbx(a, m, file, line); if (CHECK) release(x.acc); if (!m->pend) fail(file, line, "mbarrier over-arrived"); m->tx += tx; m->pend--; st.barriers++; mcheck(a, m, x); }
void mbar_arrive(uint32_t a, const char* file, int line) { marrive(a, 0, file, line); }
void mbar_expect_tx(uint32_t a, uint32_t n, const char* file, int line) { marrive(a, n, file, line); }
void mbar_wait(uint32_t a, uint32_t par, const char* file, int line) {
  auto* m = mbw(a, file, line); auto& x = mbx(a, m, file, line);
  if (m->phase == (par & 1)) { x.wait.push_back({S.now, par & 1}); block_on("mbarrier.try_wait", file, line); }
  if (CHECK) joinc(ck(cur->lin), x.done); }
void fence_proxy_async() { if (CHECK) { auto& c = ck(cur->lin); mx(c.p, c.v); } }
bool elect_one() { return cur->lane == 0; }
void setmaxnreg(int n, bool, const char* file, int line) { if (n < 24 || n > 256 || n % 8) fail(file, line, "setmaxnreg %d", n); group_collective(4, [](void* const*, uint32_t) {}, nullptr, file, line); }
static uint32_t swz128(uint32_t a) { return a ^ ((a >> 3) & 0x70); }
void tma_load(uint32_t dst, const TensorMap* m, const int* c, int rank, uint32_t bar, const char* file, int line) {
  if (m->magic != 0x7a11 || (int)m->rank != rank) fail(file, line, "bad tensor map"); if (dst & (m->swz == 3 ? 1023 : 127)) fail(file, line, "TMA destination 0x%x misaligned", dst);
  uint32_t n = m->elt; for (int i = 0; i < rank; i++) n *= m->box[i]; from_shared(dst, n, file, line);
  Tma t{dst, bar, *m, {}, CHECK ? new_agent(cur->lin) : 0, file, line}; for (int i = 0; i < rank; i++) t.c[i] = c[i];
  chk_s(dst, n, true, t.agent, file, line); pend(dst, n, true, CHECK ? ep(t.agent, ck(t.agent).v[t.agent]) : 0, CHECK ? loc(file, line) : 0); S.tma.push_back(t);
}
static void tma_run() {
  size_t pick = cfg.seed ? rnd() % S.tma.size() : 0; Tma t = S.tma[pick]; S.tma.erase(S.tma.begin() + pick); auto& m = t.m; uint32_t n = m.elt, row = m.elt * m.box[0]; for (unsigned i = 0; i < m.rank; i++) n *= m.box[i];
  int ix[5] = {}; for (uint32_t o = 0; o < n; o += row) {
    bool in = true; uint64_t a = m.base; for (unsigned i = 1; i < m.rank; i++) { int64_t p = (int64_t)t.c[i] + ix[i]; in &= p >= 0 && p < (int64_t)m.dim[i]; a += p * m.stride[i]; }
    for (uint32_t x = 0; x < row; x += 16) { int64_t e = (int64_t)t.c[0] + x / m.elt; uint8_t v[16] = {};
      if (in) for (uint32_t k = 0; k < 16 / m.elt; k++) if (e + k >= 0 && e + k < m.dim[0]) { memcpy(v + k * m.elt, (void*)(a + (e + k) * m.elt), m.elt); }
      if (in && e >= 0 && e + 16 / m.elt <= m.dim[0]) chk_g((void*)(a + e * m.elt), 16, false, t.agent, t.file, t.line);
      uint32_t d = t.dst + o + x - SMEM_BASE; if (m.swz == 3) d = swz128(d); memcpy(S.b.smem + d, v, 16); }
    for (unsigned i = 1; i < m.rank; i++) { if (++ix[i] < (int)m.box[i]) break; ix[i] = 0; } }
  pend(t.dst, n, false, 0); auto* w = mbw(t.bar, t.file, t.line); auto& x = mbx(t.bar, w, t.file, t.line); if (CHECK) { joinc(x.acc, ck(t.agent)); } w->tx -= n; mcheck(t.bar, w, x);
}
static uint16_t opnd(uint64_t d, int mn, int k, bool tr, int ag, uint32_t pc) {    // canonical SWIZZLE_128B layouts, 2-byte elements
  uint32_t st0 = (d & 0x3fff) << 4, lbo = (d >> 16 & 0x3fff) << 4, sbo = (d >> 32 & 0x3fff) << 4;
  uint32_t o = tr ? (mn % 64) * 2 + (mn / 64) * lbo + (k % 8) * 128 + (k / 8) * sbo : (mn / 8) * sbo + (mn % 8) * 128 + k * 2;
  uint32_t a = swz128(st0 + o - SMEM_BASE); (void)ag; if (a + 2 > S.b.smem_bytes) fail(0, 0, "wgmma descriptor out of shared memory"); uint16_t v; memcpy(&v, S.b.smem + a, 2); if (CHECK) acc_s(a, 2, false, ag, pc); return v; }
static void wg_exec(WgOp& o) {
  static float A[64][16], B[16][256], D[64][256]; uint32_t pc = CHECK ? loc(o.file, o.line) : 0;
  for (int k = 0; k < 16; k++) for (int n = 0; n < o.n; n++) B[k][n] = bf(opnd(o.bd, n, k, o.t, o.agent, pc));
  if (!o.areg) for (int i = 0; i < 64; i++) for (int k = 0; k < 16; k++) A[i][k] = bf(opnd(o.ad, i, k, false, o.agent, pc));
  else for (int t = 0; t < 128; t++) for (int i = 0; i < 4; i++) { int r = t / 32 * 16 + t % 32 / 4 + (i & 1) * 8, c = t % 4 * 2 + (i >> 1) * 8; A[r][c] = bf(o.a[t][i]); A[r][c + 1] = bf(o.a[t][i] >> 16); }
  auto each = [&](auto f) { for (int t = 0; t < 128; t++) for (int j = 0; j < o.n / 8; j++) for (int i = 0; i < 4; i++) f(o.d[t][j * 4 + i], D[t / 32 * 16 + t % 32 / 4 + (i >> 1) * 8][j * 8 + t % 4 * 2 + (i & 1)]); };
  each([&](float& d, float& x) { x = o.s ? d : 0.f; });
  for (int i = 0; i < 64; i++) for (int k = 0; k < 16; k++) { float a = A[i][k]; for (int n = 0; n < o.n; n++) D[i][n] += a * B[k][n]; }
  each([&](float& d, float& x) { d = x; });
}
void wgmma(float* d, int n, const uint32_t* a, uint64_t ad, uint64_t bd, bool t, bool s, const char* file, int line) {
  if ((bd >> 62) != 1 || (!a && (ad >> 62) != 1)) fail(file, line, "prototype: only SWIZZLE_128B descriptors");
  struct A { float* d; const uint32_t* a; uint64_t ad, bd; int n; bool t, s; const char* f; int l; } x{d, a, ad, bd, n, t, s, file, line};
  group_collective(4, [](void* const* g, uint32_t) { static WgOp o; A& z = *(A*)g[0]; o.areg = z.a; o.n = z.n; o.ad = z.ad; o.bd = z.bd; o.t = z.t; o.s = z.s; o.file = z.f; o.line = z.l;
    for (int i = 0; i < 128; i++) { A& y = *(A*)g[i]; o.d[i] = y.d; if (y.a) memcpy(o.a[i], y.a, 16); if (y.bd != z.bd || y.ad != z.ad || y.s != z.s) fail(y.f, y.l, "wgmma operands differ across the warpgroup"); }
    unsigned g0 = cur->lin / 128 * 128; o.agent = 0; if (CHECK) { o.agent = new_agent(g0); auto& c = ck(o.agent); for (int i = 1; i < 128; i++) { mx(c.v, ck(g0 + i).v); mx(c.p, ck(g0 + i).p); } }
    S.wg[cur->lin / 128].open.push_back(o); }, &x, file, line);
}
void wgmma_commit() { group_collective(4, [](void* const*, uint32_t) { auto& w = S.wg[cur->lin / 128]; w.groups.push_back(std::move(w.open)); w.open.clear(); }, nullptr, "wgmma.commit", 0); }
void wgmma_wait(int n) {   // results appear only here: reading accumulators early gives stale values
  struct A { int n; } a{n};
  group_collective(4, [](void* const* g, uint32_t) { auto& w = S.wg[cur->lin / 128]; int n = ((A*)g[0])->n; unsigned g0 = cur->lin / 128 * 128;
    while ((int)w.groups.size() > n) { for (auto& o : w.groups.front()) { wg_exec(o); if (CHECK) for (int i = 0; i < 128; i++) { auto& c = ck(g0 + i); uint32_t e = ck(o.agent).v[o.agent]; c.v[o.agent] = std::max(c.v[o.agent], e); c.p[o.agent] = std::max(c.p[o.agent], e); } } w.groups.pop_front(); } }, &a, "wgmma.wait", n);
}
// ------------------------------------------------------------------ memory and launch
void* dmalloc(size_t n) {
#if defined(__SANITIZE_ADDRESS__)
  return aligned_alloc(256, (n + 255) / 256 * 256);
#else
  if (!S.arena) { S.arena = (uint8_t*)mmap(0, ARENA, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); if (CHECK) S.gshadow = (GCell*)mmap(0, ARENA / 2 * sizeof(GCell), 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }
  void* p = S.arena + S.top; S.allocs[(uintptr_t)p] = n; S.top += (n + 4096 + 511) / 512 * 512; return p;
#endif
}
void dfree(void* p) {
#if defined(__SANITIZE_ADDRESS__)
  free(p);
#else
  S.allocs.erase((uintptr_t)p);
#endif
}
static void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &S.sbot, &S.ssz);
#endif
  S.tr(S.fn, S.params); Fiber* f = S.now;
  for (auto& c : f->copies) land(c); f->copies.clear(); f->st = DONE; S.alive--; to_sched(); abort();
}
static void run_block() {
  S.f.resize(S.T); S.alive = S.T; S.ready.clear(); S.warp.assign((S.T + 31) / 32, {}); S.wgc.assign((S.T + 127) / 128, {}); S.wg.assign((S.T + 127) / 128, {}); S.mb.clear(); S.tma.clear();
  S.W = S.T + NA; for (auto& b : S.bar) b = {};
  if (CHECK) { S.clk.resize(S.W); for (int i = 0; i < S.W; i++) { S.clk[i].v.assign(S.W, 0); S.clk[i].p.assign(S.W, 0); S.clk[i].v[i] = 1; } S.cell.assign(S.b.smem_bytes / 2 + 1, Cell{}); }
  memset(S.b.smem, 0xff, S.b.smem_bytes);                // NaN poison: uninitialised shared memory is loud
  for (int i = 0; i < S.T; i++) {
    Fiber& f = S.f[i]; auto d = S.b.bdim; f.tid = {i % d.x, i / d.x % d.y, i / (d.x * d.y)}; f.lin = i; f.lane = i & 31; f.warp = i >> 5; f.group = 0; f.copies.clear();
    while ((int)S.stacks.size() <= i) S.stacks.push_back((uint8_t*)mmap(0, STACK, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    f.stack = S.stacks[i]; void** sp = (void**)(f.stack + STACK - 64 - (i % 64) * 1088);  /* stagger: equal stack tops would alias in L1/L2 */ *--sp = nullptr; *--sp = (void*)fiber_main; for (int k = 0; k < 6; k++) *--sp = nullptr; f.sp = sp; f.fake = nullptr; f.st = READY; S.ready.push_back(&f);
  }
  size_t head = 0;
  while (S.alive) {
    if (!S.tma.empty() && (S.ready.size() == head || (cfg.seed && rnd() % 64 == 0))) { tma_run(); continue; }
    if (head == S.ready.size()) fail("", 0, "deadlock: %d threads left, none can run", S.alive);
    if (cfg.seed) { size_t k = head + rnd() % (S.ready.size() - head); std::swap(S.ready[head], S.ready[k]); }
    Fiber* f = S.ready[head++]; if (head > 4096) { S.ready.erase(S.ready.begin(), S.ready.begin() + head); head = 0; }
    S.now = f; cur = f;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&S.sfake, f->stack, STACK);
#endif
    simt_switch(&S.sched, f->sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(S.sfake, nullptr, nullptr);
#endif
    cur = nullptr;
  }
}
void launch_raw(void* fn, Tramp t, dim3 g, dim3 b, uint32_t smem, void** params) {
  if (!S.arena && CHECK) dmalloc(16);
  S.fn = fn; S.tr = t; S.params = params; S.launch++; S.rng = 0x9e3779b97f4a7c15ull * (cfg.seed + 1); S.T = b.x * b.y * b.z; if (S.T > 1024) fail("", 0, "block too large");
  if (smem > 227 * 1024) fail("", 0, "shared memory %u over the 227 KiB limit", smem);
  uint8_t* raw = (uint8_t*)aligned_alloc(1024, (smem + 1023) / 1024 * 1024 + 1024); S.b.smem = raw; S.b.smem_bytes = smem; S.b.bdim = b; S.b.gdim = g; blk = &S.b;
  size_t n = size_t(g.x) * g.y * g.z; std::vector<uint32_t> ord(n); for (size_t i = 0; i < n; i++) ord[i] = i; if (cfg.seed) for (size_t i = n; i > 1; i--) std::swap(ord[i - 1], ord[rnd() % i]);
  for (uint32_t i : ord) { S.blockno = i + 1; S.b.bid = {i % g.x, i / g.x % g.y, i / (g.x * g.y)}; run_block(); }
  free(raw); blk = nullptr;
}
static Kernel* first_kernel;
Kernel::Kernel(const char* n, void (*e)(void* const*), size_t b, unsigned t) : name(n), entry(e), param_bytes(b), threads(t), next(first_kernel) { first_kernel = this; }
Kernel* kernels() { return first_kernel; }
void launch_kernel(const char* name, dim3 g, dim3 b, uint32_t smem, void** args) {
  for (Kernel* k = first_kernel; k; k = k->next) if (!strcmp(k->name, name)) { launch_raw((void*)k->entry, [](void* fn, void** q) { ((void (*)(void* const*))fn)(q); }, g, b, smem, args); return; }
  fail("", 0, "no kernel %s", name);
}
static Clk& atomic_clock(uint32_t* at) { static std::unordered_map<uint32_t*, Clk> c; auto& x = c[at]; if (x.v.empty()) x = mk(); return x; }
uint32_t atomic_add(uint32_t* at, uint32_t x, const char* file, int line) { (void)file; (void)line; (void)atomic_clock; uint32_t old = *at; *at += x; return old; }
uint16_t to_bf16(float x) { uint32_t u; memcpy(&u, &x, 4); if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff; return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
uint16_t to_f16(float x) { _Float16 h = (_Float16)x; uint16_t u; memcpy(&u, &h, 2); return u; }
float from_f16(uint16_t x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
}  // namespace simt
// ------------------------------------------------------------------ our own "TSan runtime"
#if SIMT_CHECK
#define RW(n) extern "C" void __tsan_read##n(void* p) { simt::touch(p, n, false, __builtin_return_address(0)); } extern "C" void __tsan_write##n(void* p) { simt::touch(p, n, true, __builtin_return_address(0)); } \
  extern "C" void __tsan_unaligned_read##n(void* p) { simt::touch(p, n, false, __builtin_return_address(0)); } extern "C" void __tsan_unaligned_write##n(void* p) { simt::touch(p, n, true, __builtin_return_address(0)); } \
  extern "C" void __tsan_read_write##n(void* p) { simt::touch(p, n, true, __builtin_return_address(0)); }
RW(1) RW(2) RW(4) RW(8) RW(16)
extern "C" void __tsan_init() {} extern "C" void __tsan_func_entry(void*) {} extern "C" void __tsan_func_exit() {} extern "C" void __tsan_vptr_update(void*, void*) {} extern "C" void __tsan_vptr_read(void*) {}
extern "C" void __tsan_read_range(void* p, size_t n) { simt::touch(p, n, false, __builtin_return_address(0)); } extern "C" void __tsan_write_range(void* p, size_t n) { simt::touch(p, n, true, __builtin_return_address(0)); }
extern "C" void* __tsan_memcpy(void* d, const void* s, size_t n) { simt::touch(s, n, false, __builtin_return_address(0)); simt::touch(d, n, true, __builtin_return_address(0)); return memcpy(d, s, n); }
extern "C" void* __tsan_memset(void* d, int c, size_t n) { simt::touch(d, n, true, __builtin_return_address(0)); return memset(d, c, n); }
#endif
