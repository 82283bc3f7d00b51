"""Kernels of others next to what is published of them.

A peer is a folder of cubins that nvcc 13.0 made of the peer's own sources, NAME.ARCH.cubin, with one kernel each:

    flash-attention: fa2.80.cubin, fa2.90.cubin            forward, hdim 128, bf16, causal, even, no dropout
                     fa2full.80.cubin, fa2full.90.cubin    the same without the mask
                     fa2_64.90.cubin, fa2_256.90.cubin     hdim 64 and 256, causal: the tiles that it takes on an H100
    flashinfer: fi_dec4.80.cubin, fi_dec4.90.cubin, fi_dec8.100.cubin    decode on CUDA cores, bf16, d 128, groups of 4, 8
    flash-attention-3: fa3.90.cubin    forward, hdim 128, bf16, causal, of one kernel without clusters, paging, splits

Which figures were seen before the model was what it is, and which were not, stands in SEEN: those that were not are
what its error is known by. Nothing of theirs is here, nor how it is built: see docs/notes/kernel-model.md.
"""

import hashlib
import heapq
import json
from dataclasses import dataclass
from pathlib import Path

from . import chips, occupancy, record, sass, toolkit
from .chips import Chip
from .flow import Flow
from .kernels import STARTS
from .timing import Memory, Player, ops_of, play

# TFLOP/s by queries and keys of a row, 16k tokens in all, 2,048 numbers of all heads.
# H100: bars of flash-attention's assets/flash3_fp16_fwd.png. A100: its README and paper (2307.08691), whose figure
# has about these; only the largest are printed in text.
PUBLISHED = {
    ("h100", 128, True): {512: 191, 1024: 260, 2048: 298, 4096: 319, 8192: 333, 16384: 335},
    ("h100", 128, False): {512: 309, 1024: 350, 2048: 362, 4096: 368, 8192: 370, 16384: 370},
    ("a100-80g", 128, True): {16384: 200},
    ("a100-80g", 128, False): {16384: 225},
    ("h100", 64, True): {512: 180, 1024: 229, 2048: 262, 4096: 284, 8192: 295, 16384: 299},
    ("h100", 256, True): {512: 208, 1024: 251, 2048: 278, 4096: 293, 8192: 297, 16384: 298},
}
# What a launch of it is, by head dimension: rows of a block, keys of a step, bytes of shared memory.
FA2 = {64: (128, 128, 49152), 128: (128, 64, 65536), 256: (64, 64, 98304)}
# Of whose figures it was known how far off the model was when its numbers were last chosen. What is not here was
# played once they were, and not used since.
SEEN = {("FlashAttention-3 d128", "h100"), ("FlashAttention-2 d128", "h100"), ("FlashAttention-2 d128", "a100-80g"),
        ("FlashInfer, group 4", "h100"), ("FlashInfer, group 4", "a100-80g"), ("FlashInfer, group 8", "b200")}
ERRORS = record.FOLDER / "errors.json"


@dataclass
class Row:
    """A figure next to what is published. `error` is of speed: more than 0 where the model is too fast."""

    kernel: str
    gpu: str
    case: str
    unit: str
    published: float
    predicted: float
    least: float
    most: float
    note: str = ""

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1

    @property
    def seen(self) -> bool:
        return (self.kernel, self.gpu) in SEEN

    def __str__(self) -> str:
        where = "" if self.least <= self.published <= self.most else ", published is outside"
        return (f"{self.kernel:22} {self.gpu:9} {self.case:20} {self.published:7,.0f} {self.predicted:7,.0f} {self.error:+7.1%} "
                f"{self.least:6,.0f} to {self.most:6,.0f} {self.unit}{', seen' if self.seen else ', held out'}{where}{self.note}")


@dataclass
class Loops:
    """Ways of a kernel with one loop for hidden keys and one for others."""

    plain: list
    masked: list
    start: list
    end: list


def ways_of(function: sass.Function) -> Loops:
    flow = Flow(function)
    heads = flow.main_loops()
    if not heads:
        raise ValueError(f"{function.name} has no loop with products")
    # Of equal work the longer one masks.
    best = flow.count(flow.loops[heads[0]], ("HMMA",))
    equal = [h for h in heads if flow.count(flow.loops[h], ("HMMA",)) == best]
    plain, masked = equal[0], equal[-1]
    first = flow.walk(0, lambda _, to: to in equal, work=())
    exits = {to for b in flow.loops[plain] for to in flow.blocks[b].successors if to not in flow.loops[plain]}
    ends = [way for to in exits if (way := flow.walk(to, lambda _, to: to is None, work=("STG", "STS", "SHFL")))]
    return Loops(flow.trace(flow.loop_way(plain)), flow.trace(flow.loop_way(masked)),
                 flow.trace(first or []), flow.trace(max(ends, key=len)) if ends else [])


def grid_time(lengths: list[float], slots: int) -> float:
    """When blocks that are dealt in order to so many places are done."""
    free = [0.0] * slots
    heapq.heapify(free)
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


def fa2(function: sass.Function, chip: Chip, dim: int, causal: bool, lengths, policy: str = "fair") -> dict[int, float]:
    """TFLOP/s by length."""
    loops = ways_of(function)
    threads = function.threads or 128
    rows, step_keys, shared = FA2[dim]
    fit = occupancy.blocks(chip, threads, function.registers, shared)
    memory = Memory(chip.l2_latency, chip.l2_bytes_a_clock)

    def steady(trace):
        return play(ops_of(trace, chip), chip, fit, 10, memory, threads // 32, STARTS, policy).cycles

    def once(trace):
        ops = ops_of(trace, chip, chip.l2_latency, is_loop=False)
        return play(ops, chip, 1, 1, None, threads // 32).total if ops else 0.0

    plain, masked, start, end = steady(loops.plain), steady(loops.masked), once(loops.start), once(loops.end)
    start += chip.dram_latency  # the first queries and keys
    made = {}
    for length in lengths:
        heads, batch = 2048 // dim, 16384 // length
        each = []
        for tile in range(length // rows):
            keys = (tile + 1) * rows if causal else length
            steps = -(-keys // step_keys)
            hidden = max(1, rows // step_keys) if causal else 1
            each.append(start + end + hidden * max(plain, masked) + max(0, steps - hidden) * plain)
        cycles = grid_time(each * (heads * batch), fit * chip.sms)
        operations = 4.0 * length * length * dim * heads * batch / (2 if causal else 1)
        made[length] = operations / (cycles / chip.hertz + chip.launch_us * 1e-6) / 1e12
    return made


def flash_attention(folder: Path, all_chips: dict[str, Chip]) -> list:
    rows = []
    for (gpu, dim, causal), published in PUBLISHED.items():
        chip = all_chips[gpu]
        name = f"fa2{'' if causal else 'full'}" if dim == 128 else f"fa2_{dim}"
        path = folder / f"{name}.{chip.code}.cubin"
        if not path.exists():
            rows.append(f"skipped: {path.name} is not there")
            continue
        function, = sass.read(path, toolkit.nvdisasm()).values()
        predicted = fa2(function, chip, dim, causal, published)
        low = fa2(function, chip.extreme(False), dim, causal, published, "greedy")
        high = fa2(function, chip.extreme(True), dim, causal, published)
        for length, figure in published.items():
            case = f"{length} {'causal' if causal else 'full'}"
            rows.append(Row(f"FlashAttention-2 d{dim}", gpu, case, "TFLOP/s", figure, predicted[length], low[length], high[length]))
    return rows


# ---- FlashInfer's decode on CUDA cores: bf16, d 128, pages of 16, two stages, 8 keys a step

# Shares of the peak that its paper (2501.01005) gives for batches of 16 with a mean of 1,024 keys on A100 40 GB and H100.
# They are of constant, uniform and skewed lengths; which is whose is not known to us, so each end of the band is a row.
# GB/s of one call that its benchmarks list for a B200.
FI_GROUP4 = {"a100-80g": (0.70, 0.83), "h100": (0.70, 0.83)}
FI_GROUP8 = {"b200": 660.0}
FI_SHARED, FI_STEP_KEYS, FI_LEAST_CHUNK = 9 * 1024, 8, 128
FI_WORK = ("LDGSTS", "MUFU", "FFMA")
A100_40G_GBS = 1555


def fi_decode(function: sass.Function, chip: Chip, batch: int, keys: int, heads: int, policy: str = "fair") -> float:
    """Microseconds of the kernel and of the one that merges, with its own search for chunks."""
    flow = Flow(function)
    head = flow.main_loops(("LDGSTS",))[0]
    loop = flow.trace(flow.loop_way(head, work=FI_WORK))
    steps_a_turn = sum(x.base == "LDGSTS" for x in loop) // 2
    threads = function.threads or 128
    fit = occupancy.blocks(chip, threads, function.registers, FI_SHARED)
    chunk = FI_LEAST_CHUNK
    while batch * -(-keys // chunk) * heads > fit * chip.sms:
        chunk += 16
    blocks = batch * -(-keys // chunk) * heads
    beside = max(1, min(fit, -(-blocks // chip.sms)))
    ops = ops_of(loop, chip)
    turn = play(ops, chip, beside, 10, None, threads // 32, STARTS[:2], policy).cycles
    start = flow.walk(0, lambda _, to: to == head, work=("LDGSTS",))
    exits = {to for b in flow.loops[head] for to in flow.blocks[b].successors if to not in flow.loops[head]}
    ends = [way for to in exits if (way := flow.walk(to, lambda _, to: to is None, work=("STG", "STS", "SHFL")))]

    def once(way):
        ops = ops_of(flow.trace(way), chip, chip.l2_latency, is_loop=False)
        return play(ops, chip, 1, 1, None, threads // 32).total

    fixed = once(start) + chip.dram_latency + (once(max(ends, key=len)) if ends else 0.0)
    steps = -(-min(chunk, keys) // FI_STEP_KEYS)
    waves = -(-blocks // (fit * chip.sms))
    computed = waves * (fixed + steps / steps_a_turn * turn)
    read = batch * keys * heads * 128 * 4 / (chip.dram_share * chip.dram_bytes_a_clock * chip.sms)
    cycles = max(computed, read + fixed)
    return cycles / chip.hertz * 1e6 + chip.launch_us + (chip.launch_us if chunk < keys else 0.0)


def flashinfer(folder: Path, all_chips: dict[str, Chip]) -> list:
    rows = []
    cases = [(4, gpu, 16, 1024, least, most) for gpu, (least, most) in FI_GROUP4.items()]
    cases += [(8, gpu, 16, 501, gbs, gbs) for gpu, gbs in FI_GROUP8.items()]
    for group, gpu, batch, keys, least, most in cases:
        chip = all_chips[gpu]
        path = folder / f"fi_dec{group}.{chip.code}.cubin"
        if not path.exists():
            rows.append(f"skipped: {path.name} is not there")
            continue
        function, = sass.read(path, toolkit.nvdisasm()).values()
        if gpu == "a100-80g":
            chip = chip.with_(dram_gbs=A100_40G_GBS)
        heads = 8
        moved = batch * keys * heads * 128 * 4
        got = moved / fi_decode(function, chip, batch, keys, heads) * 1e-3
        low = moved / fi_decode(function, chip.extreme(False), batch, keys, heads, "greedy") * 1e-3
        high = moved / fi_decode(function, chip.extreme(True), batch, keys, heads) * 1e-3
        if least <= 1:
            least, most = least * chip.dram_gbs, most * chip.dram_gbs
        for published in dict.fromkeys((least, most)):
            case = f"b{batch} kv{keys}" + ("" if least == most else ", best" if published == most else ", worst")
            rows.append(Row(f"FlashInfer, group {group}", gpu, case, "GB/s", published, got, low, high))
    return rows


# ---- FlashAttention-3 forward, hdim 128, bf16, causal: two warp groups that take turns at the tensor cores

# TFLOP/s by length, as for FlashAttention-2.
FA3 = {512: 292, 1024: 423, 2048: 521, 4096: 579, 8192: 602, 16384: 616}
FA3_ROWS, FA3_KEYS, FA3_WARPS = 128, 128, 8
FA3_WORK = ("HGMMA", "MUFU", "BAR", "F2FP")
# Beyond this error predictions of kernels with wgmma are not to be relied on.
RELIABLE = 0.07


def fa3(function: sass.Function, chip: Chip, lengths) -> dict[int, float]:
    """TFLOP/s by length. Keys are there when they are waited for: the producer's two stages hide it."""
    flow = Flow(function)
    main, masked = flow.main_loops(("HGMMA",))
    around = [h for h, body in flow.loops.items() if main in body and masked in body]
    outer = min(around, key=lambda h: len(flow.loops[h]))

    def leave(head, end):
        inside = flow.loops[head]
        exits = {to for b in inside for to in flow.blocks[b].successors if to not in inside}
        ways = [way for to in exits if (way := flow.walk(to, end, work=FA3_WORK))]
        return max(ways, key=lambda way: flow.count(way, FA3_WORK), default=[])

    before = flow.walk(outer, lambda _, to: to == masked, work=FA3_WORK)
    between = leave(masked, lambda _, to: to == main)
    after = leave(main, lambda _, to: to == outer)

    def tile(steps: int) -> float:
        """Of so many turns of the loop without masks; one with masks and the first product are before it."""
        way = before + flow.loop_way(masked) + between + flow.loop_way(main) * steps + after
        ops = ops_of(flow.trace(way), chip, chip.l2_latency)
        return Player(chip, None).play([[ops] * FA3_WARPS], 3).cycles

    few, many = tile(4), tile(12)
    a_step = (many - few) / 8
    fixed = few - 4 * a_step
    made = {}
    for length in lengths:
        heads, batch, tiles = 16, 16384 // length, length // FA3_ROWS
        # Longest first, as its scheduler deals them; two steps of a tile are in `fixed`.
        each = [fixed + max(0, n + 1 - 2) * a_step for n in reversed(range(tiles)) for _ in range(heads * batch)]
        cycles = grid_time(each, chip.sms)
        operations = 4.0 * length * length * 128 * heads * batch / 2
        made[length] = operations / (cycles / chip.hertz + chip.launch_us * 1e-6) / 1e12
    return made


def flash_attention_3(folder: Path, all_chips: dict[str, Chip]) -> list:
    path = folder / "fa3.90.cubin"
    if not path.exists():
        return [f"skipped: {path.name} is not there"]
    chip = all_chips["h100"]
    function, = sass.read(path, toolkit.nvdisasm()).values()
    predicted, low, high = (fa3(function, x, FA3) for x in (chip, chip.extreme(False), chip.extreme(True)))
    rows = []
    for length, figure in FA3.items():
        of = f"; of 16k's {predicted[length] / predicted[16384]:.2f}, published {figure / FA3[16384]:.2f}"
        rows.append(Row("FlashAttention-3 d128", "h100", f"{length} causal", "TFLOP/s", figure, predicted[length], low[length],
                        high[length], of))
    worst = max(abs(row.error) for row in rows)
    if worst > RELIABLE:
        rows.append(f"FlashAttention-3 is off by up to {worst:.0%}, more than {RELIABLE:.0%}: of kernels with wgmma the "
                    "model compares streams of instructions, and says no time that could be relied on")
    return rows


PEERS = {"flash-attention": flash_attention, "flashinfer": flashinfer, "flash-attention-3": flash_attention_3}

# ---- what is kept of it, and what it says of predictions

# Kernels that are made of what ours are, mma.sync and cp.async. How far the model is off differs more from kernel to kernel
# than from GPU to GPU, so errors of all are taken for each. An H200 is an H100 with other memory; of an L40S nothing is
# published that could be played, and of a B200 one call, twice as far off as anything else: its own on top.
ALIKE = {"decode": "FlashInfer, group 4", "prefill": "FlashAttention-2"}
OWN = {"b200": "FlashInfer, group 8"}
VALIDATED = ("a100-80g", "h100", "h200")


def numbers() -> str:
    """Of the numbers that errors are of."""
    return hashlib.sha256(chips.DATA.read_bytes()).hexdigest()[:16]


def read_errors() -> dict:
    return json.loads(ERRORS.read_text(encoding="utf-8"))


def errors(gpu: str, family: str, kept: dict) -> tuple[float, float]:
    """The least and the most error of speed that is known of kernels like these; a mixed launch has those of both."""
    def concerns(row: dict, side: str) -> bool:
        own = side == "decode" and gpu in OWN and row["kernel"] == OWN[gpu]
        return own or row["kernel"].startswith(ALIKE[side]) and row["gpu"] in VALIDATED

    sides = ("decode", "prefill") if family == "mixed" else (family,)
    found = [row["error"] for side in sides for row in kept["rows"] if concerns(row, side)]
    return min(found), max(found)


def bars(case: dict, gpu: str, family: str, kept: dict) -> tuple[float, float]:
    """Microseconds of a recorded case: the range of what is uncertain in the model, and on top of it how far the model
    was off: where it was too fast a launch takes longer than it says."""
    low, high = errors(gpu, family, kept)
    return case["least_us"] * (1 + min(low, 0.0)), case["most_us"] * (1 + max(high, 0.0))


def run(peers: dict[str, Path], all_chips: dict[str, Chip], keep: bool = False, say=print) -> int:
    """1 where an error is not the recorded one: the model has changed since, and the record and the note tell of another."""
    say(f"{'kernel':22} {'gpu':9} {'case':20} {'publ.':>7} {'pred.':>7} {'error':>7} at the ends of all ranges")
    rows = []
    for name, folder in peers.items():
        if name not in PEERS:
            raise ValueError(f"{name} is no peer that is known: {', '.join(PEERS)} are")
        for line in PEERS[name](folder, all_chips):
            say(line)
            rows += [line] if isinstance(line, Row) else []
    made = {"about": "Errors of speed beside what is published: scripts/kernel-model validate --keep", "numbers": numbers(),
            "rows": [{"kernel": x.kernel, "gpu": x.gpu, "case": x.case, "unit": x.unit, "published": round(x.published),
                      "predicted": round(x.predicted), "least": round(x.least), "most": round(x.most),
                      "error": round(x.error, 3), "seen": x.seen} for x in rows]}
    if keep:
        lines = ",\n  ".join(json.dumps(row) for row in made["rows"])
        head = json.dumps({key: value for key, value in made.items() if key != "rows"}, indent=1)[:-2]
        ERRORS.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
        return 0
    kept = {(x["kernel"], x["gpu"], x["case"]): x for x in read_errors()["rows"]}
    status = 0
    for x in made["rows"]:
        before = kept.get((x["kernel"], x["gpu"], x["case"]))
        if before is None or abs(before["error"] - x["error"]) > 0.01:
            said = f"{before['error']:+.1%}" if before else "nothing"
            say(f"{x['kernel']} on {x['gpu']}, {x['case']}: {x['error']:+.1%}, recorded is {said}")
            status = 1
    return status
