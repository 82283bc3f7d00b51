"""A multiprocessor, playing warps through a stretch of machine code.

What ptxas wrote decides when a warp may issue: its stall counts, and scoreboards, which are released when a
result of variable latency is there. Beyond that an instruction waits for its pipe. Each of the four schedulers
has pipes of its own; shared memory, and the way to it and to other memory, is one for all. Of warps that may
issue at once a scheduler takes the one that has waited longest; POLICIES has others, since which one it is
matters where two blocks share a scheduler, and NVIDIA does not say.
"""

import re
from dataclasses import dataclass

from .chips import Chip
from .sass import NO_SCOREBOARD, Instruction

ALU = {"LOP3", "ISETP", "FMNMX", "FMNMX3", "FSEL", "SEL", "SHF", "PRMT", "IADD3", "VIADD", "VIADDMNMX", "FSETP",
       "IMNMX", "VIMNMX", "VIMNMX3", "LEA", "MOV", "PLOP3", "P2R", "R2P", "IABS", "CS2R", "LOP", "FCHK", "IADD",
       "VABSDIFF", "SGXT", "BMSK"}
FMA = {"FADD", "FMUL", "FFMA", "FFMA2", "FADD2", "FMUL2"}
HALF = {"HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSETP2"}
# Of variable latency, by the number of chips.json.
SLOW = {base: latency for latency, bases in {
    "s2r_latency": ("S2R", "S2UR"),
    "ldc_latency": ("LDC", "LDCU"),
    "uniform_latency": ("ULDC", "R2UR", "VOTE", "VOTEU"),
    "shfl_latency": ("REDUX", "CREDUX", "MOVM"),
    "convert_latency": ("POPC", "I2F", "F2I", "I2FP", "F2F", "FLO", "BREV", "F2IP", "UFLO"),
}.items() for base in bases}
SCHEDULERS = 4
# "fair": the warp that has waited longest. "greedy": the same warp again, as Huerta et al. (2025) found it.
POLICIES = ("fair", "greedy")


@dataclass
class Op:
    """An instruction, as the player needs it."""

    base: str
    stall: int
    wait: int
    write: int
    read: int
    pipe: str = ""
    cycles: float = 0.0
    latency: float = 0.0
    kind: str = ""  # "copy", "commit", "wait_copies", "bar", "gmma", "gmma_wait", "arrive"
    amount: int = 0
    jumps: bool = False


def width(x: Instruction) -> int:
    """Bytes a lane."""
    for bits in (128, 64):
        if f".{bits}" in x.opcode:
            return bits // 8
    return 4


def op_of(x: Instruction, chip: Chip, load_latency: float) -> Op:
    c = x.control
    op = Op(x.base, max(1, c.stall), c.wait, c.write, c.read)
    base = x.base

    def on(pipe: str, cycles: float, latency: float = 0.0) -> Op:
        op.pipe, op.cycles, op.latency = pipe, cycles, latency
        return op

    if base == "HMMA":
        # Of k 8 half; sums of f16 are as fast as f32 on all but GeForce.
        return on("tensor", chip.hmma * (0.5 if ".1688" in x.opcode else 1.0))
    if base in ("QMMA", "IMMA"):
        return on("tensor", chip.hmma)
    if base in ("HGMMA", "QGMMA", "IGMMA"):
        n = int(re.search(r"64x(\d+)x", x.opcode)[1])
        op.kind, op.amount = "gmma", int("gsb0" in x.operands)
        return on("gmma", n * chip.wgmma_n)
    if base == "WARPGROUP" and "DEPBAR" in x.opcode:
        op.kind, op.amount = "gmma_wait", int(x.operands.split(",")[-1].strip(), 16)
        return op
    if base in FMA:
        return on("fma", chip.fma)
    if base in HALF:
        return on("half", chip.half)
    if base.startswith("IMAD"):
        return on("imad", chip.imad)
    if base in ("F2FP", "F2FP2"):
        return on("f2fp", chip.f2fp_unpack if "UNPACK" in x.opcode else chip.f2fp_pack)
    if base == "MUFU":
        return on("mufu", chip.mufu, chip.mufu_latency)
    if base in ALU:
        return on("alu", chip.alu)
    if base == "SHFL":
        return on("mio", chip.shuffle_wavefronts, chip.shfl_latency)
    if base in ("LDSM", "STSM"):
        return on("mio", int(x.opcode[-1] if x.opcode[-1] in "124" else 1), chip.ldsm_latency)
    if base in ("LDS", "STS"):
        return on("mio", width(x) / 4, chip.lds_latency)
    if base == "LDGSTS":
        op.kind, op.amount = "copy", 32 * width(x)
        # It passes the tags and is written to shared memory when it comes.
        return on("mio", width(x) / 4 * chip.copy_passes, chip.lds_latency)
    if base in ("LDG", "LD", "LDL", "STG", "STL", "ST", "ATOMG", "RED", "ATOMS", "ATOM"):
        if base in ("ATOMG", "ATOM", "RED"):
            load_latency = chip.l2_latency
        elif base in ("LDL", "STL"):
            load_latency = chip.l1_latency
        return on("mio", width(x) / 4, load_latency)
    if base == "LDGDEPBAR":
        op.kind = "commit"
        return op
    if base == "DEPBAR":
        found = re.search(r"SB0,\s*0x([0-9a-f]+)", x.operands)
        if found:
            op.kind, op.amount = "wait_copies", int(found[1], 16)
        return op
    if base == "BAR":
        # Of some threads only: warp groups hand the turn to each other, each waiting at a barrier of its own.
        some = "," in x.operands
        op.kind = "arrive" if ".ARV" in x.opcode else "take_turn" if some else "bar"
        return on("", 0.0, chip.bar)
    if base in SLOW:
        return on("", 0.0, getattr(chip, SLOW[base]))
    if base == "SYNCS":
        return on("", 0.0, chip.lds_latency)
    op.latency = chip.other_latency
    return op


def ops_of(trace: list[Instruction], chip: Chip, load_latency: float | None = None, is_loop=True) -> list[Op]:
    """Loads of global memory in a loop are tables: of L1, unless told."""
    latency = chip.l1_latency if load_latency is None else load_latency
    ops = [op_of(x, chip, latency) for x in trace]
    for i, (op, x) in enumerate(zip(ops, trace)):
        following = trace[i + 1] if i + 1 < len(trace) else trace[0] if is_loop else None
        op.jumps = following is not None and following.address != x.address + 16
    return ops


@dataclass
class Memory:
    """Where copies come from: their latency, and bytes a cycle that the multiprocessor gets."""

    latency: float
    bytes_a_clock: float


class Warp:
    __slots__ = ("at", "turn", "ready", "boards", "groups", "open", "gmma", "gmma_open", "ended", "block", "issued", "group")

    def __init__(self, start: float, block: int, group: int = 0):
        self.group = group  # of warps
        self.at = self.turn = 0
        self.ready = start
        self.boards = [0.0] * 6
        self.groups: list[float] = []
        self.open = 0.0
        self.gmma: list[float] = []
        self.gmma_open = 0.0
        self.ended = 0.0
        self.block = block
        self.issued = -1.0


@dataclass
class Played:
    cycles: float  # of a turn, of one warp, when it has settled
    total: float
    busy: dict[str, float]  # share of the time that a pipe is busy, by pipe; "issue" is the schedulers


def play(ops: list[Op], chip: Chip, blocks: int, turns: int, memory: Memory | None = None,
         warps: int = 4, starts=(0.0,), policy: str = "fair") -> Played:
    """`blocks` blocks of `warps` warps each, each `turns` times through; the mean of what comes out where each
    block begins a turn's `starts` after the one before it."""
    once = Player(chip, memory, policy).play([[ops] * warps], 2 if turns > 1 else 1).total / min(turns, 2)
    played = [Player(chip, memory, policy).play([[ops] * warps] * blocks, turns, start * once)
              for start in (starts if blocks > 1 else starts[:1])]

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    busy = {pipe: mean(p.busy[pipe] for p in played) for pipe in played[0].busy}
    return Played(mean(p.cycles for p in played), mean(p.total for p in played), busy)


class Player:
    """The state of a multiprocessor."""

    def __init__(self, chip: Chip, memory: Memory | None, policy: str = "fair"):
        if policy not in POLICIES:
            raise ValueError(f"{policy} is no policy: {', '.join(POLICIES)} are")
        self.policy = policy
        self.chip = chip
        self.memory = memory
        self.memory_free = 0.0
        # Warps by scheduler; when each pipe of a scheduler is free, when it itself is, which warp it took last.
        self.warps: list[list[tuple[Warp, list[Op]]]] = [[] for _ in range(SCHEDULERS)]
        self.free: list[dict[str, float]] = [{} for _ in range(SCHEDULERS)]
        self.next = [0.0] * SCHEDULERS
        self.last: list[Warp | None] = [None] * SCHEDULERS
        # When the memory instructions of a scheduler left its queue.
        self.queue = [[0.0] * int(chip.queue) for _ in range(SCHEDULERS)]
        self.shared_free = 0.0
        self.busy: dict[str, float] = {}
        self.arrived: dict[int, list[Warp]] = {}
        # Turns of warp groups, by block and group: warps that gave it, warps that wait for it.
        self.given: dict[tuple[int, int], int] = {}
        self.taking: dict[tuple[int, int], list[Warp]] = {}
        self.block_size: dict[int, int] = {}

    def soonest(self, s: int) -> tuple[float, Warp | None, list[Op] | None]:
        """Who issues next on a scheduler, and when."""
        now, free, last = self.next[s], self.free[s], self.last[s]
        best, chosen, code = float("inf"), None, None
        fair, greedy = self.policy == "fair", self.policy == "greedy"
        for x, ops in self.warps[s]:
            at = x.ready
            pipe = ops[x.at].pipe
            # Products of warp groups queue at the tensor cores.
            if pipe and pipe != "gmma":
                is_free = self.queue[s][0] if pipe == "mio" else free.get(pipe, 0.0)
                if pipe == "mufu":
                    is_free -= self.chip.mufu_ahead
                if is_free > at:
                    at = is_free
            if at < now:
                at = now
            if at < best or at == best and chosen is not None and (
                    x.issued < chosen.issued if fair else greedy and chosen is not last):
                best, chosen, code = at, x, ops
        return best, chosen, code

    def play(self, blocks: list[list[list[Op]]], turns: int, apart: float = 0.0) -> Played:
        """Each block is the code of each of its warps."""
        running = 0
        everyone = []
        for b, block in enumerate(blocks):
            self.block_size[b] = len(block)
            for w, ops in enumerate(block):
                x = Warp(apart * b, b, w // 4)
                everyone.append((x, ops))
                self.warps[w % SCHEDULERS].append((x, ops))
                running += 1
        issued, end_of_first = 0, None
        needed = sum(len(ops) for _, ops in everyone) * turns
        marks: list[tuple[float, float]] = []  # time, and turns that all warps had done by then

        def mark(t: float) -> None:
            marks.append((t, sum(x.turn + x.at / len(ops) for x, ops in everyone)))

        candidates = [self.soonest(s) for s in range(SCHEDULERS)]
        while running:
            s = min(range(SCHEDULERS), key=lambda i: candidates[i][0])
            t, x, ops = candidates[s]
            if x is None:
                raise ValueError("every warp waits at a barrier")
            issued += 1
            if issued == needed // 4:
                mark(t)
            touched = self.issue(s, t, x, ops[x.at])
            x.at += 1
            if x.at == len(ops):
                x.at = 0
                x.turn += 1
                x.ended = t
                if x.turn == turns:
                    running -= 1
                    x.ready = float("inf")
                    if end_of_first is None:
                        end_of_first = t
                        mark(t)
            wait = ops[x.at].wait
            if wait:
                for board in range(6):
                    if wait >> board & 1 and x.boards[board] > x.ready:
                        x.ready = x.boards[board]
            if touched:
                candidates = [self.soonest(i) for i in range(SCHEDULERS)]
            else:
                candidates[s] = self.soonest(s)
        total = max(x.ended for x, _ in everyone)
        mark(total)
        # While all of them run; where one of them starved the others, all of the time.
        (t0, done0), (t1, done1) = marks[0], marks[1] if len(marks) > 2 else marks[-1]
        if done1 < 0.7 * turns * len(everyone):
            (t0, done0), (t1, done1) = (0.0, 0.0), marks[-1]
        cycles = (t1 - t0) / (done1 - done0) * len(everyone) if turns > 1 else total
        busy = {pipe: n / total / (1 if pipe == "mio" else SCHEDULERS) for pipe, n in self.busy.items()}
        busy["issue"] = issued / total / SCHEDULERS
        return Played(cycles, total, busy)

    def issue(self, s: int, t: float, x: Warp, op: Op) -> bool:
        """Whether other schedulers are concerned."""
        touched = False
        self.next[s], self.last[s], x.issued = t + 1.0, x, t
        done = t + op.latency
        x.ready = t + op.stall
        pipe = op.pipe
        if pipe:
            self.busy[pipe] = self.busy.get(pipe, 0.0) + op.cycles
            if pipe == "mio":
                start = max(t, self.shared_free)
                self.shared_free = start + op.cycles
                queue = self.queue[s]
                queue.append(start)
                del queue[0]
                done = start + op.cycles + op.latency
            else:
                free = self.free[s]
                start = max(t, free.get(pipe, 0.0))
                free[pipe] = start + op.cycles
                done = start + op.latency
        kind = op.kind
        if kind:
            touched = self.special(s, t, x, op, kind)
        if op.write != NO_SCOREBOARD and done > x.boards[op.write]:
            x.boards[op.write] = done
        if op.read != NO_SCOREBOARD:
            read = done - op.latency + self.chip.operand_latency
            if read > x.boards[op.read]:
                x.boards[op.read] = read
        if op.jumps:
            x.ready += self.chip.branch
        return touched

    def special(self, s: int, t: float, x: Warp, op: Op, kind: str) -> bool:
        if kind == "copy":
            x.open += op.amount
        elif kind == "commit":
            there = t
            if self.memory and x.open:
                self.memory_free = max(self.memory_free, t) + x.open / self.memory.bytes_a_clock
                there = self.memory_free + self.memory.latency
            x.groups.append(there)
            del x.groups[:-16]
            x.open = 0.0
        elif kind == "wait_copies":
            if len(x.groups) > op.amount:
                x.ready = max(x.ready, x.groups[-1 - op.amount])
        elif kind == "gmma":
            x.gmma_open = self.free[s]["gmma"]
            if op.amount:
                x.gmma.append(x.gmma_open)
                del x.gmma[:-8]
        elif kind == "gmma_wait":
            if len(x.gmma) > op.amount:
                x.ready = max(x.ready, x.gmma[-1 - op.amount] + self.chip.gmma_wait)
        elif kind in ("arrive", "take_turn"):
            return self.turn(t, x, op, kind == "take_turn")
        elif kind == "bar" and self.block_size[x.block] > 1:
            others = self.arrived.setdefault(x.block, [])
            others.append(x)
            x.ready = float("inf")
            if len(others) == self.block_size[x.block]:
                for other in others:
                    other.ready = t + op.latency
                others.clear()
                return True
        return False

    def turn(self, t: float, x: Warp, op: Op, takes: bool) -> bool:
        """The four warps of a group wait until four of another have given them the turn. The first group has it."""
        groups = max(1, self.block_size[x.block] // 4)
        key = x.block, x.group if takes else (x.group + 1) % groups
        self.given.setdefault(key, 4 if key[1] == 0 else 0)
        waiting = self.taking.setdefault(key, [])
        if takes:
            waiting.append(x)
            x.ready = float("inf")
        else:
            self.given[key] += 1
        if self.given[key] < 4 or len(waiting) < 4:
            return False
        self.given[key] -= 4
        for other in waiting:
            other.ready = t + op.latency
        waiting.clear()
        return True
