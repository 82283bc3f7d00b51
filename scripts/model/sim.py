"""Plays one turn of a loop on a multiprocessor: 4 schedulers that issue at most one instruction a
cycle each, pipes with issue intervals, the shared memory unit of all four, ptxas's stall counts and
scoreboards, barriers of a block, copies under way."""

import heapq
import re
from collections import defaultdict
from dataclasses import dataclass, field

from .chips import Chip
from .sass import NO_SCOREBOARD, Instruction

SCHEDULERS = 4
LDGSTS_BYTES = {"128": 512, "64": 256, "32": 128}


@dataclass(frozen=True)
class Step:
    """What the simulator needs of an instruction."""

    stall: int
    waits: tuple[int, ...]
    write: int
    read: int
    pipes: tuple[str, ...]  # any of these
    interval: float
    shared: float  # cycles of the shared memory unit
    latency: float
    kind: str
    operand: int = 0
    jumps: bool = False


def steps(path: list[Instruction], chip: Chip) -> list[Step]:
    made = []
    for at, x in enumerate(path):
        control = x.control
        following = path[(at + 1) % len(path)]
        kind, operand = "", 0
        if x.mnemonic == "LDGSTS":
            kind = "copy"
            width = re.search(r"\.(128|64|32)\b", x.opcode)
            operand = LDGSTS_BYTES[width[1] if width else "32"]
        elif x.mnemonic == "LDGDEPBAR":
            kind = "commit"
        elif x.mnemonic == "DEPBAR" and "SB0" in x.text:
            kind = "wait"
            operand = int(re.search(r"0x([0-9a-f]+)", x.text)[1], 16)
        elif x.mnemonic == "BAR" and ".SYNC" in x.opcode:
            kind = "barrier"
        pipes, interval = chip.pipe(x)
        made.append(
            Step(
                max(1, control.stall),
                tuple(b for b in range(6) if control.wait_mask >> b & 1),
                control.write_scoreboard,
                control.read_scoreboard,
                pipes,
                interval,
                chip.shared_cycles(x),
                chip.latency(x),
                kind,
                operand,
                following.address != x.address + 16,
            )
        )
    return made


@dataclass
class Warp:
    scheduler: int
    block: int
    ready: float
    at: int = 0
    turn: int = 0
    last_issue: float = -1
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    groups: list[float] = field(default_factory=list)
    copied: int = 0
    arrived: bool = False
    ends: list[float] = field(default_factory=list)


@dataclass
class Result:
    cycles: float  # per turn of a warp, with all warps running
    issue_share: float  # of the schedulers' cycles
    pipe_share: dict[str, float]  # busy share of pipes, and of the shared memory unit
    turns: int

    @property
    def bound_by(self) -> str:
        name, share = max(self.pipe_share.items(), key=lambda x: x[1])
        if self.issue_share > share:
            name, share = "issue", self.issue_share
        return name if share >= 0.85 else f"latency ({name} {share:.0%})"


def simulate(
    path: list[Instruction],
    chip: Chip,
    warps: int,
    block_warps: int = 4,
    turns: int = 6,
    warm: int = 2,
    bytes_per_cycle: float = 0.0,
) -> Result:
    """`warps` a scheduler. Copies take no time where `bytes_per_cycle` is 0, else memory's latency
    and a share of these bytes a cycle of the multiprocessor."""
    program = steps(path, chip)
    count = warps * SCHEDULERS
    all_warps = [
        Warp(i % SCHEDULERS, i // block_warps, float(i % SCHEDULERS * 7 + i // SCHEDULERS * 131))
        for i in range(count)
    ]
    by_scheduler = [[w for w in all_warps if w.scheduler == s] for s in range(SCHEDULERS)]
    of_block = defaultdict(list)
    for warp in all_warps:
        of_block[warp.block].append(warp)
    pipes = [defaultdict(float) for _ in range(SCHEDULERS)]
    busy = defaultdict(float)
    shared_free = memory_free = 0.0
    issued = 0
    queue = [(0.0, s) for s in range(SCHEDULERS)]
    scheduled = [0.0] * SCHEDULERS
    left = count

    def ready_of(warp: Warp) -> float:
        step = program[warp.at]
        ready = warp.ready
        for b in step.waits:
            ready = max(ready, warp.scoreboards[b])
        if step.kind == "wait" and len(warp.groups) > step.operand:
            ready = max(ready, warp.groups[-1 - step.operand])
        if step.pipes:
            free = pipes[warp.scheduler]
            ready = max(ready, min(free[p] for p in step.pipes))
        return ready

    def wake(scheduler: int, when: float) -> None:
        if when < scheduled[scheduler]:
            scheduled[scheduler] = when
            heapq.heappush(queue, (when, scheduler))

    while left and queue:
        now, s = heapq.heappop(queue)
        if now != scheduled[s]:
            continue
        scheduled[s] = float("inf")
        best, soonest = None, float("inf")
        for warp in by_scheduler[s]:
            if warp.turn >= turns and all(w.turn >= turns for w in all_warps):
                continue
            if warp.arrived:
                continue
            ready = ready_of(warp)
            if ready > now:
                soonest = min(soonest, ready)
            elif best is None or warp.last_issue < best.last_issue:
                best = warp
        if best is None:
            if soonest < float("inf"):
                wake(s, float(-(-soonest // 1)))
            continue
        warp, step = best, program[best.at]
        warp.last_issue = now
        issued += 1
        if step.pipes:
            pipe = min(step.pipes, key=lambda p: pipes[s][p])
            pipes[s][pipe] = max(pipes[s][pipe], now) + step.interval
            busy[pipe] += step.interval
        start = now
        if step.shared:
            shared_free = max(shared_free, now) + step.shared
            busy["shared memory"] += step.shared * SCHEDULERS
            start = shared_free
        if step.kind == "copy":
            warp.copied += step.operand
        elif step.kind == "commit":
            if bytes_per_cycle:
                memory_free = max(memory_free, now) + warp.copied / bytes_per_cycle
                warp.groups.append(memory_free + chip.memory_latency if warp.copied else now)
                del warp.groups[:-32]
            warp.copied = 0
        if step.write != NO_SCOREBOARD:
            warp.scoreboards[step.write] = max(warp.scoreboards[step.write], start + step.latency)
        if step.read != NO_SCOREBOARD:
            warp.scoreboards[step.read] = max(warp.scoreboards[step.read], start + chip.read_latency)
        warp.ready = now + step.stall + (chip.branch_latency if step.jumps else 0)
        warp.at += 1
        if warp.at == len(program):
            warp.at = 0
            warp.turn += 1
            warp.ends.append(now)
            if warp.turn == turns:
                left -= 1
        if step.kind == "barrier":
            warp.arrived = True
            block = of_block[warp.block]
            if all(w.arrived for w in block):
                for other in block:
                    other.arrived = False
                    other.ready = max(other.ready, now + chip.barrier_latency)
                    wake(other.scheduler, now + 1)
        wake(s, now + 1)
    # All warps run until the last has had its turns, so that none has the pipes to itself.
    cycles = sum((w.ends[turns - 1] - w.ends[warm - 1]) / (turns - warm) for w in all_warps) / count
    time = max(w.last_issue for w in all_warps) + 1
    shares = {name: value / (time * SCHEDULERS) for name, value in busy.items()}
    return Result(cycles, issued / (time * SCHEDULERS), shares, turns)
