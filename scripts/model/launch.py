"""A launch's time: shares on multiprocessors, bandwidth, starts, ends and merges."""

from dataclasses import dataclass, field

import kernel_table

from . import occupancy, plan, shapes
from .chips import Chip
from .kernels import Figures, figures, kernel, shared_bytes
from .timing import Memory, ops_of, play

DECODE_ROWS, PREFILL_ROWS = (next(row.rows for row in kernel_table.attention() if row.family == family)
                             for family in ("decode", "prefill"))


@dataclass
class Predicted:
    us: float
    bound: str
    share: float  # of the peak that bounds it: bytes or products
    gbs: float
    tflops: float
    parts: dict[str, float] = field(default_factory=dict)  # microseconds, of what it is made of


def known(name: str, chip: Chip, policy: str, less: bool, kept={}) -> Figures:
    """`less` exactly: for the ends of a range."""
    key = name, chip.key, policy, less
    if key not in kept:
        kept[key] = figures(name, chip, policy, **({"starts": (0.1, 0.5, 0.7), "turns": 7} if less else {}))
    return kept[key]


def rescales(tiles: int, rows: int) -> float:
    """Steps of so many in which one of `rows` independent rows finds a larger logit, which rescales."""
    return sum(1.0 - (1.0 - 1.0 / t) ** rows for t in range(1, tiles + 1))


@dataclass
class Side:
    """One kernel's part of a step."""

    f: Figures
    plan: plan.Plan
    group: int

    def share_steps(self, parts: list[plan.Part]) -> float:
        return sum(self.steps(p) for p in parts)

    def steps(self, part: plan.Part) -> int:
        return max(1, -(-(part.kv_end - part.kv_start) // self.f.keys)) * self.passes(part)

    def passes(self, part: plan.Part) -> int:
        return 1 if self.f.names.family == "decode" else max(1, -(-part.q_len * self.group // PREFILL_ROWS))

    def extra(self, part: plan.Part, causal: bool) -> float:
        """Cycles of masked and rescaling steps beyond plain ones."""
        f, steps = self.f, self.steps(part)
        rows = min(16, part.q_len * self.group)
        more = f.rescale * rescales(steps, rows)
        masked = 1.0
        if f.names.family == "prefill":
            masked = min(steps, -(-part.q_len // f.keys) + 1) if causal else 0.0
        return more + masked * f.masked


def side(shape: shapes.Shape, family: str, chip: Chip, f: Figures, blocks: int) -> Side:
    """As src/kernels/cuda/sides.rs plans it, for `blocks` thread blocks."""
    few = DECODE_ROWS // shape.group
    size = 1 if f.names.cache == "e4m3" else 2
    if family == "decode":
        tile, costs = max(few, 1), (32 << 10, 2 * shape.dim * size)
    else:
        tile, costs = max(PREFILL_ROWS // shape.group, 1), (64 << 10, shape.dim * size + shape.dim * PREFILL_ROWS // 32)
    config = plan.PlanConfig(blocks, shape.heads[1], tile, f.keys, shape.causal, *costs)
    rows = [(q, kv) if (q <= few) == (family == "decode") else (0, kv) for q, kv in shape.rows]
    return Side(f, plan.make(config, rows), shape.group)


def kernel_name(shape: shapes.Shape, family: str) -> str:
    dim = min(row.head_dim for row in kernel_table.attention() if row.head_dim >= shape.dim)
    return f"{family}_bf16_{'same' if shape.kv == 'bf16' else 'e4m3'}_d{dim}"


def step_cycles(f: Figures, b: int, policy: str, kept={}) -> float:
    """Cycles of a step with b blocks a multiprocessor and memory behind them. Decode reads every key once, of DRAM
    as the benches are cold; a tile of prefill is read by many blocks, so it comes from L2 but for the first."""
    chip = f.chip
    if f.names.family == "decode":
        memory = Memory(chip.dram_latency, chip.dram_share * chip.dram_bytes_a_clock)
    else:
        memory = Memory(chip.l2_latency, chip.l2_bytes_a_clock)
    computed, copied = f.cycles[b], b * f.step_bytes / memory.bytes_a_clock
    if not 0.75 < copied / computed < 1.33:
        return max(computed, copied)
    # Each hides some of the other, but not all: so many turns until copies asked for at first count no more.
    key = f.names.name, chip.key, b, policy
    if key not in kept:
        kept[key] = play(ops_of(f.loop, chip), chip, b, 32, memory, f.warps, (0.1, 0.6), policy).cycles
    return max(kept[key], computed, copied)


def time_of_side(s: Side, shape: shapes.Shape, blocks_a_sm: int, policy: str) -> tuple[float, dict]:
    """Cycles until the last share is done, and what of it is not steps."""
    f, chip = s.f, s.f.chip
    per_step = {b: step_cycles(f, b, policy) for b in range(1, blocks_a_sm + 1)}
    # Of every share: steps, and cycles that are its own whatever runs next to it.
    work = []
    for parts in s.plan.shares:
        if parts:
            own = f.start + f.end + (len(parts) - 1) * f.turn + sum(s.extra(p, shape.causal) for p in parts)
            work.append([s.share_steps(parts), own])
        else:
            work.append([0.0, 0.0])
    # The last part to arrive merges: that of the share with most to do.
    length = [steps * per_step[blocks_a_sm] + own for steps, own in work]
    merging = [0.0] * len(work)
    for number, (count, members) in enumerate(zip(s.plan.merges, members_of(s.plan))):
        last = max(members, key=lambda share: length[share])
        part = next(p for p in s.plan.shares[last] if p.merge == number)
        merging[last] += f.merge(part.q_len * s.group, count)
    sms = chip.sms
    worst, worst_merge = 0.0, 0.0
    for sm in range(sms):
        here = [i for i in range(sm, len(work), sms) if work[i][0]]
        if not here:
            continue
        end = fluid([(work[i][0], work[i][1] + merging[i]) for i in here], per_step)
        if end > worst:
            worst, worst_merge = end, max(merging[i] for i in here)
    return worst, {"start": f.start, "merge": worst_merge, "steps": max(length, default=0.0)}


def members_of(p: plan.Plan) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in p.merges]
    for share, parts in enumerate(p.shares):
        for part in parts:
            if part.merge >= 0:
                members[part.merge].append(share)
    return members


def fluid(work: list[tuple[float, float]], per_step: dict[int, float]) -> float:
    """When blocks that share a multiprocessor are done: a step is shorter once fewer are left. `work` is steps, and
    cycles of a block that are its own whatever runs next to it."""
    left = sorted(work)
    now, done, end = 0.0, 0.0, 0.0
    for n, (steps, own) in enumerate(left):
        length = max(0.0, steps - done)
        now += length * per_step[len(left) - n]
        done += length
        end = max(end, now + own)
    return end


def predict(shape: shapes.Shape, chip: Chip, policy: str = "fair", less: bool = False) -> Predicted:
    """One launch by itself, or in a graph's row of launches: `launch_us` is between one's end and the next's
    first instruction."""
    few = DECODE_ROWS // shape.group
    families = []
    if any(q <= few for q, _ in shape.rows):
        families.append("decode")
    if any(q > few for q, _ in shape.rows):
        families.append("prefill")
    all_f = {family: known(kernel_name(shape, family), chip, policy, less) for family in families}
    for family, f in all_f.items():
        if f.blocks == 0:
            raise ValueError(f"{f.names.name} does not fit a multiprocessor of {chip.name}")
    mixed = None
    if len(families) == 2:
        mixed = divide(shape, chip, all_f)
    times, pieces = [], {}
    for family, f in all_f.items():
        blocks = mixed[family] if mixed else f.blocks * chip.sms
        a_sm = max(1, round(blocks / chip.sms)) if mixed else f.blocks
        cycles, made = time_of_side(side(shape, family, chip, f, blocks), shape, min(a_sm, f.blocks), policy)
        times.append(cycles)
        pieces[family] = cycles / chip.hertz * 1e6
        pieces |= {f"{family} {k}": v / chip.hertz * 1e6 for k, v in made.items()}
    # Memory cannot be beaten by anything.
    read = shape.bytes / (chip.dram_gbs * 1e9 * chip.dram_share) * 1e6
    cycles = max(times) if mixed else sum(times)
    launches = 1 if mixed else len(times)
    us = max(cycles / chip.hertz * 1e6, read) + launches * chip.launch_us
    pieces["launch"] = launches * chip.launch_us
    gbs, tflops = shape.bytes / us * 1e-3, shape.operations / us * 1e-6
    by_bytes, by_products = gbs / chip.dram_gbs, tflops / chip.peak_tflops
    bound = bound_of(all_f, shape, us, read)
    return Predicted(us, bound, max(by_bytes, by_products), gbs, tflops, pieces)


def bound_of(all_f: dict[str, Figures], shape: shapes.Shape, us: float, read: float) -> str:
    if read > 0.8 * us:
        return "memory"
    f = max(all_f.values(), key=lambda f: len(f.names.family))
    fixed = (f.start + f.end) / f.chip.hertz * 1e6 + f.chip.launch_us
    if fixed > 0.4 * us:
        return "start and end"
    pipe, share = max(f.busy.items(), key=lambda item: item[1])
    return f"{pipe} {share:.0%}" if share > 0.75 else f"latency ({pipe} {share:.0%})"


def fits(name: str, chip: Chip) -> int:
    """Blocks of a kernel on a multiprocessor."""
    k = kernel(name, chip.code, chip.ptx)
    return occupancy.blocks(chip, k.function.threads or 128, k.function.registers, shared_bytes(k.names))


def divide(shape: shapes.Shape, chip: Chip, all_f: dict[str, Figures]) -> dict[str, int] | None:
    """As src/kernels/cuda/mixed.rs: blocks of each kind in one launch, or None for two launches."""
    dim, cache = all_f["decode"].names.dim, all_f["decode"].names.cache
    if dim > 128:
        return None
    f = fits(f"mixed_bf16_{cache}_d{dim}", chip)
    shares = f * chip.sms
    if f < 2:
        return None
    costs = {}
    for family in all_f:
        s = side(shape, family, chip, all_f[family], 1)
        costs[family] = sum(cost_of(p, s, family, shape) for parts in s.plan.shares for p in parts)
    small, large = sorted(costs.values())
    if small < (small + large) // 16:
        return None
    weighed = small if large * 2 <= small * 3 else large * 2
    most = min(max(shares * weighed // (weighed + small), 1), shares - 1)
    larger = max(costs, key=costs.get)
    return {family: most if family == larger else shares - most for family in costs}


def cost_of(p: plan.Part, s: Side, family: str, shape: shapes.Shape) -> int:
    size = 1 if s.f.names.cache == "e4m3" else 2
    tile, key = (32 << 10, 2 * shape.dim * size) if family == "decode" else (64 << 10, shape.dim * size + shape.dim * 4)
    return tile + (p.kv_end - p.kv_start) * key
