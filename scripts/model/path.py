"""The common path through a kernel's main loop.

The main loop is the loop with the most tensor-core instructions and, of those, the shortest one.
Where the executor of PTX has counted executions, a branch goes where the counts say. Elsewhere the
path is the one that runs the most copies and products, avoids the source lines that
`decisions.txt` names (rare cases: rescaling, masking, the next work item), and is the longest of those left.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .sass import Instruction, Kernel

PRODUCTS = {"HMMA", "QMMA", "HGMMA", "QGMMA", "WARPGROUP"}
WANTED = {"HMMA", "QMMA", "HGMMA", "LDGSTS", "LDSM", "LDG", "MUFU", "SHFL", "UBLKCP", "UTMALDG",
          "SYNCS", "BAR"}
CONVERGE = {"BSYNC", "BSSY", "NOP", "WARPSYNC", "BRA"}
BRANCHES = {"BRA", "EXIT", "RET", "BRX", "JMP", "CALL"}
WANTED_WORTH, AVOIDED_COST = 1_000, 1_000_000


@dataclass(frozen=True)
class Decision:
    kernel: re.Pattern
    file: str
    line: re.Pattern


def read_decisions(path: Path) -> list[Decision]:
    decisions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(maxsplit=2)
        if len(fields) != 3:
            raise SystemExit(f"{path}:{number}: is not `kernel file line`")
        decisions.append(Decision(re.compile(fields[0]), fields[1], re.compile(fields[2])))
    return decisions


@cache
def source_lines(file: str) -> tuple[str, ...]:
    try:
        return tuple(Path(file).read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def avoids(decisions: list[Decision], kernel: str, instruction: Instruction) -> bool:
    """Whether a decision names the source line of an inlined call that the instruction is in."""
    for file, line in instruction.frames:
        for decision in decisions:
            if not file.endswith(decision.file) or not decision.kernel.search(kernel):
                continue
            lines = source_lines(file)
            if line <= len(lines) and decision.line.search(lines[line - 1]):
                return True
    return False


def successors(kernel: Kernel, at: int) -> list[int]:
    """Where the path can go after the instruction `at`."""
    instruction = kernel.instructions[at]
    following = [at + 1] if at + 1 < len(kernel.instructions) else []
    if instruction.mnemonic in ("EXIT", "RET"):
        return following if instruction.predicated else []
    if instruction.mnemonic != "BRA" or instruction.target not in kernel.labels:
        return following
    target = kernel.target(instruction)
    # Guards of warp-synchronous instructions: warps do not diverge here.
    if ".DIV" in instruction.opcode:
        return following
    if ".CONV" in instruction.opcode:
        return [target]
    # A second predicate operand also makes a branch conditional.
    conditional = instruction.predicated or re.search(r"BRA\S*\s+!?U?P\d", instruction.text)
    return [target, *following] if conditional else [target]


def blocks(kernel: Kernel) -> list[range]:
    """Basic blocks: runs of instructions that branches neither leave nor enter."""
    starts = {0, *kernel.labels.values()}
    starts |= {at + 1 for at, x in enumerate(kernel.instructions) if x.mnemonic in BRANCHES}
    cuts = sorted(x for x in starts if x < len(kernel.instructions)) + [len(kernel.instructions)]
    return [range(a, b) for a, b in zip(cuts, cuts[1:])]


@dataclass(frozen=True)
class Loop:
    start: int
    end: int  # of the branch back
    products: int


def loops(kernel: Kernel) -> list[Loop]:
    """Loops by their branches back; their bodies stand between."""
    products = [0]
    for instruction in kernel.instructions:
        products.append(products[-1] + (instruction.mnemonic in PRODUCTS))
    found = []
    for at, instruction in enumerate(kernel.instructions):
        if instruction.mnemonic == "BRA" and instruction.target in kernel.labels:
            start = kernel.target(instruction)
            if start < at:
                found.append(Loop(start, at, products[at + 1] - products[start]))
    return found


def main_loop(kernel: Kernel) -> Loop:
    candidates = [loop for loop in loops(kernel) if loop.products]
    if not candidates:
        raise SystemExit(f"kernel {kernel.name} has no loop with products of tensor cores")
    most = max(loop.products for loop in candidates)
    return min((x for x in candidates if x.products == most), key=lambda x: x.end - x.start)


def common_path(kernel: Kernel, loop: Loop, decisions=(), counts=None) -> list[Instruction]:
    """One turn of the loop. `counts` are executions by address, where known."""
    best: dict[int, tuple[float, int | None]] = {}
    worth = {}
    for block in blocks(kernel):
        # Single instructions of a rare case are hoisted into blocks that always run.
        # Those that converge threads have the line of whatever is near.
        body = [kernel.instructions[at] for at in block]
        rare = [avoids(decisions, kernel.name, x) for x in body if x.mnemonic not in CONVERGE]
        cost = AVOIDED_COST if sum(rare) * 2 > len(rare) else 0
        for at in block:
            wanted = kernel.instructions[at].mnemonic in WANTED
            worth[at] = (WANTED_WORTH if wanted else 0) + 1 - cost

    def choose(at: int) -> list[int]:
        following = successors(kernel, at)
        if counts and len(following) == 2:
            known = [counts.get(kernel.instructions[x].address) for x in following]
            if None not in known and known[0] != known[1]:
                return [following[known[1] > known[0]]]
        return following

    # Depth first without recursion: a body has thousands of instructions. Branches back to what
    # is being visited belong to inner loops, which the path passes once.
    visiting: set[int] = set()
    stack = [loop.start]
    while stack:
        at = stack[-1]
        if at in best:
            stack.pop()
            continue
        if at == loop.end:
            best[at] = (worth[at], None)
            stack.pop()
            continue
        if at not in visiting:
            visiting.add(at)
            waiting = [x for x in choose(at) if x not in best and x not in visiting]
            if waiting:
                stack.extend(waiting)
                continue
        ways = [(best[x][0], x) for x in choose(at) if x in best]
        value, following = max(ways, default=(float("-inf"), None))
        best[at] = (worth[at] + value, following)
        visiting.discard(at)
        stack.pop()
    if best[loop.start][0] == float("-inf"):
        raise SystemExit(f"kernel {kernel.name}: no path through the loop at {loop.start}")
    path, at = [], loop.start
    while at is not None:
        path.append(kernel.instructions[at])
        at = best[at][1]
    return path


CLASSES = {
    "tensor": {"HMMA", "QMMA", "HGMMA", "IMMA"},
    "shared": {"LDSM", "LDS", "STS", "STSM", "MOVM"},
    "copy": {"LDGSTS", "UBLKCP", "UTMALDG", "LDGDEPBAR"},
    "global": {"LDG", "STG", "LDL", "STL", "LD", "ST", "LDC", "ULDC", "LDCU", "ATOMG", "RED"},
    "shuffle": {"SHFL"},
    "mufu": {"MUFU"},
    "convert": {"F2FP", "F2F", "F2I", "I2F", "I2FP"},
    "float": {"FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "HADD2", "HMUL2", "HFMA2", "FMNMX3",
              "FADD2", "FMUL2", "FFMA2", "HMNMX2"},
    "control": {"BRA", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR", "VOTE", "VOTEU", "NOP", "BAR", "CALL",
                "RET", "EXIT", "YIELD", "BREAK", "SYNCS", "WARPGROUP"},
}
CLASS_OF = {mnemonic: name for name, members in CLASSES.items() for mnemonic in members}


def classes(path: list[Instruction]) -> dict[str, int]:
    """Instructions by class; integer arithmetic and moves are what no class has."""
    counted = dict.fromkeys([*CLASSES, "integer"], 0)
    for instruction in path:
        counted[CLASS_OF.get(instruction.mnemonic, "integer")] += 1
    return counted
