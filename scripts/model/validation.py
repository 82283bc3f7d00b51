"""Kernels of others next to what is published of them: none of these numbers went into chips.json.

A peer is a folder of cubins that nvcc 13.0 made of the peer's own sources, NAME.ARCH.cubin, with one kernel each:

    flash-attention: fa2.80.cubin, fa2.90.cubin            forward, hdim 128, bf16, causal, even, no dropout
                     fa2full.80.cubin, fa2full.90.cubin    the same without the mask
    flashinfer: fi_dec4.80.cubin, fi_dec4.90.cubin, fi_dec8.100.cubin    decode on CUDA cores, bf16, d 128, groups of 4, 8
    flash-attention-3: fa3.90.cubin    forward, hdim 128, bf16, causal, of one kernel without clusters, paging, splits

Nothing of theirs is here, nor how it is built: see docs/notes/kernel-model.md.
"""

import heapq
from dataclasses import dataclass
from pathlib import Path

from . import occupancy, sass, toolkit
from .chips import Chip
from .flow import Flow
from .kernels import STARTS
from .timing import Memory, Player, ops_of, play

# TFLOP/s by queries and keys of a row, 16k tokens in all, 2,048 numbers of all heads.
# H100: bars of flash-attention's assets/flash3_fp16_fwd.png. A100: its README and paper (2307.08691), whose figure
# has about these; only the largest are printed in text.
PUBLISHED = {
    ("h100", True): {512: 191, 1024: 260, 2048: 298, 4096: 319, 8192: 333, 16384: 335},
    ("h100", False): {512: 309, 1024: 350, 2048: 362, 4096: 368, 8192: 370, 16384: 370},
    ("a100-80g", True): {16384: 200},
    ("a100-80g", False): {16384: 225},
}
# What a launch of it is: rows of a block, keys of a step, bytes of shared memory.
FA2_ROWS, FA2_KEYS, FA2_SHARED = 128, 64, 65536


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


def fa2(function: sass.Function, chip: Chip, causal: bool, lengths, policy: str = "fair") -> dict[int, float]:
    """TFLOP/s by length."""
    loops = ways_of(function)
    threads = function.threads or 128
    fit = occupancy.blocks(chip, threads, function.registers, FA2_SHARED)
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
        heads, batch = 16, 16384 // length
        tiles = length // FA2_ROWS
        each = []
        for tile in range(tiles):
            keys = (tile + 1) * FA2_ROWS if causal else length
            steps = keys // FA2_KEYS
            hidden = FA2_ROWS // FA2_KEYS if causal else 1
            each.append(start + end + hidden * max(plain, masked) + max(0, steps - hidden) * plain)
        cycles = grid_time(each * (heads * batch), fit * chip.sms)
        operations = 4.0 * length * length * 128 * heads * batch / (2 if causal else 1)
        made[length] = operations / (cycles / chip.hertz + chip.launch_us * 1e-6) / 1e12
    return made


def flash_attention(folder: Path, all_chips: dict[str, Chip]) -> list[str]:
    rows = []
    for (gpu, causal), published in PUBLISHED.items():
        chip = all_chips[gpu]
        path = folder / f"fa2{'' if causal else 'full'}.{chip.code}.cubin"
        if not path.exists():
            rows.append(f"skipped: {path.name} is not there")
            continue
        function, = sass.read(path, toolkit.nvdisasm()).values()
        predicted = fa2(function, chip, causal, published)
        low = fa2(function, chip.with_(ghz=chip.range("ghz")[0]), causal, published, "greedy")
        high = fa2(function, chip.with_(ghz=chip.range("ghz")[2]), causal, published)
        for length, figure in published.items():
            got = predicted[length]
            case = f"{length} {'causal' if causal else 'full'}"
            rows.append(row("FlashAttention-2", gpu, case, figure, got, got / figure - 1,
                            f"{low[length]:.0f} to {high[length]:.0f}"))
    return rows


def row(kernel: str, gpu: str, case: str, published, predicted: float, error: float, note: str) -> str:
    return f"{kernel:20} {gpu:9} {case:18} {published:>10} {predicted:9.0f} {error:+7.1%}  {note}"


# ---- FlashInfer's decode on CUDA cores: bf16, d 128, pages of 16, two stages, 8 keys a step

# Share of the peak that its paper (2501.01005) gives for batches of 16 with a mean of 1,024 keys, constant and
# skewed lengths, on A100 40 GB and H100; GB/s of one call that its benchmarks list for a B200.
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


def flashinfer(folder: Path, all_chips: dict[str, Chip]) -> list[str]:
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
        near = min(max(got, least), most)
        published = f"{least:.0f}" if least == most else f"{least:.0f}-{most:.0f}"
        rows.append(row(f"FlashInfer, group {group}", gpu, f"b{batch} kv{keys}, GB/s", published, got, got / near - 1,
                        f"{low:.0f} to {high:.0f}"))
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


def flash_attention_3(folder: Path, all_chips: dict[str, Chip]) -> list[str]:
    path = folder / "fa3.90.cubin"
    if not path.exists():
        return [f"skipped: {path.name} is not there"]
    chip = all_chips["h100"]
    function, = sass.read(path, toolkit.nvdisasm()).values()
    predicted, low = fa3(function, chip, FA3), fa3(function, chip.with_(ghz=chip.range("ghz")[0]), FA3)
    rows, worst = [], 0.0
    for length, figure in FA3.items():
        error = predicted[length] / figure - 1
        note = (f"{low[length]:.0f} at {chip.range('ghz')[0]} GHz; of 16k {predicted[length] / predicted[16384]:.2f}, "
                f"published {figure / FA3[16384]:.2f}")
        rows.append(row("FlashAttention-3", "h100", f"{length} causal", figure, predicted[length], error, note))
        if length >= 2048:
            worst = max(worst, abs(error))
    if worst > RELIABLE:
        rows.append(f"FlashAttention-3 is off by up to {worst:.0%}, more than {RELIABLE:.0%}: of kernels with wgmma the "
                    "model compares streams of instructions, and says no time that could be relied on")
    return rows


PEERS = {"flash-attention": flash_attention, "flashinfer": flashinfer, "flash-attention-3": flash_attention_3}


def run(peers: dict[str, Path], all_chips: dict[str, Chip]) -> int:
    print(f"{'kernel':20} {'gpu':9} {'case':18} {'published':>10} {'predicted':>9} {'error':>7}  range")
    for name, folder in peers.items():
        if name not in PEERS:
            raise ValueError(f"{name} is no peer that is known: {', '.join(PEERS)} are")
        for line in PEERS[name](folder, all_chips):
            print(line)
    return 0
