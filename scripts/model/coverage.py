"""The executor of PTX's counts: how often each block of a loop's machine code is run, of so many turns.

With INFLIGHT_PTX_COVERAGE=DIR the executor writes files of lines `kernel, ptx file, ptx line, source file:line, opcode,
warp executions, taken`, apart by tabs. The PTX says of every line where it is from and where that was inlined, and
nvdisasm says the same of machine code: a chain of source lines is counted by the one and found by the other.
What is kept of it, benches/record/model/counts.txt, has the texts of these lines, not their numbers, so it
outlives what is written above them; code without a count is taken to run in every turn until it is counted.
"""

import hashlib
import re
from collections import Counter
from functools import cache
from pathlib import Path
from statistics import median

from . import toolkit
from .flow import COPIES, TENSOR, Flow

KEPT = toolkit.ROOT / "benches/record/model/counts.txt"
ABOUT = """\
# How often code of the loops over keys is run, of so many turns: kernel, target of the PTX, share, and keys of the
# chains of source lines with that share. Made by scripts/kernel-model count; docs/notes/kernel-model.md.
"""
FIELDS = 7
# A block that is run in so many turns is on the usual way, or is not.
USUAL, RARE = 0.9, 0.1
# Of rows that were long enough to tell what is seldom run, so many turns copied keys of later ones.
LONG = 0.5
Chain = tuple[tuple[str, int], ...]

# ---- what the executor wrote

LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:, function_name \S+, inlined_at (\d+) (\d+) (\d+))?")
FILE = re.compile(r'\s*\.file\s+(\d+)\s+"([^"]+)"')


def chains(text: str) -> dict[int, Chain]:
    """Of each line of PTX: its source line, and where that was inlined, outwards."""
    files = {number: name.rpartition("/")[2] for number, name in FILE.findall(text)}
    outer: dict[tuple, tuple] = {}
    found: dict[int, Chain] = {}
    chain: Chain = ()
    for number, line in enumerate(text.splitlines(), 1):
        if said := LOC.match(line):
            place, into = said.group(1, 2, 3), said.group(4, 5, 6)
            outer[place] = into if into[0] else None
            made = []
            while place and len(made) < 16:
                made.append((files[place[0]], int(place[1])))
                place = outer.get(place)
            chain = tuple(made)
        elif line.strip():
            found[number] = chain
    return found


def read(folder: Path, name: str, target: str, ptx: Path) -> dict[Chain, int]:
    """Executions of a kernel's chains: the most of any of its lines of PTX."""
    files = sorted(folder.glob("*.tsv"))
    if not files:
        raise ValueError(f"{folder} has no counts: run the tests with INFLIGHT_PTX_COVERAGE={folder}")
    sums: Counter = Counter()
    for path in files:
        for number, row in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fields = row.split("\t")
            if len(fields) != FIELDS:
                raise ValueError(f"{path.name}:{number}: {len(fields)} fields, not {FIELDS}")
            if fields[0] == f"inflight_{name}" and fields[1] == f"{name}.{target}.ptx":
                sums[int(fields[2])] += int(fields[5])
    if not sums:
        raise ValueError(f"{folder} has no counts of {name} for {target}")
    places = chains((ptx / f"{name}.{target}.ptx").read_text(encoding="utf-8"))
    found: dict[Chain, int] = {}
    for line, executions in sums.items():
        chain = places.get(line, ())
        found[chain] = max(found.get(chain, 0), executions)
    return found


# ---- what is kept

@cache
def lines_of(file: str) -> list[str]:
    paths = sorted((toolkit.ROOT / "csrc").rglob(file))
    return [line.strip() for path in paths[:1] for line in path.read_text(encoding="utf-8").splitlines()]


def key(chain: Chain) -> str:
    """By the texts of its lines; by the number in a header of the toolkit."""
    texts = []
    for file, line in chain:
        lines = lines_of(file)
        texts.append(f"{file} {lines[line - 1] if line <= len(lines) else line}")
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:7]


def shares_of(flow: Flow, head: int, counts: dict[Chain, int]) -> dict[str, float]:
    """By key, of what a loop has: executions to a turn, which is one of its products'."""
    code = [x for block in flow.loops[head] for x in flow.code(block) if x.lines in counts]
    turns = max((counts[x.lines] for x in code if x.base in TENSOR), default=0)
    if not turns:
        raise ValueError(f"{flow.function.name}: its loop's products were never run")
    shares: dict[str, float] = {}
    for x in code:
        shares[key(x.lines)] = max(shares.get(key(x.lines), 0.0), round(counts[x.lines] / turns, 2))
    return shares


def write(kept: dict[tuple[str, str], dict[str, float]], path: Path = KEPT) -> None:
    text = ABOUT
    for (name, target), shares in sorted(kept.items()):
        by_share: dict[float, list[str]] = {}
        for key, share in shares.items():
            by_share.setdefault(share, []).append(key)
        for share, keys in sorted(by_share.items(), reverse=True):
            text += f"{name} {target} {share:.2f} {' '.join(sorted(keys))}\n"
    path.write_text(text, encoding="utf-8")


@cache
def kept(path: Path = KEPT) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        if not line.startswith("#"):
            fields = line.split()
            if len(fields) < 4:
                raise ValueError(f"{path.name}:{number}: not `kernel target share key...`")
            found.setdefault((fields[0], fields[1]), {}).update(dict.fromkeys(fields[3:], float(fields[2])))
    return found


# ---- what it says of a loop

def of_blocks(flow: Flow, head: int, shares: dict[str, float]) -> dict[int, float | None]:
    """How often each block of a loop is run to a turn; None of what has no count."""
    made = {}
    for block in flow.loops[head]:
        votes = [shares[k] for x in flow.code(block) if (k := key(x.lines)) in shares]
        # What was moved here from a line that runs more seldom, or more often, is outvoted.
        made[block] = median(votes) if votes else None
    return made


def decisions(flow: Flow, blocks: dict[int, float | None], at_will=()) -> tuple[set[int], set[int]]:
    """Blocks that turns usually run, and those that they do not; neither of what depends on the rows' lengths, as the
    lines `at_will` do. Where rows were so short that few turns copied, no block is known to be seldom run."""
    copied = max((share or 0.0 for block, share in blocks.items() if flow.count([block], COPIES)), default=0.0)
    told = {block: share for block, share in blocks.items()
            if not any(line in at_will for x in flow.code(block) for line in x.lines)}
    usual = {block for block, share in told.items() if share is None or share >= USUAL}
    return usual, {block for block, share in told.items() if share is not None and share <= RARE and copied > LONG}
