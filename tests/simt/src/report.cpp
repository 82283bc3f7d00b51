// What was found: texts with the source lines of both accesses, and bank conflicts by line.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <string_view>

#include "control.h"
#include "exec.h"
#include "machine.h"

namespace simt {

static std::vector<std::string> texts;
static std::set<std::string> said;
static uint64_t counts[5];

static void count(Kind kind) {
    counts[0]++;
    counts[kind]++;
    (kind == RACE ? st.races : kind == UNINIT ? st.uninit : kind == OOB ? st.oob : st.faults)++;
}

bool already_told(Kind kind, uint32_t pc, uint32_t other_pc) {
    char key[40];
    snprintf(key, sizeof key, "%d %x %x", kind, pc, other_pc);
    if (said.insert(key).second) return false;
    count(kind);
    return true;
}

void add_report(Kind kind, const std::string& text) {
    count(kind);
    if (cfg.verbose) fprintf(stderr, "simt: %s\n", text.c_str());
    if (texts.size() < cfg.max_reports) texts.push_back(text);
}

std::string where_in_grid(int id) {
    char text[120];
    const uint3 b = S->block.bid;
    snprintf(
        text, sizeof text,
        id < S->threads ? " (block %u,%u,%u thread %d)" : " (block %u,%u,%u async operation %d)",
        b.x, b.y, b.z, id < S->threads ? id : id - S->threads);
    return text;
}

// ---- places: an offset into this library, or (bit 31) a file and line of the arch layer

static std::vector<const char*> files;

// Every translation unit has its own copy of a name: they are found by what they say.
static size_t index_of(const char* file) {
    static std::unordered_map<const char*, size_t> known;
    const auto found = known.find(file);
    if (found != known.end()) return found->second;
    size_t i = 0;
    while (i < files.size() && strcmp(files[i], file)) i++;
    if (i == files.size()) files.push_back(file);
    return known[file] = i;
}

uint32_t location(const char* file, int line) {
    static const char* last;
    static size_t index;
    if (file != last || !last) {
        index = index_of(file ? file : "?");
        last = file;
    }
    return 0x80000000u | static_cast<uint32_t>(index) << 20 | static_cast<uint32_t>(line);
}

static std::string base_name(std::string_view path) {
    const size_t slash = path.rfind('/');
    return std::string(slash == path.npos ? path : path.substr(slash + 1));
}

std::string place(uint32_t pc) {
    if (pc >> 31) {
        return base_name(files[pc >> 20 & 0x7ff]) + ":" + std::to_string(pc & 0xfffff);
    }
    static std::unordered_map<uint32_t, std::string> resolved;
    std::string& text = resolved[pc];
    if (!text.empty()) return text;
#if SIMT_PTX
    text.resize(ptx_place(pc, nullptr, 0));
    ptx_place(pc, text.data(), text.size());
    text.pop_back();
    return text;
#endif
    Dl_info image;
    dladdr(reinterpret_cast<void*>(&place), &image);
    char command[600], line[400] = "";
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%x 2>/dev/null", image.dli_fname,
             pc - 1);
    if (FILE* p = popen(command, "r")) {
        // Of what is inlined, where the kernel calls the arch layer.
        while (fgets(line, sizeof line, p) && strstr(line, "arch/host.cuh")) {
        }
        pclose(p);
    }
    text = base_name(line);
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    if (text.empty()) text = "+" + std::to_string(pc);
    return text;
}

// ---- bank conflicts: lanes' n-th executions of an instruction are taken as one warp access

struct Site {
    uint32_t pc;
    int bytes;
    uint32_t times[32];
    std::vector<std::pair<uint32_t, uint32_t>> accesses;  // which execution, offset
};
struct Counted {
    uint64_t phases, extra;
};
static std::vector<Site> sites[MAX_THREADS / 32];
static std::unordered_map<uint32_t, Counted> banks;

void count_bank_phase(uint32_t pc, unsigned extra) {
    st.bank_phases++;
    st.bank_conflicts += extra;
    Counted& c = banks[pc];
    c.phases++;
    c.extra += extra;
}

void count_bank_access(uint32_t off, int bytes, bool, uint32_t pc) {
    auto& of_warp = sites[cur->warp];
    Site* site = nullptr;
    for (auto& s : of_warp)
        if (s.pc == pc) site = &s;
    if (!site) {
        of_warp.push_back({pc, bytes, {}, {}});
        site = &of_warp.back();
    }
    site->accesses.push_back({site->times[cur->lane]++ << 5 | cur->lane, off});
}

// Wide accesses go by quarters or halves of a warp; a bank serves one word a phase.
static void count_execution(const Site& s, const std::pair<uint32_t, uint32_t>* a, size_t n) {
    const unsigned lanes = s.bytes >= 16 ? 8 : s.bytes == 8 ? 16 : 32;
    for (size_t i = 0; i < n;) {
        const unsigned part = (a[i].first & 31) / lanes;
        std::set<uint32_t> words;
        for (; i < n && (a[i].first & 31) / lanes == part; i++)
            for (int k = 0; k < std::max(s.bytes, 4); k += 4) words.insert(a[i].second / 4 + k / 4);
        unsigned per_bank[32] = {}, worst = 1;
        for (uint32_t w : words) worst = std::max(worst, ++per_bank[w % 32]);
        count_bank_phase(s.pc, worst - 1);
    }
}

// How many phases more there are for these words: a bank serves one a phase, for all who ask for
// it.
static unsigned conflicts(const uint32_t* words, unsigned n) {
    uint32_t first[32];
    uint32_t taken = 0;
    bool differ = false;
    for (unsigned i = 0; i < n; i++) {
        const uint32_t bank = words[i] % 32, bit = 1u << bank;
        if (taken & bit)
            differ |= first[bank] != words[i];
        else
            first[bank] = words[i];
        taken |= bit;
    }
    if (!differ) return 0;
    uint32_t sorted[32];
    std::copy(words, words + n, sorted);
    std::sort(sorted, sorted + n);
    unsigned per_bank[32] = {}, worst = 1;
    for (unsigned i = 0; i < n; i++)
        if (!i || sorted[i] != sorted[i - 1]) worst = std::max(worst, ++per_bank[sorted[i] % 32]);
    return worst - 1;
}

void count_bank_lanes(uint32_t pc, uint32_t mask, const uint64_t* at, int bytes) {
    const unsigned lanes = bytes >= 16 ? 8 : bytes == 8 ? 16 : 32;
    const auto each = static_cast<unsigned>(std::clamp(bytes / 4, 1, 4));
    Counted now{0, 0};
    for (unsigned from = 0; from < 32; from += lanes) {
        uint32_t words[32];
        unsigned n = 0;
        const uint32_t part = lanes == 32 ? mask : mask & ((1u << lanes) - 1) << from;
        for (uint32_t m = part; m; m &= m - 1)
            for (unsigned k = 0; k < each; k++)
                words[n++] = static_cast<uint32_t>(at[__builtin_ctz(m)] / 4) + k;
        if (!n) continue;
        now.phases++;
        now.extra += conflicts(words, n);
    }
    st.bank_phases += now.phases;
    st.bank_conflicts += now.extra;
    Counted& c = banks[pc];
    c.phases += now.phases;
    c.extra += now.extra;
}

void flush_banks(unsigned warp) {
    for (auto& s : sites[warp]) {
        auto& a = s.accesses;
        std::sort(a.begin(), a.end());
        for (size_t i = 0; i < a.size();) {
            size_t k = i;
            while (k < a.size() && a[k].first >> 5 == a[i].first >> 5) k++;
            count_execution(s, &a[i], k - i);
            i = k;
        }
    }
    sites[warp].clear();
}

}  // namespace simt

// ---- what tests call

using namespace simt;

uint64_t simt_report_count(int kind) { return kind >= 0 && kind < 5 ? counts[kind] : 0; }

static size_t hand_over(const std::string& all, char* to, size_t n) {
    if (to && n) {
        const size_t take = std::min(n - 1, all.size());
        memcpy(to, all.data(), take);
        to[take] = 0;
    }
    return all.size() + 1;
}

size_t simt_take_reports(char* to, size_t n) {
    std::string all;
    for (auto& t : texts) all += t + '\1';
    const size_t needed = hand_over(all, to, n);
    if (to && n >= needed) {
        texts.clear();
        said.clear();
        std::fill(counts, counts + 5, 0);
    }
    return needed;
}

size_t simt_bank_conflicts(char* to, size_t n) {
    std::map<std::string, Counted> lines;
    for (auto& [pc, c] : banks) {
        Counted& at = lines[place(pc)];
        at.phases += c.phases;
        at.extra += c.extra;
    }
    std::string all;
    for (auto& [line, c] : lines)
        all += line + " " + std::to_string(c.phases) + " " + std::to_string(c.extra) + "\n";
    return hand_over(all, to, n);
}

void simt_clear_bank_conflicts() { banks.clear(); }
// Schedules depend on the seed and the launches since, and so repeat.
void simt_set_seed(uint64_t seed) {
    cfg.seed = seed;
    first_launch = launches;
}
void simt_set_dependent(int on) { cfg.dependent = on != 0; }
int simt_is_checking() { return CHECK; }
int simt_is_ptx() { return PTX; }
uint64_t simt_ptx_instructions() {
#if SIMT_PTX
    return ptx_instructions();
#else
    return 0;
#endif
}
void simt_stats(simt_counters* out) {
    const Stats s = stats();
    static_assert(sizeof(simt_counters) == sizeof(Stats));
    memcpy(out, &s, sizeof s);
}
