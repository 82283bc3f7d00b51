"""What a kernel of csrc takes: instructions and cycles of its ways, by its machine code and a GPU's numbers."""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import kernel_table

from . import coverage, occupancy, toolkit
from .chips import Chip
from .flow import TENSOR, Flow
from .sass import Function, Instruction
from .timing import Played, ops_of, play

CSRC = toolkit.ROOT / "csrc"
PATHS = Path(__file__).with_name("paths.txt")
# Two blocks that share a multiprocessor begin a turn so far apart, in turns, and fall into step in one of several
# ways, which differ by a tenth. How far apart they begin is not known: what counts is the mean.
STARTS = tuple((n + 0.5) / 8 for n in range(8))
TURNS = 8

CLASSES = {
    "products": {"HMMA", "IMMA", "QMMA", "HGMMA", "QGMMA"},
    "fragments": {"LDSM", "STSM", "MOVM"},
    "copies": {"LDGSTS", "UTMALDG", "UBLKCP", "LDGDEPBAR"},
    "shared": {"LDS", "STS", "SYNCS"},
    "global": {"LDG", "STG", "LD", "ST", "ATOMG", "RED"},
    "spills": {"LDL", "STL"},
    "shuffles": {"SHFL"},
    "special": {"MUFU"},
    "converts": {"F2FP", "F2F", "I2F", "F2I", "I2FP"},
    "floats": {"FADD", "FMUL", "FFMA", "FMNMX", "FMNMX3", "FSEL", "FSETP", "HADD2", "HMUL2", "HFMA2"},
    "control": {"BRA", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR", "VOTE", "VOTEU", "NOP", "BAR", "CALL", "RET", "EXIT",
                "WARPGROUP"},
}


def by_class(trace: list[Instruction]) -> dict[str, int]:
    """Integers, addresses and moves are what is left."""
    counts: Counter = Counter()
    for x in trace:
        counts[next((name for name, bases in CLASSES.items() if x.base in bases), "integers")] += 1
    return dict(counts.most_common())


@cache
def rules() -> dict[tuple[str, str, str], list[tuple[str, int]]]:
    """Lines of the source by family, way, and `ask` or `shun`."""
    found: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for number, line in enumerate(PATHS.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        family, way, kind, file, text = line.split(maxsplit=4)
        if kind not in ("ask", "shun"):
            raise ValueError(f"{PATHS.name}:{number}: {kind} is neither ask nor shun")
        sources = list(CSRC.rglob(file))
        lines = [(file, n) for path in sources
                 for n, code in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in code]
        if not lines:
            raise ValueError(f"{PATHS.name}:{number}: `{text}` is in no line of {file}")
        found.setdefault((family, way, kind), []).extend(lines)
    return found


@dataclass(frozen=True)
class Names:
    """`decode_bf16_same_d128` taken apart."""

    name: str
    family: str
    cache: str
    dim: int

    @classmethod
    def of(cls, name: str) -> "Names":
        found = re.fullmatch(r"(decode|prefill|mixed)_(?:bf16|f16)_(same|e4m3)_d(\d+)", name)
        if not found:
            raise ValueError(f"{name} is no kernel of attention")
        return cls(name, found[1], found[2], int(found[3]))


@cache
def row(names: Names) -> kernel_table.Attention:
    """That of csrc/kernels.def."""
    key = names.family, names.cache, names.dim
    return next(row for row in kernel_table.attention() if (row.family, row.kv, row.head_dim) == key)


@dataclass
class Figures:
    """Of a kernel on a GPU. Cycles are a block's, with as many blocks next to it as the index says."""

    names: Names
    chip: Chip
    registers: int
    shared: int
    warps: int
    blocks: int  # that fit a multiprocessor
    keys: int  # of a block's step
    step_bytes: int  # that a block's step copies
    loop: list[Instruction] = field(repr=False)
    classes: dict[str, int] = field(default_factory=dict)
    cycles: dict[int, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    masked: float = 0.0  # more for a step with hidden keys
    rescale: float = 0.0  # more for a step that rescales
    start: float = 0.0  # from a block's first instruction to its first step
    turn: float = 0.0  # from a part's last step to the next part's first
    end: float = 0.0
    merge_row: float = 0.0  # of a merge; its parts come on top

    @property
    def operations(self) -> float:
        """Of a block's step: what its products compute, padding too."""
        n = sum(1 for x in self.loop if x.base == "HMMA")
        return n * self.warps * 4096.0

    def merge(self, rows: int, parts: int) -> float:
        """Rows are dealt to the warps; of a row's parts up to eight are read at once, where there are as many."""
        trips = parts // 8 + bin(parts % 8).count("1")
        return -(-rows // self.warps) * (self.merge_row + trips * (self.chip.l2_latency + self.chip.merge_step))

    def tflops(self, blocks: int | None = None) -> float:
        blocks = blocks or self.blocks
        return blocks * self.operations / self.cycles[blocks] * self.chip.sms * self.chip.hertz / 1e12

    def bytes_a_clock(self, blocks: int | None = None) -> float:
        blocks = blocks or self.blocks
        return blocks * self.step_bytes / self.cycles[blocks]


class Kernel:
    """Its machine code for one GPU's kind, and the ways through it; of a mixed kernel those of one `side`."""

    def __init__(self, names: Names, function: Function, shares: dict[str, float], side: str = ""):
        self.names = names
        self.function = function
        self.flow = Flow(function)
        self.family = side or ("prefill" if names.family == "mixed" else names.family)
        heads = [head for head in self.flow.main_loops() if names.family != "mixed" or self.is_of(head)]
        if not heads:
            raise ValueError(f"{function.name} has no loop with products of {self.family}")
        self.head = heads[0]
        self.counts = coverage.of_blocks(self.flow, self.head, shares)
        self.is_counted = bool(shares)

    def is_of(self, head: int) -> bool:
        """Whether a loop is of the side's source."""
        products = [x for block in self.flow.loops[head] for x in self.flow.code(block) if x.base in TENSOR]
        return any(file == f"{self.family}.cuh" for x in products for file, _ in x.lines)

    def rule(self, *ways: str) -> dict:
        get = lambda kind: [x for way in ways for x in rules().get((self.family, way, kind), [])]
        return {"asked": get("ask"), "shunned": get("shun")}

    def decisions(self) -> tuple[set[int], set[int]]:
        """How often a turn masks or rescales depends on the rows: launch.py has it."""
        if not self.is_counted:
            return set(), set()
        return coverage.decisions(self.flow, self.counts, set(self.rule("masked", "rescale")["asked"]))

    def loop_blocks(self, *ways: str) -> list[int]:
        usual, rare = self.decisions()
        return self.flow.loop_way(self.head, **self.rule("loop", *ways), usual=usual, rare=rare)

    def loop(self, *ways: str) -> list[Instruction]:
        return self.flow.trace(self.loop_blocks(*ways))

    def disagreements(self) -> list[tuple[int, float | None, bool]]:
        """Blocks that the counts put on the plain way and that are not on it, or the other way round: instructions,
        share of turns, and whether it is on the way."""
        usual, rare = self.decisions()
        way = set(self.loop_blocks())
        return [(len(self.flow.code(block)), self.counts[block], block in way)
                for block in sorted((usual - way) | (rare & way))]

    @property
    def body(self) -> int:
        """Instructions of the whole loop, however seldom they are run."""
        return sum(len(self.flow.code(block)) for block in self.flow.loops[self.head])

    @property
    def counted(self) -> float:
        """Instructions of a turn by the counts alone, no way chosen."""
        return sum(len(self.flow.code(block)) * min(1.0, 1.0 if share is None else share)
                   for block, share in self.counts.items())

    def start(self) -> list[Instruction]:
        way = self.flow.walk(0, lambda _, to: to == self.head, **self.rule("start"))
        return self.flow.trace(way) if way else []

    def after(self, ends) -> list[Instruction]:
        """From an exit of the loop over keys to where `ends` says."""
        inside = self.flow.loops[self.head]
        exits = {to for block in inside for to in self.flow.blocks[block].successors if to not in inside}
        ways = [way for to in exits if (way := self.flow.walk(to, ends, **self.rule("turn")))]
        return self.flow.trace(max(ways, key=len)) if ways else []

    def turn(self) -> list[Instruction]:
        """By way of the head of the loop over parts."""
        around = [h for h, body in self.flow.loops.items() if self.head in body and h != self.head]
        if not around:
            return []
        outer = min(around, key=lambda h: len(self.flow.loops[h]))
        way = self.flow.walk(outer, lambda _, to: to == self.head, **self.rule("turn"))
        return self.after(lambda _, to: to == outer) + (self.flow.trace(way) if way else [])

    def end(self) -> list[Instruction]:
        return self.after(lambda _, to: to is None)

    def merge_row(self) -> list[Instruction]:
        """A query row of merge_states, without its parts' outputs."""
        asked = set(self.rule("merge")["asked"])
        loops = {h: body for h, body in self.flow.loops.items() if self.head not in body and any(
            asked & set(x.lines) for block in body for x in self.flow.code(block))}
        if not loops:
            return []
        outer = max(loops, key=lambda h: len(loops[h]))
        return self.flow.trace(self.flow.loop_way(outer, shunned=asked, work=()))


@cache
def kernel(name: str, code: str, ptx: str) -> Kernel:
    """`mixed_bf16_same_d128/decode` is one side of a mixed kernel."""
    name, _, side = name.partition("/")
    names = Names.of(name)
    kernel_table.write()
    found = toolkit.functions(kernel_table.FOLDER / f"{name}.cu", code, ptx, CSRC)
    return Kernel(names, found[f"inflight_{name}"], coverage.kept().get((name, ptx), {}), side)


def shared_bytes(names: Names) -> int:
    return row(names).smem


def keys_of(names: Names, family: str) -> int:
    """Of a block's step."""
    return row(Names(names.name, family, names.cache, names.dim)).keys


def step_of(names: Names) -> tuple[int, int]:
    """Keys of a block's step, and the bytes that it copies."""
    keys, found = keys_of(names, names.family), row(names)
    return keys, 2 * keys * found.head_dim * found.kv_bytes


def figures(name: str, chip: Chip, policy: str = "fair", starts=STARTS, turns: int = TURNS, whole: bool = True) -> Figures:
    """`whole`: with what comes before and after the loop, and its other ways."""
    k = kernel(name, chip.code, chip.ptx)
    function, names = k.function, k.names
    shared = shared_bytes(names)
    threads = function.threads or 128
    keys, step_bytes = step_of(names)
    fit = occupancy.blocks(chip, threads, function.registers, shared)
    loop = k.loop()
    f = Figures(names, chip, function.registers, shared, threads // 32, fit, keys, step_bytes, loop, by_class(loop))
    ops = ops_of(loop, chip)

    def cycles(ops, blocks: int) -> Played:
        return play(ops, chip, blocks, turns, None, f.warps, starts, policy)

    for blocks in range(1, fit + 1):
        played = cycles(ops, blocks)
        f.cycles[blocks], f.busy = played.cycles, played.busy
    if not whole or not fit:
        return f
    base = f.cycles[1]
    f.masked = max(0.0, cycles(ops_of(k.loop("masked"), chip), 1).cycles - base)
    f.rescale = max(0.0, cycles(ops_of(k.loop("rescale"), chip), 1).cycles - base)

    def once(trace) -> float:
        ops = ops_of(trace, chip, chip.l2_latency, is_loop=False)
        return play(ops, chip, 1, 1, None, f.warps).total if ops else 0.0

    f.start, f.turn, f.end, f.merge_row = once(k.start()), once(k.turn()), once(k.end()), once(k.merge_row())
    return f
