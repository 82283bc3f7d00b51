"""The path through a kernel's code: blocks, loops, and the way that is usually taken.

Blocks that the executor of PTX counted in nearly every turn of a loop are on its way, those that it hardly ever
counted are not (coverage.py). Between these, and where nothing was counted, it is of all ways the one with most work
(products, copies), and of these the shortest. So masks and rescaling are left out, which add instructions and no
work. Other ways are asked for by lines of the source that they run through.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from .sass import Function, Instruction

# What counts as work: the products, exponentials and copies that a loop is there for.
TENSOR = ("HMMA", "IMMA", "QMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA")
COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")
WORK = TENSOR + COPIES + ("MUFU",)
ENDS = ("EXIT", "RET", "BRX", "JMP", "BPT", "KILL")


@dataclass
class Block:
    first: int
    last: int  # index of the last instruction
    successors: list[int] = field(default_factory=list)  # not taken, taken


def branches(x: Instruction) -> bool:
    """Where it is far to go, ptxas calls a label of the same function, and nothing returns."""
    return x.target is not None and x.base in ("BRA", "CALL")


def is_conditional(x: Instruction) -> bool:
    if x.predicate not in ("", "@PT", "@UPT"):
        return True
    if ".DIV" in x.opcode:
        return True
    # `BRA P1, ...` and `BRA.U !UP0, ...`
    return re.match(r"!?U?P\d", x.operands) is not None


class Flow:
    def __init__(self, function: Function):
        self.function = function
        code = function.instructions
        targets = {function.labels[x.target] for x in code if branches(x) and x.target in function.labels}
        starts = {0} | targets
        for i, x in enumerate(code):
            if branches(x) or x.base in ENDS:
                starts.add(i + 1)
        ordered = sorted(i for i in starts if i < len(code))
        self.blocks = [Block(first, (ordered + [len(code)])[n + 1] - 1) for n, first in enumerate(ordered)]
        self.at = {block.first: n for n, block in enumerate(self.blocks)}
        for n, block in enumerate(self.blocks):
            x = code[block.last]
            falls = x.base not in ENDS or x.predicate not in ("", "@PT")
            if branches(x):
                falls = is_conditional(x)
            if falls and n + 1 < len(self.blocks):
                block.successors.append(n + 1)
            # Slow ways of divergent warps are no ways at all.
            if branches(x) and x.target in function.labels and ".DIV" not in x.opcode:
                block.successors.append(self.at[function.labels[x.target]])

    def code(self, block: int) -> list[Instruction]:
        b = self.blocks[block]
        return self.function.instructions[b.first:b.last + 1]

    def exits(self, block: int) -> bool:
        return self.code(block)[-1].base == "EXIT"

    @cached_property
    def reachable(self) -> list[int]:
        """In postorder."""
        seen, order = {0}, []
        stack = [(0, iter(self.blocks[0].successors))]
        while stack:
            block, rest = stack[-1]
            for to in rest:
                if to not in seen:
                    seen.add(to)
                    stack.append((to, iter(self.blocks[to].successors)))
                    break
            else:
                order.append(block)
                stack.pop()
        return order

    @cached_property
    def dominators(self) -> dict[int, int]:
        """The immediate one of each block (Cooper, Harvey, Kennedy)."""
        number = {block: n for n, block in enumerate(self.reachable)}
        before: dict[int, list[int]] = {}
        for block in self.reachable:
            for to in self.blocks[block].successors:
                before.setdefault(to, []).append(block)
        found = {0: 0}
        changed = True
        while changed:
            changed = False
            for block in reversed(self.reachable):
                if block == 0:
                    continue
                new = None
                for a in before[block]:
                    if a not in found:
                        continue
                    if new is None:
                        new = a
                        continue
                    b = new
                    while a != b:
                        while number[a] < number[b]:
                            a = found[a]
                        while number[b] < number[a]:
                            b = found[b]
                    new = a
                if found.get(block) != new:
                    found[block] = new
                    changed = True
        return found

    def dominates(self, a: int, b: int) -> bool:
        while b != a and b != 0:
            b = self.dominators[b]
        return a == b

    @cached_property
    def loops(self) -> dict[int, set[int]]:
        """Blocks of each loop, by its header."""
        before: dict[int, list[int]] = {}
        for block in self.reachable:
            for to in self.blocks[block].successors:
                before.setdefault(to, []).append(block)
        loops: dict[int, set[int]] = {}
        for block in self.reachable:
            for header in self.blocks[block].successors:
                if not self.dominates(header, block):
                    continue
                body = loops.setdefault(header, {header})
                rest = [block]
                while rest:
                    x = rest.pop()
                    if x not in body:
                        body.add(x)
                        rest += before[x]
        return loops

    def count(self, blocks, bases) -> int:
        return sum(x.base in bases for block in blocks for x in self.code(block))

    def main_loops(self, work=TENSOR) -> list[int]:
        """Headers of the loops that have work and no loop with work inside, most work first; of equal ones
        the shorter first: masks make the other one longer."""
        having = {h: self.count(body, work) for h, body in self.loops.items()}
        inner = [h for h, n in having.items() if n > 0 and not any(
            other != h and other in self.loops[h] and having[other] > 0 for other in self.loops)]
        size = {h: sum(len(self.code(b)) for b in self.loops[h]) for h in inner}
        return sorted(inner, key=lambda h: (-having[h], size[h]))

    def walk(self, start: int, ends, within=None, asked=(), shunned=(), work=WORK, usual=(), rare=()):
        """The blocks of the way from `start` to an edge that `ends(from, to)` says is the last (`to` is None at
        an EXIT), or None if there is none. `asked` and `shunned` are (file, line) of the source, `usual` and
        `rare` blocks of which counts say that they are run, or not."""
        asked, shunned = set(asked), set(shunned)
        value: dict[int, float] = {}

        def worth(block: int) -> float:
            if block not in value:
                points = 0.0
                for x in self.code(block):
                    points += 1000 * (x.base in work) - 1
                    if x.base in ("NANOSLEEP", "BPT") or x.base == "CALL" and not branches(x):
                        points -= 1e5
                    # A line that was asked for is where it is written, not where it is called from.
                    if asked and asked & set(x.lines):
                        points += 1e8
                    if shunned and shunned & set(x.lines):
                        points -= 1e8
                value[block] = points + 1e6 * (block in usual) - 1e6 * (block in rare)
            return value[block]

        order = {block: n for n, block in enumerate(self.reachable)}
        best: dict[int, tuple[float, int | None]] = {}
        nothing = float("-inf")
        # Postorder: successors first, but for edges back, which are no way.
        for block in self.reachable:
            if within is not None and block not in within:
                continue
            found = (nothing, None)
            if self.exits(block) and ends(block, None):
                found = (0.0, None)
            for to in self.blocks[block].successors:
                if ends(block, to):
                    if found[0] < 0.0:
                        found = (0.0, -1 - to)
                elif order[to] < order[block] and to in best and best[to][0] > found[0]:
                    found = (best[to][0], to)
            best[block] = (found[0] + worth(block), found[1])
        if best.get(start, (nothing, None))[0] == nothing:
            return None
        way = [start]
        while (to := best[way[-1]][1]) is not None and to >= 0:
            way.append(to)
        return way

    def loop_way(self, header: int, **rules):
        """Once around."""
        return self.walk(header, lambda _, to: to == header, within=self.loops[header], **rules)

    def trace(self, way: list[int]) -> list[Instruction]:
        return [x for block in way for x in self.code(block)]
